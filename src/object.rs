//! Value types that name remote objects: [`Key`], [`ETag`], [`ObjectVersion`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::checksum::Checksum;

/// The name of the directory that belongs to aztec-cache alone, below the cache directory and below the mount.
pub const RESERVED: &str = ".aztec-cache";

/// Artifacts with this in their name come from a dirty work tree; the shell layer never caches them.
pub const DISABLED: &str = "disabled-cache";

/// The longest file name that Linux takes, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// The longest key that S3 takes, in bytes
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>).
const KEY_MAX: usize = 1024;

/// An object's name below the remote's prefix, known to be a clean relative path: 1 to 1024 bytes of UTF-8,
/// no empty, `.` or `..` component, no component over [`NAME_MAX`] bytes, no NUL, not [`RESERVED`] and
/// not [`DISABLED`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

/// Why a string can't be a [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKey {
    /// A component, or the whole, is longer than a file name can be.
    TooLong,
    /// An empty, `.` or `..` component, or a NUL byte.
    NotAPath,
    /// It lies below [`RESERVED`] or contains [`DISABLED`]: there is never such an artifact.
    NeverThere,
}

impl Key {
    /// Checks `key`.
    pub fn new(key: &str) -> Result<Key, InvalidKey> {
        if key.len() > KEY_MAX {
            return Err(InvalidKey::TooLong);
        }
        for component in key.split('/') {
            match component {
                "" | "." | ".." => return Err(InvalidKey::NotAPath),
                c if c.len() > NAME_MAX => return Err(InvalidKey::TooLong),
                c if c.contains('\0') => return Err(InvalidKey::NotAPath),
                _ => {}
            }
        }
        if key.split('/').next() == Some(RESERVED) || key.contains(DISABLED) {
            return Err(InvalidKey::NeverThere);
        }
        Ok(Key(key.into()))
    }

    /// The key of `name` in the directory `dir` (`""` is the root, no trailing slash).
    pub fn in_dir(dir: &str, name: &str) -> Result<Key, InvalidKey> {
        if name.contains('/') {
            return Err(InvalidKey::NotAPath);
        }
        if dir.is_empty() { Key::new(name) } else { Key::new(&format!("{dir}/{name}")) }
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory the key lies in, without a trailing slash; `""` is the root.
    pub fn dir(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The shared text, for tables that keep many keys.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key may hold newlines; an error stays one line.
        write!(f, "{}", self.0.escape_debug())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// An entity tag as the server spells it, quotes included.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Takes the server's spelling. Some servers and listings leave the quotes out: they are put back, so that
    /// a listing's ETag equals a header's.
    pub fn new(text: &str) -> ETag {
        if text.starts_with('"') || text.starts_with("W/") {
            ETag(text.into())
        } else {
            ETag(format!("\"{text}\"").into())
        }
    }

    /// The tag of a local file that no remote has vouched for: it changes when the file does. It can't be
    /// a server's, since it has no quotes.
    pub fn of_local_file(inode: u64, size: u64, mtime_ns: i128) -> ETag {
        ETag(format!("local:{inode}:{size}:{mtime_ns}").into())
    }

    /// Whether this tag was made by [`ETag::of_local_file`].
    pub fn is_local(&self) -> bool {
        self.0.starts_with("local:")
    }

    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One immutable version of an object: what a reader gets all its bytes from. Two are the same if key, ETag and size are.
#[derive(Clone, Debug)]
pub struct ObjectVersion {
    /// Its name.
    pub key: Key,
    /// Its entity tag, pinned (`If-Match`) on every request for its bytes.
    pub etag: ETag,
    /// Its length in bytes.
    pub size: u64,
    /// When the server says it was last written.
    pub modified: SystemTime,
    /// The checksum of its bytes, if the server told one: listings don't.
    pub checksum: Option<Arc<Checksum>>,
}

impl PartialEq for ObjectVersion {
    fn eq(&self, other: &ObjectVersion) -> bool {
        self.key == other.key && self.etag == other.etag && self.size == other.size
    }
}

impl Eq for ObjectVersion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_keys_are_refused() {
        for key in ["", "/", "a//b", "../x", "a/../b", ".", "./a", "a/", "/a", "a\0b"] {
            assert_eq!(Key::new(key), Err(InvalidKey::NotAPath), "{key:?}");
        }
        assert_eq!(Key::new(&"n".repeat(256)), Err(InvalidKey::TooLong));
        assert_eq!(Key::new(&vec!["abc"; 300].join("/")), Err(InvalidKey::TooLong));
        assert_eq!(Key::new(".aztec-cache/x"), Err(InvalidKey::NeverThere));
        assert_eq!(Key::new("noir-disabled-cache.tar.gz"), Err(InvalidKey::NeverThere));
        assert!(Key::new("a\nb").is_ok());
        assert!(Key::new(&"n".repeat(255)).is_ok());
    }

    #[test]
    fn components() {
        let key = Key::new("a/b/c.zst").unwrap();
        assert_eq!((key.dir(), key.name()), ("a/b", "c.zst"));
        let key = Key::in_dir("", "c.zst").unwrap();
        assert_eq!((key.dir(), key.name()), ("", "c.zst"));
    }

    #[test]
    fn a_listing_s_etag_equals_a_header_s() {
        assert_eq!(ETag::new("abc"), ETag::new("\"abc\""));
    }
}
