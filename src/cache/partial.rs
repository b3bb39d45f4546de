//! A file on its way into the cache, named after the version that it is to hold, so that all processes find it: one fills it,
//! others read along, and what a dead one left behind is gone on with.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{fstatat, futimens};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sha2::{Digest, Sha256};

use crate::cache::dirs::Dirs;
use crate::cache::meta::{self, Meta};
use crate::cache::progress::{self, Record};
use crate::cache::space::{Limit, Space};
use crate::cache::{beneath, journal};
use crate::checksum::{Checksum, extend_crc64nvme};
use crate::object::ObjectVersion;

/// The directory of files under way, below the state directory.
pub const DIR: &str = "partial";

/// What the name of a partial file's record of progress ends in.
pub const PROGRESS: &str = "progress";

/// How often to look for another process's first record, a millisecond apart.
const BEGIN_ATTEMPTS: u32 = 1000;

/// The kernel tells us of a file's last close shortly after close(2) has returned: what was in use a moment ago may be
/// evicted after these pauses.
const CLOSING: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(40)];

/// A partial file, begun.
#[derive(Debug)]
pub enum Begun {
    /// Ours to fill.
    Lead(Partial),
    /// Another process fills it.
    Follow(Follower),
    /// Another process has just published it.
    Done(File),
}

/// A partial file that this process fills: writes to [`Partial::file`], each followed by [`Partial::record`], then
/// [`Partial::commit`]. Dropped before that, it stays, for whoever wants this version next.
#[derive(Debug)]
pub struct Partial {
    dirs: Arc<Dirs>,
    space: Arc<Space>,
    /// Locked for as long as this process fills it.
    file: Arc<File>,
    progress: File,
    path: PathBuf,
    object: ObjectVersion,
    arrived: Vec<Record>,
}

/// A partial file that another process fills.
#[derive(Debug)]
pub struct Follower {
    dirs: Arc<Dirs>,
    space: Arc<Space>,
    file: Arc<File>,
    records: progress::Reader,
    path: PathBuf,
    object: ObjectVersion,
}

/// What became of the process that fills a file.
#[derive(Debug)]
pub enum Leader {
    /// It goes on.
    Alive,
    /// It has published the file, or given it up: the name stands for it no longer.
    Done,
    /// It is gone; the file is ours to fill now.
    Lost(Partial),
}

