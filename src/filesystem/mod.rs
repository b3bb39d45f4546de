//! The operations of the file system, free of FUSE: paths and numbers in, [`Answer`]s out.

mod attributes;
mod directory;
mod own;
mod write;

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nix::sys::statvfs::{Statvfs, statvfs};
use tokio::runtime::Handle;

use crate::answer::Answer;
use crate::cache::CacheDir;
use crate::coherence::{Coherence, Served};
use crate::config::{Expose, MountOptions};
use crate::error::{Error, Kind, Result};
use crate::fetch::{Fetcher, Source, State};
use crate::handles::{Handles, OpenDir, OpenFile};
use crate::listing::{Entry, Listings};
use crate::lookup::Lookup;
use crate::nodes::{Node, Nodes};
use crate::object::{InvalidKey, Key, NAME_MAX};
use crate::process::{Asked, ask, makes_name};
use crate::spooled::{SpooledFile, SpooledFiles};
use crate::store::ObjectStore;
use crate::upload::Uploads;

use attributes::{Common, LONG_TTL, attributes, file_kind};
use own::{OpenReport, Own};

pub use attributes::{Attributes, FileKind};
pub use directory::{DirEntry, DirPage};
pub use own::{Report, Reports};
pub use write::Change;

/// A remote shown as a directory tree.
pub struct Filesystem {
    cache: Option<Arc<CacheDir>>,
    fetcher: Arc<Fetcher>,
    lookup: Arc<Lookup>,
    listings: Arc<Listings>,
    nodes: Arc<Nodes>,
    uploads: Arc<Uploads>,
    spooled: Arc<SpooledFiles>,
    files: Handles<Open>,
    dirs: Handles<OpenDir>,
    common: Common,
    own: Own,
    /// The device number that processes see, major and minor, once it is mounted.
    device: OnceLock<(u32, u32)>,
}

/// What a handle stands for.
enum Open {
    /// One version of an object, being read.
    Artifact(OpenFile),
    /// A file being written.
    Spooled(Arc<SpooledFile>),
    /// What the mount reports of itself.
    Report(OpenReport),
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To be read.
    Read,
    /// To be written, from nothing on when it is to be truncated.
    Write {
        /// What is there is of no interest.
        truncate: bool,
    },
}

/// A file that was opened.
pub struct Opened {
    /// The handle's number.
    pub handle: u64,
    /// The local file that holds all its bytes, when the inode number stands for that file alone.
    pub backing: Option<Arc<File>>,
    /// Whether what the kernel keeps of the inode number's bytes may be shown.
    pub keep: bool,
    /// Whether it is a file that is being written.
    pub written: bool,
    /// Whether all its reads are to come to us, whatever length it shows.
    pub direct: bool,
}

