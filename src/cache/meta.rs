//! What is recorded about each file that was fetched or checked: one small JSON file per key.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{OFlag, renameat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::cache::beneath;
use crate::checksum::Checksum;
use crate::object::{ETag, Key, RESERVED, UPLOAD};

/// The directory of the records, below the state directory.
pub const DIR: &str = "meta";

/// Where `key`'s metadata lies, below the state directory: the keys' own tree.
pub fn path(key: &Key) -> PathBuf {
    Path::new(DIR).join(key.as_str())
}

/// Where the metadata of `key` is, for who hasn't opened the cache directory `dir`.
pub fn metadata_of(dir: &Path, key: &Key) -> PathBuf {
    dir.join(RESERVED).join(path(key))
}

/// The record beside a complete file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The version's entity tag.
    pub etag: String,
    /// Its length in bytes.
    pub size: u64,
    /// When the remote says it was written, in nanoseconds since 1970.
    pub modified_ns: u64,
    /// The local file's modification time when it was published, in nanoseconds since 1970: a file with another
    /// time or size has been changed by someone else.
    pub file_mtime_ns: i64,
    /// The local file's inode number, for the same reason. None in records of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_inode: Option<u64>,
    /// The remote it came from, `adopted` or `upload`.
    pub source: String,
    /// The checksum of its bytes as [`Checksum`] writes it; None for files that were
    /// adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

impl Meta {
    /// The record of a file that was written here and is now as `file` says.
    pub fn of_written(file: &Metadata, checksum: &Checksum) -> Meta {
        let mtime_ns = file.mtime() * 1_000_000_000 + file.mtime_nsec();
        Meta {
            etag: ETag::of_local_file(file.ino(), file.len(), mtime_ns.into()).as_str().to_owned(),
            size: file.len(),
            modified_ns: u64::try_from(mtime_ns).unwrap_or(0),
            file_mtime_ns: mtime_ns,
            file_inode: Some(file.ino()),
            source: UPLOAD.to_owned(),
            checksum: Some(checksum.to_string()),
        }
    }

    /// When the remote says it was written.
    pub fn modified(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.modified_ns)
    }
}

/// Nanoseconds since 1970, 0 for anything earlier.
pub fn nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos().try_into().unwrap_or(u64::MAX))
}

/// Reads `key`'s record and when it was last confirmed. None when there is none, or when it is damaged: the file
/// counts as someone else's then.
pub fn read(state: BorrowedFd<'_>, key: &Key) -> Option<(Meta, SystemTime)> {
    let fd = beneath::open(state, &path(key), OFlag::O_RDONLY).ok()?;
    let mut file = File::from(fd);
    let confirmed = file.metadata().ok()?.modified().ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    match serde_json::from_str(&text) {
        Ok(meta) => Some((meta, confirmed)),
        Err(e) => {
            log::info!("{key}: its metadata is damaged ({e}); the file counts as adopted");
            None
        }
    }
}

/// Writes `key`'s record in place of any other, by way of `temporary` (a name below the state directory).
pub fn write(state: BorrowedFd<'_>, key: &Key, meta: &Meta, temporary: &Path) -> io::Result<()> {
    let target = path(key);
    let dir = beneath::make_dirs(state, target.parent().unwrap_or(Path::new("")))?;
    let fd = beneath::open(state, temporary, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?;
    let text = serde_json::to_vec(meta).map_err(io::Error::other)?;
    let mut file = File::from(fd);
    file.write_all(&text)?;
    // A record that is empty after a power cut would cost the file its checksum.
    file.sync_data()?;
    renameat(state, temporary, dir.as_fd(), key.name()).map_err(io::Error::from)
}

/// Notes when the remote confirmed `key`'s version.
pub fn confirm(state: BorrowedFd<'_>, key: &Key, at: SystemTime) {
    let confirmed =
        beneath::open(state, &path(key), OFlag::O_WRONLY).and_then(|fd| File::from(fd).set_modified(at));
    if let Err(e) = confirmed {
        log::debug!("{key}: can't note that it was confirmed: {e}");
    }
}

/// Removes `key`'s record, if there is one.
pub fn remove(state: BorrowedFd<'_>, key: &Key) {
    let path = path(key);
    let removed = beneath::open_dir(state, path.parent().unwrap_or(Path::new("")))
        .and_then(|dir| Ok(unlinkat(dir, key.name(), UnlinkatFlags::NoRemoveDir)?));
    if let Err(e) = removed
        && e.kind() != io::ErrorKind::NotFound
    {
        log::debug!("{key}: can't remove its metadata: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format on disk. If this fails, either the change was not meant, or bump the format version.
    #[test]
    fn golden() {
        let meta = Meta {
            etag: "\"abc\"".into(),
            size: 7,
            modified_ns: 1_700_000_000_000_000_000,
            file_mtime_ns: 1_700_000_000_000_000_000,
            file_inode: Some(12),
            source: "s3://bucket/prefix/".into(),
            checksum: Some("crc64nvme:AAAAAAAAAAA=".into()),
        };
        let text = r#"{"etag":"\"abc\"","size":7,"modified_ns":1700000000000000000,"file_mtime_ns":1700000000000000000,"file_inode":12,"source":"s3://bucket/prefix/","checksum":"crc64nvme:AAAAAAAAAAA="}"#;
        assert_eq!(serde_json::to_string(&meta).unwrap(), text);
        assert_eq!(serde_json::from_str::<Meta>(text).unwrap(), meta);
        let older = text.replace(r#""file_inode":12,"#, "");
        assert_eq!(serde_json::from_str::<Meta>(&older).unwrap(), Meta { file_inode: None, ..meta });
        assert_eq!(path(&Key::new("a/b.zst").unwrap()), PathBuf::from("meta/a/b.zst"));
    }
}
