//! One attempt to upload what the journal has.

use std::fs::File;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::answer::blocking;
use crate::cache::{CacheDir, Claim, Origin, PendingUpload, Verdict};
use crate::checksum::Checksum;
use crate::error::{Error, Kind, Result};
use crate::object::{Key, ObjectVersion, UPLOAD};
use crate::store::{Existing, Multipart, Payload, Put};
use crate::upload::new_file::FromStart;
use crate::upload::worker::Running;
use crate::upload::{Uploads, internal};

/// How an attempt ended that wasn't a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The remote has it.
    Stored,
    /// The remote had one already, which stays.
    Kept,
    /// There is nothing to upload any more: the local file was removed or changed, or is about to be.
    Gone,
}

/// Whether trying again is of no use before something is changed: the settings, the rights, the file.
pub fn is_final(error: &Error) -> bool {
    matches!(error.kind(), Kind::AccessDenied | Kind::Refused | Kind::Unsupported)
}

impl Uploads {
    /// Uploads the file of `claim`, whose journal entry is `entry`, as `running`. The journal knows afterwards how it ended.
    ///
    /// # Errors
    /// The remote's; the entry stays.
    pub(super) async fn send(&self, claim: Claim, entry: PendingUpload, running: Running) -> Result<Sent> {
        let Some(cache) = self.cache.clone() else { return Err(internal(claim.key(), "no local cache")) };
        let attempt = Attempt { cache, key: claim.key().clone(), claim, entry };
        let (begun, uploads) = mpsc::unbounded_channel();
        let (attempt, payload) = attempt.open(running.sent.clone(), begun).await?;
        let Some(payload) = payload else { return attempt.forget().await };
        let (attempt, put) = self.put(attempt, &payload, running, uploads).await?;
        let Some(put) = put else { return attempt.stop().await };
        match put {
            Ok(Put::Stored(version)) => attempt.record(version, UPLOAD.into(), Sent::Stored).await,
            Ok(Put::Kept) => match self.compare(&attempt.key, &payload).await {
                Ok(Comparison::Same(version)) => {
                    let source = version.source.clone();
                    attempt.record(version, source, Sent::Kept).await
                }
                Ok(Comparison::Other) => attempt.yield_to_the_first().await,
                Ok(Comparison::Hidden) => attempt.release().await,
                Err(error) => attempt.fail(error).await,
            },
            // The disk gave other bytes than were written, perhaps.
            Err(error) if error.kind() == Kind::Local => attempt.doubt(error).await,
            Err(error) => attempt.fail(error).await,
        }
    }

    /// Has the store upload `payload`, and the journal know which `uploads` in parts begin: if this process dies they are aborted by
    /// the next. None when it was broken off.
    async fn put(
        &self,
        mut attempt: Attempt,
        payload: &Payload,
        running: Running,
        mut uploads: UnboundedReceiver<String>,
    ) -> Result<(Attempt, Option<Result<Put>>)> {
        let existing = if attempt.entry.overwrite { Existing::Replace } else { Existing::Keep };
        let key = attempt.key.clone();
        let mut put = pin!(self.store.put(&key, payload, existing));
        let mut is_to_stop = pin!(running.is_to_stop(payload.size));
        loop {
            tokio::select! {
                put = &mut put => return Ok((attempt, Some(put))),
                () = &mut is_to_stop => return Ok((attempt, None)),
                Some(id) = uploads.recv() => attempt = attempt.note_begun(id).await?,
            }
        }
    }

    /// Compares the object `key` that the remote has with what it didn't take.
    async fn compare(&self, key: &Key, payload: &Payload) -> Result<Comparison> {
        let remote = match self.store.head(key).await {
            Ok(remote) => remote,
            Err(error) if error.kind() == Kind::NotFound => return Ok(Comparison::Hidden),
            Err(error) => return Err(error),
        };
        if remote.size != payload.size {
            return Ok(Comparison::Other);
        }
        let checksum =
            remote.checksum.as_deref().cloned().or_else(|| Checksum::of_etag(remote.etag.as_str()));
        let Some(checksum) = checksum else { return Ok(Comparison::Other) };
        let part_size = match checksum.is_composite() {
            false => u64::MAX,
            true => match self.store.part_size(&remote).await? {
                Some(size) => size,
                None => return Ok(Comparison::Other),
            },
        };
        let file = payload.file.clone();
        let fits = blocking(move || checksum.fits(FromStart::of(file), part_size)).await?;
        let fits = fits.map_err(|e| Error::local(format!("{key}: can't read its local file"), &e))?;
        Ok(if fits { Comparison::Same(remote) } else { Comparison::Other })
    }
}

/// What the remote's object of the same name is.
enum Comparison {
    /// The very bytes.
    Same(ObjectVersion),
    /// Others, or bytes of which nothing is known.
    Other,
    /// We may write but not read.
    Hidden,
}

