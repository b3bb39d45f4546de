//! The cache directory: what is in it, and the way in.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, fstat, futimens, mkdirat};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, faccessat};

use crate::cache::beneath;
use crate::cache::meta::{self, Meta};
use crate::cache::partial::{self, Dirs, PARTIALS, Partial};
use crate::cache::space::Space;
use crate::config::SpaceLimits;
use crate::error::{Error, Result};
use crate::object::{ADOPTED, ETag, Key, ObjectVersion, RESERVED};

/// The file in our directory that names the format of what is there.
const FORMAT_FILE: &str = "format";

/// A directory of complete artifacts, each a plain file under its own name, shared with shell scripts, other
/// mounts and people, who may add and remove files at any time.
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    dirs: Arc<Dirs>,
    space: Arc<Space>,
    /// Where we are mounted, if that lies in the cache directory, relative to it.
    mountpoint: Option<PathBuf>,
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
    /// We fetched it, or compared it with a remote's version, which was last confirmed then.
    Known {
        /// The remote's URL, or `adopted`.
        source: String,
        /// When a remote last confirmed the version.
        confirmed: SystemTime,
    },
    /// Someone else put it there, and no remote has vouched for it.
    Adopted,
}

/// Names of local artifacts in a directory.
#[derive(Debug, Default)]
pub struct LocalNames {
    /// Complete files.
    pub files: Vec<String>,
    /// Directories that hold some.
    pub dirs: Vec<String>,
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
        check_format(&root).map_err(|e| Error::local(path.display(), &e))?;
        let (state, writable) = match prepare_state(&root) {
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
        let within = |mountpoint: &Path| {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            mountpoint
                .strip_prefix(&path)
                .or_else(|_| mountpoint.strip_prefix(&real))
                .ok()
                .map(Path::to_owned)
        };
        Ok(CacheDir {
            mountpoint: within(mountpoint).filter(|relative| !relative.as_os_str().is_empty()),
            dirs: Arc::new(Dirs { root, state }),
            space: Space::new(limits),
            path,
            writable,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file on the disk that the artifacts are on.
    ///
    /// # Errors
    /// A directory that can't be written may hold none of ours.
    pub fn sample(&self) -> io::Result<File> {
        beneath::open(&self.dirs.state, Path::new(FORMAT_FILE), OFlag::O_RDONLY).map(File::from)
    }

    /// Whether the file system that it is on is itself stacked on another (overlayfs).
    pub fn is_stacked(&self) -> bool {
        fstatfs(&self.dirs.root).is_ok_and(|fs| fs.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
    }

    /// Whether fetched files can be kept in it.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Removes what dead processes left behind. Walks a directory: not for the way to readiness.
    pub fn sweep(&self) {
        if self.writable
            && let Err(e) = partial::sweep(&self.dirs.state)
        {
            log::warn!("{}: can't remove old partial files: {e}", self.path.display());
        }
    }

    /// The complete file that holds `key`, if there is one.
    pub fn lookup(&self, key: &Key) -> Option<CachedFile> {
        let fd = self.open_at(key, OFlag::O_PATH).ok()?;
        self.examine(key, &fstat(&fd).ok()?)
    }

    /// Opens the file under `key`'s name if it is still the one that was found with this `id`. Notes the use.
    pub fn reopen(&self, key: &Key, id: FileId) -> Option<File> {
        self.open_if(key, |stat| is_file(stat) && FileId::of(stat) == id)
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
        let file = File::from(self.open_at(key, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?);
        if !is_it(&fstat(&file).ok()?) {
            return None;
        }
        // Recency is the file's own atime, so that every process and a restart agree on it.
        if let Err(e) = futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_OMIT) {
            log::debug!("{key}: can't note its use: {e}");
        }
        Some(file)
    }

    /// Begins to fetch `object` into the directory. None when it can't or shall not be kept: the directory is
    /// read-only, a limit would be passed, or something that isn't an artifact has its name.
    ///
    /// # Errors
    /// Trouble with the disk; the object can still be read without being kept.
    pub fn begin(&self, object: &ObjectVersion) -> io::Result<Option<Partial>> {
        if !self.writable || !self.has_room_for_name(&object.key) {
            return Ok(None);
        }
        let used = if self.space.is_capped() { self.used_bytes("") } else { 0 };
        let Some(space) = self.space.reserve(&self.dirs.root, object.size, used)? else { return Ok(None) };
        Partial::begin(self.dirs.clone(), object.clone(), space).map(Some)
    }

    /// Records that the file under `version`'s name, put there by someone else, is that version.
    pub fn adopt(&self, version: &ObjectVersion) {
        let Ok(stat) = self.open_at(&version.key, OFlag::O_PATH).and_then(|fd| Ok(fstat(&fd)?)) else {
            return;
        };
        if !self.writable || u64::try_from(stat.st_size) != Ok(version.size) {
            return;
        }
        let meta = Meta {
            etag: version.etag.as_str().to_owned(),
            size: version.size,
            modified_ns: meta::nanos(version.modified),
            file_mtime_ns: mtime_ns(&stat),
            source: ADOPTED.to_owned(),
            checksum: None,
        };
        let temporary =
            Path::new(PARTIALS).join(format!("{}-adopt-{}.meta", std::process::id(), fastrand::u64(..)));
        if let Err(e) = meta::write(self.dirs.state.as_fd(), &version.key, &meta, &temporary) {
            log::debug!("{}: can't record its version: {e}", version.key);
        }
    }

    /// Notes that the remote confirmed the local file's version now.
    pub fn confirm(&self, key: &Key) {
        if self.writable {
            meta::confirm(self.dirs.state.as_fd(), key);
        }
    }

    /// The artifacts in `dir` (`""` is the root): in the root every plain file that isn't hidden, below it only
    /// what we fetched, since other directories are other people's.
    pub fn names(&self, dir: &str) -> LocalNames {
        let mut names = LocalNames::default();
        let known = self.read_dir(&self.dirs.state, &Path::new("meta").join(dir)).unwrap_or_default();
        for (name, kind) in known {
            let Ok(key) = Key::in_dir(dir, &name) else { continue };
            match kind {
                Some(Type::Directory) => names.dirs.push(name),
                _ if !dir.is_empty() && self.lookup(&key).is_some() => names.files.push(name),
                _ => {}
            }
        }
        if dir.is_empty() {
            let files = self.read_dir(&self.dirs.root, Path::new("")).unwrap_or_default().into_iter();
            let files = files.filter(|(name, kind)| match (Key::in_dir("", name), kind) {
                (Ok(key), Some(Type::File)) => self.may_hold(&key),
                // Some file systems don't tell the type.
                (Ok(key), None) => self.lookup(&key).is_some(),
                _ => false,
            });
            names.files.extend(files.map(|(name, _)| name));
        }
        names
    }

    fn read_dir(&self, base: &OwnedFd, path: &Path) -> io::Result<Vec<(String, Option<Type>)>> {
        let mut dir = Dir::from_fd(beneath::open_dir(base, path)?)?;
        let entries = dir.iter().filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str().ok()?.to_owned(), entry.file_type()))
        });
        Ok(entries.collect())
    }

