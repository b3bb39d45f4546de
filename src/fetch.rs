//! Read-through: the one place that knows both the local cache and the remote.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::cache::{CacheDir, FileId, Origin};
use crate::download::{Doubts, Download, Reader, Resources};
use crate::fill::Filler;
use crate::metrics::{COALESCED, HITS, OPENS};
use crate::object::{Key, ObjectVersion, VersionId};
use crate::store::ObjectStore;

/// Ranged GETs at once, over all downloads, beyond the first of each.
const BUDGET: usize = 32;

/// Opens object versions: a hit is a local file, a miss leads or joins a download.
pub struct Fetcher {
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    resources: Arc<Resources>,
    /// Guards only the table; never held across I/O.
    downloads: Mutex<HashMap<VersionId, Arc<Download>>>,
    /// How many downloads have left the table. One that did so between a look at the disk and a look at the table
    /// would be missed by both.
    ended: AtomicU64,
}

/// Where an open file's bytes come from.
pub enum Source {
    /// A complete local file.
    Local(Arc<File>),
    /// A download, under way or done.
    Download(Arc<Reader>),
}

/// How much of a version is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Remote,
    /// A download is under way.
    Partial,
    /// A complete local file.
    Cached,
    /// A complete local file that was written here and is still to be uploaded.
    Pending,
}

impl State {
    /// Its name, in `user.aztec_cache.state` and elsewhere.
    pub fn name(self) -> &'static str {
        match self {
            State::Remote => "remote",
            State::Partial => "partial",
            State::Cached => "cached",
            State::Pending => "pending-upload",
        }
    }
}

impl Fetcher {
    /// Fetches from `store` into `cache`, on `runtime`; `filler` is told of what is kept there.
    pub fn new(
        cache: Option<Arc<CacheDir>>,
        store: Arc<dyn ObjectStore>,
        filler: Option<Arc<Filler>>,
        runtime: Handle,
    ) -> Arc<Fetcher> {
        Arc::new(Fetcher {
            store,
            runtime,
            resources: Arc::new(Resources {
                cache,
                budget: Arc::new(Semaphore::new(BUDGET)),
                doubts: Doubts::default(),
                filler,
            }),
            downloads: Mutex::default(),
            ended: AtomicU64::new(0),
        })
    }

    /// The local file that a lookup of `key` found, unless it was changed or replaced since.
    pub fn open_local(&self, key: &Key, id: FileId) -> Option<Arc<File>> {
        self.cache().and_then(|cache| cache.reopen(key, id)).map(hit)
    }

    /// The local file that holds `version`, if there is one.
    pub fn open_fetched(&self, version: &ObjectVersion) -> Option<Arc<File>> {
        self.cache().and_then(|cache| cache.open_version(version)).map(hit)
    }

    /// Opens `version`, which a remote vouches for, without waiting for the network.
    pub fn open(self: &Arc<Fetcher>, version: &ObjectVersion) -> Source {
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            if let Some(file) = self.cache().and_then(|cache| cache.open_version(version)) {
                return Source::Local(hit(file));
            }
            if let Some(reader) = self.join_or_lead(version, ended) {
                return Source::Download(Arc::new(reader));
            }
        }
    }

    /// None when a download has ended since `seen`: the disk has to be looked at again.
    fn join_or_lead(self: &Arc<Fetcher>, version: &ObjectVersion, seen: u64) -> Option<Reader> {
        let id = version.id();
        let mut downloads = self.downloads();
        if self.ended.load(Ordering::Acquire) != seen {
            return None;
        }
        if let Some(reader) = downloads.get(&id).and_then(Download::join) {
            OPENS.count();
            COALESCED.count();
            return Some(reader);
        }
        let download = Download::new(version.clone(), self.store.clone(), self.runtime.clone());
        let reader = download.join()?;
        downloads.insert(id.clone(), download.clone());
        // What else it counts as, its run finds out.
        OPENS.count();
        let fetcher = self.clone();
        self.runtime.spawn(async move {
            download.clone().run(fetcher.resources.clone()).await;
            fetcher.end(&id, &download);
        });
        Some(reader)
    }

    fn end(&self, id: &VersionId, download: &Arc<Download>) {
        let mut downloads = self.downloads();
        // A failed one may have been replaced by a new one already.
        if downloads.get(id).is_some_and(|known| Arc::ptr_eq(known, download)) {
            downloads.remove(id);
        }
        self.ended.fetch_add(1, Ordering::Release);
    }

    /// How much of `version` is here now.
    pub fn state(&self, version: &ObjectVersion) -> State {
        let local = self.cache().and_then(|cache| cache.lookup(&version.key));
        if let Some(local) = local.filter(|local| local.version.is(version)) {
            return if local.origin == Origin::Pending { State::Pending } else { State::Cached };
        }
        let id = version.id();
        if self.downloads().contains_key(&id) { State::Partial } else { State::Remote }
    }

    /// The downloads under way: what is fetched, and how many bytes of it are here.
    pub fn in_flight(&self) -> Vec<(ObjectVersion, u64)> {
        let downloads: Vec<Arc<Download>> = self.downloads().values().cloned().collect();
        let progress = downloads.iter().map(|download| (download.object().clone(), download.arrived()));
        progress.filter(|(object, arrived)| *arrived < object.size).collect()
    }

    /// Whether bytes of `version` that were given out have turned out to be wrong. Says so once for each time.
    pub fn take_damaged(&self, version: &ObjectVersion) -> bool {
        self.resources.doubts.take_damaged(version)
    }

    /// Where fetched files are kept, if anywhere.
    pub fn cache(&self) -> Option<&Arc<CacheDir>> {
        self.resources.cache.as_ref()
    }

    fn downloads(&self) -> MutexGuard<'_, HashMap<VersionId, Arc<Download>>> {
        self.downloads.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A complete local file that was opened.
fn hit(file: File) -> Arc<File> {
    OPENS.count();
    HITS.count();
    Arc::new(file)
}
