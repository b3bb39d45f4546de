//! `aztec-cache prefetch`

use std::collections::HashSet;
use std::io::{self, Read};

use bytesize::ByteSize;
use futures_util::StreamExt;
use futures_util::stream;

use crate::cache::CacheDir;
use crate::cli::PrefetchArgs;
use crate::commands::engine::{AT_ONCE, local_cache, start};
use crate::commands::progress::Progress;
use crate::engine::{Engine, key};
use crate::error::{Error, Kind, Result};

/// Stands for names on stdin.
const STDIN: &str = "-";

/// Fetches all names; the exit code of the worst. One that fails is said and doesn't stop the others.
///
/// # Errors
/// Wrong settings, or nowhere to keep anything.
pub fn run(args: &PrefetchArgs) -> Result<u8> {
    let engine = start(&args.engine)?;
    let names = names(&args.names)?;
    let cache = local_cache(&engine)?;
    let mut tally = Tally::new(names.len());
    engine.wait(async {
        let mut fetched =
            stream::iter(&names).map(|name| fetch(&engine, &cache, name)).buffer_unordered(AT_ONCE);
        let mut worst = 0;
        while let Some(result) = fetched.next().await {
            if let Err(error) = &result {
                worst = worst.max(error.exit_code());
            }
            tally.note(result);
        }
        Ok(worst)
    })
}

/// The names given, each once, those on stdin too.
fn names(args: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for arg in args {
        if arg == STDIN {
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Error::usage(format!("stdin: {e}; write a name on each line")))?;
            names.extend(text.split_whitespace().map(str::to_owned));
        } else {
            names.push(arg.clone());
        }
    }
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

/// Fetches one; its size in bytes.
async fn fetch(engine: &Engine, cache: &CacheDir, name: &str) -> Result<u64> {
    let key = key(name)?;
    let file = engine.open(&key).await?;
    file.finished().await?;
    if cache.lookup(&key).is_none() {
        return Err(Error::new(
            Kind::Local,
            format!("{key}: fetched, but not kept; see --max-cache-size, --min-free and -v"),
        ));
    }
    Ok(file.version().size)
}

/// How far it is.
struct Tally {
    progress: Progress,
    all: usize,
    done: usize,
    failed: usize,
    bytes: u64,
}

impl Tally {
    fn new(all: usize) -> Tally {
        let tally = Tally { progress: Progress::new(), all, done: 0, failed: 0, bytes: 0 };
        tally.show();
        tally
    }

    fn note(&mut self, result: Result<u64>) {
        self.done += 1;
        match result {
            Ok(bytes) => self.bytes += bytes,
            Err(error) => {
                self.failed += 1;
                self.progress.say(&format!("aztec-cache: {error}"));
            }
        }
        self.show();
    }

    fn show(&self) {
        let failed = if self.failed > 0 { format!(", {} failed", self.failed) } else { String::new() };
        let text = format!("{} of {}, {}{failed}", self.done, self.all, ByteSize(self.bytes));
        self.progress.show(&text);
        if self.done == self.all {
            self.progress.end();
        }
    }
}
