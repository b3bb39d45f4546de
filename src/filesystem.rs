//! The operations of the file system, free of FUSE: paths and numbers in, [`Answer`]s out.

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nix::sys::statvfs::{Statvfs, statvfs};
use tokio::runtime::Handle;

use crate::answer::Answer;
use crate::cache::{CacheDir, CachedFile};
use crate::coherence::{Coherence, Served};
use crate::config::{Expose, MountOptions};
use crate::error::{Error, Kind, Result};
use crate::fetch::{Fetcher, Source, State};
use crate::handles::{Handles, OpenDir, OpenFile};
use crate::listing::{Entry, Listings, Slice};
use crate::lookup::Lookup;
use crate::nodes::{Node, Nodes, ROOT};
use crate::object::{InvalidKey, Key, NAME_MAX, ObjectVersion};
use crate::store::ObjectStore;

/// How long the kernel may use what can change: directories, and files that are still to be fetched.
const SHORT_TTL: Duration = Duration::from_secs(1);
/// How long it may use a complete local file's entry. If the file is gone or another by then, its open is told ESTALE, at
/// which the kernel looks it up again.
const LONG_TTL: Duration = Duration::from_secs(3600);

const XATTR_STATE: &str = "user.aztec_cache.state";
const XATTR_ETAG: &str = "user.aztec_cache.etag";
const XATTR_SOURCE: &str = "user.aztec_cache.source";
const XATTR_CHECKSUM: &str = "user.aztec_cache.checksum";

/// The entries that every directory begins with.
const DOTS: [&str; 2] = [".", ".."];

/// A remote shown as a directory tree.
pub struct Filesystem {
    cache: Option<Arc<CacheDir>>,
    fetcher: Arc<Fetcher>,
    lookup: Arc<Lookup>,
    listings: Arc<Listings>,
    nodes: Arc<Nodes>,
    files: Handles<OpenFile>,
    dirs: Handles<OpenDir>,
    common: Common,
}

/// What all attributes have in common.
#[derive(Clone, Copy, Debug)]
struct Common {
    uid: u32,
    gid: u32,
    umask: u16,
    /// The time that directories show.
    mounted: SystemTime,
    /// How long a complete local file's entry may be used.
    local_ttl: Duration,
    expose: Expose,
    /// How long a link's target is: the cache directory's path and the key's.
    link_base: u64,
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

/// A file that was opened.
pub struct Opened {
    /// The handle's number.
    pub handle: u64,
    /// The local file that holds all its bytes, when the inode number stands for that file alone.
    pub backing: Option<Arc<File>>,
    /// Whether what the kernel keeps of the inode number's bytes may be shown.
    pub keep: bool,
}

/// An entry of an open directory.
pub struct DirEntry<'a> {
    /// The offset of the entry after it.
    pub next: u64,
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub kind: FileKind,
    /// What it names; None for `.` and `..`, which are not looked up.
    pub entry: Option<&'a Entry>,
}

/// Some of an open directory's entries, from an offset on.
pub struct DirPage {
    path: Arc<str>,
    slice: Slice,
    offset: u64,
    expose: Expose,
}

