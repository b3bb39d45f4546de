//! The start that commands without a mount have in common.

use std::fs::File;
use std::mem::replace;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::CacheDir;
use crate::cli::{EngineArgs, LocalArgs};
use crate::coherence::{Coherence, Local};
use crate::config::{self, EngineConfig, Env, LocalConfig};
use crate::engine::{Engine, open_cache};
use crate::error::{Error, Kind, Result};
use crate::handles::OpenFile;
use crate::logging;
use crate::object::Key;

/// Names that are asked about, or fetched, at a time.
pub const AT_ONCE: usize = 16;

/// What a command has before it has to do with a remote.
pub struct Start {
    config: EngineConfig,
    /// The local cache, if there is one.
    pub cache: Option<Arc<CacheDir>>,
}

impl Start {
    /// Reads the settings, begins to log and opens the local cache.
    ///
    /// # Errors
    /// Wrong settings.
    pub fn new(args: &EngineArgs) -> Result<Start> {
        Start::with_env(args, &|name| std::env::var_os(name))
    }

    /// The same with another environment.
    ///
    /// # Errors
    /// Wrong settings.
    pub fn with_env(args: &EngineArgs, env: Env) -> Result<Start> {
        Start::with(EngineConfig::new(args, env)?)
    }

    fn with(config: EngineConfig) -> Result<Start> {
        logging::start(&config.log, true)?;
        for warning in &config.warnings {
            log::warn!("{warning}");
        }
        // Without a home no mount is where one is by default. Nothing in the cache is taken for it.
        let mountpoint = config::mountpoint(None, &|name| std::env::var_os(name)).ok();
        let cache = open_cache(config.cache_dir.as_deref(), config.space, mountpoint.as_deref());
        Ok(Start { config, cache: cache.map(Arc::new) })
    }

    /// The local file of `key`, if it is complete and served unasked.
    pub fn local_file(&self, key: &Key) -> Option<File> {
        let cache = self.cache.as_ref()?;
        match Coherence::new(self.cache.clone(), self.config.revalidate).local(key) {
            Local::Serve(found) => cache.reopen(key, found.id),
            Local::Ask(_) | Local::Verify(_) | Local::Nothing => None,
        }
    }

    /// Wires up the rest. Asks nothing yet.
    ///
    /// # Errors
    /// A certificate file that can't be read.
    pub fn engine(self) -> Result<Engine> {
        Engine::new(&self.config, self.cache)
    }
}

/// Reads the settings, begins to log and wires up the rest. Asks nothing yet.
///
/// # Errors
/// Wrong settings.
pub fn start(args: &EngineArgs) -> Result<Engine> {
    Start::new(args)?.engine()
}

/// The same with settings that have been read.
///
/// # Errors
/// A certificate file that can't be read.
pub fn start_with(config: EngineConfig) -> Result<Engine> {
    Start::with(config)?.engine()
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

/// Hands all bytes of `file` to `take`, in order, until that has enough. The last ones come only once it is certain that
/// they are all there and right: nobody takes a broken file for whole.
///
/// # Errors
/// They can't be had, and `take`'s.
pub fn hand_over(
    engine: &Engine,
    file: &OpenFile,
    take: &mut dyn FnMut(Bytes) -> Result<bool>,
) -> Result<()> {
    /// What is read at a time, in bytes; so much is held back at the end.
    const CHUNK: u32 = 1 << 20;
    let (mut at, mut held) = (0, Bytes::new());
    loop {
        let chunk = engine.wait(file.read(at, CHUNK).wait())?;
        if chunk.is_empty() {
            break;
        }
        at += chunk.len() as u64;
        if !take(replace(&mut held, chunk))? {
            return Ok(());
        }
    }
    engine.wait(file.finished())?;
    take(held).map(drop)
}

/// Refuses to give `key` when the shell layer was told to do without caches.
///
/// # Errors
/// `NotFound`, in the shell layer's words.
pub fn refuse_disabled(key: &Key) -> Result<()> {
    if is_disabled() {
        return Err(Error::new(Kind::NotFound, format!("Not using cache for {key} because NO_CACHE=1.")));
    }
    Ok(())
}

/// Whether the shell layer was told to do without caches.
pub fn is_disabled() -> bool {
    std::env::var_os("NO_CACHE").is_some_and(|value| value == "1")
}
