//! The way of a new artifact: written here, checked, published in the local cache, and uploaded, now or later, also by
//! another process.

mod decoding;
mod local;
mod new_file;
mod publish;
mod send;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

use crate::answer::blocking;
use crate::cache::{CacheDir, Claim};
use crate::config::{Upload, WriteOptions};
use crate::error::{Error, Kind, Result};
use crate::object::Key;
use crate::store::ObjectStore;
use crate::upload::worker::Jobs;

pub use crate::cache::PendingUpload;
pub use new_file::NewFile;
pub use publish::Published;

/// How long somebody else may have a key's claim before it is an error. An upload has it for as long as it takes.
const CLAIM_WAIT: Duration = Duration::from_secs(60);
/// How often to look whether a claim is free.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// What is written, and what is still to be uploaded.
pub struct Uploads {
    store: Arc<dyn ObjectStore>,
    /// Only one that can be written.
    cache: Option<Arc<CacheDir>>,
    options: WriteOptions,
    runtime: Handle,
    target: OnceCell<Target>,
    jobs: Jobs,
}

/// Where finished writes go, and when.
#[derive(Clone, Debug)]
struct Target {
    mode: Upload,
    /// The URL of the remote.
    remote: Arc<str>,
}

impl Uploads {
    /// Publishes in `cache` and uploads to `store`. Asks nothing yet.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        cache: Option<Arc<CacheDir>>,
        options: WriteOptions,
        runtime: Handle,
    ) -> Arc<Uploads> {
        let cache = cache.filter(|cache| cache.is_writable());
        Arc::new(Uploads { store, cache, options, runtime, target: OnceCell::new(), jobs: Jobs::default() })
    }

    /// What a finished write does with the remote. May ask for credentials, once.
    pub async fn mode(&self) -> Upload {
        self.target().await.mode
    }

    async fn target(&self) -> &Target {
        let find = || async {
            let mode = match self.options.upload {
                Some(mode) => mode,
                None if self.store.accepts_uploads().await => Upload::Through,
                None => Upload::Never,
            };
            let remote = self.store.upload_url().await.into();
            Target { mode, remote }
        };
        self.target.get_or_init(find).await
    }

    /// What a finished write does with the remote, as far as that is known without asking for credentials.
    fn known_mode(&self) -> Option<Upload> {
        self.options.upload.or_else(|| self.target.get().map(|target| target.mode))
    }

    /// A new file, to be published as `key` or another. Its name decides whether it is decoded while it is written.
    ///
    /// # Errors
    /// `ReadOnly` when what is written could go nowhere; trouble with the disk.
    pub fn create(&self, key: &Key) -> Result<NewFile> {
        self.check_writable(key)?;
        let check_archive = !self.options.unchecked_archives;
        let Some(cache) = &self.cache else {
            let file = tempfile::tempfile().map_err(|e| {
                Error::local(format!("{}: no temporary file", std::env::temp_dir().display()), &e)
            })?;
            return Ok(NewFile::temporary(key, file, check_archive));
        };
        let spool = cache.spool().map_err(|e| Error::local(format!("{key}: can't be written"), &e))?;
        Ok(NewFile::in_cache(key, spool, check_archive))
    }

    /// Whether what is written could go anywhere, as far as is known.
    pub fn is_writable(&self) -> bool {
        !self.options.read_only && !self.goes_nowhere()
    }

    fn goes_nowhere(&self) -> bool {
        self.cache.is_none() && self.known_mode() == Some(Upload::Never)
    }

    fn check_writable(&self, key: &Key) -> Result<()> {
        let why = match (self.options.read_only, self.goes_nowhere()) {
            (true, _) => "nothing may be written; leave out --read-only and AZTEC_CACHE_READ_ONLY",
            (_, true) => "it could go nowhere: there is no local cache and no upload; set CACHE_LOCAL_DIR",
            _ => return Ok(()),
        };
        Err(Error::new(Kind::ReadOnly, format!("{key}: {why}")))
    }

    /// Claims `key`, once nobody else has it.
    async fn claim(&self, cache: &Arc<CacheDir>, key: &Key) -> Result<Claim> {
        let is_wanted = |_: &CacheDir, _: &Key| true;
        self.claim_if(cache, key, is_wanted).await?.ok_or_else(|| internal(key, "a claim was given up"))
    }

    /// The same as long as it is still wanted: None when it isn't any more, also once it is had.
    async fn claim_if(
        &self,
        cache: &Arc<CacheDir>,
        key: &Key,
        is_wanted: impl Fn(&CacheDir, &Key) -> bool + Copy + Send + 'static,
    ) -> Result<Option<Claim>> {
        let given_up = Instant::now() + CLAIM_WAIT;
        loop {
            let (cache, own_key) = (cache.clone(), key.clone());
            let taken = blocking(move || match is_wanted(&cache, &own_key) {
                false => Ok(Some(None)),
                true => {
                    let claim = cache.claim(&own_key)?;
                    std::io::Result::Ok(
                        claim.map(|claim| Some(claim).filter(|_| is_wanted(&cache, &own_key))),
                    )
                }
            });
            match taken.await? {
                Ok(Some(claim)) => return Ok(claim),
                Ok(None) if Instant::now() < given_up => sleep(CLAIM_PAUSE).await,
                Ok(None) => {
                    let what = "somebody else has been uploading or writing it for too long; try again later";
                    return Err(Error::new(Kind::TimedOut, format!("{key}: {what}")));
                }
                Err(e) => return Err(Error::local(format!("{key}: can't be claimed"), &e)),
            }
        }
    }
}

fn internal(key: &Key, what: &str) -> Error {
    Error::new(Kind::Internal, format!("{key}: {what}"))
}
