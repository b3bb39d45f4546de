//! A file that has been written becomes an artifact.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use crate::answer::blocking;
use crate::cache::{CacheDir, Claim, PendingUpload};
use crate::config::Upload;
use crate::error::{Error, Kind, Result};
use crate::object::Key;
use crate::store::{Existing, Payload, Put};
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
        let outcome = match &self.cache {
            Some(cache) if file.spool().is_some() && may_hold(cache, key).await? => {
                let entry = (mode != Upload::Never).then(|| self.entry(key, &whole, &remote));
                self.place(cache, &file, key, whole, entry).await
            }
            _ => return self.publish_there(&file, key, whole, mode).await.inspect_err(|_| file.unseal()),
        };
        let outcome = outcome.inspect_err(|_| file.unseal())?;
        placed();
        match outcome {
            None => Ok(Published::Kept),
            Some((claim, Some(entry))) if mode == Upload::Through => {
                // In a task of its own: it ends well, whatever becomes of who waits for it.
                let uploads = self.clone();
                let sent = self.runtime.spawn(async move { uploads.send_now(claim, entry).await });
                sent.await.map_err(|e| internal(key, &format!("an upload failed: {e}")))?
            }
            Some((claim, entry)) => {
                blocking(move || drop(claim)).await?;
                if entry.is_some() {
                    self.enqueue(key);
                }
                Ok(Published::Stored)
            }
        }
    }

    /// Publishes it here. None when there is one already, which stays.
    async fn place(
        &self,
        cache: &Arc<CacheDir>,
        file: &Arc<NewFile>,
        key: &Key,
        whole: Whole,
        entry: Option<PendingUpload>,
    ) -> Result<Option<(Claim, Option<PendingUpload>)>> {
        let overwrite = self.options.allow_overwrite;
        let is_wanted = move |cache: &CacheDir, key: &Key| overwrite || cache.lookup(key).is_none();
        let Some(mut claim) = self.claim_if(cache, key, is_wanted).await? else {
            log::warn!("{key}: there is such an artifact already; it stays");
            return Ok(None);
        };
        let file = file.clone();
        let placed = blocking(move || {
            let spool = file.spool().ok_or(std::io::ErrorKind::NotFound)?;
            spool.publish(&mut claim, whole.size, &whole.checksum, entry.as_ref())?;
            std::io::Result::Ok((claim, entry))
        });
        placed
            .await?
            .map(Some)
            .map_err(|e| Error::local(format!("{key}: can't be kept in the local cache"), &e))
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
        }
    }

    /// Uploads what was just published here.
    async fn send_now(self: &Arc<Uploads>, claim: Claim, entry: PendingUpload) -> Result<Published> {
        let key = claim.key().clone();
        let sent = self.begin(&key);
        let result = self.send(claim, entry, sent).await;
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
        let payload =
            Payload { file: file.file().clone(), size, checksum, sent: Arc::new(AtomicU64::new(0)) };
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

async fn may_hold(cache: &Arc<CacheDir>, key: &Key) -> Result<bool> {
    let (cache, own_key) = (cache.clone(), key.clone());
    blocking(move || cache.has_room_for_name(&own_key))
        .await
        .map_err(|_| internal(key, "the program is ending"))
}