    /// The disk space of the artifacts in `dir` and below.
    fn used_bytes(&self, dir: &str) -> u64 {
        let names = self.names(dir);
        let join = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let blocks = |name: &String| {
            let key = Key::in_dir(dir, name).ok()?;
            let stat = fstat(self.open_at(&key, OFlag::O_PATH).ok()?).ok()?;
            u64::try_from(stat.st_blocks).ok()
        };
        let files: u64 = names.files.iter().filter_map(blocks).sum::<u64>() * 512;
        files + names.dirs.iter().map(|name| self.used_bytes(&join(name))).sum::<u64>()
    }

    fn open_at(&self, key: &Key, flags: OFlag) -> io::Result<OwnedFd> {
        if !self.may_hold(key) {
            return Err(io::ErrorKind::NotFound.into());
        }
        beneath::open(&self.dirs.root, Path::new(key.as_str()), flags)
    }

    /// Whether `key`'s name in this directory is ours to use: not our mountpoint, and not hidden, since hidden
    /// entries are other programs' (locks and temporary files of the shell layer).
    fn may_hold(&self, key: &Key) -> bool {
        let in_mount = self.mountpoint.as_deref().is_some_and(|m| {
            let path = Path::new(key.as_str());
            path.starts_with(m) || m.starts_with(path)
        });
        !in_mount && !key.as_str().starts_with('.')
    }

