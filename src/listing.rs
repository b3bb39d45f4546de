//! Directory listings: the remote's pages and the local names together, kept for a short while.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::answer::Answer;
use crate::cache::LocalNames;
use crate::coherence::{Coherence, Local, Served};
use crate::error::{Error, Kind, Result};
use crate::object::{InvalidKey, Key, ObjectVersion};
use crate::single_flight::{Flight, SingleFlight};
use crate::store::{ListedObject, ObjectStore};

/// How long a listing answers questions about what exists.
const TTL: Duration = Duration::from_secs(10);
/// How long it answers that something doesn't.
const MISS_TTL: Duration = Duration::from_secs(1);
/// Directories whose listings are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// The most that S3 puts on a page.
const PAGE: u16 = 1000;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A directory, by its name.
    Dir(Box<str>),
    /// A file.
    File(Served),
}

impl Entry {
    /// The name.
    pub fn name(&self) -> &str {
        match self {
            Entry::Dir(name) => name,
            Entry::File(served) => served.version().key.name(),
        }
    }
}

/// A directory's entries at one time, sorted by name, each name once.
#[derive(Debug)]
pub struct Listing {
    entries: Vec<Entry>,
    loaded: Instant,
    /// Whether the remote's names are all in it.
    whole: bool,
}

impl Listing {
    /// The entries from the `index`th on.
    pub fn from(&self, index: usize) -> &[Entry] {
        self.entries.get(index..).unwrap_or_default()
    }

    /// The entry called `name`; `Some(None)` when it is known that there is none.
    pub fn find(&self, name: &str) -> Option<Option<&Entry>> {
        match self.entries.binary_search_by(|entry| entry.name().cmp(name)) {
            Ok(index) => self.entries.get(index).map(Some),
            Err(_) if self.whole && self.loaded.elapsed() < MISS_TTL => Some(None),
            Err(_) => None,
        }
    }
}

/// Lists directories, each once for many askers.
pub struct Listings {
    inner: Arc<Inner>,
    flights: SingleFlight<String, Arc<Listing>>,
    probes: SingleFlight<String, bool>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    coherence: Coherence,
    /// Guards only the table; never held across a request.
    kept: Mutex<LruCache<String, Arc<Listing>>>,
    /// Said once: some keys can't be shown; listing isn't granted.
    said_hidden: AtomicBool,
    said_denied: AtomicBool,
}

impl Listings {
    /// Lists `store` and what `coherence` knows to be local.
    pub fn new(store: Arc<dyn ObjectStore>, coherence: Coherence, runtime: Handle) -> Listings {
        let kept = Mutex::new(LruCache::new(KEPT));
        let (said_hidden, said_denied) = (AtomicBool::new(false), AtomicBool::new(false));
        Listings {
            inner: Arc::new(Inner { store, coherence, kept, said_hidden, said_denied }),
            flights: SingleFlight::new(runtime.clone()),
            probes: SingleFlight::new(runtime),
        }
    }

    /// The entries of `dir`: from memory if they were listed in the last 10 s.
    pub fn get(&self, dir: &str) -> Answer<Arc<Listing>> {
        if let Some(listing) = self.fresh(dir) {
            return Answer::Now(Ok(listing));
        }
        let inner = self.inner.clone();
        Answer::later(self.flights.run(dir.to_owned(), || async_load(inner, dir.to_owned())))
    }

    /// The listing in memory, if it is not too old.
    pub fn fresh(&self, dir: &str) -> Option<Arc<Listing>> {
        let mut kept = self.inner.kept();
        kept.get(dir).filter(|listing| listing.loaded.elapsed() < TTL).cloned()
    }

    /// Forgets `dir`'s listing, since it was found to be wrong.
    pub fn forget(&self, dir: &str) {
        self.inner.kept().pop(dir);
    }