impl Filesystem {
    /// The tree of `store`'s objects, fetched by `fetcher` into its cache; what is written goes to `uploads`. What waits for the
    /// network runs on `runtime`.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        fetcher: Arc<Fetcher>,
        uploads: Arc<Uploads>,
        revalidate: Option<Duration>,
        expose: Expose,
        options: &MountOptions,
        runtime: Handle,
    ) -> Filesystem {
        let cache = fetcher.cache().cloned();
        let link_base = cache.as_ref().map_or(0, |cache| cache.path().as_os_str().len() as u64 + 1);
        let coherence = Coherence::new(cache.clone(), revalidate);
        let listings = Arc::new(Listings::new(store.clone(), coherence.clone(), runtime.clone()));
        let lookup = Arc::new(Lookup::new(store, coherence, listings.clone(), runtime.clone()));
        let spooled = SpooledFiles::new(uploads.clone(), lookup.clone(), runtime);
        let nodes = Arc::new(Nodes::default());
        if expose == Expose::Symlink {
            nodes.separate_complete_files();
        }
        Filesystem {
            fetcher,
            cache,
            lookup,
            listings,
            nodes,
            uploads,
            spooled,
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
            own: Own::default(),
            device: OnceLock::new(),
        }
    }

    /// Tells the device number that processes see, major and minor: by it, it is found out whether a file is still in use.
    pub fn set_device(&self, device: (u32, u32)) {
        let _ = self.device.set(device);
    }

    /// Shows `reports` in `.aztec-cache`.
    pub fn show_reports(&self, reports: Reports) {
        self.own.set(reports);
    }

    /// The files that are being written.
    pub fn spooled(&self) -> &Arc<SpooledFiles> {
        &self.spooled
    }

    /// Prepares for complete files to be read by the kernel itself, which takes inode numbers of their own. To be called
    /// before the first lookup.
    pub fn separate_complete_files(&self) {
        self.nodes.separate_complete_files();
    }

    /// Finds `name` in the directory `parent`, for the thread `tid`, and counts the lookup.
    pub fn lookup(&self, parent: u64, name: &OsStr, tid: u32) -> Answer<Attributes> {
        if let Some(own) = self.own.find(parent, name, &self.common) {
            return Answer::Now(own);
        }
        let key = match self.child(parent, name) {
            Ok(key) => key,
            Err(error) => return Answer::Now(Err(error)),
        };
        if let Some(file) = self.spooled.find(&key, tid) {
            return Answer::Now(Ok(self.look_up_spooled(file)));
        }
        if self.spooled.is_truncated(&key, tid) {
            return Answer::Now(self.spooled.create(&key, tid, false).map(|file| self.look_up_spooled(file)));
        }
        let answer = match self.spooled.find_complete(&key) {
            None => self.lookup.find(&key),
            // Its close was before this lookup, so what it left is what is looked for.
            Some(file) => {
                let (lookup, key) = (self.lookup.clone(), key.clone());
                Answer::later(async move {
                    file.shown().await;
                    lookup.find(&key).wait().await
                })
            }
        };
        let (nodes, common) = (self.nodes.clone(), self.common);
        self.free_to_make(answer, &key, tid).map(move |entry| {
            let node = node(&entry, || key.shared());
            attributes(nodes.look_up(node.clone()), &node, common)
        })
    }

    /// The answer to a lookup of `key`. A name of which the remote can't tell is free to who is about to make it: what is written
    /// while the remote is away is kept for later, and the first writer's stays even so.
    fn free_to_make(&self, answer: Answer<Entry>, key: &Key, tid: u32) -> Answer<Entry> {
        let is_failure = |result: &Result<Entry>| {
            result.as_ref().is_err_and(|error| error.is_transient() || error.kind() == Kind::AccessDenied)
        };
        let answer = match answer {
            Answer::Now(result) if !is_failure(&result) => return Answer::Now(result),
            answer => answer,
        };
        if !self.uploads.is_writable() {
            return answer;
        }
        let key = key.clone();
        Answer::later(async move {
            let result = answer.wait().await;
            if is_failure(&result) && matches!(ask(move || makes_name(tid)).await?, Asked::Answer(true)) {
                let why = result.err().map(|error| error.to_string()).unwrap_or_default();
                return Err(Error::new(Kind::NotFound, format!("{key}: free to be written, since {why}")));
            }
            result
        })
    }

    fn look_up_spooled(&self, file: Arc<SpooledFile>) -> Attributes {
        let node = Node::Spooled(file);
        attributes(self.nodes.look_up(node.clone()), &node, self.common)
    }

    /// The key of `name` in the directory `parent`.
    fn child(&self, parent: u64, name: &OsStr) -> Result<Key> {
        self.name_in(parent, name)?.map_err(|why| match why {
            InvalidKey::TooLong => Error::new(Kind::NameTooLong, "a key over 1024 bytes"),
            InvalidKey::NotAPath | InvalidKey::NeverThere => {
                Error::new(Kind::NotFound, format!("{}: never a key", name.display()))
            }
        })
    }

    fn name_in(&self, parent: u64, name: &OsStr) -> Result<Result<Key, InvalidKey>> {
        let Node::Dir(dir) = self.node(parent)? else {
            return Err(Error::new(Kind::NotDirectory, format!("inode {parent} is not a directory")));
        };
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::NameTooLong, "a name over 255 bytes"));
        }
        // Keys are UTF-8 (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html).
        Ok(name.to_str().ok_or(InvalidKey::NotAPath).and_then(|name| Key::in_dir(&dir, name)))
    }

    fn node(&self, number: u64) -> Result<Node> {
        if self.own.has(number) {
            return Err(Error::new(Kind::NotPermitted, "what the mount reports of itself can only be read"));
        }
        self.nodes.get(number).ok_or_else(|| Error::new(Kind::Invalid, format!("no inode {number}")))
    }

    /// Takes `lookups` off an inode's count.
    pub fn forget(&self, number: u64, lookups: u64) {
        self.nodes.forget(number, lookups);
    }

    /// An inode's attributes.
    pub fn attributes(&self, number: u64) -> Result<Attributes> {
        match self.own.attributes(number, &self.common) {
            Some(attributes) => Ok(attributes),
            None => Ok(attributes(number, &self.node(number)?, self.common)),
        }
    }

    /// Opens a file for the thread `tid`. Never waits for the network.
    ///
    /// # Errors
    /// `LookAgain` when the inode's version is known to have been replaced, or its local file is gone, or it is to be truncated
    /// and so another file: the kernel looks the path up again then. `NotPermitted` when an artifact is to be written in place.
    pub fn open(&self, number: u64, access: Access, tid: u32) -> Result<Opened> {
        if let (Some(report), Access::Read) = (self.own.open(number), access) {
            let handle = self.files.add(Open::Report(report));
            return Ok(Opened { handle, backing: None, keep: false, written: false, direct: true });
        }
        match (self.node(number)?, access) {
            (Node::File(served), Access::Read) => self.open_artifact(number, &served),
            (Node::File(served), Access::Write { truncate }) => {
                Err(self.open_anew(&served.version().key, truncate, tid))
            }
            (Node::Spooled(file), access) => self.open_spooled(file, access),
            (Node::Dir(path), _) => Err(Error::new(Kind::IsDirectory, format!("{path:?} is a directory"))),
        }
    }

    fn open_artifact(&self, number: u64, served: &Served) -> Result<Opened> {
        let source = match served {
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
                Kind::LookAgain,
                format!("{}: replaced since it was looked up", version.key),
            ));
        };
        let backing = match (served, &source) {
            (Served::Local { .. }, Source::Local(file)) => Some(file.clone()),
            _ => None,
        };
        let keep = !matches!(&source, Source::Download(reader) if reader.is_first());
        let file = Open::Artifact(OpenFile::new(version, source));
        Ok(Opened { handle: self.files.add(file), backing, keep, written: false, direct: false })
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
        let open = match self.files.get(handle) {
            Ok(open) => open,
            Err(error) => return Answer::Now(Err(error)),
        };
        let answer = match &*open {
            Open::Artifact(file) => file.read(offset, size),
            Open::Spooled(file) => Answer::Now(file.read(offset, size)),
            Open::Report(report) => report.read(offset, size),
        };
        match answer {
            Answer::Later(future) => {
                let (lookup, nodes) = (self.lookup.clone(), self.nodes.clone());
                Answer::later(async move {
                    let result = future.await;
                    if let (Open::Artifact(file), true) = (&*open, is_changed(&result)) {
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

    /// Closes a file. The last handle of one that was written completes it.
    pub fn release(&self, handle: u64) {
        if let Some(open) = self.files.remove(handle)
            && let Open::Spooled(file) = &*open
        {
            self.spooled.release(file);
        }
    }

    /// The disk below the local cache, or below the temporary files when there is none.
    pub fn statfs(&self) -> Result<Statvfs> {
        let path = self.cache.as_ref().map_or_else(std::env::temp_dir, |cache| cache.path().to_owned());
        statvfs(&path).map_err(|e| Error::local(path.display(), &e.into()))
    }
}

fn is_changed<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == Kind::Changed)
}

fn node(entry: &Entry, path: impl FnOnce() -> Arc<str>) -> Node {
    match entry {
        Entry::Dir(_) => Node::Dir(path()),
        Entry::File(served) => Node::File(served.clone()),
    }
}
