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

/// How the names of artifacts end.
const ARTIFACTS: [&str; 12] =
    [".gz", ".tgz", ".zst", ".tzst", ".xz", ".txz", ".bz2", ".tbz2", ".lz4", ".tar", ".zip", ".flag"];

/// Words behind a dot in names that programs write under before they rename.
const TEMPORARY: [&str; 9] =
    ["tmp", "temp", "part", "partial", "crdownload", "download", "new", "swp", "incomplete"];

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

    /// Whether its name ends like an artifact's.
    pub fn is_artifact(&self) -> bool {
        ARTIFACTS.iter().any(|suffix| self.name().ends_with(suffix))
    }

    /// Whether its name is one to write under before renaming: it is hidden, or it doesn't end like an artifact's and has
    /// `tmp`, `part` or another such word behind a dot, begins with `tmp`, or ends in `~`.
    pub fn is_temporary(&self) -> bool {
        let name = self.name();
        name.starts_with('.')
            || !self.is_artifact()
                && (name.starts_with("tmp")
                    || name.ends_with('~')
                    || name.split('.').skip(1).any(|word| TEMPORARY.contains(&word)))
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

/// What tags begin with that we make for servers without their own.
const DATED: &str = "date:";
const UNDATED: &str = "length:";
/// And those of local files that no remote has vouched for.
const LOCAL: &str = "local:";

/// The source of files that no remote gave us.
pub const ADOPTED: &str = "adopted";

/// The source of files that were written here.
pub const UPLOAD: &str = "upload";

/// An entity tag as the server spells it, quotes included.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Takes the server's spelling. Some servers and listings leave the quotes out: they are put back, so that
    /// a listing's ETag equals a header's.
    pub fn new(text: &str) -> ETag {
        let ours = [DATED, UNDATED, LOCAL].iter().any(|begin| text.starts_with(begin));
        if ours || text.starts_with('"') || text.starts_with("W/") {
            ETag(text.into())
        } else {
            ETag(format!("\"{text}\"").into())
        }
    }

    /// The tag of an object whose server gives no tag that pins its bytes, from when it says that the object was last
    /// written (seconds since 1970) and its length. It can't be a server's, since it has no quotes.
    pub fn of_date(modified: u64, size: u64) -> ETag {
        ETag(format!("{DATED}{modified}:{size}").into())
    }

    /// The tag of an object of which nothing is known but its length.
    pub fn of_length(size: u64) -> ETag {
        ETag(format!("{UNDATED}{size}").into())
    }

    /// Whether this tag was made by [`ETag::of_date`].
    pub fn is_date(&self) -> bool {
        self.0.starts_with(DATED)
    }

    /// Whether this tag was made by [`ETag::of_length`]: it doesn't tell two versions of one length apart.
    pub fn is_length(&self) -> bool {
        self.0.starts_with(UNDATED)
    }

    /// The tag of a local file that no remote has vouched for: it changes when the file does. It can't be
    /// a server's, since it has no quotes.
    pub fn of_local_file(inode: u64, size: u64, mtime_ns: i128) -> ETag {
        ETag(format!("{LOCAL}{inode}:{size}:{mtime_ns}").into())
    }

    /// Whether this tag was made by [`ETag::of_local_file`].
    pub fn is_local(&self) -> bool {
        self.0.starts_with(LOCAL)
    }

    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One immutable version of an object: what a reader gets all its bytes from. Two are the same if key, ETag,
/// size and remote are.
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
    /// The URL of the remote that has it, [`ADOPTED`] or [`UPLOAD`].
    pub source: Arc<str>,
}

/// What tells a version from all others: key, tag, and the remote, since each remote makes tags of its own.
pub type VersionId = (Key, ETag, Arc<str>);

impl ObjectVersion {
    /// What tells it from all others.
    pub fn id(&self) -> VersionId {
        (self.key.clone(), self.etag.clone(), self.source.clone())
    }

    /// Whether `other` is the same version of the same key: of the same tag, given by the same remote, since each remote
    /// makes tags of its own.
    pub fn is(&self, other: &ObjectVersion) -> bool {
        self.etag == other.etag && self.source == other.source
    }
}

impl PartialEq for ObjectVersion {
    fn eq(&self, other: &ObjectVersion) -> bool {
        self.key == other.key && self.size == other.size && self.is(other)
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
    fn names_to_write_under_before_renaming() {
        for name in
            [".x.tar.gz.Ab12Cd", "x.tar.gz.tmp", "x.zst.tmp.4711", "x.zst.part", "tmpab12cd", "x~", ".x.zst"]
        {
            assert!(Key::new(&format!("d/{name}")).unwrap().is_temporary(), "{name}");
        }
        for name in
            ["noir-1.tar.gz", "x.tmp.zst", "tmp-tools-1.tar.gz", "x.tar.gz.sha256", "template", "new.bin"]
        {
            assert!(!Key::new(name).unwrap().is_temporary(), "{name}");
        }
    }

    #[test]
    fn a_listing_s_etag_equals_a_header_s() {
        assert_eq!(ETag::new("abc"), ETag::new("\"abc\""));
    }

    #[test]
    fn tags_of_our_own_are_read_back_as_they_were() {
        for tag in [ETag::of_date(1_700_000_000, 7), ETag::of_length(7), ETag::of_local_file(1, 7, 3)] {
            assert_eq!(ETag::new(tag.as_str()), tag);
        }
    }
}
