//! `aztec-cache exists`

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
    engine.wait(async { Ok(ask_all(&engine, &args.names).await) })
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
    engine.find(&key(name)?).await.map(drop)
}
