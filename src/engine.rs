//! What reads and writes artifacts without a mount, wired together: remotes, local cache, downloads. Short looks
//! at the disk are made on the thread that waits.

use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::answer::blocking;
use crate::cache::CacheDir;
use crate::coherence::{Coherence, Local, Served};
use crate::config::{EngineConfig, SpaceLimits, WriteOptions};
use crate::error::{Error, Kind, Result};
use crate::fetch::{Fetcher, Source, State};
use crate::fill::Filler;
use crate::handles::OpenFile;
use crate::listing::{Entry, Listings};
use crate::object::{DISABLED, InvalidKey, Key};
use crate::store::{self, ObjectStore};
use crate::upload::Uploads;

/// Threads of a command that wait for the network. What arrives is hashed and written by others, and one more takes longer to
/// start than it saves with most artifacts.
const WORKERS: usize = 1;
/// How long what is being filled may take once the command is done.
const DRAIN: Duration = Duration::from_secs(30);
/// How long tasks under way may take to clean up.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// How often an artifact that is replaced between lookup and open is looked up.
const OPEN_ATTEMPTS: u32 = 3;

/// The local cache, or None with a warning when there can't be one: builds go on without.
pub fn open_cache(dir: Option<&Path>, limits: SpaceLimits, mountpoint: Option<&Path>) -> Option<CacheDir> {
    let dir = dir?;
    // Nothing lies in the root that isn't elsewhere, too.
    match CacheDir::open(dir, mountpoint.unwrap_or(Path::new("/")), limits) {
        Ok(cache) => Some(cache),
        Err(e) => {
            log::warn!(
                "Cannot create local cache dir {}, skipping local cache ({e}); name a directory that you may write",
                dir.display()
            );
            None
        }
    }
}

/// The threads that wait for the network, so many `workers`, and those that wait for the disk, as many as it takes.
///
/// # Errors
/// The system gives no threads.
pub fn runtime(workers: usize) -> Result<Runtime> {
    let runtime =
        Builder::new_multi_thread().worker_threads(workers).max_blocking_threads(64).enable_all().build();
    runtime.map_err(|e| Error::new(Kind::Internal, format!("can't start threads: {e}")))
}

/// The key that `name` stands for on a command line.
///
/// # Errors
/// `NotFound` for what is never cached, else wrong usage.
pub fn key(name: &str) -> Result<Key> {
    Key::new(name).map_err(|why| match why {
        InvalidKey::NeverThere if name.contains(DISABLED) => Error::new(
            Kind::NotFound,
            format!("Not using cache for {} due to uncommitted changes/files.", name.escape_debug()),
        ),
        InvalidKey::NeverThere => {
            Error::new(Kind::NotFound, format!("{}: never an artifact", name.escape_debug()))
        }
        InvalidKey::TooLong => Error::usage(format!("{}: too long for a name", name.escape_debug())),
        InvalidKey::NotAPath => {
            Error::usage(format!("'{}': not an artifact's name; write it as 'ls' does", name.escape_debug()))
        }
    })
}

/// The parts, for a command without a mount.
pub struct Engine {
    runtime: Option<Runtime>,
    /// The local cache, if there is one.
    pub cache: Option<Arc<CacheDir>>,
    /// What directories hold.
    pub listings: Arc<Listings>,
    store: Arc<dyn ObjectStore>,
    coherence: Coherence,
    fetcher: Arc<Fetcher>,
    filler: Option<Arc<Filler>>,
    /// What is too old is looked for once at most, and not for a mere hit.
    sweep: Once,
}

impl Engine {
    /// Wires up what `config` says, with `cache` for the local cache. Asks nothing yet.
    ///
    /// # Errors
    /// A certificate file that can't be read.
    pub fn new(config: &EngineConfig, cache: Option<Arc<CacheDir>>) -> Result<Engine> {
        let store = store::open(&config.remotes, &config.s3)?;
        let runtime = runtime(WORKERS)?;
        let coherence = Coherence::new(cache.clone(), config.revalidate);
        let handle = runtime.handle();
        let listings = Arc::new(Listings::new(store.clone(), coherence.clone(), handle.clone()));
        let filler = config.fill.then(|| Filler::new(store.clone(), cache.clone(), handle.clone()));
        let fetcher = Fetcher::new(cache.clone(), store.clone(), filler.clone(), handle.clone());
        let (runtime, sweep) = (Some(runtime), Once::new());
        Ok(Engine { runtime, cache, listings, store, coherence, fetcher, filler, sweep })
    }

