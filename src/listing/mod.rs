//! Directory listings: the remote's pages and the local names together, kept for a short while.

mod misses;
mod pages;
mod snapshot;

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lru::LruCache;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::answer::blocking;
use crate::cache::LocalNames;
use crate::coherence::{Coherence, Local, Served};
use crate::error::{Error, Kind, Result};
use crate::object::{InvalidKey, Key, ObjectVersion};
use crate::single_flight::{Flight, SingleFlight};
use crate::store::{ListedObject, ObjectStore, Page};

use misses::Misses;

pub use pages::{Entry, Listing, Slice};

/// How long a listing answers questions about what exists.
const TTL: Duration = Duration::from_secs(10);
/// Directories whose listings are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// The most that S3 puts on a page.
const PAGE: u16 = 1000;
/// A listing that is only to answer misses is given up when it takes more than so many pages, or so long that little
/// would be left of the time for which it answers them.
const MISS_PAGES: u32 = 20;
const MISS_TIME: Duration = Duration::from_millis(500);
/// How long a listing that is to answer many questions is waited for before they are asked one by one.
const PREPARATION: Duration = Duration::from_millis(200);

/// Lists directories, each once for many askers.
pub struct Listings {
    inner: Arc<Inner>,
    runtime: Handle,
    misses: Arc<Misses>,
    probes: SingleFlight<String, bool>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    coherence: Coherence,
    /// Directories that were made, and that nothing may lie in yet. Guards only the set.
    made: Mutex<BTreeSet<String>>,
    /// Guards only the table; never held across a request.
    kept: Mutex<LruCache<String, Arc<Listing>>>,
    /// How often a listing was found to be wrong. One begun before that is not kept after it.
    forgotten: AtomicU64,
    /// Said once: some keys can't be shown; listing isn't granted.
    said_hidden: AtomicBool,
    said_denied: AtomicBool,
}

impl Listings {
    /// Lists `store` and what `coherence` knows to be local.
    pub fn new(store: Arc<dyn ObjectStore>, coherence: Coherence, runtime: Handle) -> Listings {
        let (said_hidden, said_denied) = (AtomicBool::new(false), AtomicBool::new(false));
        let (kept, forgotten) = (Mutex::new(LruCache::new(KEPT)), AtomicU64::new(0));
        Listings {
            inner: Arc::new(Inner {
                store,
                coherence,
                made: Mutex::default(),
                kept,
                forgotten,
                said_hidden,
                said_denied,
            }),
            misses: Arc::default(),
            probes: SingleFlight::new(runtime.clone()),
            runtime,
        }
    }

    /// The listing of `dir`: the one being loaded, or loaded in the last 10 s, or a new one.
    pub fn get(&self, dir: &str) -> Arc<Listing> {
        let mut kept = self.inner.kept();
        if let Some(listing) = kept.get(dir).filter(|listing| listing.is_fresh(TTL)) {
            return listing.clone();
        }
        let load = self.load(dir);
        let listing = load.listing.clone();
        kept.put(dir.to_owned(), listing.clone());
        self.runtime.spawn(load.run());
        listing
    }

    fn load(&self, dir: &str) -> Load {
        Load { inner: self.inner.clone(), listing: Arc::new(Listing::begin()), dir: dir.to_owned() }
    }

    /// Notes that a name was missed in `dir`.
    pub fn note_miss(&self, dir: &str) {
        self.misses.note(dir);
    }

    /// Notes that the remote is asked for a name in `dir`. If others were missed there a moment ago, `dir` is listed in the
    /// background, if it isn't too large, so that the misses to come are known at once.
    pub fn note_question(&self, dir: &str) {
        if self.misses.call_for_listing(dir) {
            let (load, misses) = (self.load(dir), self.misses.clone());
            self.runtime.spawn(load.run_for_misses(misses));
        }
    }