    /// Whether anything lies below `dir`, remotely or locally.
    ///
    /// # Errors
    /// The remote can't be asked (and nothing local is known to lie there).
    pub fn is_dir(&self, dir: &str) -> Flight<bool> {
        let (inner, owned) = (self.inner.clone(), dir.to_owned());
        self.probes.run(dir.to_owned(), || async move {
            let (local, names) = (inner.clone(), owned.clone());
            let names = blocking(move || local.local_names(&names)).await?;
            if !names.files.is_empty() || !names.dirs.is_empty() {
                return Ok(true);
            }
            match inner.store.list(&owned, None, 1).await {
                Ok(page) => Ok(!page.objects.is_empty() || !page.dirs.is_empty()),
                Err(error) if matches!(error.kind(), Kind::ListDenied | Kind::NotFound) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }
}

async fn async_load(inner: Arc<Inner>, dir: String) -> Result<Arc<Listing>> {
    let remote = inner.pages(&dir).await;
    let listing = blocking({
        let (inner, dir) = (inner.clone(), dir.clone());
        move || inner.merge(&dir, remote)
    })
    .await??;
    let listing = Arc::new(listing);
    inner.kept().put(dir, listing.clone());
    Ok(listing)
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, LruCache<String, Arc<Listing>>> {
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn local_names(&self, dir: &str) -> LocalNames {
        self.coherence.cache().map(|cache| cache.names(dir)).unwrap_or_default()
    }

    async fn pages(&self, dir: &str) -> Result<(Vec<ListedObject>, Vec<String>)> {
        let (mut objects, mut dirs) = (Vec::new(), Vec::new());
        let mut token = None;
        loop {
            let page = self.store.list(dir, token, PAGE).await?;
            objects.extend(page.objects);
            dirs.extend(page.dirs);
            token = page.next;
            if token.is_none() {
                return Ok((objects, dirs));
            }
        }
    }

    /// Remote and local names together; a directory hides a file of its name, a local file that is served without
    /// asking hides the remote's. When the remote can't be listed, what is local.
    fn merge(&self, dir: &str, remote: Result<(Vec<ListedObject>, Vec<String>)>) -> Result<Listing> {
        let local = self.local_names(dir);
        let whole = remote.is_ok();
        let (objects, dirs) = match remote {
            Ok(names) => names,
            Err(error) if error.kind() == Kind::ListDenied => {
                if !self.said_denied.swap(true, Ordering::Relaxed) {
                    log::warn!("{error}: directories show what is local");
                }
                Default::default()
            }
            Err(error) if local.files.is_empty() && local.dirs.is_empty() => return Err(error),
            Err(error) => {
                log::info!("{error}: the directory shows what is local");
                Default::default()
            }
        };
        // Only files that someone else put there are compared with the remote's names.
        let listed: HashSet<&str> = match local.files.is_empty() {
            true => HashSet::new(),
            false => objects.iter().map(|object| object.name.as_str()).collect(),
        };
        let mut taken = HashSet::new();
        let mut entries = Vec::with_capacity(objects.len() + dirs.len() + local.files.len());
        for name in dirs.into_iter().chain(local.dirs) {
            if self.is_presentable(dir, &name) && taken.insert(name.clone()) {
                entries.push(Entry::Dir(name.into()));
            }
        }
        for name in local.files {
            let Ok(key) = Key::in_dir(dir, &name) else { continue };
            let version = match self.coherence.local(&key) {
                Local::Serve(version) => version,
                Local::Ask(file) if !listed.contains(name.as_str()) => file.version,
                _ => continue,
            };
            if taken.insert(name) {
                entries.push(Entry::File(Served::Local(version)));
            }
        }
        for object in objects {
            if self.is_presentable(dir, &object.name) && taken.insert(object.name.clone()) {
                let Ok(key) = Key::in_dir(dir, &object.name) else { continue };
                let ListedObject { etag, size, modified, .. } = object;
                let version = ObjectVersion { key, etag, size, modified };
                entries.push(Entry::File(Served::Remote(version)));
            }
        }
        entries.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        entries.shrink_to_fit();
        Ok(Listing { entries, loaded: Instant::now(), whole })
    }

    fn is_presentable(&self, dir: &str, name: &str) -> bool {
        match Key::in_dir(dir, name) {
            Ok(_) => true,
            Err(InvalidKey::NeverThere) => false,
            Err(InvalidKey::TooLong | InvalidKey::NotAPath) => {
                let key = format!("{}{dir}/{name}", self.store.url());
                if self.said_hidden.swap(true, Ordering::Relaxed) {
                    log::debug!("{key:?} can't be a file name: left out");
                } else {
                    log::warn!(
                        "{key:?} can't be a file name: left out, as are others of the kind; get it with an S3 client"
                    );
                }
                false
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(|e| Error::new(Kind::Internal, format!("a disk task failed: {e}")))
}