    /// Waits for `future` on the calling thread, which may not be one of the runtime's.
    ///
    /// # Errors
    /// `future`'s, and the end of the runtime.
    pub fn wait<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(future),
            None => Err(Error::new(Kind::Internal, "the runtime has ended")),
        }
    }

    /// The version of `key` that is served, and where its bytes are. What is complete here is known without a request,
    /// anything else, missing or not, by one for each remote asked: whether it is a directory doesn't matter here.
    ///
    /// # Errors
    /// `NotFound` when there is no such artifact.
    pub async fn find(&self, key: &Key) -> Result<Served> {
        let mut local = self.coherence.local(key);
        if let Local::Verify(_) = local {
            let (coherence, key) = (self.coherence.clone(), key.clone());
            local = blocking(move || {
                coherence.verify(&key);
                coherence.local(&key)
            })
            .await?;
        }
        if let Local::Serve(file) = local {
            return Ok(file.into());
        }
        let (coherence, remote) = (self.coherence.clone(), self.store.head(key).await);
        blocking(move || coherence.settle(local, remote)).await?
    }

    /// Whether `key` is complete here, which is known without a request.
    pub fn is_here(&self, key: &Key) -> bool {
        matches!(self.coherence.local(key), Local::Serve(_))
    }

    /// Finds out that there is an artifact `key`; what a recent listing knows isn't asked again.
    ///
    /// # Errors
    /// Those of [`Engine::find`].
    pub async fn exists(&self, key: &Key) -> Result<()> {
        match self.listings.find(key.dir(), key.name()) {
            Some(Some(Entry::File(_))) => Ok(()),
            Some(None) => Err(Error::new(Kind::NotFound, format!("{key}: no such object"))),
            _ => self.find(key).await.map(drop),
        }
    }

    /// What writes artifacts, as `options` say.
    ///
    /// # Errors
    /// The end of the runtime.
    pub fn uploads(&self, options: WriteOptions) -> Result<Arc<Uploads>> {
        let Some(runtime) = &self.runtime else {
            return Err(Error::new(Kind::Internal, "the runtime has ended"));
        };
        Ok(Uploads::new(self.store.clone(), self.cache.clone(), options, runtime.handle().clone()))
    }

    /// How much of what is served is here now.
    pub fn state(&self, served: &Served) -> State {
        self.fetcher.state(served.version())
    }

    /// Opens the artifact `key`. What isn't here yet is on its way then.
    ///
    /// # Errors
    /// Those of [`Engine::find`].
    pub async fn open(&self, key: &Key) -> Result<OpenFile> {
        for _ in 0..OPEN_ATTEMPTS {
            let served = self.find(key).await?;
            let source = match &served {
                Served::Local { file, .. } => self.fetcher.open_local(key, *file).map(Source::Local),
                // Bytes of it were given out that turned out to be wrong: anew.
                Served::Remote(version) if self.fetcher.take_damaged(version) => None,
                Served::Remote(version) => Some(self.fetcher.open(version)),
            };
            if let Some(source) = source {
                if let Source::Download(_) = source {
                    self.sweep.call_once(|| self.begin_sweep());
                    if let Some(filler) = &self.filler {
                        filler.start();
                    }
                }
                return Ok(OpenFile::new(served.version().clone(), source));
            }
        }
        Err(Error::new(Kind::Changed, format!("{key}: replaced again and again; try again")))
    }

    fn begin_sweep(&self) {
        if let (Some(cache), Some(runtime)) = (self.cache.clone(), &self.runtime)
            && cache.is_sweep_due()
        {
            runtime.spawn_blocking(move || cache.sweep());
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            if let Some(filler) = &self.filler {
                runtime.block_on(filler.drain(DRAIN));
            }
            runtime.shutdown_timeout(SHUTDOWN);
        }
    }
}
