//! One object version on its way to a file: workers fetch parts, readers wait for ranges.

mod direct;
mod parts;
mod retry;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SetOnce};
use tokio::task::{JoinSet, spawn_blocking};

use crate::cache::{CacheDir, Partial};
use crate::download::direct::DirectReader;
use crate::download::parts::{Lease, PartMap, PartSizes};
use crate::download::retry::RangeFetch;
use crate::error::{Error, Kind, Result};
use crate::object::ObjectVersion;
use crate::store::ObjectStore;

/// Ranged GETs at once for one object.
const WORKERS: usize = 16;
/// Workers beyond those, each for a reader far from what is being fetched.
const URGENT_WORKERS: usize = 4;
/// Bytes gathered before a write, unless a reader waits for them or no more come for a while: each write costs two changes
/// of threads.
const WRITE: usize = 512 << 10;
/// That while.
const GATHER: Duration = Duration::from_millis(2);

/// A download under way, shared by its readers and its workers.
pub struct Download {
    object: ObjectVersion,
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    sizes: PartSizes,
    /// Set before the first byte arrives; never set when there is no room on disk.
    file: OnceLock<Arc<File>>,
    /// Guards the part map; never held across an await or I/O.
    map: Mutex<PartMap>,
    /// Guards the count of readers; taken alone.
    readers: Mutex<Readers>,
    /// Wakes [`Download::run`] when the last reader of a file that won't be kept goes.
    unread: Notify,
    /// Set when all is fetched and, where it is to be kept, in its place; and when that won't be.
    finished: SetOnce<()>,
    urgent: AtomicUsize,
    direct: DirectReader,
}

/// Who reads from the download.
#[derive(Debug, Default)]
struct Readers {
    count: usize,
    /// The download goes on without readers, since its file will be kept.
    kept: bool,
    /// Nobody needs it any more; no reader may join.
    abandoned: bool,
}

/// Where the bytes go.
enum Target {
    /// Into the cache directory, to be published.
    Cache(Partial),
    /// Into an unlinked temporary file, for as long as somebody reads.
    Spool(File),
    /// Nowhere: no room on any disk.
    Nowhere(Error),
}

/// A reader's share in a download. When the last one goes, a download whose file won't be kept ends.
pub struct Reader(Arc<Download>);

impl Download {
    /// A download of `object` that nobody reads and nothing drives yet.
    pub fn new(object: ObjectVersion, store: Arc<dyn ObjectStore>, runtime: Handle) -> Arc<Download> {
        let sizes = if store.serves_ranges(&object) { PartSizes::default() } else { PartSizes::WHOLE };
        Arc::new(Download {
            map: Mutex::new(PartMap::new(object.size, sizes)),
            sizes,
            direct: DirectReader::new(object.clone(), store.clone(), runtime.clone()),
            readers: Mutex::new(Readers { kept: true, ..Readers::default() }),
            unread: Notify::new(),
            finished: SetOnce::new(),
            urgent: AtomicUsize::new(0),
            file: OnceLock::new(),
            object,
            store,
            runtime,
        })
    }

    /// Joins as a reader. None when the download has been abandoned or has failed.
    pub fn join(self: &Arc<Download>) -> Option<Reader> {
        let failed = self.map().failure().is_some();
        let mut readers = self.readers();
        if failed || readers.abandoned {
            return None;
        }
        readers.count += 1;
        Some(Reader(self.clone()))
    }

    /// Fetches everything and publishes it in `cache`. Returns when nobody can gain from joining any more; whether it worked
    /// is what the readers see. `budget` bounds the ranged GETs of all downloads beyond each one's first.
    pub async fn run(self: Arc<Download>, cache: Option<Arc<CacheDir>>, budget: Arc<Semaphore>) {
        let object = self.object.clone();
        let target = spawn_blocking(move || Target::create(cache.as_deref(), &object)).await;
        let partial = match target {
            Ok(Target::Cache(partial)) => {
                let _ = self.file.set(partial.file());
                Some(partial)
            }
            Ok(Target::Spool(file)) => {
                let _ = self.file.set(Arc::new(file));
                self.forget_when_unread();
                None
            }
            Ok(Target::Nowhere(error)) => return self.fail(error),
            Err(e) => {
                return self.fail(Error::new(
                    Kind::Internal,
                    format!("{}: a disk task failed: {e}", self.object.key),
                ));
            }
        };
        let mut workers = JoinSet::new();
        workers.spawn(self.clone().work(None));
        let parts = self.object.size.div_ceil(self.sizes.other) as usize;
        for _ in 1..parts.min(WORKERS) {
            workers.spawn(self.clone().work(Some(budget.clone())));
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(e) = ended {
                self.fail(Error::new(Kind::Internal, format!("{}: a worker failed: {e}", self.object.key)));
            }
        }
        self.wait_until_complete().await;
        match (partial, self.checksum()) {
            (Some(partial), Some(crc)) => {
                self.publish(partial, crc).await;
                let _ = self.finished.set(());
            }
            (None, Some(_)) => {
                let _ = self.finished.set(());
                self.wait_until_unread().await;
            }
            (_, None) => {}
        }
    }