    /// Waits until a listing shows that `name` isn't in `dir`, of those that were begun for misses.
    pub async fn wait_missing(&self, dir: &str, name: &str) {
        loop {
            let listed = self.misses.wait_listed();
            if matches!(self.find(dir, name), Some(None)) {
                return;
            }
            listed.await;
        }
    }

    /// Lists `dir`, if it isn't too large, before many of its names are asked about: [`Listings::find`] knows them all then.
    /// Returns when it is listed, or when that takes longer than questions about some names would.
    pub async fn prepare(&self, dir: &str) {
        let listed = self.runtime.spawn(self.load(dir).run_for_misses(self.misses.clone()));
        // Not yet: it goes on, and answers what is asked about later.
        let _ = timeout(PREPARATION, listed).await;
    }

    /// The entry `name` of `dir`, if `dir` was listed in the last 10 s; `Some(None)` when it is known that there is none.
    pub fn find(&self, dir: &str, name: &str) -> Option<Option<Entry>> {
        if self.inner.is_made(dir, name) {
            return Some(Some(Entry::Dir(name.into())));
        }
        let listing = self.inner.kept().get(dir).cloned();
        listing.and_then(|listing| listing.find(name, TTL))
    }

    /// Whether `name` was a directory when `dir` was last listed, however long ago.
    pub fn was_dir(&self, dir: &str, name: &str) -> bool {
        let listing = self.inner.kept().get(dir).cloned();
        listing.is_some_and(|listing| matches!(listing.find(name, Duration::MAX), Some(Some(Entry::Dir(_)))))
    }

    /// Makes the directory `key`: it shows until it is removed, whether or not anything lies in it.
    pub fn make_dir(&self, key: &Key) {
        self.inner.made().insert(key.as_str().to_owned());
        self.forget(key.dir());
    }

    /// Takes [`Listings::make_dir`] back; false when there was none.
    pub fn remove_dir(&self, key: &Key) -> bool {
        let removed = self.inner.made().remove(key.as_str());
        self.forget(key.dir());
        removed
    }

    /// Forgets `dir`'s listing, since it was found to be wrong.
    pub fn forget(&self, dir: &str) {
        self.inner.forgotten.fetch_add(1, Ordering::Relaxed);
        self.inner.kept().pop(dir);
    }

    /// Whether anything lies below `dir`, remotely or locally.
    ///
    /// # Errors
    /// The remote can't be asked (and nothing local is known to lie there).
    pub fn is_dir(&self, dir: &str) -> Flight<bool> {
        let (inner, owned) = (self.inner.clone(), dir.to_owned());
        self.probes.run(dir.to_owned(), || async move {
            let names = inner.local_names(&owned).await?;
            if !names.files.is_empty() || !names.dirs.is_empty() {
                return Ok(true);
            }
            let (found, failure) = match inner.store.list(&owned, None, 1).await {
                Ok(page) => (!page.objects.is_empty() || !page.dirs.is_empty(), page.gap),
                Err(error) => (false, Some(error)),
            };
            match failure {
                Some(error) if !found && !matches!(error.kind(), Kind::ListDenied | Kind::NotFound) => {
                    Err(error)
                }
                _ => Ok(found),
            }
        })
    }
}

/// A listing being filled.
struct Load {
    inner: Arc<Inner>,
    listing: Arc<Listing>,
    dir: String,
}

/// How far a listing got.
struct Filled {
    /// Pages of the remote's that came.
    pages: u32,
    /// Some came, and then no more.
    begun: bool,
    /// Why not all came.
    failure: Option<Error>,
}

/// A task that dies must not leave its readers waiting.
impl Drop for Load {
    fn drop(&mut self) {
        if self.listing.get(usize::MAX).is_none() {
            self.listing.end(false, Some(Error::new(Kind::Internal, "a listing was given up")));
        }
    }
}

