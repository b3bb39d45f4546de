//! A file on its way into the cache: begun beside its place, committed by rename, aborted by drop.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::futimens;
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::cache::beneath;
use crate::cache::meta::{self, Meta};
use crate::cache::space::Reservation;
use crate::object::ObjectVersion;

/// Metadata on its way to its place isn't locked: it lives for milliseconds.
const TEMPORARY_AGE: Duration = Duration::from_secs(60);

/// The directory of files under way, below the state directory.
pub const PARTIALS: &str = "partial";

/// The directories that a partial file moves between.
#[derive(Debug)]
pub struct Dirs {
    /// The cache directory.
    pub root: OwnedFd,
    /// `.aztec-cache` in it.
    pub state: OwnedFd,
}

/// A transaction: [`Partial::begin`], writes to [`Partial::file`], [`Partial::commit`]. Dropped before that, it
/// leaves nothing.
#[derive(Debug)]
pub struct Partial {
    dirs: Arc<Dirs>,
    file: Arc<File>,
    path: PathBuf,
    object: ObjectVersion,
    _space: Reservation,
}

impl Partial {
    /// Makes an empty partial file, locked for as long as this process lives, so that [`sweep`] in another
    /// process knows it from a dead one's.
    pub fn begin(dirs: Arc<Dirs>, object: ObjectVersion, space: Reservation) -> io::Result<Partial> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = Path::new(PARTIALS).join(name);
            let file = match beneath::open(&dirs.state, &path, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)
            {
                Ok(fd) => File::from(fd),
                // Left by a dead process of the same id, in another container perhaps.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            // A sweeper may have got between the two calls; it unlinks what it locks.
            if file.try_lock().is_ok() && file.metadata()?.nlink() > 0 {
                return Ok(Partial { dirs, file: Arc::new(file), path, object, _space: space });
            }
        }
    }

    /// The file to write to and read from, also after the commit.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Publishes the file, whole and on disk, under its own name: data first, then metadata, then the name, so
    /// that after a crash at any point there is either no such file or a right one.
    pub fn commit(self, source: &str, checksum: Option<String>) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        if size != self.object.size {
            return Err(io::Error::other(format!("{size} bytes were written of {}", self.object.size)));
        }
        let modified_ns = meta::nanos(self.object.modified);
        let modified = TimeSpec::nanoseconds(i64::try_from(modified_ns).unwrap_or(0));
        futimens(&*self.file, &TimeSpec::UTIME_NOW, &modified)?;
        self.file.sync_data()?;
        let stored = self.file.metadata()?;
        let meta = Meta {
            etag: self.object.etag.as_str().to_owned(),
            size,
            modified_ns,
            // Read back: the file system may keep coarser times.
            file_mtime_ns: stored.mtime() * 1_000_000_000 + stored.mtime_nsec(),
            source: source.to_owned(),
            checksum,
        };
        let key = &self.object.key;
        let dir = beneath::make_dirs(&self.dirs.root, Path::new(key.dir()))?;
        meta::write(self.dirs.state.as_fd(), key, &meta, &self.path.with_extension("meta"))?;
        renameat(&self.dirs.state, &self.path, &dir, key.name())?;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a commit there is nothing under this name any more.
        match unlinkat(&self.dirs.state, &self.path, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => log::warn!("{}: can't remove the partial file: {e}", self.path.display()),
        }
    }
}

/// Removes the partial files of dead processes: those whose lock is free.
pub fn sweep(state: &OwnedFd) -> io::Result<()> {
    let partials = beneath::open_dir(state, Path::new(PARTIALS))?;
    let mut dir = nix::dir::Dir::from_fd(partials.try_clone()?)?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        let Ok(path) = name.to_str().map(Path::new) else { continue };
        let Ok(fd) = beneath::open(&partials, path, OFlag::O_RDWR | OFlag::O_NONBLOCK) else { continue };
        let file = File::from(fd);
        let is_temporary = path.extension().is_some_and(|extension| extension == "meta");
        let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
        if (!is_temporary || age > TEMPORARY_AGE) && file.try_lock().is_ok() {
            log::info!("removing the partial file {} of a dead process", path.display());
            unlinkat(&partials, path, UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}
