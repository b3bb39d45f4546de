//! `aztec-cache extract`

use crate::cli::ExtractArgs;
use crate::commands::engine::{hand_over, refuse_disabled, start};
use crate::engine::{Engine, key};
use crate::error::{Error, Kind, Result};
use crate::extract::{self, Failure, Sink};
use crate::object::Key;
use crate::verify::{Finding, examine};

/// Unpacks the artifact while it arrives. If it turns out that the local file is damaged, once more from a new one.
///
/// # Errors
/// It isn't there: then no directory is made. It can't be had whole, is damaged, or leads out of the directory; the
/// directory can't be written.
pub fn run(args: &ExtractArgs) -> Result<()> {
    let key = key(&args.name)?;
    refuse_disabled(&key)?;
    let engine = start(&args.engine)?;
    let unpacked = match unpack(&engine, &key, args) {
        Err(Failure::Archive(_)) if is_mended(&engine, &key) => unpack(&engine, &key, args),
        other => other,
    };
    unpacked.map_err(|failure| match failure {
        Failure::Archive(what) => Error::new(Kind::Damaged, format!("{key}: {what}")),
        Failure::Other(error) => error,
    })
}

fn unpack(engine: &Engine, key: &Key, args: &ExtractArgs) -> extract::Result<()> {
    let file = engine.wait(engine.open(key))?;
    let feed = |sink: &mut Sink| hand_over(engine, &file, &mut |piece| Ok(sink(piece)));
    extract::extract(&args.dir, feed)
}

/// Whether a local file is damaged, not only unpleasant, and was moved out of the way: the next one is fetched.
fn is_mended(engine: &Engine, key: &Key) -> bool {
    let Some(cache) = &engine.cache else { return false };
    match examine(cache, key, &mut |_| {}) {
        Ok(Finding::Damaged(why)) => cache.quarantine(key, &why),
        Ok(Finding::Right | Finding::Unknown) | Err(_) => false,
    }
}