/// An upload under way.
struct Attempt {
    cache: Arc<CacheDir>,
    key: Key,
    claim: Claim,
    entry: PendingUpload,
}

impl Attempt {
    /// Opens what is to be uploaded; None when it isn't there as it was any more.
    async fn open(
        self,
        sent: Arc<AtomicU64>,
        begun: UnboundedSender<String>,
    ) -> Result<(Attempt, Option<Payload>)> {
        blocking(move || {
            let file = open(&self.cache, &self.key, &self.entry);
            let payload = file.and_then(|file| {
                let checksum = Checksum::parse(&self.entry.checksum)?;
                let multipart = Multipart { left: self.entry.upload_id.clone(), begun: Some(begun) };
                Some(Payload { file: Arc::new(file), size: self.entry.size, checksum, sent, multipart })
            });
            (self, payload)
        })
        .await
    }

    /// Notes that the server keeps parts of the upload `id`.
    async fn note_begun(mut self, id: String) -> Result<Attempt> {
        self.entry.upload_id = Some(id);
        blocking(move || {
            if let Err(e) = self.claim.write(&self.entry) {
                log::debug!("{}: its journal entry can't be written: {e}", self.key);
            }
            self
        })
        .await
    }

    /// Notes that the remote has it as `version`.
    async fn record(self, version: ObjectVersion, source: Arc<str>, outcome: Sent) -> Result<Sent> {
        self.conclude(outcome, move |attempt| {
            attempt.cache.record_uploaded(&attempt.claim, &version, &source)?;
            attempt.claim.clear()
        })
        .await
    }

    /// Removes the local file, since the remote has another: everyone reads the same bytes.
    async fn yield_to_the_first(self) -> Result<Sent> {
        log::warn!(
            "{}: the remote has another artifact of that name, which stays; the local one is removed",
            self.key
        );
        self.conclude(Sent::Kept, |attempt| attempt.cache.remove_claimed(&mut attempt.claim).map(drop)).await
    }

    /// Keeps the local file, of which it isn't known whether the remote has the same.
    async fn release(self) -> Result<Sent> {
        log::warn!("{}: the remote has one already, which can't be read; the local one stays", self.key);
        self.conclude(Sent::Kept, |attempt| attempt.claim.clear()).await
    }

    /// Leaves it to who wants to rename or remove the file.
    async fn stop(self) -> Result<Sent> {
        log::info!("{}: its upload was broken off, since it is to be renamed or removed", self.key);
        self.conclude(Sent::Gone, |_| Ok(())).await
    }

    /// Gives up an upload that there is nothing for.
    async fn forget(self) -> Result<Sent> {
        log::warn!("{}: not uploaded: the local file was removed or changed", self.key);
        self.conclude(Sent::Gone, |attempt| attempt.claim.clear()).await
    }

    /// Looks at all bytes of the local file. A damaged one is moved out of the way.
    async fn doubt(self, error: Error) -> Result<Sent> {
        let (attempt, damaged) = blocking(move || {
            let damaged = matches!(self.cache.verify(&self.key, &mut |_| {}), Ok(Verdict::Damaged));
            let moved = damaged && self.cache.quarantine(&self.key, "it was changed since it was written");
            (self, moved)
        })
        .await?;
        if damaged { attempt.forget().await } else { attempt.fail(error).await }
    }

    /// Notes the failure.
    async fn fail(mut self, error: Error) -> Result<Sent> {
        self.entry.attempts += 1;
        self.entry.error = Some(error.to_string());
        self.entry.refused = is_final(&error);
        let noted = self.conclude(Sent::Gone, |attempt| attempt.claim.write(&attempt.entry)).await;
        if let Err(e) = noted {
            log::warn!("{e}");
        }
        Err(error)
    }

    /// Does what there is to do on the disk, off the threads that must not wait, and gives the claim back.
    async fn conclude(
        mut self,
        outcome: Sent,
        work: impl FnOnce(&mut Attempt) -> io::Result<()> + Send + 'static,
    ) -> Result<Sent> {
        let key = self.key.clone();
        let done = blocking(move || work(&mut self)).await?;
        done.map(|()| outcome)
            .map_err(|e| Error::local(format!("{key}: its journal entry can't be written"), &e))
    }
}

/// Opens the file that `entry` speaks of, if it is still the same.
fn open(cache: &CacheDir, key: &Key, entry: &PendingUpload) -> Option<File> {
    let mut found = cache.lookup(key)?;
    if found.origin == Origin::Touched && matches!(cache.verify(key, &mut |_| {}), Ok(Verdict::Right)) {
        found = cache.lookup(key)?;
    }
    let is_it = found.version.size == entry.size && found.checksum.as_ref() == Some(&entry.checksum);
    if is_it { cache.reopen(key, found.id) } else { None }
}