    /// Others may join for as long as somebody reads.
    async fn wait_until_unread(&self) {
        loop {
            let unread = self.unread.notified();
            if self.readers().abandoned {
                return;
            }
            unread.await;
        }
    }

    /// The last parts may be with urgent workers.
    async fn wait_until_complete(&self) {
        let woken = self.map().wait(0..self.object.size);
        if !self.map().is_complete() {
            let _ = woken.await;
        }
    }

    async fn publish(&self, partial: Partial, crc: u64) {
        let checksum = format!("crc64nvme:{}", aws_smithy_types::base64::encode(crc.to_be_bytes()));
        let source = self.object.source.clone();
        let committed = spawn_blocking(move || partial.commit(&source, Some(checksum))).await;
        let key = &self.object.key;
        match committed {
            Ok(Ok(())) => log::debug!("{key}: fetched, {} bytes", self.object.size),
            Ok(Err(e)) => log::warn!("{key}: fetched, but can't be kept in the cache directory: {e}"),
            Err(e) => log::debug!("{key}: fetched, but not kept: {e}"),
        }
    }

    /// Fetches part after part until none is left, this download has failed, or nobody needs it. Takes a permit from
    /// `budget`, if there is one, for each part.
    async fn work(self: Arc<Download>, budget: Option<Arc<Semaphore>>) {
        loop {
            let _permit = match &budget {
                Some(budget) => budget.acquire().await.ok(),
                None => None,
            };
            if self.readers().abandoned {
                return self.fail(unread());
            }
            let Some(lease) = self.map().lease() else { return };
            if let Err(error) = self.fetch(&lease).await {
                return self.fail(error);
            }
        }
    }

