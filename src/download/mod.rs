//! One object version on its way to a file: readers wait for ranges while this process fetches parts (`lead`), or another
//! one does (`follow`).

mod direct;
mod follow;
mod integrity;
mod lead;
mod parts;
mod retry;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SetOnce};

use crate::answer::blocking;
use crate::cache::{Begun, CacheDir, Follower, Partial};
use crate::download::direct::DirectReader;
use crate::download::parts::{PartMap, PartSizes};
use crate::error::{Error, Kind, Result};
use crate::fill::Filler;
use crate::metrics::{COALESCED, MISSES};
use crate::object::ObjectVersion;
use crate::store::ObjectStore;

pub use integrity::Doubts;

/// What downloads share.
pub struct Resources {
    /// Where files are kept, if anywhere.
    pub cache: Option<Arc<CacheDir>>,
    /// Bounds the ranged GETs of all downloads beyond each one's first.
    pub budget: Arc<Semaphore>,
    /// What is known against the remote's checksums.
    pub doubts: Doubts,
    /// Is told of what has been published.
    pub filler: Option<Arc<Filler>>,
}

/// A download under way, shared by its readers and its workers.
pub struct Download {
    object: ObjectVersion,
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    sizes: PartSizes,
    /// Set before the first byte arrives; never set when there is no room on disk.
    file: OnceLock<Arc<File>>,
    /// The same file as long as it is ours to fill in the cache directory. Guards only the reference.
    partial: Mutex<Option<Arc<Partial>>>,
    /// Guards the part map; never held across an await or I/O.
    map: Mutex<PartMap>,
    /// Guards the count of readers; taken alone.
    readers: Mutex<Readers>,
    /// Wakes [`Download::run`] when the last reader of a file that won't be kept goes.
    unread: Notify,
    /// Whether this process fetches it.
    leads: AtomicBool,
    /// Set when the first bytes have come.
    begun: SetOnce<()>,
    /// Set when all is fetched and, where it is to be kept, in its place; and when that won't be.
    finished: SetOnce<()>,
    urgent: AtomicUsize,
    direct: DirectReader,
}

/// Who reads from the download.
#[derive(Debug, Default)]
struct Readers {
    count: usize,
    /// Somebody has joined.
    joined: bool,
    /// The download goes on without readers, since its file will be kept.
    kept: bool,
    /// Nobody needs it any more; no reader may join.
    abandoned: bool,
}

/// Where the bytes go.
enum Target {
    /// Into the cache directory, to be published.
    Lead(Partial),
    /// Into the cache directory, by another process.
    Follow(Follower),
    /// They are all there, by another process.
    Done(File),
    /// Into an unlinked temporary file, for as long as somebody reads.
    Spool(File),
    /// Nowhere: no room on any disk.
    Nowhere(Error),
}

/// A reader's share in a download. When the last one goes, a download whose file won't be kept ends.
pub struct Reader {
    download: Arc<Download>,
    first: bool,
}

