//! The two directories that everything here works in, and which names in them are whose.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, fstat, fstatat};

use crate::cache::{beneath, meta};
use crate::object::Key;

/// The cache directory and our own in it.
#[derive(Debug)]
pub struct Dirs {
    /// Its path, absolute.
    pub path: PathBuf,
    /// The cache directory.
    pub root: OwnedFd,
    /// `.aztec-cache` in it.
    pub state: OwnedFd,
    /// Where we are mounted, if that lies in the cache directory, relative to it.
    pub mountpoint: Option<PathBuf>,
}

/// Names of local artifacts in a directory.
#[derive(Debug, Default)]
pub struct LocalNames {
    /// Complete files.
    pub files: Vec<String>,
    /// Directories that hold some.
    pub dirs: Vec<String>,
}

/// An entry of a directory, and its type where the file system tells.
pub type DirEntry = (String, Option<Type>);

impl Dirs {
    /// Opens what lies under `key`'s name, if that name may hold an artifact.
    pub fn open_at(&self, key: &Key, flags: OFlag) -> io::Result<OwnedFd> {
        if !self.may_hold(key) {
            return Err(io::ErrorKind::NotFound.into());
        }
        beneath::open(&self.root, Path::new(key.as_str()), flags)
    }

    /// The regular file under `key`'s name, if there is one.
    pub fn stat(&self, key: &Key) -> Option<FileStat> {
        let stat = fstat(self.open_at(key, OFlag::O_PATH).ok()?).ok()?;
        is_file(&stat).then_some(stat)
    }

    /// Whether `key`'s name in this directory is ours to use: not our mountpoint, and not hidden, since hidden
    /// entries are other programs' (locks and temporary files of the shell layer).
    pub fn may_hold(&self, key: &Key) -> bool {
        let in_mount = self.mountpoint.as_deref().is_some_and(|m| {
            let path = Path::new(key.as_str());
            path.starts_with(m) || m.starts_with(path)
        });
        !in_mount && !key.as_str().starts_with('.')
    }

    /// The artifacts in `dir` (`""` is the root): in the root every plain file that isn't hidden, below it only
    /// what we fetched, since other directories are other people's.
    pub fn names(&self, dir: &str) -> LocalNames {
        let mut names = LocalNames::default();
        let known = read_dir(&self.state, &Path::new(meta::DIR).join(dir)).unwrap_or_default();
        for (name, kind) in known {
            let Ok(key) = Key::in_dir(dir, &name) else { continue };
            match kind {
                Some(Type::Directory) => names.dirs.push(name),
                _ if !dir.is_empty() && self.stat(&key).is_some() => names.files.push(name),
                _ => {}
            }
        }
        if dir.is_empty() {
            let files = read_dir(&self.root, Path::new("")).unwrap_or_default().into_iter();
            let files = files.filter(|(name, kind)| match (Key::in_dir("", name), kind) {
                (Ok(key), Some(Type::File)) => self.may_hold(&key),
                // Some file systems don't tell the type.
                (Ok(key), None) => self.stat(&key).is_some(),
                _ => false,
            });
            names.files.extend(files.map(|(name, _)| name));
        }
        names
    }

    /// Calls `visit` with each artifact in `dir` and below.
    pub fn walk(&self, dir: &str, visit: &mut dyn FnMut(Key, &FileStat)) {
        let names = self.names(dir);
        let Ok(parent) = beneath::open_dir(&self.root, Path::new(dir)) else { return };
        for name in names.files {
            let Ok(key) = Key::in_dir(dir, &name) else { continue };
            if let Ok(stat) = fstatat(&parent, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                && is_file(&stat)
            {
                visit(key, &stat);
            }
        }
        for name in names.dirs {
            self.walk(&if dir.is_empty() { name } else { format!("{dir}/{name}") }, visit);
        }
    }
}

/// The entries of the directory `path` below `base` whose names are UTF-8.
pub fn read_dir(base: impl AsFd, path: &Path) -> io::Result<Vec<DirEntry>> {
    let mut dir = Dir::from_fd(beneath::open_dir(base, path)?)?;
    let entries = dir.iter().filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().to_str().ok()?;
        (name != "." && name != "..").then(|| (name.to_owned(), entry.file_type()))
    });
    Ok(entries.collect())
}

/// Whether it is a regular file.
pub fn is_file(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// The last modification in nanoseconds since 1970.
pub fn mtime_ns(stat: &FileStat) -> i64 {
    stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec
}

/// The disk space that a file takes, in bytes.
pub fn allocated(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}
