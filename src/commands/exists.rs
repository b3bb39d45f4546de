//! `aztec-cache exists`

use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::stream;

use crate::cli::ExistsArgs;
use crate::commands::engine::{AT_ONCE, is_disabled, start};
use crate::engine::{Engine, key};
use crate::error::{Error, Kind, Result};

/// Whether all names exist: the exit code, 1 when one doesn't, another when that can't be told of one.
///
/// # Errors
/// Wrong settings or names.
pub fn run(args: &ExistsArgs) -> Result<u8> {
    if is_disabled() {
        return Ok(1);
    }
    let engine = start(&args.engine)?;
    engine.wait(async {
        prepare(&engine, &args.names).await;
        Ok(ask_all(&engine, &args.names).await)
    })
}

/// Lists directories of which more names are to be asked about than at a time: one listing may answer all.
async fn prepare(engine: &Engine, names: &[String]) {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for key in names.iter().filter_map(|name| key(name).ok()).filter(|key| !engine.is_here(key)) {
        *counts.entry(key.dir().to_owned()).or_default() += 1;
    }
    let dirs = counts.iter().filter(|(_, count)| **count > AT_ONCE).map(|(dir, _)| dir);
    stream::iter(dirs).for_each_concurrent(AT_ONCE, |dir| engine.listings.prepare(dir)).await;
}

async fn ask_all(engine: &Engine, names: &[String]) -> u8 {
    let asked = stream::iter(names).map(|name| exists(engine, name)).buffer_unordered(AT_ONCE);
    let codes = asked.map(|answer| match answer {
        Ok(()) => 0,
        Err(error) if error.kind() == Kind::NotFound => 1,
        Err(error) => {
            eprintln!("aztec-cache: {error}");
            error.exit_code()
        }
    });
    codes.fold(0, |worst, code| async move { worst.max(code) }).await
}

async fn exists(engine: &Engine, name: &str) -> Result<(), Error> {
    engine.exists(&key(name)?).await
}
