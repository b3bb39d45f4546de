//! `aztec-cache verify`

use std::io::{self, ErrorKind, Write};

use bytesize::ByteSize;

use crate::cache::CacheDir;
use crate::cli::VerifyArgs;
use crate::commands::engine::{local_cache, start};
use crate::commands::progress::Progress;
use crate::engine::{Engine, key};
use crate::error::{Error, Kind, Result};
use crate::object::Key;
use crate::verify::{Finding, Politeness, examine};

/// Reads cached files against what is recorded of them; 1 when one is damaged, or missing.
///
/// # Errors
/// Wrong settings, or no local cache.
pub fn run(args: &VerifyArgs) -> Result<u8> {
    let engine = start(&args.engine)?;
    let cache = local_cache(&engine)?;
    let keys = match args.names.as_slice() {
        [] => all(&cache),
        names => names.iter().map(|name| key(name)).collect::<Result<_>>()?,
    };
    let mut check = Check {
        engine: &engine,
        cache: &cache,
        repair: args.repair,
        named: !args.names.is_empty(),
        progress: Progress::new(),
        tally: Tally::default(),
    };
    for (index, key) in keys.iter().enumerate() {
        check.file(key, &format!("{} of {}", index + 1, keys.len()))?;
    }
    let Tally { files, bytes, damaged, unknown, worst } = check.tally;
    check.progress.say(&format!(
        "aztec-cache: {files} verified, {}: {damaged} damaged, {unknown} with nothing to compare them with",
        ByteSize(bytes)
    ));
    Ok(worst)
}

/// A run of the command.
struct Check<'a> {
    engine: &'a Engine,
    cache: &'a CacheDir,
    repair: bool,
    /// The files were named, so none may be missing.
    named: bool,
    progress: Progress,
    tally: Tally,
}

/// What has been found so far.
#[derive(Default)]
struct Tally {
    files: u64,
    bytes: u64,
    damaged: u64,
    unknown: u64,
    /// The exit code of the worst that happened.
    worst: u8,
}

impl Check<'_> {
    fn file(&mut self, key: &Key, position: &str) -> Result<()> {
        /// Shown again after so many bytes: a terminal is slow.
        const STEP: u64 = 16 << 20;
        let mut politeness = Politeness::new(None);
        let show = |bytes| self.progress.show(&format!("{position}, {}: {key}", ByteSize(bytes)));
        show(self.tally.bytes);
        let (mut read, begun) = (0, self.tally.bytes);
        let finding = examine(self.cache, key, &mut |bytes| {
            if read / STEP != (read + bytes) / STEP {
                show(begun + read);
            }
            read += bytes;
            politeness.wait(bytes);
        });
        self.tally.bytes += read;
        match finding {
            Ok(finding) => self.note(key, &finding),
            // Evicted or removed since it was listed.
            Err(e) if e.kind() == ErrorKind::NotFound && !self.named => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.fail(1, &format!("{key}: not in the local cache"));
                Ok(())
            }
            Err(e) => {
                self.fail(5, &format!("{key}: can't be read: {e}"));
                Ok(())
            }
        }
    }

    fn fail(&mut self, code: u8, what: &str) {
        self.tally.worst = self.tally.worst.max(code);
        self.progress.say(&format!("aztec-cache: {what}"));
    }

    fn note(&mut self, key: &Key, finding: &Finding) -> Result<()> {
        self.tally.files += 1;
        let why = match finding {
            Finding::Right => return Ok(()),
            Finding::Unknown => {
                self.tally.unknown += 1;
                return Ok(());
            }
            Finding::Damaged(why) => why,
        };
        self.tally.damaged += 1;
        self.tally.worst = self.tally.worst.max(1);
        let outcome = match self.repair.then(|| replace(self.engine, self.cache, key, why)) {
            None => String::new(),
            Some(Ok(())) => "; fetched again".to_owned(),
            Some(Err(error)) => {
                self.tally.worst = self.tally.worst.max(error.exit_code());
                format!("; not fetched again: {error}")
            }
        };
        self.progress.show("");
        let line = writeln!(io::stdout(), "{key}: {finding}{outcome}");
        line.map_err(|e| Error::local("can't write to stdout", &e))
    }
}

fn all(cache: &CacheDir) -> Vec<Key> {
    let mut keys = Vec::new();
    cache.for_each(&mut |key| keys.push(key));
    keys.sort();
    keys
}

/// Moves the damaged file out of the way and fetches another.
fn replace(engine: &Engine, cache: &CacheDir, key: &Key, why: &str) -> Result<()> {
    if !cache.quarantine(key, why) {
        return Err(Error::new(Kind::Local, format!("{key}: it can't be moved out of the way")));
    }
    engine.wait(async {
        let file = engine.open(key).await?;
        file.finished().await
    })
}