impl Load {
    /// For readers, who see the entries as they come. When the remote can't be listed, they see what is local.
    async fn run(self) {
        match self.fill(|_| false).await {
            Ok(Filled { failure: None, .. }) => self.listing.end(true, None),
            Ok(Filled { failure: Some(error), begun, .. }) => {
                let has_local = self.listing.get(0).is_some();
                self.listing.end(false, self.inner.excuse(error, !begun && has_local));
            }
            Err(error) => self.listing.end(false, Some(error)),
        }
    }

    /// For `misses`: seen once it is whole, if that is soon, and not at all otherwise.
    async fn run_for_misses(self, misses: Arc<Misses>) {
        let began = self.listing.began();
        let forgotten = self.inner.forgotten.load(Ordering::Relaxed);
        match self.fill(|pages| pages >= MISS_PAGES || began.elapsed() > MISS_TIME).await {
            Ok(Filled { failure: None, pages, .. }) => {
                self.listing.end(true, None);
                let mut kept = self.inner.kept();
                if self.inner.forgotten.load(Ordering::Relaxed) == forgotten {
                    kept.put(self.dir.clone(), self.listing.clone());
                }
                drop(kept);
                misses.listed(&self.dir, began, pages);
            }
            Ok(Filled { failure: Some(error), .. }) | Err(error) => {
                log::debug!("{error}: missing names are asked for one by one");
            }
        }
    }

    /// Adds the remote's pages as they come, then what is only local. Gives up when `enough` pages came and there are more.
    async fn fill(&self, enough: impl Fn(u32) -> bool) -> Result<Filled> {
        let mut local = self.inner.local_names(&self.dir).await?;
        local.dirs.retain(|name| self.inner.is_presentable(&self.dir, name));
        self.listing.add(local.dirs.drain(..).map(|name| Entry::Dir(name.into())));
        let mut files: HashSet<String> = local.files.into_iter().collect();
        let (mut token, mut pages, mut gap) = (None, 0, None);
        let failure = loop {
            match self.inner.store.list(&self.dir, token.take(), PAGE).await {
                Ok(mut page) => {
                    token = page.next.take();
                    gap = gap.or(page.gap.take());
                    files = self.merge(page, files).await?;
                }
                Err(error) => break Some(error),
            }
            pages += 1;
            if token.is_none() {
                break None;
            }
            if enough(pages) {
                let what = format!("{:?}: listing it takes more than {pages} pages", self.dir);
                break Some(Error::new(Kind::Internal, what));
            }
        };
        let begun = pages > 0 && failure.is_some();
        match failure.as_ref().or(gap.as_ref()) {
            None => self.save(),
            Some(error) if !begun && matches!(error.kind(), Kind::Unreachable | Kind::TimedOut) => {
                files = self.add_last_known(files).await?;
            }
            Some(_) => {}
        }
        self.add_local(files).await?;
        Ok(Filled { pages, begun, failure: failure.or(gap) })
    }

    /// Keeps what the remote has for times when it can't be asked.
    fn save(&self) {
        let Some(cache) = self.inner.coherence.cache().cloned() else { return };
        let (inner, listing, dir) = (self.inner.clone(), self.listing.clone(), self.dir.clone());
        let pages = listing.pages();
        spawn_blocking(move || snapshot::save(&cache, inner.store.url(), &dir, &pages));
    }

    /// Adds what the remote had when it could be asked; returns those of the local `files` that were not among it.
    async fn add_last_known(&self, mut files: HashSet<String>) -> Result<HashSet<String>> {
        let Some(cache) = self.inner.coherence.cache().cloned() else { return Ok(files) };
        let (inner, listing, dir) = (self.inner.clone(), self.listing.clone(), self.dir.clone());
        blocking(move || {
            let loaded = snapshot::load(&cache, inner.store.url(), &dir, &mut |page| {
                listing.add(inner.entries(&dir, page, &mut files));
            });
            match loaded {
                Ok(true) => log::info!("{}{dir}: shown as it was last seen", inner.store.url()),
                Ok(false) => {}
                Err(e) => log::info!("{}{dir}: what was known of it can't be read: {e}", inner.store.url()),
            }
            files
        })
        .await
    }

