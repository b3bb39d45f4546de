//! The cache directory: what is in it, and the way in.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat, futimens};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};
use nix::sys::time::TimeSpec;

use crate::cache::dirs::{Dirs, LocalNames, is_file, mtime_ns};
use crate::cache::evict::Candidate;
use crate::cache::journal;
use crate::cache::meta::{self, Meta};
use crate::cache::partial::{self, Begun, Partial};
use crate::cache::space::Space;
use crate::cache::{beneath, format, notes, quarantine, sweep};
use crate::checksum::Checksum;
use crate::config::SpaceLimits;
use crate::error::{Error, Result};
use crate::object::{ADOPTED, ETag, Key, ObjectVersion, RESERVED};

/// A file used again within this time keeps its time of use: it is the same use to whoever evicts.
const SAME_USE: Duration = Duration::from_millis(10);
/// How often to try, a millisecond apart, to lock a file that another process holds.
const PIN_ATTEMPTS: u32 = 20;

/// A directory of complete artifacts, each a plain file under its own name, shared with shell scripts, other
/// mounts and people, who may add and remove files at any time.
#[derive(Debug)]
pub struct CacheDir {
    pub(super) dirs: Arc<Dirs>,
    pub(super) space: Arc<Space>,
    writable: bool,
}

/// A complete local file.
#[derive(Clone, Debug)]
pub struct CachedFile {
    /// The version it holds. Adopted files that no remote has vouched for have a local ETag
    /// ([`ETag::of_local_file`]).
    pub version: ObjectVersion,
    /// How it came here.
    pub origin: Origin,
    /// The checksum recorded with it.
    pub checksum: Option<String>,
    /// Which file it is.
    pub id: FileId,
}

/// A file in one state: a file that replaced it has another one, and so has the file itself once it was written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    inode: u64,
    mtime_ns: i64,
}

impl FileId {
    fn of(stat: &FileStat) -> FileId {
        FileId { inode: stat.st_ino, mtime_ns: mtime_ns(stat) }
    }
}

/// How a file came into the cache directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// We fetched it, or compared it with a remote's version, which was last confirmed then; or it was written here.
    Known {
        /// The remote's URL, `adopted` or `upload`.
        source: String,
        /// When a remote last confirmed the version.
        confirmed: SystemTime,
    },
    /// It was written here and is still to be uploaded.
    Pending,
    /// Someone else put it there, and no remote has vouched for it.
    Adopted,
    /// Since its checksum was recorded it was written to, or put in the place of the file that was meant, of the same size:
    /// [`CacheDir::verify`] knows more.
    Touched,
}

/// What a look at all bytes of a file has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are those that the recorded checksum was made of.
    Right,
    /// They are not.
    Damaged,
    /// There is no checksum to compare with.
    Unknown,
}

