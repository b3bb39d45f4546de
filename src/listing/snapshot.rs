//! The last known listing of a directory, kept on disk: what `ls` shows while the remote can't be asked.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::cache::CacheDir;
use crate::coherence::Served;
use crate::listing::pages::Entry;
use crate::object::ETag;
use crate::store::{ListedObject, Page};

/// A listing is not written more often than that.
const PERIOD: Duration = Duration::from_secs(60);
/// Objects read at a time.
const PAGE: usize = 1000;

/// A line of the file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// Name, ETag, size, and when it was written, in nanoseconds since 1970.
    Object(String, String, u64, u64),
    Dir([String; 1]),
    /// The remote that the objects after it are of.
    Source {
        source: String,
    },
}

/// What the listing of `dir` at the remote `url` is kept under.
fn name(url: &str, dir: &str) -> String {
    format!("{url}\n{dir}")
}

/// Keeps the `pages` of a listing that is whole and holds what the remote has, unless that was done a moment ago. Blocks on the disk.
pub fn save(cache: &CacheDir, url: &str, dir: &str, pages: &[Arc<[Entry]>]) {
    let saved = cache.save_note(&name(url, dir), PERIOD, |file| {
        let mut out = BufWriter::new(file);
        let mut source = "";
        for entry in pages.iter().flat_map(|page| page.iter()) {
            write(&mut out, entry, &mut source)?;
        }
        out.flush()
    });
    if let Err(e) = saved {
        log::debug!("the listing of {url}{dir} can't be kept: {e}");
    }
}

fn write<'a>(out: &mut impl Write, entry: &'a Entry, source: &mut &'a str) -> io::Result<()> {
    let line = match entry {
        Entry::Dir(name) => Line::Dir([name.to_string()]),
        Entry::File(Served::Local { version, .. }) if version.etag.is_local() => return Ok(()),
        Entry::File(served) => {
            let version = served.version();
            if *source != &*version.source {
                *source = &version.source;
                write_line(out, &Line::Source { source: (*source).to_owned() })?;
            }
            let since = version.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let modified = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
            Line::Object(
                version.key.name().to_owned(),
                version.etag.as_str().to_owned(),
                version.size,
                modified,
            )
        }
    };
    write_line(out, &line)
}

fn write_line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// The listing that was kept, page by page; nothing when there is none. Blocks on the disk.
pub fn load(cache: &CacheDir, url: &str, dir: &str, add: &mut dyn FnMut(Page)) -> io::Result<bool> {
    let Some(file) = cache.open_note(&name(url, dir)) else { return Ok(false) };
    let mut page = Page::default();
    for line in BufReader::new(file).lines() {
        match serde_json::from_str(&line?)? {
            Line::Dir([name]) => page.dirs.push(name),
            Line::Source { source } => {
                let next = Page { source: source.into(), ..Page::default() };
                add(std::mem::replace(&mut page, next));
            }
            Line::Object(name, etag, size, modified) => {
                let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(modified);
                page.objects.push(ListedObject { name, etag: ETag::new(&etag), size, modified });
            }
        }
        if page.objects.len() + page.dirs.len() == PAGE {
            let next = Page { source: page.source.clone(), ..Page::default() };
            add(std::mem::replace(&mut page, next));
        }
    }
    add(page);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format on disk. If this fails, either the change was not meant, or bump the format version.
    #[test]
    fn golden() {
        let lines = [
            (Line::Dir(["dir".into()]), r#"["dir"]"#),
            (Line::Source { source: "s3://b/".into() }, r#"{"source":"s3://b/"}"#),
            (Line::Object("a.zst".into(), "\"e\"".into(), 7, 9), r#"["a.zst","\"e\"",7,9]"#),
        ];
        for (line, text) in lines {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<Line>(text).unwrap(), line);
        }
    }
}
