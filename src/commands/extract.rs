//! `aztec-cache extract`

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::cache::CacheDir;
use crate::cli::ExtractArgs;
use crate::commands::engine::{Start, hand_over, refuse_disabled};
use crate::config::LogOptions;
use crate::engine::{Engine, key};
use crate::error::{Error, Kind, Result};
use crate::extract::{self, Failure, Sink};
use crate::logging;
use crate::object::Key;
use crate::verify::{Finding, examine};

/// The name that stands for an archive on standard input.
const STDIN: &str = "-";

/// Unpacks the artifact while it arrives. If it turns out that the local file is damaged, once more from a new one.
///
/// # Errors
/// It isn't there: then no directory is made. It can't be had whole, is damaged, or leads out of the directory; the
/// directory can't be written.
pub fn run(args: &ExtractArgs) -> Result<()> {
    if args.name == STDIN {
        return from_stdin(args);
    }
    let key = key(&args.name)?;
    refuse_disabled(&key)?;
    let start = Start::new(&args.engine)?;
    unpack_artifact(start, &key, &args.dir).map_err(|failure| error(&args.name, failure))
}

fn from_stdin(args: &ExtractArgs) -> Result<()> {
    logging::start(&LogOptions::new(&args.engine, &|name| std::env::var_os(name))?, true)?;
    let shown = "standard input";
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let stdin = File::from(stdin.map_err(|e| Error::local(format!("can't read {shown}"), &e))?);
    extract::extract_file(&args.dir, stdin, shown).map_err(|failure| error(shown, failure))
}

/// Unpacks the artifact `key` into `dir`. If it turns out that the local file is damaged, once more from a new one.
///
/// # Errors
/// As for [`run`].
pub fn unpack_artifact(start: Start, key: &Key, dir: &Path) -> extract::Result<()> {
    // What is complete here takes no remote, nor what it takes to ask one.
    if let Some(file) = start.local_file(key) {
        match extract::extract_file(dir, file, key.as_str()) {
            Err(Failure::Archive(_)) if is_mended(start.cache.as_deref(), key) => {}
            other => return other,
        }
    }
    let engine = start.engine()?;
    match unpack(&engine, key, dir) {
        Err(Failure::Archive(_)) if is_mended(engine.cache.as_deref(), key) => unpack(&engine, key, dir),
        other => other,
    }
}

fn unpack(engine: &Engine, key: &Key, dir: &Path) -> extract::Result<()> {
    let file = engine.wait(engine.open(key))?;
    // While it arrives there is nothing to gain.
    if extract::is_small(file.version().size) {
        engine.wait(file.finished())?;
        if let Some(local) = engine.cache.as_ref().and_then(|cache| cache.open_version(file.version())) {
            return extract::extract_file(dir, local, key.as_str());
        }
    }
    let feed = |sink: &mut Sink| hand_over(engine, &file, &mut |piece| Ok(sink(piece)));
    extract::extract(dir, feed)
}

/// Whether a local file is damaged, not only unpleasant, and was moved out of the way: the next one is fetched.
pub fn is_mended(cache: Option<&CacheDir>, key: &Key) -> bool {
    let Some(cache) = cache else { return false };
    match examine(cache, key, &mut |_| {}) {
        Ok(Finding::Damaged(why)) => cache.quarantine(key, &why),
        Ok(Finding::Right | Finding::Unknown) | Err(_) => false,
    }
}

/// What is said of `failure`, by the name of what was to be unpacked.
pub fn error(what: &str, failure: Failure) -> Error {
    match failure {
        Failure::Archive(why) => Error::new(Kind::Damaged, format!("{what}: {why}")),
        Failure::Other(error) => error,
    }
}