    /// Whether a file can be put under `key`'s name without replacing something that isn't an artifact.
    fn has_room_for_name(&self, key: &Key) -> bool {
        match self.open_at(key, OFlag::O_PATH).and_then(|fd| Ok(fstat(&fd)?)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.may_hold(key),
            Ok(stat) if is_file(&stat) => true,
            _ => {
                let path = self.path.join(key.as_str());
                log::warn!(
                    "{}: not kept, since something that isn't a plain file is in the way",
                    path.display()
                );
                false
            }
        }
    }

    fn examine(&self, key: &Key, stat: &FileStat) -> Option<CachedFile> {
        if !is_file(stat) {
            return None;
        }
        let size = u64::try_from(stat.st_size).ok()?;
        let mtime_ns = mtime_ns(stat);
        let known = meta::read(self.dirs.state.as_fd(), key);
        if let Some((meta, confirmed)) = known.filter(|(m, _)| m.size == size && m.file_mtime_ns == mtime_ns)
        {
            let version = ObjectVersion {
                key: key.clone(),
                etag: ETag::new(&meta.etag),
                size,
                modified: meta.modified(),
                source: meta.source.as_str().into(),
            };
            let origin = Origin::Known { source: meta.source, confirmed };
            return Some(CachedFile { version, origin, checksum: meta.checksum, id: FileId::of(stat) });
        }
        let etag = ETag::of_local_file(stat.st_ino, size, mtime_ns.into());
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(mtime_ns.try_into().unwrap_or(0));
        let version = ObjectVersion { key: key.clone(), etag, size, modified, source: ADOPTED.into() };
        Some(CachedFile { version, origin: Origin::Adopted, checksum: None, id: FileId::of(stat) })
    }
}

fn is_file(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

fn mtime_ns(stat: &FileStat) -> i64 {
    stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec
}

/// Makes `.aztec-cache/` and what belongs in it, and checks that it and the cache directory can be written.
fn prepare_state(root: &OwnedFd) -> io::Result<OwnedFd> {
    let make = |dir: &OwnedFd, name: &str| match mkdirat(dir, name, Mode::S_IRWXU) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => beneath::open_dir(dir, Path::new(name)),
        Err(e) => Err(e.into()),
    };
    let state = make(root, RESERVED)?;
    for dir in [root, &state, &make(&state, "meta")?, &make(&state, PARTIALS)?] {
        faccessat(dir, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)?;
    }
    write_format(&state)?;
    Ok(state)
}

/// Writes the format version, if there is none yet.
fn write_format(state: &OwnedFd) -> io::Result<()> {
    match beneath::open(state, Path::new(FORMAT_FILE), OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL) {
        Ok(fd) => io::Write::write_all(&mut File::from(fd), meta::FORMAT.as_bytes()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Checks that the directory's format, if it has one yet, is ours.
fn check_format(root: &OwnedFd) -> io::Result<()> {
    let text = match beneath::open(root, &Path::new(RESERVED).join(FORMAT_FILE), OFlag::O_RDONLY) {
        Ok(fd) => io::read_to_string(File::from(fd))?,
        // None yet, or it can't be read: then nothing can be written beside it either.
        Err(_) => return Ok(()),
    };
    // Empty: another process is about to write it, or a full disk kept it from doing so.
    if text == meta::FORMAT || text.is_empty() {
        return Ok(());
    }
    let text = text.trim().escape_debug().to_string();
    Err(io::Error::other(format!(
        "its format '{text}' is of a newer aztec-cache; use that one, or another --cache-dir"
    )))
}
