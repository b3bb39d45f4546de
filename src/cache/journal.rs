//! What has been written here and is still to be uploaded: one small JSON file per key, on disk before the artifact gets its
//! name. Whoever publishes, uploads, renames or removes a file of ours has its key's claim meanwhile, a lock on that file, which
//! dies with its holder; so processes that share the directory never upload one twice.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, renameat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::dirs::{Dirs, read_dir};
use crate::cache::{beneath, partial};
use crate::object::{Key, RESERVED};

/// The journal's directory, below the state directory.
pub const DIR: &str = "journal";

/// How often a claim is tried whose file goes at the same moment.
const ATTEMPTS: u32 = 1000;

/// An entry of the journal: a complete local file that is to be uploaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingUpload {
    /// Its key.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// The checksum of its bytes as [`Checksum`](crate::checksum::Checksum) writes it.
    pub checksum: String,
    /// The URL of the remote that it goes to.
    pub remote: String,
    /// An object that is there already is replaced.
    pub overwrite: bool,
    /// When it was written, in seconds since 1970.
    pub since: u64,
    /// How often it was tried.
    pub attempts: u64,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The remote won't have it. A later process tries it again, once.
    pub refused: bool,
    /// The id of the upload in parts that was begun last: the server may keep parts of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_id: Option<String>,
}

/// The right to publish, upload, rename or remove a key's file: nobody else has it until this is dropped.
#[derive(Debug)]
pub struct Claim {
    dirs: Arc<Dirs>,
    key: Key,
    path: PathBuf,
    /// The entry's file, locked. Empty: no entry.
    file: File,
}

impl Claim {
    /// Claims `key`; None while somebody else has it.
    pub fn take(dirs: &Arc<Dirs>, key: &Key) -> io::Result<Option<Claim>> {
        let path = path(key);
        let file = lock(dirs, &path)?;
        Ok(file.map(|file| Claim { dirs: dirs.clone(), key: key.clone(), path, file }))
    }

    /// Whose claim it is.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The key's entry, if it has one.
    pub fn entry(&self) -> Option<PendingUpload> {
        read(&self.dirs, &self.path)
    }

    /// Writes the key's entry in place of any other. It is on disk then.
    pub fn write(&mut self, entry: &PendingUpload) -> io::Result<()> {
        let temporary = Path::new(partial::DIR).join(partial::temporary_name("entry"));
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut file = File::from(beneath::open(&self.dirs.state, &temporary, flags)?);
        let written = write_locked(&mut file, entry)
            .and_then(|()| Ok(renameat(&self.dirs.state, &temporary, &self.dirs.state, &self.path)?));
        if let Err(e) = written {
            partial::unlink(&self.dirs, &temporary);
            return Err(e);
        }
        self.file = file;
        // The name, too.
        File::from(beneath::open_dir(&self.dirs.state, Path::new(DIR))?).sync_all()
    }

    /// Removes the key's entry.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.file.metadata().is_ok_and(|meta| meta.len() == 0) {
            partial::unlink(&self.dirs, &self.path);
        }
    }
}

fn write_locked(file: &mut File, entry: &PendingUpload) -> io::Result<()> {
    // Nobody else knows it yet: this can't wait, and once it has its name it is ours at once.
    file.lock()?;
    file.write_all(&serde_json::to_vec(entry).map_err(io::Error::other)?)?;
    file.sync_data()
}

/// The file at `path`, made when missing, and locked; None when somebody else has it locked.
fn lock(dirs: &Dirs, path: &Path) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS {
        let file = File::from(beneath::open(&dirs.state, path, OFlag::O_RDWR | OFlag::O_CREAT)?);
        match file.try_lock() {
            // It may have been replaced or removed between the two calls.
            Ok(()) if partial::is_at(dirs, path, &file) => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
    }
    Err(io::Error::other("its journal entry comes and goes; try again"))
}

/// Whether `key`'s file is still to be uploaded.
pub fn is_pending(dirs: &Dirs, key: &Key) -> bool {
    holds_entry(dirs, &path(key))
}

fn holds_entry(dirs: &Dirs, path: &Path) -> bool {
    let file = beneath::open(&dirs.state, path, OFlag::O_RDONLY).map(File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|meta| meta.len() > 0)
}

/// Whether there may be any entries.
pub fn is_used(dirs: &Dirs) -> bool {
    read_dir(&dirs.state, Path::new(DIR)).is_ok_and(|entries| !entries.is_empty())
}

/// The entry of `key`, if it has one.
pub fn entry(dirs: &Dirs, key: &Key) -> Option<PendingUpload> {
    read(dirs, &path(key))
}

/// All entries, in no order.
pub fn entries(dirs: &Dirs) -> Vec<PendingUpload> {
    let names = read_dir(&dirs.state, Path::new(DIR)).unwrap_or_default();
    names.iter().filter_map(|(name, _)| read(dirs, &Path::new(DIR).join(name))).collect()
}

/// Removes what claims of dead processes have left, and damaged entries.
pub fn sweep(dirs: &Dirs) {
    for (name, _) in read_dir(&dirs.state, Path::new(DIR)).unwrap_or_default() {
        let path = Path::new(DIR).join(name);
        if read(dirs, &path).is_none()
            && let Ok(Some(_locked)) = lock(dirs, &path)
            && read(dirs, &path).is_none()
        {
            if holds_entry(dirs, &path) {
                let path = dirs.path.join(RESERVED).join(&path);
                log::warn!("{}: a damaged entry, removed: what it was for isn't uploaded", path.display());
            }
            partial::unlink(dirs, &path);
        }
    }
}

fn read(dirs: &Dirs, path: &Path) -> Option<PendingUpload> {
    let fd = beneath::open(&dirs.state, path, OFlag::O_RDONLY).ok()?;
    let text = io::read_to_string(File::from(fd)).ok().filter(|text| !text.is_empty())?;
    let entry = serde_json::from_str(&text);
    entry.inspect_err(|e| log::debug!("{}: a damaged entry: {e}", path.display())).ok()
}

/// Where `key`'s entry lies, below the state directory: all side by side, whatever the keys' length and directories.
fn path(key: &Key) -> PathBuf {
    let digest = Sha256::digest(key.as_str().as_bytes());
    Path::new(DIR).join(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format on disk. If this fails, either the change was not meant, or bump the format version.
    #[test]
    fn golden() {
        let entry = PendingUpload {
            name: "a/b.zst".into(),
            size: 7,
            checksum: "crc64nvme:AAAAAAAAAAA=".into(),
            remote: "s3://bucket/prefix/".into(),
            overwrite: false,
            since: 1_700_000_000,
            attempts: 3,
            error: Some("timed out".into()),
            refused: false,
            upload_id: None,
        };
        let text = r#"{"name":"a/b.zst","size":7,"checksum":"crc64nvme:AAAAAAAAAAA=","remote":"s3://bucket/prefix/","overwrite":false,"since":1700000000,"attempts":3,"error":"timed out","refused":false}"#;
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
        assert_eq!(serde_json::from_str::<PendingUpload>(text).unwrap(), entry);
        let fresh = text.replace(r#""error":"timed out","#, "");
        assert_eq!(
            serde_json::from_str::<PendingUpload>(&fresh).unwrap(),
            PendingUpload { error: None, ..entry }
        );
        let path = path(&Key::new("a/b.zst").unwrap());
        assert_eq!(path, Path::new("journal/03354ddb5d4c4b102a4569a6727527ca"));
    }
}
