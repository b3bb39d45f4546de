//! The start that commands without a mount have in common.

use std::sync::Arc;

use crate::cache::CacheDir;
use crate::cli::{EngineArgs, LocalArgs};
use crate::config::{self, EngineConfig, LocalConfig};
use crate::engine::{Engine, open_cache};
use crate::error::{Error, Kind, Result};
use crate::logging;

/// Names that are asked about, or fetched, at a time.
pub const AT_ONCE: usize = 16;

/// Reads the settings, begins to log and wires up the rest. Asks nothing yet.
///
/// # Errors
/// Wrong settings.
pub fn start(args: &EngineArgs) -> Result<Engine> {
    start_with(&EngineConfig::new(args, &|name| std::env::var_os(name))?)
}

/// The same with settings that have been read.
///
/// # Errors
/// A certificate file that can't be read.
pub fn start_with(config: &EngineConfig) -> Result<Engine> {
    logging::start(&config.log, true)?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    // Without a home no mount is where one is by default.
    let mountpoint = config::mountpoint(None, &|name| std::env::var_os(name)).ok();
    Engine::new(config, mountpoint.as_deref())
}

/// The local cache, for a command that has nothing to do without one.
///
/// # Errors
/// There is none, or it can't be written.
pub fn local_cache(engine: &Engine) -> Result<Arc<CacheDir>> {
    match &engine.cache {
        Some(cache) => writable(cache.clone()),
        None => Err(no_cache()),
    }
}

/// The same for a command that asks no remote.
///
/// # Errors
/// Wrong settings, or no local cache that can be written.
pub fn local(args: &LocalArgs) -> Result<Arc<CacheDir>> {
    let env = |name: &str| std::env::var_os(name);
    let config = LocalConfig::new(args, &env)?;
    logging::start(&config.log, true)?;
    let mountpoint = config::mountpoint(None, &env).ok();
    match open_cache(config.cache_dir.as_deref(), config.space, mountpoint.as_deref()) {
        Some(cache) => writable(Arc::new(cache)),
        None => Err(no_cache()),
    }
}

fn writable(cache: Arc<CacheDir>) -> Result<Arc<CacheDir>> {
    if cache.is_writable() {
        return Ok(cache);
    }
    let dir = cache.path().display();
    Err(Error::new(Kind::Local, format!("{dir}: can't be written; name another --cache-dir")))
}

fn no_cache() -> Error {
    Error::usage("no local cache; set CACHE_LOCAL_DIR or --cache-dir")
}

/// Whether the shell layer was told to do without caches.
pub fn is_disabled() -> bool {
    std::env::var_os("NO_CACHE").is_some_and(|value| value == "1")
}