impl Partial {
    /// Opens the partial file of `object`, making it when there is none. Space for it is still to be reserved.
    pub fn open(dirs: &Arc<Dirs>, space: &Arc<Space>, object: &ObjectVersion) -> io::Result<Begun> {
        let path = Path::new(DIR).join(name(object));
        for _ in 0..BEGIN_ATTEMPTS {
            let file = File::from(beneath::open(&dirs.state, &path, OFlag::O_RDWR | OFlag::O_CREAT)?);
            let file = Arc::new(file);
            match file.try_lock() {
                Ok(()) => {
                    // It may have been published between the two calls.
                    if is_at(dirs, &path, &file) {
                        return Partial::take_over(dirs, space, file, path, object.clone()).map(Begun::Lead);
                    }
                }
                Err(TryLockError::WouldBlock) => {
                    let progress = beneath::open(&dirs.state, &progress_of(&path), OFlag::O_RDONLY);
                    let records = progress.and_then(|fd| progress::Reader::open(fd.into(), object));
                    if let Ok(Some(records)) = records {
                        let (dirs, space, object) = (dirs.clone(), space.clone(), object.clone());
                        return Ok(Begun::Follow(Follower { dirs, space, file, records, path, object }));
                    }
                    // Its process has only just begun, or just ended.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
        Err(io::Error::other("another process holds its partial file and doesn't get on"))
    }

    /// Takes what an earlier process left in the locked `file`, as far as its checksums hold: what had not reached the disk
    /// when the power failed reads as zeros.
    fn take_over(
        dirs: &Arc<Dirs>,
        space: &Arc<Space>,
        file: Arc<File>,
        path: PathBuf,
        object: ObjectVersion,
    ) -> io::Result<Partial> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND;
        let mut progress = File::from(beneath::open(&dirs.state, &progress_of(&path), flags)?);
        let found = progress::Reader::open(progress.try_clone()?, &object)?;
        let (mut arrived, mut sound) = match found {
            Some(mut reader) if file.metadata()?.len() == object.size => {
                (latest(reader.read_new()?), reader.is_sound()?)
            }
            _ => (Vec::new(), false),
        };
        arrived.retain(|record| {
            let holds = record.filled <= object.size && holds(&file, record);
            sound &= holds;
            holds
        });
        // Others may be reading along, so good records stay where they are. Those that don't hold must not be read.
        if !sound {
            progress::begin(&mut progress, &object)?;
            for record in &arrived {
                progress::append(&progress, *record)?;
            }
        }
        let (dirs, space) = (dirs.clone(), space.clone());
        Ok(Partial { dirs, space, file, progress, path, object, arrived })
    }

    /// The file to write to and read from, also after the commit.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// What was in the file when it was opened, left by an earlier process.
    pub fn arrived(&self) -> &[Record] {
        &self.arrived
    }

    /// Notes that bytes are in the file.
    pub fn record(&self, record: Record) -> io::Result<()> {
        progress::append(&self.progress, record)
    }

    /// Reserves the space that the file will take, evicting others if need be. False when a limit would be passed even
    /// so.
    pub fn reserve(&self) -> io::Result<bool> {
        let mut refused = self.space.reserve(&self.file, self.object.size)?;
        for pause in CLOSING {
            if !refused.is_some_and(Limit::may_pass) {
                break;
            }
            std::thread::sleep(pause);
            refused = self.space.reserve(&self.file, self.object.size)?;
        }
        if let Some(limit) = refused {
            self.space.say_not_kept(limit, self.object.size);
        }
        Ok(refused.is_none())
    }

    /// Tries to free `bytes` on the disk, which was found to be full.
    pub fn relieve(&self, bytes: u64) -> bool {
        self.space.relieve(bytes).unwrap_or_else(|e| {
            log::debug!("{}: can't free space: {e}", self.object.key);
            false
        })
    }

    /// Publishes the file, whole and on disk, under its own name: data first, then metadata, then the name, so
    /// that after a crash at any point there is either no such file or a right one.
    pub fn commit(&self, source: &str, checksum: &Checksum) -> io::Result<()> {
        let modified_ns = meta::nanos(self.object.modified);
        let modified = TimeSpec::nanoseconds(i64::try_from(modified_ns).unwrap_or(0));
        futimens(&*self.file, &TimeSpec::UTIME_NOW, &modified)?;
        self.file.sync_data()?;
        let stored = self.file.metadata()?;
        if stored.len() != self.object.size {
            return Err(io::Error::other(format!(
                "{} bytes were written of {}",
                stored.len(),
                self.object.size
            )));
        }
        let meta = Meta {
            etag: self.object.etag.as_str().to_owned(),
            size: self.object.size,
            modified_ns,
            // Read back: the file system may keep coarser times.
            file_mtime_ns: stored.mtime() * 1_000_000_000 + stored.mtime_nsec(),
            file_inode: Some(stored.ino()),
            source: source.to_owned(),
            checksum: Some(checksum.to_string()),
        };
        let key = &self.object.key;
        if journal::is_pending(&self.dirs, key) {
            return Err(io::Error::other(
                "a file of that name has been written here and is still to be uploaded",
            ));
        }
        let dir = beneath::make_dirs(&self.dirs.root, Path::new(key.dir()))?;
        meta::write(self.dirs.state.as_fd(), key, &meta, &self.path.with_extension("meta"))?;
        self.space
            .publish(key, &self.file, || Ok(renameat(&self.dirs.state, &self.path, &dir, key.name())?))?;
        unlink(&self.dirs, &progress_of(&self.path));
        // From now on it is in use, which keeps it from being evicted, but no longer being filled.
        self.unlock();
        Ok(())
    }

    /// Removes the file: what it holds is of no use to anyone.
    pub fn discard(&self) {
        self.space.release(&self.file, || unlink(&self.dirs, &self.path));
        unlink(&self.dirs, &progress_of(&self.path));
    }

    fn unlock(&self) {
        if let Err(e) = self.file.try_lock_shared() {
            log::debug!("{}: can't unlock: {e}", self.object.key);
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Readers may hold the file for long; who wants to fill it must not have to wait for them.
        if is_at(&self.dirs, &self.path, &self.file)
            && let Err(e) = self.file.unlock()
        {
            log::debug!("{}: can't unlock: {e}", self.object.key);
        }
    }
}

impl Follower {
    /// The file to read from.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// What has arrived in the file since the last call.
    pub fn read_new(&mut self) -> io::Result<Vec<Record>> {
        self.records.read_new()
    }

    /// For how long nothing has arrived.
    pub fn idle(&self) -> Duration {
        let last = self.records.file().metadata().and_then(|meta| meta.modified());
        last.ok().and_then(|last| SystemTime::now().duration_since(last).ok()).unwrap_or_default()
    }

    /// Looks after the process that fills the file.
    pub fn leader(&self) -> io::Result<Leader> {
        let Follower { dirs, space, file, path, object, .. } = self;
        if !is_at(dirs, path, file) {
            return Ok(Leader::Done);
        }
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(Leader::Alive),
            Err(TryLockError::Error(e)) => Err(e),
            // Published between the two calls.
            Ok(()) if !is_at(dirs, path, file) => Ok(Leader::Done),
            Ok(()) => {
                Partial::take_over(dirs, space, file.clone(), path.clone(), object.clone()).map(Leader::Lost)
            }
        }
    }
}

/// A name for the partial file of `object`: two versions never share one.
fn name(object: &ObjectVersion) -> String {
    let mut digest = Sha256::new();
    digest.update(object.key.as_str());
    digest.update([0]);
    digest.update(object.etag.as_str());
    digest.update([0]);
    digest.update(&*object.source);
    digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the progress of the partial file at `path` is recorded.
pub fn progress_of(path: &Path) -> PathBuf {
    path.with_extension(PROGRESS)
}

/// A name in [`DIR`] for what is about to be renamed, which `what` it is.
pub fn temporary_name(what: &str) -> String {
    format!("{}-{}.{what}", std::process::id(), fastrand::u64(..))
}

/// Whether `path` names this very file.
pub fn is_at(dirs: &Dirs, path: &Path, file: &File) -> bool {
    let named = fstatat(&dirs.state, path, AtFlags::AT_SYMLINK_NOFOLLOW);
    file.metadata().is_ok_and(|meta| named.is_ok_and(|named| named.st_ino == meta.ino()))
}

/// The last record of each start: those before it say less.
fn latest(records: Vec<Record>) -> Vec<Record> {
    let mut latest = std::collections::BTreeMap::new();
    for record in records {
        latest.insert(record.start, record);
    }
    latest.into_values().collect()
}

/// Whether the bytes that `record` speaks of are in `file`.
fn holds(file: &File, record: &Record) -> bool {
    let mut buffer = vec![0; 1 << 20];
    let (mut at, mut crc) = (record.start, 0);
    while at < record.filled {
        let length = buffer.len().min(usize::try_from(record.filled - at).unwrap_or(usize::MAX));
        if file.read_exact_at(&mut buffer[..length], at).is_err() {
            return false;
        }
        crc = extend_crc64nvme(crc, &buffer[..length]);
        at += length as u64;
    }
    crc == record.crc
}

/// Removes a file below the state directory.
pub fn unlink(dirs: &Dirs, path: &Path) {
    match unlinkat(&dirs.state, path, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => log::warn!("{}: can't be removed: {e}", dirs.path.join(path).display()),
    }
}
