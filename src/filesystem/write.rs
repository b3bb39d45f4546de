//! Writing: new files, their names, and what may become of those that are there.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::answer::{Answer, blocking};
use crate::error::{Error, Kind, Result};
use crate::filesystem::attributes::{Attributes, attributes};
use crate::filesystem::{Access, Filesystem, Open, Opened};
use crate::nodes::Node;
use crate::object::{InvalidKey, Key};
use crate::process::FileIdentity;
use crate::spooled::SpooledFile;

/// What is to be changed of an inode. Its owner and permission bits are the mount's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// Its length in bytes.
    pub size: Option<u64>,
    /// When it was last written.
    pub modified: Option<SystemTime>,
}

impl Filesystem {
    /// Makes a file called `name` in the directory `parent` and opens it for the thread `tid`: its attributes, having counted a
    /// lookup, and the handle's number.
    ///
    /// # Errors
    /// `Exists` when it is to be `exclusive` and another process is writing it; `ReadOnly`; `NotPermitted` for names that are
    /// never kept.
    pub fn create(&self, parent: u64, name: &OsStr, exclusive: bool, tid: u32) -> Result<(Attributes, u64)> {
        let key = self.new_key(parent, name)?;
        let file = self.spooled.create(&key, tid, exclusive)?;
        file.open()?;
        let attributes = self.look_up_spooled(file.clone());
        Ok((attributes, self.files.add(Open::Spooled(file))))
    }

    /// The key of something new called `name` in the directory `parent`.
    fn new_key(&self, parent: u64, name: &OsStr) -> Result<Key> {
        self.name_in(parent, name)?.map_err(|why| match why {
            InvalidKey::TooLong => Error::new(Kind::NameTooLong, "a key over 1024 bytes"),
            InvalidKey::NotAPath => Error::new(Kind::Invalid, format!("{}: not UTF-8", name.display())),
            InvalidKey::NeverThere => Error::new(
                Kind::NotPermitted,
                format!("{}: never kept: the name is reserved or of uncommitted changes", name.display()),
            ),
        })
    }

    pub(super) fn open_spooled(&self, file: Arc<SpooledFile>, access: Access) -> Result<Opened> {
        file.open()?;
        let truncated = match access {
            Access::Write { truncate: true } => file.set_size(0),
            _ => Ok(()),
        };
        // From here on a failure is the handle's, which is closed by nobody else.
        if let Err(error) = truncated {
            self.spooled.release(&file);
            return Err(error);
        }
        // Its number is its own, and nothing but our writes changes it.
        let handle = self.files.add(Open::Spooled(file));
        Ok(Opened { handle, backing: None, keep: true, written: true, direct: false })
    }

    /// Why the artifact `key` can't be opened to be written as it is. One that is to be truncated is another file, which the
    /// lookup to come finds.
    pub(super) fn open_anew(&self, key: &Key, truncate: bool, tid: u32) -> Error {
        if truncate && self.spooled.truncate(key, tid) {
            return Error::new(Kind::LookAgain, format!("{key}: to be written anew"));
        }
        let why = format!("{key}: an artifact can't be changed in place; write it whole, or to another name");
        Error::new(Kind::NotPermitted, why)
    }

    /// Writes `bytes` into an open file at `offset`. Blocks on the disk.
    ///
    /// # Errors
    /// `NoSpace`; `Invalid` when the file isn't open for writing.
    pub fn write(&self, handle: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        match &*self.files.get(handle)? {
            Open::Spooled(file) => file.write(offset, bytes),
            Open::Artifact(file) => Err(not_open_for_writing(&file.version().key)),
            Open::Report(_) => Err(Error::new(Kind::Invalid, "not open for writing")),
        }
    }

    /// What is left to do after a write, which nobody waits for.
    pub fn wrote(&self, handle: u64) {
        if let Ok(open) = self.files.get(handle)
            && let Open::Spooled(file) = &*open
        {
            file.start_writeback();
        }
    }

    /// A close, by the thread `tid`, of a descriptor of the open file with the inode number `number`. Of a written file it says
    /// whether that has become an artifact, if nothing can come after.
    pub fn flush(&self, number: u64, handle: u64, tid: u32) -> Answer<()> {
        let open = match self.files.get(handle) {
            Ok(open) => open,
            Err(error) => return Answer::Now(Err(error)),
        };
        match &*open {
            Open::Spooled(file) => {
                let identity = self.device.get().map(|&device| FileIdentity { device, inode: number });
                self.spooled.flush(file, tid, identity)
            }
            Open::Artifact(_) | Open::Report(_) => Answer::Now(Ok(())),
        }
    }

    /// Waits until an open file is durable: what was written of it on the local disk, an artifact where it is to be uploaded.
    pub fn sync(&self, handle: u64) -> Answer<()> {
        let open = match self.files.get(handle) {
            Ok(open) => open,
            Err(error) => return Answer::Now(Err(error)),
        };
        let uploads = self.uploads.clone();
        Answer::later(async move {
            match &*open {
                Open::Spooled(file) => {
                    let file = file.clone();
                    blocking(move || file.sync()).await?
                }
                Open::Artifact(file) => uploads.wait_uploaded(&file.version().key).await,
                Open::Report(_) => Ok(()),
            }
        })
    }

