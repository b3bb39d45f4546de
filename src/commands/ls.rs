//! `aztec-cache ls`

use std::io::{self, BufWriter, ErrorKind, Write};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::cli::LsArgs;
use crate::coherence::Served;
use crate::commands::engine::start;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::listing::Entry;
use crate::object::Key;

/// Lists the names that begin with a prefix, up to the next slash.
///
/// # Errors
/// The directory can't be listed.
pub fn run(args: &LsArgs) -> Result<()> {
    let engine = start(&args.engine)?;
    let (dir, begin) = args.prefix.rsplit_once('/').unwrap_or(("", &args.prefix));
    if !dir.is_empty() && Key::new(dir).is_err() {
        return Err(Error::usage(format!("PREFIX: '{}' is no directory's name", dir.escape_debug())));
    }
    let mut entries =
        if args.cached { local_entries(&engine, dir) } else { engine.wait(entries(&engine, dir))? };
    entries.retain(|entry| entry.name().starts_with(begin));
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    let path = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
    let mut out = BufWriter::new(io::stdout().lock());
    let written = if args.json {
        let entries: Vec<Value> =
            entries.iter().map(|entry| in_json(&engine, entry, &path(entry.name()))).collect();
        serde_json::to_writer_pretty(&mut out, &entries).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        entries.iter().try_for_each(|entry| line(&engine, &mut out, entry, &path(entry.name()), args.long))
    };
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::local("can't write to stdout", &e)),
        _ => Ok(()),
    }
}

/// What is known to lie in `dir`, here and there.
async fn entries(engine: &Engine, dir: &str) -> Result<Vec<Entry>> {
    let listing = engine.listings.get(dir);
    let mut entries = Vec::new();
    loop {
        let slice = listing.wait(entries.len()).await?;
        if slice.entries().is_empty() {
            return Ok(entries);
        }
        entries.extend_from_slice(slice.entries());
    }
}

/// What lies complete in the cache directory.
fn local_entries(engine: &Engine, dir: &str) -> Vec<Entry> {
    let Some(cache) = &engine.cache else { return Vec::new() };
    let names = cache.names(dir);
    let file =
        |name: &String| cache.lookup(&Key::in_dir(dir, name).ok()?).map(|file| Entry::File(file.into()));
    let files: Vec<Entry> = names.files.iter().filter_map(file).collect();
    names.dirs.into_iter().map(|name| Entry::Dir(name.into())).chain(files).collect()
}

fn line(engine: &Engine, out: &mut impl Write, entry: &Entry, path: &str, long: bool) -> io::Result<()> {
    let path = path.escape_debug();
    match entry {
        Entry::Dir(_) if long => writeln!(out, "{:>14}  {:20}  {:14}  {path}/", "-", "-", "-"),
        Entry::Dir(_) => writeln!(out, "{path}/"),
        Entry::File(served) if long => {
            let (size, written) = (served.version().size, time(served.version().modified));
            writeln!(out, "{size:>14}  {written:20}  {:14}  {path}", state(engine, served))
        }
        Entry::File(_) => writeln!(out, "{path}"),
    }
}

fn in_json(engine: &Engine, entry: &Entry, path: &str) -> Value {
    let Entry::File(served) = entry else { return json!({ "name": path, "type": "directory" }) };
    let version = served.version();
    let etag = (!version.etag.is_local()).then(|| version.etag.as_str());
    json!({
        "name": path,
        "type": "file",
        "size": version.size,
        "modified": time(version.modified),
        "state": state(engine, served),
        "etag": etag,
        "source": &*version.source,
    })
}

/// Of what is complete here it is asked whether it is still to be uploaded. Others' downloads are not looked for.
fn state(engine: &Engine, served: &Served) -> &'static str {
    if served.is_local() { engine.state(served).name() } else { "remote" }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