impl CacheDir {
    /// Opens `path`, making it when missing. A directory that can be read but not written serves hits only.
    ///
    /// # Errors
    /// It can't be made or read, or its format is of a newer program.
    pub fn open(path: &Path, mountpoint: &Path, limits: SpaceLimits) -> Result<CacheDir> {
        let path = std::path::absolute(path).map_err(|e| Error::local(path.display(), &e))?;
        if let Err(e) = fs::create_dir_all(&path)
            && !path.is_dir()
        {
            return Err(Error::local(path.display(), &e));
        }
        let root = File::open(&path).map_err(|e| Error::local(path.display(), &e))?;
        if !root.metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(Error::local(path.display(), &io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        let root = OwnedFd::from(root);
        // Before anything is made: what a newer program does here is not ours to guess.
        format::check(&root).map_err(|e| Error::local(path.display(), &e))?;
        let prepared = format::prepare(&root).and_then(|state| {
            format::check_locks(&state).map_err(|e| {
                io::Error::new(e.kind(), format!("files can't be locked: {e}; name a local disk"))
            })?;
            Ok(state)
        });
        let (state, writable) = match prepared {
            Ok(state) => (state, true),
            Err(e) => {
                log::warn!(
                    "{}: can't be written ({e}): what it holds is served, nothing is added",
                    path.display()
                );
                // Without our directory there is no metadata: every file counts as adopted.
                let state = beneath::open_dir(&root, Path::new(RESERVED)).or_else(|_| root.try_clone());
                (state.map_err(|e| Error::local(path.display(), &e))?, false)
            }
        };
        let mountpoint = within(&path, mountpoint);
        let dirs = Arc::new(Dirs { path, root, state, mountpoint });
        Ok(CacheDir { space: Space::new(dirs.clone(), limits), dirs, writable })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dirs.path
    }

    /// A file on the disk that the artifacts are on.
    ///
    /// # Errors
    /// A directory that can't be written may hold none of ours.
    pub fn sample(&self) -> io::Result<File> {
        beneath::open(&self.dirs.state, Path::new(format::FILE), OFlag::O_RDONLY).map(File::from)
    }

    /// Whether the file system that it is on is itself stacked on another (overlayfs).
    pub fn is_stacked(&self) -> bool {
        fstatfs(&self.dirs.root).is_ok_and(|fs| fs.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
    }

    /// Whether fetched files can be kept in it.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Removes what nobody will come back for: old partial files, old damaged files, metadata of files that are gone. Walks
    /// directories: not for the way to readiness.
    pub fn sweep(&self) {
        if self.writable {
            sweep::sweep(&self.dirs);
        }
    }

    /// Whether no process has swept the directory for an hour.
    pub fn is_sweep_due(&self) -> bool {
        self.writable && sweep::is_due(&self.dirs)
    }

    /// The complete file that holds `key`, if there is one.
    pub fn lookup(&self, key: &Key) -> Option<CachedFile> {
        self.examine(key, &self.dirs.stat(key)?)
    }

    /// Opens the file under `key`'s name if it is still the one that was found with this `id`. Notes the use.
    pub fn reopen(&self, key: &Key, id: FileId) -> Option<File> {
        self.open_if(key, |stat| is_file(stat) && FileId::of(stat) == id)
    }

    fn lookup_version(&self, version: &ObjectVersion) -> bool {
        self.lookup(&version.key).is_some_and(|found| found.version.is(version))
    }

    /// Opens the file that is known to hold `version`. Notes the use.
    pub fn open_version(&self, version: &ObjectVersion) -> Option<File> {
        self.open_if(&version.key, |stat| {
            let found = self.examine(&version.key, stat);
            found.is_some_and(|found| found.version.is(version))
        })
    }

    fn open_if(&self, key: &Key, is_it: impl FnOnce(&FileStat) -> bool) -> Option<File> {
        // O_NONBLOCK: a fifo under an artifact's name must not block us.
        let file = File::from(self.dirs.open_at(key, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?);
        let stat = fstat(&file).ok()?;
        if !is_file(&stat) || !is_it(&stat) {
            return None;
        }
        pin(&file, key);
        // Recency is the file's own atime, so that every process and a restart agree on it.
        let used =
            Duration::new(stat.st_atime.max(0) as u64, stat.st_atime_nsec.clamp(0, 999_999_999) as u32);
        let just_now = (SystemTime::UNIX_EPOCH + used).elapsed().is_ok_and(|age| age < SAME_USE);
        if !just_now && let Err(e) = futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_OMIT) {
            log::debug!("{key}: can't note its use: {e}");
        }
        Some(file)
    }

    /// Begins to fetch `object` into the directory, or finds that another process does. None when it can't or shall not be
    /// kept: the directory is read-only, a limit would be passed, or something that isn't an artifact has its name. May
    /// take a while, to evict what is in the way.
    ///
    /// # Errors
    /// Trouble with the disk; the object can still be read without being kept.
    pub fn begin(&self, object: &ObjectVersion) -> io::Result<Option<Begun>> {
        if !self.writable || !self.has_room_for_name(&object.key) {
            return Ok(None);
        }
        match Partial::open(&self.dirs, &self.space, object)? {
            // Published by another process since we looked for it.
            Begun::Lead(partial) if partial.arrived().is_empty() && self.lookup_version(object) => {
                partial.discard();
                Ok(self.open_version(object).map(Begun::Done))
            }
            Begun::Lead(partial) => match partial.reserve() {
                Ok(true) => Ok(Some(Begun::Lead(partial))),
                refused => {
                    partial.discard();
                    refused.map(|_| None)
                }
            },
            follow => Ok(Some(follow)),
        }
    }

    /// Records that the file under `version`'s name, put there by someone else, is that version, if it is: its size is, and
    /// its bytes where the remote told their checksum.
    pub fn adopt(&self, version: &ObjectVersion) -> bool {
        let Some(stat) = self.dirs.stat(&version.key) else { return false };
        if u64::try_from(stat.st_size) != Ok(version.size) {
            return false;
        }
        let checksum = version.checksum.as_deref().filter(|checksum| !checksum.is_composite());
        if let Some(checksum) = checksum {
            let file = self.open_unnoticed(&version.key);
            let fits = file.and_then(|file| {
                let fits = checksum.fits(&file, u64::MAX)?;
                Ok(fits && FileId::of(&fstat(&file)?) == FileId::of(&stat))
            });
            match fits {
                Ok(true) => {}
                Ok(false) => return false,
                Err(e) => {
                    log::debug!("{}: can't be compared with the remote's: {e}", version.key);
                    return false;
                }
            }
        }
        let meta = Meta {
            etag: version.etag.as_str().to_owned(),
            size: version.size,
            modified_ns: meta::nanos(version.modified),
            file_mtime_ns: mtime_ns(&stat),
            file_inode: Some(stat.st_ino),
            source: ADOPTED.to_owned(),
            checksum: checksum.map(ToString::to_string),
        };
        if self.writable {
            self.write_meta(&version.key, &meta);
        }
        true
    }

    fn write_meta(&self, key: &Key, meta: &Meta) {
        if let Err(e) = self.try_write_meta(key, meta) {
            log::debug!("{key}: can't record its version: {e}");
        }
    }

    pub(super) fn try_write_meta(&self, key: &Key, meta: &Meta) -> io::Result<()> {
        let temporary = Path::new(partial::DIR).join(partial::temporary_name("meta"));
        meta::write(self.dirs.state.as_fd(), key, meta, &temporary)
    }

    /// Reads all of `key`'s file and compares it with the checksum recorded for it. A right one that was only touched is
    /// known again from now on. `pace` is told of each chunk's length and may wait. Takes a while: not for a session
    /// thread.
    ///
    /// # Errors
    /// It can't be read, or changes meanwhile.
    pub fn verify(&self, key: &Key, pace: &mut dyn FnMut(u64)) -> io::Result<Verdict> {
        let file = self.open_unnoticed(key)?;
        let stat = fstat(&file)?;
        let Some((meta, confirmed)) = meta::read(self.dirs.state.as_fd(), key) else {
            return Ok(Verdict::Unknown);
        };
        let Some(checksum) = meta.checksum.as_deref().and_then(Checksum::parse) else {
            return Ok(Verdict::Unknown);
        };
        if u64::try_from(stat.st_size) != Ok(meta.size) {
            return Ok(Verdict::Damaged);
        }
        let fits = checksum.fits(Paced { file: &file, at: 0, pace }, u64::MAX)?;
        let after = fstat(&file)?;
        if FileId::of(&after) != FileId::of(&stat) {
            return Err(io::Error::other("it was written to meanwhile"));
        }
        if !fits {
            return Ok(Verdict::Damaged);
        }
        if !is_file_of(&meta, &stat) && self.writable {
            let meta = Meta { file_mtime_ns: mtime_ns(&stat), file_inode: Some(stat.st_ino), ..meta };
            self.write_meta(key, &meta);
            meta::confirm(self.dirs.state.as_fd(), key, confirmed);
        }
        Ok(Verdict::Right)
    }

    /// Opens a file to look at all of it, which is no use of it.
    pub fn open_unnoticed(&self, key: &Key) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let fd = self.dirs.open_at(key, flags | OFlag::O_NOATIME).or_else(|e| match e.raw_os_error() {
            // Only the owner may ask for that.
            Some(libc::EPERM) => self.dirs.open_at(key, flags),
            _ => Err(e),
        })?;
        let file = File::from(fd);
        if !file.metadata()?.is_file() {
            return Err(Errno::EINVAL.into());
        }
        Ok(file)
    }

    /// Moves `key`'s file, which is damaged, out of the way, and says so. False when that can't be done.
    pub fn quarantine(&self, key: &Key, why: &str) -> bool {
        let moved = quarantine::put(&self.dirs, key);
        match &moved {
            Ok(path) => log::warn!("{key}: the local file was damaged ({why}); it is now {}", path.display()),
            Err(e) => log::warn!("{key}: the local file is damaged ({why}) and can't be moved away: {e}"),
        }
        moved.is_ok()
    }

    /// Writes the note `name` in place of the one before, unless that is younger than `period`, or nothing can be written.
    pub fn save_note(
        &self,
        name: &str,
        period: Duration,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.writable { notes::save(&self.dirs, name, period, write) } else { Ok(()) }
    }

    /// Opens the note `name`, if there is one.
    pub fn open_note(&self, name: &str) -> Option<File> {
        notes::open(&self.dirs, name).ok()
    }

    /// Removes `key`'s file, whether or not it is in use: who reads it now goes on. False when there is none.
    ///
    /// # Errors
    /// It can't be removed, or is still to be uploaded.
    pub fn remove(&self, key: &Key) -> io::Result<bool> {
        if journal::is_pending(&self.dirs, key) {
            return Err(io::Error::other(
                "still to be uploaded, which 'aztec-cache put' and mounts do; to give it up, remove the file itself",
            ));
        }
        self.unlink(key)
    }

    pub(super) fn unlink(&self, key: &Key) -> io::Result<bool> {
        let Some(stat) = self.dirs.stat(key) else { return Ok(false) };
        self.space.remove(&Candidate::artifact(key.clone(), &stat)).map(|()| true)
    }

    /// The space that files take and that may be given away.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Notes that the remote confirmed the local file's version now.
    pub fn confirm(&self, key: &Key) {
        if self.writable {
            meta::confirm(self.dirs.state.as_fd(), key, SystemTime::now());
        }
    }

    /// The artifacts in `dir` (`""` is the root): in the root every plain file that isn't hidden, below it only
    /// what we fetched, since other directories are other people's.
    pub fn names(&self, dir: &str) -> LocalNames {
        self.dirs.names(dir)
    }

    /// Calls `visit` with each artifact. Takes a while: not for a session thread.
    pub fn for_each(&self, visit: &mut dyn FnMut(Key)) {
        self.dirs.walk("", &mut |key, _| visit(key));
    }

    /// Whether a file can be put under `key`'s name without replacing something that isn't an artifact.
    pub fn has_room_for_name(&self, key: &Key) -> bool {
        match self.dirs.open_at(key, OFlag::O_PATH).and_then(|fd| Ok(fstat(&fd)?)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.dirs.may_hold(key),
            Ok(stat) if is_file(&stat) => true,
            _ => {
                let path = self.dirs.path.join(key.as_str());
                log::warn!(
                    "{}: not kept, since something that isn't a plain file is in the way",
                    path.display()
                );
                false
            }
        }
    }

    fn examine(&self, key: &Key, stat: &FileStat) -> Option<CachedFile> {
        let size = u64::try_from(stat.st_size).ok()?;
        let known = meta::read(self.dirs.state.as_fd(), key).filter(|(meta, _)| meta.size == size);
        let (id, modified_ns) = (FileId::of(stat), mtime_ns(stat));
        let origin = match known {
            Some((meta, confirmed)) if is_file_of(&meta, stat) => {
                let version = ObjectVersion {
                    key: key.clone(),
                    etag: ETag::new(&meta.etag),
                    size,
                    modified: meta.modified(),
                    checksum: None,
                    source: meta.source.as_str().into(),
                };
                // The common case costs nothing.
                let is_local = version.etag.is_local();
                let origin = match is_local && journal::is_pending(&self.dirs, key) {
                    true => Origin::Pending,
                    false => Origin::Known { source: meta.source, confirmed },
                };
                return Some(CachedFile { version, origin, checksum: meta.checksum, id });
            }
            Some((meta, _)) if meta.checksum.is_some() => Origin::Touched,
            _ => Origin::Adopted,
        };
        let etag = ETag::of_local_file(stat.st_ino, size, modified_ns.into());
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(modified_ns.try_into().unwrap_or(0));
        let source = ADOPTED.into();
        let version = ObjectVersion { key: key.clone(), etag, size, modified, checksum: None, source };
        Some(CachedFile { version, origin, checksum: None, id })
    }
}

/// Whether `meta`, of the same size, speaks of the very file that has this `stat`.
fn is_file_of(meta: &Meta, stat: &FileStat) -> bool {
    meta.file_mtime_ns == mtime_ns(stat) && meta.file_inode.is_none_or(|inode| inode == stat.st_ino)
}

/// `mountpoint` relative to the cache directory at `path`, if it lies below it.
fn within(path: &Path, mountpoint: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let relative = mountpoint.strip_prefix(path).or_else(|_| mountpoint.strip_prefix(&real)).ok()?;
    (!relative.as_os_str().is_empty()).then(|| relative.to_owned())
}

/// A file read from its start, chunk by chunk.
struct Paced<'a> {
    file: &'a File,
    at: u64,
    pace: &'a mut dyn FnMut(u64),
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        (self.pace)(length as u64);
        Ok(length)
    }
}
/// Locks an open file, so that it isn't evicted. Whoever has just given it its name holds it for a moment more; one that is being
/// evicted stays open all the same.
fn pin(file: &File, key: &Key) {
    for _ in 0..PIN_ATTEMPTS {
        match file.try_lock_shared() {
            Ok(()) => return,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            Err(TryLockError::Error(e)) => return log::debug!("{key}: can't lock: {e}"),
        }
    }
    log::debug!("{key}: another process holds it");
}