impl Filesystem {
    /// The tree of `store`'s objects, fetched into `cache`. What waits for the network runs on `runtime`.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        cache: Option<Arc<CacheDir>>,
        revalidate: Option<Duration>,
        expose: Expose,
        options: &MountOptions,
        runtime: Handle,
    ) -> Filesystem {
        let link_base = cache.as_ref().map_or(0, |cache| cache.path().as_os_str().len() as u64 + 1);
        let coherence = Coherence::new(cache.clone(), revalidate);
        let listings = Arc::new(Listings::new(store.clone(), coherence.clone(), runtime.clone()));
        let lookup = Lookup::new(store.clone(), coherence, listings.clone(), runtime.clone());
        let nodes = Arc::new(Nodes::default());
        if expose == Expose::Symlink {
            nodes.separate_complete_files();
        }
        Filesystem {
            fetcher: Fetcher::new(cache.clone(), store, runtime),
            cache,
            lookup: Arc::new(lookup),
            listings,
            nodes,
            files: Handles::default(),
            dirs: Handles::default(),
            common: Common {
                uid: options.uid.unwrap_or_else(|| nix::unistd::getuid().as_raw()),
                gid: options.gid.unwrap_or_else(|| nix::unistd::getgid().as_raw()),
                umask: options.umask,
                mounted: SystemTime::now(),
                local_ttl: revalidate.map_or(LONG_TTL, |age| age.min(LONG_TTL)),
                expose,
                link_base,
            },
        }
    }

    /// Prepares for complete files to be read by the kernel itself, which takes inode numbers of their own. To be called
    /// before the first lookup.
    pub fn separate_complete_files(&self) {
        self.nodes.separate_complete_files();
    }

    /// Finds `name` in the directory `parent` and counts the lookup.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Answer<Attributes> {
        let key = match self.child(parent, name) {
            Ok(key) => key,
            Err(error) => return Answer::Now(Err(error)),
        };
        let (nodes, common) = (self.nodes.clone(), self.common);
        let path = key.shared();
        self.lookup.find(&key).map(move |entry| {
            let node = node(&entry, || path);
            attributes(nodes.look_up(node.clone()), &node, common)
        })
    }

    fn child(&self, parent: u64, name: &OsStr) -> Result<Key> {
        let Node::Dir(dir) = self.node(parent)? else {
            return Err(Error::new(Kind::NotDirectory, format!("inode {parent} is not a directory")));
        };
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::NameTooLong, "a name over 255 bytes"));
        }
        // Keys are UTF-8 (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html).
        let key = name.to_str().ok_or(InvalidKey::NotAPath).and_then(|name| Key::in_dir(&dir, name));
        key.map_err(|why| match why {
            InvalidKey::TooLong => Error::new(Kind::NameTooLong, "a key over 1024 bytes"),
            InvalidKey::NotAPath | InvalidKey::NeverThere => {
                Error::new(Kind::NotFound, format!("{}: never a key", name.display()))
            }
        })
    }

    fn node(&self, number: u64) -> Result<Node> {
        self.nodes.get(number).ok_or_else(|| Error::new(Kind::Invalid, format!("no inode {number}")))
    }

    fn file_node(&self, number: u64) -> Result<Served> {
        match self.node(number)? {
            Node::File(served) => Ok(served),
            Node::Dir(path) => Err(Error::new(Kind::IsDirectory, format!("{path:?} is a directory"))),
        }
    }

    /// Takes `lookups` off an inode's count.
    pub fn forget(&self, number: u64, lookups: u64) {
        self.nodes.forget(number, lookups);
    }

    /// An inode's attributes.
    pub fn attributes(&self, number: u64) -> Result<Attributes> {
        Ok(attributes(number, &self.node(number)?, self.common))
    }

    /// Opens a file. Never waits for the network.
    ///
    /// # Errors
    /// `Changed` when the inode's version is known to have been replaced, or its local file is gone: the kernel looks the path
    /// up again then.
    pub fn open(&self, number: u64) -> Result<Opened> {
        let served = self.file_node(number)?;
        let source = match &served {
            _ if self.nodes.is_outdated(number) => None,
            Served::Local { version, file, fetched } => {
                let found = self.fetcher.open_local(&version.key, *file);
                // Another process may have fetched the same version anew: its bytes are the same.
                let found = found.or_else(|| self.fetcher.open_fetched(version).filter(|_| *fetched));
                found.map(Source::Local)
            }
            Served::Remote(version) => {
                let source = self.fetcher.open(version);
                // After the open, so that it can't be one of what is being condemned.
                if self.fetcher.take_damaged(version) {
                    // The kernel has pages of it, which must not be shown again.
                    self.nodes.outdate(version);
                    None
                } else {
                    Some(source)
                }
            }
        };
        let version = served.version().clone();
        let Some(source) = source else {
            self.lookup.forget(&version.key);
            return Err(Error::new(
                Kind::Changed,
                format!("{}: replaced since it was looked up", version.key),
            ));
        };
        let backing = match (&served, &source) {
            (Served::Local { .. }, Source::Local(file)) => Some(file.clone()),
            _ => None,
        };
        let keep = !matches!(&source, Source::Download(reader) if reader.is_first());
        Ok(Opened { handle: self.files.add(OpenFile::new(version, source)), backing, keep })
    }

    /// Where a symbolic link leads: the complete file in the cache directory, by its absolute path.
    ///
    /// # Errors
    /// `Invalid` when it isn't a link.
    pub fn read_link(&self, number: u64) -> Result<PathBuf> {
        match (self.node(number)?, &self.cache) {
            (Node::File(served), Some(cache))
                if file_kind(&served, self.common.expose) == FileKind::Symlink =>
            {
                Ok(cache.path().join(served.version().key.as_str()))
            }
            _ => Err(Error::new(Kind::Invalid, format!("inode {number} is not a link"))),
        }
    }

    /// Up to `size` bytes of an open file from `offset` on.
    pub fn read(&self, handle: u64, offset: u64, size: u32) -> Answer<Bytes> {
        let file = match self.files.get(handle) {
            Ok(file) => file,
            Err(error) => return Answer::Now(Err(error)),
        };
        match file.read(offset, size) {
            Answer::Later(future) => {
                let (lookup, nodes) = (self.lookup.clone(), self.nodes.clone());
                Answer::later(async move {
                    let result = future.await;
                    if result.as_ref().is_err_and(|error| error.kind() == Kind::Changed) {
                        lookup.forget(&file.version().key);
                        // Its attributes are in use by the kernel for a while: an open must not begin with it again.
                        nodes.outdate(file.version());
                    }
                    result
                })
            }
            now => now,
        }
    }

    /// How much is here of the file that `number` stands for, if that is one to be fetched. Blocks on the disk, briefly.
    pub fn fetched_state(&self, number: u64) -> Option<State> {
        match self.nodes.get(number) {
            Some(Node::File(Served::Remote(version))) => Some(self.fetcher.state(&version)),
            _ => None,
        }
    }

    /// Closes a file.
    pub fn release(&self, handle: u64) {
        self.files.remove(handle);
    }

    /// Opens a directory.
    pub fn open_dir(&self, number: u64) -> Result<u64> {
        match self.node(number)? {
            Node::Dir(path) => Ok(self.dirs.add(OpenDir::new(path))),
            Node::File(served) => {
                Err(Error::new(Kind::NotDirectory, format!("{} is a file", served.version().key)))
            }
        }
    }

    /// Some of an open directory's entries, from `offset` on; none at the end. Reading from the start again shows the directory as it is then.
    pub fn read_dir(&self, handle: u64, offset: u64) -> Answer<DirPage> {
        let dir = match self.dirs.get(handle) {
            Ok(dir) => dir,
            Err(error) => return Answer::Now(Err(error)),
        };
        let known = if offset > 0 { dir.listing() } else { None };
        let listing = known.unwrap_or_else(|| {
            let listing = self.listings.get(&dir.path);
            dir.set_listing(listing.clone());
            listing
        });
        let (path, index) = (dir.path.clone(), offset.saturating_sub(DOTS.len() as u64) as usize);
        let answer = match listing.get(index) {
            Some(slice) => Answer::Now(slice),
            None => Answer::later(async move { listing.wait(index).await }),
        };
        let expose = self.common.expose;
        answer.map(move |slice| DirPage { path, slice, offset, expose })
    }

    /// Looks up an entry that [`Filesystem::read_dir`] gave, counting the lookup.
    pub fn look_up_entry(&self, page: &DirPage, entry: &Entry) -> Attributes {
        let node = node(entry, || join(&page.path, entry.name()).into());
        attributes(self.nodes.look_up(node.clone()), &node, self.common)
    }

    /// The attributes shown for `.` and `..`.
    pub fn dot_attributes(&self, page: &DirPage, name: &str) -> Attributes {
        let path = match name {
            "." => &*page.path,
            _ => page.path.rsplit_once('/').map_or("", |(parent, _)| parent),
        };
        let number = if path.is_empty() { ROOT } else { self.nodes.number_of_dir(path) };
        attributes(number, &Node::Dir(path.into()), self.common)
    }

    /// Closes a directory.
    pub fn release_dir(&self, handle: u64) {
        self.dirs.remove(handle);
    }

    /// The disk below the local cache, or below the temporary files when there is none.
    pub fn statfs(&self) -> Result<Statvfs> {
        let path = self.cache.as_ref().map_or_else(std::env::temp_dir, |cache| cache.path().to_owned());
        statvfs(&path).map_err(|e| Error::local(path.display(), &e.into()))
    }

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

