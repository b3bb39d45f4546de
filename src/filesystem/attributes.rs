//! What an inode shows: its attributes, and the extended ones.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use crate::cache::CachedFile;
use crate::coherence::Served;
use crate::config::Expose;
use crate::error::{Error, Kind, Result};
use crate::filesystem::Filesystem;
use crate::nodes::Node;
use crate::object::ObjectVersion;

/// How long the kernel may use what can change: directories, and files that are still to be fetched.
pub(super) const SHORT_TTL: Duration = Duration::from_secs(1);
/// How long it may use a complete local file's entry. If the file is gone or another by then, its open is told ESTALE, at
/// which the kernel looks it up again.
pub(super) const LONG_TTL: Duration = Duration::from_secs(3600);

const XATTR_STATE: &str = "user.aztec_cache.state";
const XATTR_ETAG: &str = "user.aztec_cache.etag";
const XATTR_SOURCE: &str = "user.aztec_cache.source";
const XATTR_CHECKSUM: &str = "user.aztec_cache.checksum";

/// What all attributes have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub uid: u32,
    pub gid: u32,
    pub umask: u16,
    /// The time that directories show.
    pub mounted: SystemTime,
    /// How long a complete local file's entry may be used.
    pub local_ttl: Duration,
    pub expose: Expose,
    /// How long a link's target is: the cache directory's path and the key's.
    pub link_base: u64,
}

/// An inode's attributes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attributes {
    /// The inode's number.
    pub number: u64,
    /// What it is.
    pub kind: FileKind,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: SystemTime,
    /// Permission bits.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// How long they, and the entry, may be used without asking again.
    pub ttl: Duration,
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A file.
    Regular,
    /// A symbolic link to a complete file in the local cache.
    Symlink,
}

impl Filesystem {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute` when there is no such attribute, or no such knowledge; `Unsupported` for the attributes of access control
    /// lists and security modules, which `ls -l` and `cp -a` then don't ask every other file for.
    pub fn xattr(&self, number: u64, name: &OsStr) -> Result<String> {
        if !name.as_encoded_bytes().starts_with(b"user.") {
            return Err(Error::new(Kind::Unsupported, "only user attributes"));
        }
        let none = || Error::new(Kind::NoAttribute, "no such attribute");
        let (Node::File(served), Some(name)) = (self.node(number)?, name.to_str()) else {
            return Err(none());
        };
        if !name.starts_with("user.aztec_cache.") {
            return Err(none());
        }
        let version = served.version();
        let value = match name {
            XATTR_STATE => Some(self.fetcher.state(version).name().to_owned()),
            XATTR_ETAG => (!version.etag.is_local()).then(|| version.etag.as_str().to_owned()),
            XATTR_SOURCE => {
                let local = self.local_file(version).map(|local| local.version.source);
                Some(local.as_ref().unwrap_or(&version.source).to_string())
            }
            XATTR_CHECKSUM => self.local_file(version).and_then(|local| local.checksum),
            _ => None,
        };
        value.ok_or_else(none)
    }

    /// The names of the extended attributes that have a value.
    pub fn xattr_names(&self, number: u64) -> Result<Vec<&'static str>> {
        if self.own.has(number) {
            return Ok(Vec::new());
        }
        let Node::File(served) = self.node(number)? else { return Ok(Vec::new()) };
        let version = served.version();
        let has_checksum = self.local_file(version).is_some_and(|local| local.checksum.is_some());
        let names = [
            (XATTR_STATE, true),
            (XATTR_ETAG, !version.etag.is_local()),
            (XATTR_SOURCE, true),
            (XATTR_CHECKSUM, has_checksum),
        ];
        Ok(names.into_iter().filter(|(_, has_value)| *has_value).map(|(name, _)| name).collect())
    }

    /// The complete local file of `version`.
    fn local_file(&self, version: &ObjectVersion) -> Option<CachedFile> {
        let local = self.cache.as_ref()?.lookup(&version.key)?;
        local.version.is(version).then_some(local)
    }
}

pub(super) fn file_kind(served: &Served, expose: Expose) -> FileKind {
    match (served, expose) {
        (Served::Local { .. }, Expose::Symlink) => FileKind::Symlink,
        _ => FileKind::Regular,
    }
}

pub(super) fn attributes(number: u64, node: &Node, common: Common) -> Attributes {
    let Common { uid, gid, umask, mounted, .. } = common;
    let (kind, size, modified, mode, ttl) = match node {
        Node::Dir(_) => (FileKind::Directory, 0, mounted, 0o755 & !umask, SHORT_TTL),
        Node::File(served) => {
            let version = served.version();
            match file_kind(served, common.expose) {
                FileKind::Symlink => {
                    let length = common.link_base + version.key.as_str().len() as u64;
                    // Asked about each time: nobody tells us when a link's target is opened, or gone.
                    (FileKind::Symlink, length, version.modified, 0o777, Duration::ZERO)
                }
                kind => (kind, version.size, version.modified, 0o644 & !umask, file_ttl(served, common)),
            }
        }
        // It changes, and others are not to see it.
        Node::Spooled(file) => {
            (FileKind::Regular, file.size(), file.modified(), 0o644 & !umask, Duration::ZERO)
        }
    };
    Attributes { number, kind, size, modified, mode, uid, gid, ttl }
}

/// A file that no remote vouches for is gone for good when someone removes it.
fn file_ttl(served: &Served, common: Common) -> Duration {
    let vouched_for = !served.version().etag.is_local();
    if served.is_local() && vouched_for { common.local_ttl } else { SHORT_TTL }
}
