//! Open files and directories, by the number the kernel got for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;

use crate::answer::Answer;
use crate::download::read_exact;
use crate::error::{Error, Kind, Result};
use crate::fetch::Source;
use crate::listing::Listing;
use crate::metrics::BYTES_FROM_CACHE;
use crate::object::ObjectVersion;

/// A table of what is open.
#[derive(Debug)]
pub struct Handles<T> {
    /// Guards only the table.
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Handles<T> {
        Handles { open: RwLock::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    /// Adds an open thing; its number is never used again.
    pub fn add(&self, handle: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(|e| e.into_inner()).insert(number, Arc::new(handle));
        number
    }

    /// What `number` stands for.
    ///
    /// # Errors
    /// `Invalid` when it isn't open.
    pub fn get(&self, number: u64) -> Result<Arc<T>> {
        let open = self.open.read().unwrap_or_else(|e| e.into_inner());
        open.get(&number)
            .cloned()
            .ok_or_else(|| Error::new(Kind::Invalid, format!("no open handle {number}")))
    }

    /// Closes `number`; what it stood for.
    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.open.write().unwrap_or_else(|e| e.into_inner()).remove(&number)
    }
}

/// An open file: all its bytes are one version's.
pub struct OpenFile {
    version: ObjectVersion,
    source: Source,
}

impl OpenFile {
    /// A handle on `version`, whose bytes come from `source`.
    pub fn new(version: ObjectVersion, source: Source) -> OpenFile {
        OpenFile { version, source }
    }

    /// The version that is open.
    pub fn version(&self) -> &ObjectVersion {
        &self.version
    }

    /// Waits until all its bytes have been fetched and checked and, where they are to be kept, put in their place.
    ///
    /// # Errors
    /// They can't be had.
    pub async fn finished(&self) -> Result<()> {
        match &self.source {
            Source::Local(_) => Ok(()),
            Source::Download(reader) => reader.finished().await,
        }
    }

    /// Up to `size` bytes from `offset` on, fewer only at the end of the file.
    pub fn read(&self, offset: u64, size: u32) -> Answer<Bytes> {
        let range = offset.min(self.version.size)..offset.saturating_add(size.into()).min(self.version.size);
        if range.is_empty() {
            return Answer::Now(Ok(Bytes::new()));
        }
        match &self.source {
            Source::Local(file) => {
                let read = read_exact(file, &range).inspect(|bytes| BYTES_FROM_CACHE.add(bytes.len() as u64));
                Answer::Now(read.map_err(|e| {
                    let key = &self.version.key;
                    Error::local(
                        format!("{key}: its local file was truncated or can't be read; open it again"),
                        &e,
                    )
                }))
            }
            Source::Download(reader) => match reader.read_now(&range) {
                Some(result) => Answer::Now(result),
                None => {
                    let reader = reader.clone();
                    Answer::later(async move { reader.read(range).await })
                }
            },
        }
    }
}

/// An open directory: the listing it was first read with, so that offsets keep their meaning.
pub struct OpenDir {
    /// The path below the mount.
    pub path: Arc<str>,
    /// Guards only the reference.
    listing: Mutex<Option<Arc<Listing>>>,
}

impl OpenDir {
    /// A handle on the directory at `path`, not yet read.
    pub fn new(path: Arc<str>) -> OpenDir {
        OpenDir { path, listing: Mutex::new(None) }
    }

    /// The listing in use.
    pub fn listing(&self) -> Option<Arc<Listing>> {
        self.listing.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Puts `listing` into use.
    pub fn set_listing(&self, listing: Arc<Listing>) {
        *self.listing.lock().unwrap_or_else(|e| e.into_inner()) = Some(listing);
    }
}