impl DirPage {
    /// The entries: `.` and `..` at offsets 0 and 1, then the listing's.
    pub fn entries(&self) -> impl Iterator<Item = DirEntry<'_>> {
        let dots = DOTS.into_iter().enumerate();
        let dots = dots.map(|(i, name)| DirEntry {
            next: i as u64 + 1,
            name,
            kind: FileKind::Directory,
            entry: None,
        });
        let first = self.offset.max(DOTS.len() as u64);
        let listed = self.slice.entries().iter().enumerate();
        let listed = listed.map(move |(i, entry)| DirEntry {
            next: first + i as u64 + 1,
            name: entry.name(),
            kind: match entry {
                Entry::Dir(_) => FileKind::Directory,
                Entry::File(served) => file_kind(served, self.expose),
            },
            entry: Some(entry),
        });
        dots.skip(self.offset as usize).chain(listed)
    }
}

fn node(entry: &Entry, path: impl FnOnce() -> Arc<str>) -> Node {
    match entry {
        Entry::Dir(_) => Node::Dir(path()),
        Entry::File(served) => Node::File(served.clone()),
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn file_kind(served: &Served, expose: Expose) -> FileKind {
    match (served, expose) {
        (Served::Local { .. }, Expose::Symlink) => FileKind::Symlink,
        _ => FileKind::Regular,
    }
}

fn attributes(number: u64, node: &Node, common: Common) -> Attributes {
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
    };
    Attributes { number, kind, size, modified, mode, uid, gid, ttl }
}

/// A file that no remote vouches for is gone for good when someone removes it.
fn file_ttl(served: &Served, common: Common) -> Duration {
    let vouched_for = !served.version().etag.is_local();
    if served.is_local() && vouched_for { common.local_ttl } else { SHORT_TTL }
}