    /// Adds a page of the remote's; returns those of the local `files` that were not on it.
    async fn merge(&self, page: Page, mut files: HashSet<String>) -> Result<HashSet<String>> {
        let (inner, listing, dir) = (self.inner.clone(), self.listing.clone(), self.dir.clone());
        let on_page = page.objects.iter().any(|object| files.contains(&object.name));
        let add = move || {
            listing.add(inner.entries(&dir, page, &mut files));
            files
        };
        // Only what is local too has to be looked at on disk.
        if on_page { blocking(add).await } else { Ok(add()) }
    }

    /// Adds local files that the remote doesn't have.
    async fn add_local(&self, files: HashSet<String>) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let (inner, listing, dir) = (self.inner.clone(), self.listing.clone(), self.dir.clone());
        blocking(move || {
            listing.add(files.iter().filter_map(|name| {
                match inner.coherence.local(&Key::in_dir(&dir, name).ok()?) {
                    Local::Serve(file) | Local::Ask(file) | Local::Verify(file) => {
                        Some(Entry::File(file.into()))
                    }
                    Local::Nothing => None,
                }
            }));
        })
        .await
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, LruCache<String, Arc<Listing>>> {
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn made(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.made.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn is_made(&self, dir: &str, name: &str) -> bool {
        let made = self.made();
        !made.is_empty() && Key::in_dir(dir, name).is_ok_and(|key| made.contains(key.as_str()))
    }

    /// The names in `dir` that the remote need not know: of local files, and of directories that were made.
    async fn local_names(self: &Arc<Inner>, dir: &str) -> Result<LocalNames> {
        let mut names = match self.coherence.cache().cloned() {
            Some(cache) => {
                let dir = dir.to_owned();
                blocking(move || cache.names(&dir)).await?
            }
            None => LocalNames::default(),
        };
        let made = self.made();
        let made = made.iter().filter_map(|path| Key::new(path).ok()).filter(|key| key.dir() == dir);
        names.dirs.extend(made.map(|key| key.name().to_owned()));
        Ok(names)
    }

    /// A page's entries, its directories first. A local file that is served without asking stands for the remote's;
    /// whatever is on the page is taken off `files`.
    fn entries(&self, dir: &str, page: Page, files: &mut HashSet<String>) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(page.objects.len() + page.dirs.len());
        let dirs = page.dirs.into_iter().filter(|name| self.is_presentable(dir, name));
        entries.extend(dirs.map(|name| Entry::Dir(name.into())));
        for object in page.objects.into_iter().filter(|object| self.is_presentable(dir, &object.name)) {
            let Ok(key) = Key::in_dir(dir, &object.name) else { continue };
            let local = if files.remove(&object.name) { self.coherence.local(&key) } else { Local::Nothing };
            let ListedObject { etag, size, modified, .. } = object;
            entries.push(Entry::File(match local {
                Local::Serve(file) => file.into(),
                _ => {
                    let source = page.source.clone();
                    Served::Remote(ObjectVersion { key, etag, size, modified, checksum: None, source })
                }
            }));
        }
        entries
    }

    /// What readers are told of a failed listing: nothing, if listing is simply not granted, or if `has_substitute`,
    /// the local names and those of other remotes, stands for it.
    fn excuse(&self, error: Error, has_substitute: bool) -> Option<Error> {
        if error.kind() == Kind::ListDenied {
            if !self.said_denied.swap(true, Ordering::Relaxed) {
                log::warn!("{error}: directories show what is local");
            }
            return None;
        }
        if has_substitute {
            log::info!("{error}: the directory shows what else is known");
            return None;
        }
        Some(error)
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