    /// Changes an inode; its attributes then. Blocks on the disk. What a cache has no use for, such as times of artifacts, is
    /// taken and left at that, so that programs that copy files with all they have get on.
    ///
    /// # Errors
    /// `NotPermitted` when it would change an artifact; `NoSpace`.
    pub fn change(&self, number: u64, change: Change) -> Result<Attributes> {
        let node = self.node(number)?;
        match &node {
            Node::Spooled(file) => {
                change.size.map_or(Ok(()), |size| file.set_size(size))?;
                if let Some(time) = change.modified {
                    file.set_modified(time);
                }
            }
            Node::File(served) if change.size.is_some_and(|size| size != served.version().size) => {
                return Err(not_open_for_writing(&served.version().key));
            }
            Node::File(_) | Node::Dir(_) => {}
        }
        Ok(attributes(number, &node, self.common))
    }

    /// Removes the file `name` in the directory `parent`, for the thread `tid`.
    ///
    /// # Errors
    /// `NotPermitted` when the remote has it and deleting isn't allowed.
    pub fn unlink(&self, parent: u64, name: &OsStr, tid: u32) -> Answer<()> {
        let key = match self.child(parent, name) {
            Ok(key) => key,
            Err(error) => return Answer::Now(Err(error)),
        };
        if let Some(file) = self.spooled.find(&key, tid) {
            self.spooled.remove(&file);
            return Answer::Now(Ok(()));
        }
        let (uploads, lookup, complete) =
            (self.uploads.clone(), self.lookup.clone(), self.spooled.find_complete(&key));
        Answer::later(async move {
            if let Some(file) = complete {
                file.shown().await;
            }
            let result = uploads.remove(&key).await;
            lookup.forget(&key);
            result
        })
    }

    /// Gives the file `name` in the directory `parent` the name `new_name` in `new_parent`, for the thread `tid`. A file that was
    /// written under a temporary name is published.
    ///
    /// # Errors
    /// `Unsupported` for directories; `NotPermitted` for what the remote has.
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        tid: u32,
    ) -> Answer<()> {
        let keys = self.child(parent, name).and_then(|from| Ok((from, self.new_key(new_parent, new_name)?)));
        let (from, to) = match keys {
            Ok(keys) => keys,
            Err(error) => return Answer::Now(Err(error)),
        };
        if self.nodes.is_dir(from.as_str()) {
            return Answer::Now(Err(Error::new(
                Kind::Unsupported,
                format!("{from}: directories can't be renamed"),
            )));
        }
        let lookup = self.lookup.clone();
        if let Some(file) = self.spooled.find(&from, tid) {
            if let Some(replaced) = self.spooled.find(&to, tid) {
                self.spooled.remove(&replaced);
            }
            return self.spooled.rename(&file, &to);
        }
        let (uploads, complete) = (self.uploads.clone(), self.spooled.find_complete(&from));
        Answer::later(async move {
            if let Some(file) = complete {
                file.shown().await;
            }
            let result = uploads.rename(&from, &to).await;
            lookup.forget(&from);
            lookup.forget(&to);
            result
        })
    }

    /// Makes the directory `name` in `parent`, and counts a lookup. It lasts as long as the mount, or as there is something in it.
    ///
    /// # Errors
    /// `NotPermitted` for names that are never kept.
    pub fn make_dir(&self, parent: u64, name: &OsStr) -> Result<Attributes> {
        let key = self.new_key(parent, name)?;
        self.listings.make_dir(&key);
        let node = Node::Dir(key.shared());
        Ok(attributes(self.nodes.look_up(node.clone()), &node, self.common))
    }

    /// Removes the directory `name` in `parent`, which was made and holds nothing.
    ///
    /// # Errors
    /// `NotEmpty`.
    pub fn remove_dir(&self, parent: u64, name: &OsStr) -> Answer<()> {
        let key = match self.child(parent, name) {
            Ok(key) => key,
            Err(error) => return Answer::Now(Err(error)),
        };
        let not_empty = move |key: &Key| Error::new(Kind::NotEmpty, format!("{key}: holds artifacts"));
        if self.spooled.is_any_in(&key) {
            return Answer::Now(Err(not_empty(&key)));
        }
        let listings = self.listings.clone();
        Answer::later(async move {
            let first = listings.get(key.as_str()).wait(0).await?;
            if !first.entries().is_empty() || !listings.remove_dir(&key) {
                return Err(not_empty(&key));
            }
            Ok(())
        })
    }
}

fn not_open_for_writing(key: &Key) -> Error {
    Error::new(
        Kind::NotPermitted,
        format!("{key}: an artifact can't be changed; write it whole, or to another name"),
    )
}
