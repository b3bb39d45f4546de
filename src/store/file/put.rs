//! Files put into the directory: written beside their name, synced, and given it in one step.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tempfile::{Builder, NamedTempFile};

use crate::answer::blocking;
use crate::checksum::{Checksum, extend_crc64nvme};
use crate::error::{Error, Kind, Result};
use crate::object::{Key, ObjectVersion};
use crate::store::file::{FileStore, io_error, version};
use crate::store::{Existing, Payload, Put};

/// How the names of files begin that are being written. Listings leave them out.
pub const TEMPORARY: &str = ".aztec-cache-put-";

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;
/// A file under way that nobody has locked, and that is as old as this, was left by a writer that died. Locks alone don't tell: not
/// every share has those of other machines.
const LEFT: Duration = Duration::from_secs(24 * 3600);

/// The directories that have been looked through for what dead writers left. Guards only the set.
pub type Swept = Mutex<HashSet<PathBuf>>;

/// [`crate::store::ObjectStore::put`]. Dropped, it ends before the file has its name, or after.
pub async fn put(store: &FileStore, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
    let waiting = Arc::new(());
    let task = Task {
        root: store.dir.clone(),
        path: store.path(key),
        payload: payload.clone(),
        existing,
        swept: store.swept.clone(),
        waiting: Arc::downgrade(&waiting),
    };
    let (key, source) = (key.clone(), store.url.clone());
    let written = blocking(move || task.run()).await?;
    drop(waiting);
    if written.is_err() {
        payload.sent.store(0, Ordering::Relaxed);
    }
    Ok(match written? {
        Some(meta) => {
            let checksum = Some(Arc::new(payload.checksum.clone()));
            Put::Stored(ObjectVersion { checksum, ..version(key, &meta, source) })
        }
        None => Put::Kept,
    })
}

/// [`crate::store::ObjectStore::delete`].
pub async fn delete(store: &FileStore, key: &Key) -> Result<()> {
    let path = store.path(key);
    blocking(move || match fs::remove_file(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|e| write_error(&path, &e)),
    })
    .await?
}

/// A put, as the thread that may wait for disks does it.
struct Task {
    root: PathBuf,
    path: PathBuf,
    payload: Payload,
    existing: Existing,
    swept: Arc<Swept>,
    /// Gone when nobody waits for it any more.
    waiting: Weak<()>,
}

impl Task {
    /// What the file is now; None when there was one, which is kept.
    fn run(&self) -> Result<Option<fs::Metadata>> {
        let keep = self.existing == Existing::Keep;
        if keep && self.path.is_file() {
            return Ok(None);
        }
        let file = self.copy()?;
        let named = if keep { file.persist_noclobber(&self.path) } else { file.persist(&self.path) };
        match named {
            Ok(file) => {
                let dir = self.path.parent().unwrap_or(&self.root);
                File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| write_error(&self.path, &e))?;
                file.metadata().map(Some).map_err(|e| write_error(&self.path, &e))
            }
            Err(e) if keep && e.error.kind() == ErrorKind::AlreadyExists && self.path.is_file() => Ok(None),
            Err(e) => Err(write_error(&self.path, &e.error)),
        }
    }

    /// The payload in a file beside its name, synced.
    fn copy(&self) -> Result<NamedTempFile> {
        let dir = self.path.parent().unwrap_or(&self.root);
        self.make_dirs(dir).map_err(|e| write_error(&self.path, &e))?;
        self.sweep(dir);
        // Whoever may read others may read this; NamedTempFile's own default is the owner alone.
        let permissions = Permissions::from_mode(0o666);
        let file = Builder::new().prefix(TEMPORARY).permissions(permissions).tempfile_in(dir);
        let mut file = file.map_err(|e| write_error(&self.path, &e))?;
        if let Err(e) = file.as_file().try_lock() {
            log::debug!("{}: can't be locked: {e}", file.path().display());
        }
        let crc = self.copy_to(file.as_file_mut())?;
        self.payload.check(&Checksum::crc64nvme(crc), &self.path.display().to_string())?;
        file.as_file().sync_all().map_err(|e| write_error(&self.path, &e))?;
        Ok(file)
    }

    /// Copies all bytes; their CRC64NVME.
    fn copy_to(&self, file: &mut File) -> Result<u64> {
        let (mut at, mut crc) = (0, 0);
        let mut buffer = vec![0; CHUNK.min(self.payload.size) as usize];
        while at < self.payload.size {
            if self.waiting.strong_count() == 0 {
                return Err(Error::new(Kind::Internal, format!("{}: given up", self.path.display())));
            }
            let chunk = &mut buffer[..CHUNK.min(self.payload.size - at) as usize];
            let read = self.payload.file.read_exact_at(chunk, at);
            read.map_err(|e| Error::local("reading what is to be uploaded", &e))?;
            file.write_all(chunk).map_err(|e| write_error(&self.path, &e))?;
            crc = extend_crc64nvme(crc, chunk);
            at += chunk.len() as u64;
            self.payload.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        Ok(crc)
    }

    /// Removes what dead writers left in `dir`, once.
    fn sweep(&self, dir: &Path) {
        if !self.swept.lock().unwrap_or_else(|e| e.into_inner()).insert(dir.to_owned()) {
            return;
        }
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(TEMPORARY.as_bytes())) {
            if is_left(&entry.path()).unwrap_or(false) && fs::remove_file(entry.path()).is_ok() {
                log::info!("{}: left by a writer that died, removed", entry.path().display());
            }
        }
    }

    /// Makes `dir` below the root, which is never made: it may be a share that isn't mounted yet.
    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        if dir == self.root || dir.is_dir() {
            return Ok(());
        }
        self.make_dirs(dir.parent().unwrap_or(&self.root))?;
        match fs::create_dir(dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }
}

/// Whether nobody writes the file at `path` any more.
fn is_left(path: &Path) -> io::Result<bool> {
    let meta = fs::symlink_metadata(path)?;
    let is_old = meta.modified()?.elapsed().is_ok_and(|age| age > LEFT);
    Ok(meta.is_file() && is_old && File::open(path)?.try_lock().is_ok())
}

/// What a failure to write at `path` means.
fn write_error(path: &Path, error: &io::Error) -> Error {
    let (kind, remedy) = match error.kind() {
        // The directory itself.
        ErrorKind::NotFound => (Kind::Unreachable, "; is its share mounted?"),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (Kind::AccessDenied, "; make it writable, or name another remote")
        }
        ErrorKind::AlreadyExists
        | ErrorKind::IsADirectory
        | ErrorKind::NotADirectory
        | ErrorKind::InvalidFilename => (Kind::Refused, "; there is no room for a file of this name"),
        _ => return io_error(path, error),
    };
    Error::new(kind, format!("{}: {error}{remedy}", path.display()))
}
