//! Fills a store nearby: what was fetched from a remote that is asked later is uploaded, in the background, to the one that takes
//! uploads, where the next machine finds it first (`--fill`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OnceCell};
use tokio::time::{Instant, timeout_at};

use crate::answer::blocking;
use crate::cache::{CacheDir, Origin};
use crate::checksum::Checksum;
use crate::error::{Error, Kind, Result};
use crate::object::{Key, ObjectVersion};
use crate::store::{Existing, Multipart, ObjectStore, Payload, Put};

/// Uploads at a time.
const PARALLEL: usize = 2;
/// Artifacts that may wait; more are left out.
const QUEUE: usize = 1000;

/// Uploads what downloads have published, from its file in the local cache. Nobody waits for it, and nothing of it outlives the process:
/// what was left out is filled by the next machine that fetches it.
pub struct Filler {
    store: Arc<dyn ObjectStore>,
    /// Only one that can be written.
    cache: Option<Arc<CacheDir>>,
    runtime: Handle,
    target: OnceCell<Option<Target>>,
    /// Guards only the queue.
    queue: Mutex<Queue>,
    /// Wakes those who wait for the end, at the end of each worker.
    ended: Notify,
}

/// What is filled, and from where.
struct Target {
    /// The first S3 remote that takes uploads.
    store: Arc<dyn ObjectStore>,
    /// The URLs of the remotes behind it.
    sources: Vec<String>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<ObjectVersion>,
    workers: usize,
    filled: u64,
    /// The last upload failed, which was said.
    failing: bool,
}

impl Filler {
    /// Uploads from `cache` to the first S3 remote of `store` that takes uploads. Asks nothing yet.
    pub fn new(store: Arc<dyn ObjectStore>, cache: Option<Arc<CacheDir>>, runtime: Handle) -> Arc<Filler> {
        let cache = cache.filter(|cache| cache.is_writable());
        let (target, queue, ended) = (OnceCell::new(), Mutex::default(), Notify::new());
        Arc::new(Filler { store, cache, runtime, target, queue, ended })
    }

    /// Finds out, in the background and once, what there is to fill, and warns when that is nothing.
    pub fn start(self: &Arc<Filler>) {
        if !self.target.initialized() {
            self.wake();
        }
    }

    /// Fills with `object`, which was fetched, checked and published in the local cache. Returns at once. What has failed
    /// before is tried again, too.
    pub fn offer(self: &Arc<Filler>, object: &ObjectVersion) {
        {
            let mut queue = self.queue();
            if queue.waiting.len() >= QUEUE {
                log::debug!("{}: not filled: {QUEUE} artifacts are waiting for that", object.key);
                return;
            }
            queue.waiting.push_back(object.clone());
        }
        self.wake();
    }

    /// Waits until nothing is under way, at most for `limit`.
    pub async fn drain(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ended.notified();
            if self.queue().workers == 0 || timeout_at(deadline, ended).await.is_err() {
                break;
            }
        }
        match self.queue().waiting.len() {
            0 => {}
            left => log::info!("{left} artifacts that were fetched are not filled"),
        }
    }

    /// One more worker, if there may be one.
    fn wake(self: &Arc<Filler>) {
        let mut queue = self.queue();
        if queue.workers < PARALLEL {
            queue.workers += 1;
            self.runtime.spawn(self.clone().work());
        }
    }

    async fn work(self: Arc<Filler>) {
        let target = self.target().await;
        while let Some(object) = self.next() {
            let is_behind = |target: &&Target| target.sources.iter().any(|source| **source == *object.source);
            let Some(target) = target.filter(is_behind) else { continue };
            match self.upload(&object, target).await {
                Ok(outcome) => self.succeeded(&object, target, outcome),
                Err(error) if is_its_own(&error) => self.failed(&object.key, &error),
                // So would the others.
                Err(error) => {
                    self.failed(&object.key, &error);
                    self.put_back(object);
                    break;
                }
            }
        }
        self.ended.notify_waiters();
    }

    /// None: there is nothing to fill.
    async fn target(&self) -> Option<&Target> {
        let find = || async {
            let nearby = self.store.nearby().await.filter(|(_, sources)| !sources.is_empty());
            if self.cache.is_none() {
                log::warn!("--fill: does nothing without a local cache to fill from; set CACHE_LOCAL_DIR");
            } else if nearby.is_none() {
                log::warn!(
                    "--fill: does nothing: no remote that can be written is asked before another; name an s3:// one first by \
                     --remote, and give credentials for it"
                );
            }
            nearby.map(|(store, sources)| Target { store, sources })
        };
        self.target.get_or_init(find).await.as_ref()
    }

    /// What is to be filled next. None ends the worker, which doesn't count from then on.
    fn next(&self) -> Option<ObjectVersion> {
        let mut queue = self.queue();
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.workers -= 1;
        }
        next
    }

    /// Leaves `object` to the next fetch. Ends the worker, too.
    fn put_back(&self, object: ObjectVersion) {
        let mut queue = self.queue();
        queue.waiting.push_back(object);
        queue.workers -= 1;
    }

    /// None when the file isn't there as it was fetched any more.
    async fn upload(&self, object: &ObjectVersion, target: &Target) -> Result<Option<Put>> {
        let Some(cache) = self.cache.clone() else { return Ok(None) };
        let version = object.clone();
        match blocking(move || payload(&cache, &version)).await? {
            Some(payload) => target.store.put(&object.key, &payload, Existing::Keep).await.map(Some),
            None => Ok(None),
        }
    }

    fn succeeded(&self, object: &ObjectVersion, target: &Target, outcome: Option<Put>) {
        let (key, url) = (&object.key, target.store.url());
        match outcome {
            Some(Put::Stored(_)) => {
                let filled = {
                    let mut queue = self.queue();
                    queue.failing = false;
                    queue.filled += 1;
                    queue.filled
                };
                log::info!("{key}: filled into {url}, {} bytes; {filled} artifacts so far", object.size);
            }
            Some(Put::Kept) => {
                self.queue().failing = false;
                log::debug!("{key}: {url} has one already, which stays");
            }
            None => log::debug!("{key}: not filled: the local file was removed or changed"),
        }
    }

    /// Says it, once until an upload succeeds.
    fn failed(&self, key: &Key, error: &Error) {
        let said = std::mem::replace(&mut self.queue().failing, true);
        let level = if said { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "{error}; --fill goes without {key} for now, and reads go on");
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Whether it is about this artifact alone and trying again is of no use.
fn is_its_own(error: &Error) -> bool {
    matches!(error.kind(), Kind::Refused | Kind::Local)
}

/// The file that holds `object` as it was fetched, if it is still there. Blocks on the disk, briefly.
fn payload(cache: &CacheDir, object: &ObjectVersion) -> Option<Payload> {
    let found = cache.lookup(&object.key)?;
    if !matches!(found.origin, Origin::Known { .. }) || !found.version.is(object) {
        return None;
    }
    let checksum = Checksum::parse(found.checksum.as_deref()?)?;
    let file = Arc::new(cache.reopen(&object.key, found.id)?);
    Some(Payload { file, size: object.size, checksum, sent: Arc::default(), multipart: Multipart::default() })
}
