//! A file that is being written here, on its way to being an artifact.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{OFlag, renameat};

use crate::cache::dirs::Dirs;
use crate::cache::journal::{Claim, PendingUpload};
use crate::cache::meta::{self, Meta};
use crate::cache::space::Space;
use crate::cache::{beneath, partial};
use crate::checksum::Checksum;

/// The directory of files that are being written, below the state directory.
pub const DIR: &str = "spool";

/// So many bytes more than asked for are reserved, as many again as there are and at most so many, so that few writes have to.
const STEPS: [u64; 2] = [1 << 20, 16 << 20];
/// What a disk that is full in spite of a reservation is relieved of at least.
const RELIEF: u64 = 16 << 20;

/// A file under `.aztec-cache/spool/`, as long as what has been reserved for it. It is locked, so that nobody takes it for
/// something left behind. Dropped without having been published it is removed, and its space given back, which blocks
/// on the disk, briefly.
#[derive(Debug)]
pub struct Spool {
    dirs: Arc<Dirs>,
    space: Arc<Space>,
    file: Arc<File>,
    path: PathBuf,
    reserved: AtomicU64,
    published: AtomicBool,
}

impl Spool {
    /// A new, empty file.
    pub fn create(dirs: &Arc<Dirs>, space: &Arc<Space>) -> io::Result<Spool> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        loop {
            let path = Path::new(DIR).join(format!("{}-{}", std::process::id(), fastrand::u64(..)));
            let file = File::from(beneath::open(&dirs.state, &path, flags)?);
            match file.try_lock() {
                Ok(()) if partial::is_at(dirs, &path, &file) => {
                    return Ok(Spool {
                        dirs: dirs.clone(),
                        space: space.clone(),
                        file: Arc::new(file),
                        path,
                        reserved: AtomicU64::new(0),
                        published: AtomicBool::new(false),
                    });
                }
                // Taken for something left behind, before it was locked.
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    /// The file to write to and read from, also after its publication. It is longer than what has been written.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether it is an artifact by now.
    pub fn is_published(&self) -> bool {
        self.published.load(Ordering::Relaxed)
    }

    /// Makes room for `size` bytes in all, evicting what is in the way. In steps: it rarely has anything to do.
    ///
    /// # Errors
    /// `StorageFull` when a limit would be passed.
    pub fn reserve(&self, size: u64) -> io::Result<()> {
        if size <= self.reserved.load(Ordering::Relaxed) {
            return Ok(());
        }
        let step = size.saturating_add(size.clamp(STEPS[0], STEPS[1]));
        for wanted in [step, size] {
            match self.space.reserve(&self.file, wanted)? {
                None => {
                    self.reserved.fetch_max(wanted, Ordering::Relaxed);
                    return Ok(());
                }
                Some(limit) if wanted == size => {
                    return Err(io::Error::new(io::ErrorKind::StorageFull, format!("{size} bytes {limit}")));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Tries to free space for `bytes` bytes on the disk, which was found to be full.
    pub fn relieve(&self, bytes: u64) -> bool {
        self.space.relieve(bytes.max(RELIEF)).unwrap_or_else(|e| {
            log::debug!("{}: can't free space: {e}", self.path.display());
            false
        })
    }

    /// Cuts the file to `size` bytes, which is no more than was reserved, and gives back the rest.
    pub fn cut(&self, size: u64) -> io::Result<()> {
        self.space.cut(&self.file, size)?;
        self.reserved.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the first `size` bytes, which have this checksum, the artifact that `claim` is for, in place of any other. Data
    /// first, then metadata and the journal's entry, if there is to be one, then the name: after a crash at any point there
    /// is either nothing new or all of it. It is on disk when this returns.
    pub fn publish(
        &self,
        claim: &mut Claim,
        size: u64,
        checksum: &Checksum,
        entry: Option<&PendingUpload>,
    ) -> io::Result<()> {
        self.cut(size)?;
        self.file.sync_data()?;
        let meta = Meta::of_written(&self.file.metadata()?, checksum);
        let key = claim.key().clone();
        let dir = beneath::make_dirs(&self.dirs.root, Path::new(key.dir()))?;
        let temporary = Path::new(partial::DIR).join(partial::temporary_name("meta"));
        meta::write(self.dirs.state.as_fd(), &key, &meta, &temporary)?;
        let named = entry.map_or(Ok(()), |entry| claim.write(entry)).and_then(|()| {
            let rename = || Ok(renameat(&self.dirs.state, &self.path, &dir, key.name())?);
            self.space.publish(&key, &self.file, rename)
        });
        if let Err(e) = named {
            // It would be taken for that of the file before.
            meta::remove(self.dirs.state.as_fd(), &key);
            claim.clear()?;
            return Err(e);
        }
        self.published.store(true, Ordering::Relaxed);
        // In use, which keeps it from being evicted, but no longer being written.
        if let Err(e) = self.file.try_lock_shared() {
            log::debug!("{key}: can't unlock: {e}");
        }
        File::from(dir).sync_all()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.is_published() {
            self.space.release(&self.file, || partial::unlink(&self.dirs, &self.path));
        }
    }
}