impl Download {
    /// A download of `object` that nobody reads and nothing drives yet.
    pub fn new(object: ObjectVersion, store: Arc<dyn ObjectStore>, runtime: Handle) -> Arc<Download> {
        let sizes = if store.serves_ranges(&object) { PartSizes::of(object.size) } else { PartSizes::WHOLE };
        Arc::new(Download {
            map: Mutex::new(PartMap::new(object.size, sizes)),
            sizes,
            direct: DirectReader::new(object.clone(), store.clone(), runtime.clone()),
            readers: Mutex::new(Readers { kept: true, ..Readers::default() }),
            unread: Notify::new(),
            leads: AtomicBool::new(false),
            begun: SetOnce::new(),
            finished: SetOnce::new(),
            urgent: AtomicUsize::new(0),
            file: OnceLock::new(),
            partial: Mutex::default(),
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
        let first = !std::mem::replace(&mut readers.joined, true);
        Some(Reader { download: self.clone(), first })
    }

    /// Fetches everything and publishes it in the cache, or follows the process that does. Returns when nobody can gain from
    /// joining any more; whether it worked is what the readers see.
    pub async fn run(self: Arc<Download>, resources: Arc<Resources>) {
        if let Err(error) = self.store.check(&self.object) {
            MISSES.count();
            return self.fail(error);
        }
        let (object, shared) = (self.object.clone(), resources.clone());
        let target = blocking(move || Target::create(shared.cache.as_deref(), &object)).await;
        match &target {
            Ok(Target::Follow(_) | Target::Done(_)) => COALESCED.count(),
            _ => MISSES.count(),
        }
        match target {
            Ok(Target::Lead(partial)) => self.lead(partial, &resources).await,
            Ok(Target::Follow(follower)) => match self.follow(follower, &resources).await {
                Ok(Some(partial)) => self.lead(partial, &resources).await,
                Ok(None) => self.finish(),
                // Why it was given up isn't known: perhaps what has arrived is wrong.
                Err(error) => self.condemn(error, &resources),
            },
            Ok(Target::Done(file)) => {
                let _ = self.file.set(Arc::new(file));
                self.map().insert(0, self.object.size, 0);
                self.finish();
            }
            Ok(Target::Spool(file)) => {
                let _ = self.file.set(Arc::new(file));
                self.forget_when_unread();
                self.spool(&resources).await;
            }
            Ok(Target::Nowhere(error)) => self.fail(error),
            Err(error) => self.fail(error),
        }
    }

    /// What is fetched.
    pub fn object(&self) -> &ObjectVersion {
        &self.object
    }

    /// How many of its bytes are here.
    pub fn arrived(&self) -> u64 {
        self.object.size - self.map().missing()
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

    fn fail(&self, error: Error) {
        let first = self.map().fail(error.clone());
        match error.kind() {
            // Once, whatever other workers met with.
            Kind::NoSpace | Kind::Local if first => log::warn!("{error}; it is read without being kept"),
            _ => log::debug!("{}: download failed: {error}", self.object.key),
        }
        self.finish();
    }

    /// Gives out none of the bytes any more.
    fn condemn(&self, error: Error, resources: &Resources) {
        resources.doubts.condemn(&self.object, || self.map().condemn(error.clone()));
        self.finish();
        // The program is ending, most likely: nothing to tell anyone.
        let level = if error.kind() == Kind::Internal { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "{error}");
    }

    fn finish(&self) {
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

    fn partial(&self) -> MutexGuard<'_, Option<Arc<Partial>>> {
        self.partial.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn map(&self) -> MutexGuard<'_, PartMap> {
        self.map.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn internal(&self, what: &str) -> Error {
        Error::new(Kind::Internal, format!("{}: {what}", self.object.key))
    }
}

/// What ends a download that nobody needs; no reader is left to see it.
fn unread() -> Error {
    Error::new(Kind::Internal, "nobody reads it any more")
}

impl Target {
    fn create(cache: Option<&CacheDir>, object: &ObjectVersion) -> Target {
        match cache.map(|cache| cache.begin(object)) {
            Some(Ok(Some(Begun::Lead(partial)))) => return Target::Lead(partial),
            Some(Ok(Some(Begun::Follow(follower)))) => return Target::Follow(follower),
            Some(Ok(Some(Begun::Done(file)))) => return Target::Done(file),
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
    /// Whether the download began with it. What was read of an earlier one, which may have ended before anything was
    /// checked, is then not to be relied on.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// The bytes `range`, which lies within the object, if they are here.
    pub fn read_now(&self, range: &Range<u64>) -> Option<Result<Bytes>> {
        let here = self.download.map().contains(range);
        here.then(|| self.download.read_file(range))
    }

    /// The bytes `range`, which lies within the object, as soon as they are here. When the disk has no room for them,
    /// they come straight from the remote.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let (woken, hurry) = {
            let mut map = self.download.map();
            if map.contains(&range) {
                (None, false)
            } else {
                let woken = map.wait(range.clone());
                (Some(woken), map.has_unleased_wanted())
            }
        };
        if hurry {
            self.download.hurry();
        }
        let outcome = match woken {
            None => Ok(()),
            Some(woken) => {
                woken.await.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a download vanished")))
            }
        };
        match outcome {
            Ok(()) => {
                let download = self.download.clone();
                blocking(move || download.read_file(&range)).await?
            }
            Err(error) if matches!(error.kind(), Kind::NoSpace | Kind::Local) => {
                self.download.direct.read(range).await
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
        self.download.finished.wait().await;
        match self.download.map().failure() {
            Some(error) if !matches!(error.kind(), Kind::NoSpace | Kind::Local) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut readers = self.download.readers();
        readers.count -= 1;
        if readers.count == 0 && !readers.kept {
            readers.abandoned = true;
            self.download.unread.notify_one();
        }
    }
}

/// Reads `range` of `file`; a file too short is an error, never a short answer, which a reader would take for the end.
pub fn read_exact(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let length = (range.end - range.start) as usize;
    let mut buffer = Vec::with_capacity(length);
    while buffer.len() < length {
        let at = range.start + buffer.len() as u64;
        // Into memory as it is: it need not be cleared first.
        match rustix::io::pread(file, spare_capacity(&mut buffer), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // There may be room for more than was asked for.
    buffer.truncate(length);
    Ok(buffer.into())
}
