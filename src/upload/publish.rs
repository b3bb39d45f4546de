//! A file that has been written becomes an artifact.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use crate::answer::blocking;
use crate::cache::{CacheDir, CachedFile, Claim, Origin, PendingUpload};
use crate::config::Upload;
use crate::error::{Error, Kind, Result};
use crate::object::Key;
use crate::store::{Existing, Multipart, Payload, Put};
use crate::upload::local::is_local_only;
use crate::upload::new_file::{NewFile, Whole};
use crate::upload::send::{Sent, is_final};
use crate::upload::{Target, Uploads, internal};

/// How a publication ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is the artifact of that name now.
    Stored,
    /// One was there already, which stays.
    Kept,
}

/// An artifact that is here, with its key's claim, and what is to be uploaded of it.
type Placed = (Claim, Option<PendingUpload>);

impl Uploads {
    /// Makes `file` the artifact `key`: checked, published here, and uploaded as the settings say. The first writer wins: an
    /// artifact that is there already stays, unless it may be overwritten.
    ///
    /// An upload that can't be done now, but perhaps later, is no error if the file is kept here: it is in the journal then.
    ///
    /// # Errors
    /// `Damaged` for an archive that isn't whole, what a write failed with, trouble with the disk: nothing is published then.
    /// `AccessDenied`, `Refused` and `Unsupported` when the remote won't have it: it is published here, and stays in the
    /// journal. Without a local cache, whatever keeps it from being uploaded.
    pub async fn publish(self: &Arc<Uploads>, file: Arc<NewFile>, key: &Key) -> Result<Published> {
        self.publish_telling(file, key, || {}).await
    }

    /// The same; tells `placed` once it is published here, before it is uploaded.
    ///
    /// # Errors
    /// Those of [`Uploads::publish`].
    pub async fn publish_telling(
        self: &Arc<Uploads>,
        file: Arc<NewFile>,
        key: &Key,
        placed: impl FnOnce() + Send,
    ) -> Result<Published> {
        let Target { mode, remote } = self.target().await.clone();
        self.check_writable(key)?;
        let (sealed, own_key) = (file.clone(), key.clone());
        let whole = blocking(move || sealed.seal(&own_key)).await??;
        let done_here = match &self.cache {
            Some(cache) if file.spool().is_some() && may_hold(cache, key).await? => {
                let entry = (mode != Upload::Never).then(|| self.entry(key, &whole, &remote));
                self.place(cache, &file, key, whole, entry).await
            }
            _ => return self.publish_there(&file, key, whole, mode).await.inspect_err(|_| file.unseal()),
        };
        let (to_send, outcome) = done_here.inspect_err(|_| file.unseal())?;
        placed();
        match to_send {
            None => {}
            Some((claim, Some(entry))) if mode == Upload::Through => {
                // In a task of its own: it ends well, whatever becomes of who waits for it.
                let uploads = self.clone();
                let sent = self.runtime.spawn(async move { uploads.send_now(claim, entry).await });
                let sent = sent.await.map_err(|e| internal(key, &format!("an upload failed: {e}")))??;
                return Ok(if outcome == Published::Kept { outcome } else { sent });
            }
            Some((claim, entry)) => {
                blocking(move || drop(claim)).await?;
                if entry.is_some() {
                    self.enqueue(key);
                }
            }
        }
        Ok(outcome)
    }

    /// Publishes it here, unless there is one already. What is to be uploaded of it, if anything is.
    async fn place(
        &self,
        cache: &Arc<CacheDir>,
        file: &Arc<NewFile>,
        key: &Key,
        whole: Whole,
        entry: Option<PendingUpload>,
    ) -> Result<(Option<Placed>, Published)> {
        let overwrite = self.options.allow_overwrite;
        let is_wanted = move |cache: &CacheDir, key: &Key| overwrite || cache.lookup(key).is_none();
        let Some(mut claim) = self.claim_if(cache, key, is_wanted).await? else {
            log::warn!("{key}: there is such an artifact already; it stays");
            return match entry {
                Some(entry) => self.journal_first(cache, key, whole, entry).await,
                None => Ok((None, Published::Kept)),
            };
        };
        let file = file.clone();
        let placed = blocking(move || {
            let spool = file.spool().ok_or(std::io::ErrorKind::NotFound)?;
            spool.publish(&mut claim, whole.size, &whole.checksum, entry.as_ref())?;
            std::io::Result::Ok((claim, entry))
        });
        let placed = placed.await?.map_err(|e| not_kept(key, &e))?;
        Ok((Some(placed), Published::Stored))
    }