    async fn fetch(&self, lease: &Lease) -> Result<()> {
        let mut fetch = RangeFetch::new(&*self.store, &self.object, lease.from..lease.end);
        let mut at = lease.from;
        while let Some(first) = fetch.next().await? {
            let mut length = first.len();
            let mut chunks = vec![first];
            while length < WRITE
                && let Some(chunk) = fetch.next_within(self.patience(lease)).await
            {
                length += chunk.len();
                chunks.push(chunk);
            }
            let crc = self.write(chunks, at).await?;
            at += length as u64;
            self.map().advance(lease.part, length as u64, crc);
            if self.readers().abandoned {
                return Err(unread());
            }
            if self.map().failure().is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// How long more bytes of `lease` are waited for before those that are here are written: not at all if a reader waits.
    fn patience(&self, lease: &Lease) -> Duration {
        if self.map().is_awaited(lease.part) { Duration::ZERO } else { GATHER }
    }

    /// Writes `chunks` at `at`; returns their CRC64NVME, of the bytes as they were received.
    async fn write(&self, chunks: Vec<Bytes>, mut at: u64) -> Result<u64> {
        let Some(file) = self.file.get().cloned() else {
            return Err(Error::new(Kind::Internal, "a download without a file"));
        };
        let written = spawn_blocking(move || {
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
            for chunk in chunks {
                digest.update(&chunk);
                file.write_all_at(&chunk, at)?;
                at += chunk.len() as u64;
            }
            io::Result::Ok(digest.finalize())
        });
        let key = &self.object.key;
        match written.await {
            Ok(written) => {
                written.map_err(|e| Error::local(format!("{key}: can't write its local file"), &e))
            }
            // The daemon ends, most likely: nothing to tell anyone about the disk.
            Err(e) => Err(Error::new(Kind::Internal, format!("{key}: a disk task failed: {e}"))),
        }
    }

    fn fail(&self, error: Error) {
        match error.kind() {
            Kind::NoSpace | Kind::Local => log::warn!("{error}; it is read without being kept"),
            _ => log::debug!("{}: download failed: {error}", self.object.key),
        }
        self.map().fail(error);
        let _ = self.finished.set(());
    }

    /// From now on the download lives only as long as its readers.
    fn forget_when_unread(&self) {
        let mut readers = self.readers();
        readers.kept = false;
        readers.abandoned = readers.count == 0;
    }

    /// Reads bytes that are here.
    fn read_file(&self, range: &Range<u64>) -> Result<Bytes> {
        let key = &self.object.key;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let file = self.file.get().ok_or_else(|| Error::new(Kind::Internal, format!("{key}: no file")))?;
        read_exact(file, range).map_err(|e| Error::local(format!("{key}: can't read its local file"), &e))
    }

    fn checksum(&self) -> Option<u64> {
        self.map().checksum()
    }

    fn map(&self) -> MutexGuard<'_, PartMap> {
        self.map.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Gives a reader who waits for bytes that nobody fetches a worker of its own, if there aren't too many.
    fn hurry(self: &Arc<Download>) {
        let one_more = |n: usize| (n < URGENT_WORKERS).then_some(n + 1);
        if self.urgent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
            let download = self.clone();
            self.runtime.spawn(async move {
                let lease = download.map().lease();
                if let Some(lease) = lease
                    && let Err(error) = download.fetch(&lease).await
                {
                    download.fail(error);
                }
                download.urgent.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// What ends a download that nobody needs; no reader is left to see it.
fn unread() -> Error {
    Error::new(Kind::Internal, "nobody reads it any more")
}

impl Target {
    fn create(cache: Option<&CacheDir>, object: &ObjectVersion) -> Target {
        match cache.map(|cache| cache.begin(object)) {
            Some(Ok(Some(partial))) => return Target::Cache(partial),
            Some(Err(e)) => log::warn!("{}: can't be kept in the cache directory: {e}", object.key),
            Some(Ok(None)) | None => {}
        }
        match tempfile::tempfile() {
            Ok(file) => Target::Spool(file),
            Err(e) => Target::Nowhere(Error::local(
                format!("{}: no temporary file", std::env::temp_dir().display()),
                &e,
            )),
        }
    }
}

impl Reader {
    /// The bytes `range`, which lies within the object, if they are here.
    pub fn read_now(&self, range: &Range<u64>) -> Option<Result<Bytes>> {
        let here = self.0.map().contains(range);
        here.then(|| self.0.read_file(range))
    }

    /// The bytes `range`, which lies within the object, as soon as they are here. When the disk has no room for them,
    /// they come straight from the remote.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let (woken, hurry) = {
            let mut map = self.0.map();
            if map.contains(&range) {
                (None, false)
            } else {
                let woken = map.wait(range.clone());
                (Some(woken), map.has_unleased_wanted())
            }
        };
        if hurry && self.0.file.get().is_some() {
            self.0.hurry();
        }
        let outcome = match woken {
            None => Ok(()),
            Some(woken) => {
                woken.await.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a download vanished")))
            }
        };
        match outcome {
            Ok(()) => {
                let download = self.0.clone();
                let read = spawn_blocking(move || download.read_file(&range));
                read.await
                    .unwrap_or_else(|e| Err(Error::new(Kind::Internal, format!("a disk task failed: {e}"))))
            }
            Err(error) if matches!(error.kind(), Kind::NoSpace | Kind::Local) => {
                self.0.direct.read(range).await
            }
            Err(error) => Err(error),
        }
    }
}

impl Reader {
    /// Waits until all bytes have been fetched and checked and, where they are to be kept, put in their place.
    ///
    /// # Errors
    /// They can't be had. Trouble with the local disk is none: reads go past it.
    pub async fn finished(&self) -> Result<()> {
        self.0.finished.wait().await;
        match self.0.map().failure() {
            Some(error) if !matches!(error.kind(), Kind::NoSpace | Kind::Local) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut readers = self.0.readers();
        readers.count -= 1;
        if readers.count == 0 && !readers.kept {
            readers.abandoned = true;
            self.0.unread.notify_one();
        }
    }
}

/// Reads `range` of `file`; a file too short is an error, never a short answer, which a reader would take for the end.
pub fn read_exact(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let mut buffer = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut buffer, range.start)?;
    Ok(buffer.into())
}
