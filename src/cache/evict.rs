//! What may go when room is needed, in which order, and how it goes.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::cache::dirs::{Dirs, allocated, is_file, read_dir};
use crate::cache::{beneath, journal, meta, partial, quarantine, spool};
use crate::object::Key;

/// Something that may go.
#[derive(Clone, Debug)]
pub struct Candidate {
    what: What,
    /// The disk space it takes, in bytes.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
    inode: u64,
}

#[derive(Clone, Debug)]
enum What {
    Artifact(Key),
    /// A file under way that nobody fills, or a quarantined one, below the state directory.
    Leftover(PathBuf),
}

impl Candidate {
    /// The artifact, if it is one.
    pub fn key(&self) -> Option<&Key> {
        match &self.what {
            What::Artifact(key) => Some(key),
            What::Leftover(_) => None,
        }
    }

    /// The artifact `key` whose file is in this state.
    pub fn artifact(key: Key, stat: &FileStat) -> Candidate {
        let used =
            Duration::new(stat.st_atime.max(0) as u64, stat.st_atime_nsec.clamp(0, 999_999_999) as u32);
        Candidate {
            what: What::Artifact(key),
            bytes: allocated(stat),
            used: SystemTime::UNIX_EPOCH + used,
            inode: stat.st_ino,
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Artifact(key) => write!(f, "{key}"),
            What::Leftover(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The space in use, in bytes, and what of it may go: leftovers first, then artifacts, least recently used first. What is
/// still to be uploaded may not.
pub fn survey(dirs: &Dirs) -> (u64, VecDeque<Candidate>) {
    let (mut bytes, mut artifacts, mut leftovers) = (0, Vec::new(), Vec::new());
    let any_pending = journal::is_used(dirs);
    dirs.walk("", &mut |key, stat| {
        let pinned = any_pending && journal::is_pending(dirs, &key);
        let candidate = Candidate::artifact(key, stat);
        bytes += candidate.bytes;
        if !pinned {
            artifacts.push(candidate);
        }
    });
    for dir in [partial::DIR, spool::DIR, quarantine::DIR] {
        for_each_file(dirs, dir, &mut |path, stat| {
            let takes = allocated(stat).max(u64::try_from(stat.st_size).unwrap_or(0));
            bytes += takes;
            // What belongs to a partial file goes with it.
            if dir != partial::DIR || path.extension().is_none() {
                let used = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.max(0) as u64);
                leftovers.push(Candidate {
                    what: What::Leftover(path),
                    bytes: takes,
                    used,
                    inode: stat.st_ino,
                });
            }
        });
    }
    artifacts.sort_by_key(|candidate| candidate.used);
    leftovers.sort_by_key(|candidate| candidate.used);
    (bytes, leftovers.into_iter().chain(artifacts).collect())
}

/// The bytes that files under way will still take on the disk.
pub fn unwritten(dirs: &Dirs) -> u64 {
    let mut bytes = 0;
    for dir in [partial::DIR, spool::DIR] {
        for_each_file(dirs, dir, &mut |_, stat| {
            bytes += u64::try_from(stat.st_size).unwrap_or(0).saturating_sub(allocated(stat));
        });
    }
    bytes
}

fn for_each_file(dirs: &Dirs, dir: &str, visit: &mut dyn FnMut(PathBuf, &FileStat)) {
    for (name, _) in read_dir(&dirs.state, Path::new(dir)).unwrap_or_default() {
        let path = Path::new(dir).join(name);
        let stat = beneath::open(&dirs.state, &path, OFlag::O_PATH).and_then(|fd| Ok(fstat(&fd)?));
        if let Ok(stat) = stat.as_ref()
            && is_file(stat)
        {
            visit(path, stat);
        }
    }
}

/// Removes it, unless it is in use, was used since, or is another file by now. Never asks a file's user to wait.
pub fn evict(dirs: &Dirs, candidate: &Candidate) -> bool {
    if candidate.key().is_some_and(|key| !dirs.may_hold(key) || journal::is_pending(dirs, key)) {
        return false;
    }
    let (base, path) = place(dirs, candidate);
    let Ok(fd) = beneath::open(base, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) else { return false };
    let file = File::from(fd);
    let unchanged = file.metadata().is_ok_and(|meta| {
        let leftover = candidate.key().is_none();
        meta.is_file()
            && meta.ino() == candidate.inode
            && (leftover || meta.accessed().is_ok_and(|used| used <= candidate.used))
    });
    // Whoever has it open has it locked.
    if !unchanged || file.try_lock().is_err() {
        return false;
    }
    remove(dirs, candidate).inspect_err(|e| log::debug!("{candidate}: can't be evicted: {e}")).is_ok()
}

/// Removes it, in use or not, with what belongs to it.
pub fn remove(dirs: &Dirs, candidate: &Candidate) -> io::Result<()> {
    let (base, path) = place(dirs, candidate);
    let parent = beneath::open_dir(base, path.parent().unwrap_or(Path::new("")))?;
    unlinkat(parent, path.file_name().unwrap_or_default(), UnlinkatFlags::NoRemoveDir)?;
    match &candidate.what {
        What::Artifact(key) => meta::remove(dirs.state.as_fd(), key),
        What::Leftover(path) => partial::unlink(dirs, &partial::progress_of(path)),
    }
    Ok(())
}

fn place<'a>(dirs: &'a Dirs, candidate: &'a Candidate) -> (&'a OwnedFd, &'a Path) {
    match &candidate.what {
        What::Artifact(key) => (&dirs.root, Path::new(key.as_str())),
        What::Leftover(path) => (&dirs.state, path),
    }
}