    /// Enters the artifact that is here already in the journal if no remote is known to have it: it was saved when nothing
    /// was uploaded, or by someone else, of the same bytes.
    async fn journal_first(
        &self,
        cache: &Arc<CacheDir>,
        key: &Key,
        whole: Whole,
        entry: PendingUpload,
    ) -> Result<(Option<Placed>, Published)> {
        let is_only_here = |cache: &CacheDir, key: &Key| {
            let found = cache.lookup(key);
            found.is_some_and(|file| file.origin == Origin::Adopted || is_saved(&file))
        };
        let Some(mut claim) = self.claim_if(cache, key, is_only_here).await? else {
            return Ok((None, Published::Kept));
        };
        let cache = cache.clone();
        let entered = blocking(move || {
            let saved = cache.lookup(claim.key()).filter(is_saved);
            let first = match saved.and_then(|file| Some((file.version.size, file.checksum?))) {
                Some((size, checksum)) => PendingUpload { size, checksum, ..entry.clone() },
                None if cache.take_over(&claim, whole.size, &whole.checksum)? => entry.clone(),
                None => {
                    let key = claim.key();
                    log::warn!(
                        "{key}: someone else has put a file of that name there, with other bytes; it stays and isn't \
                         uploaded; remove it to save another"
                    );
                    return Ok((None, Published::Kept));
                }
            };
            claim.write(&first)?;
            let same = first.checksum == entry.checksum;
            let outcome = if same { Published::Stored } else { Published::Kept };
            std::io::Result::Ok((Some((claim, Some(first))), outcome))
        });
        entered.await?.map_err(|e| not_kept(key, &e))
    }

    fn entry(&self, key: &Key, whole: &Whole, remote: &str) -> PendingUpload {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        PendingUpload {
            name: key.as_str().to_owned(),
            size: whole.size,
            checksum: whole.checksum.to_string(),
            remote: remote.to_owned(),
            overwrite: self.options.allow_overwrite,
            since: since.as_secs(),
            attempts: 0,
            error: None,
            refused: false,
            upload_id: None,
        }
    }

    /// Uploads what was just published here.
    async fn send_now(self: &Arc<Uploads>, claim: Claim, entry: PendingUpload) -> Result<Published> {
        let key = claim.key().clone();
        let running = self.begin(&key);
        let result = self.send(claim, entry, running).await;
        self.end(&key, &result);
        match result {
            Ok(Sent::Kept) => Ok(Published::Kept),
            Err(error) if is_final(&error) => Err(error),
            // Either way it is the artifact here.
            Ok(Sent::Stored | Sent::Gone) | Err(_) => Ok(Published::Stored),
        }
    }

    /// Uploads what can't be kept here.
    async fn publish_there(
        &self,
        file: &NewFile,
        key: &Key,
        whole: Whole,
        mode: Upload,
    ) -> Result<Published> {
        if mode == Upload::Never {
            let why = "can't be kept in the local cache, and nothing is uploaded; choose another name or allow uploads";
            return Err(Error::new(Kind::NotPermitted, format!("{key}: {why}")));
        }
        let Whole { size, checksum } = whole;
        let (file, sent) = (file.file().clone(), Arc::new(AtomicU64::new(0)));
        let payload = Payload { file, size, checksum, sent, multipart: Multipart::default() };
        let existing = if self.options.allow_overwrite { Existing::Replace } else { Existing::Keep };
        match self.store.put(key, &payload, existing).await? {
            Put::Stored(_) => Ok(Published::Stored),
            Put::Kept => {
                log::warn!("{key}: there is such an artifact already; it stays");
                Ok(Published::Kept)
            }
        }
    }
}

/// Whether it was written here, and is neither in a remote nor on its way there.
fn is_saved(file: &CachedFile) -> bool {
    is_local_only(file) && file.origin != Origin::Pending
}

fn not_kept(key: &Key, error: &std::io::Error) -> Error {
    Error::local(format!("{key}: can't be kept in the local cache"), error)
}

async fn may_hold(cache: &Arc<CacheDir>, key: &Key) -> Result<bool> {
    let (cache, own_key) = (cache.clone(), key.clone());
    blocking(move || cache.has_room_for_name(&own_key))
        .await
        .map_err(|_| internal(key, "the program is ending"))
}
