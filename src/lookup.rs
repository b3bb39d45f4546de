//! What a path names: a directory, a version of an object, or nothing.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join;
use lru::LruCache;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::answer::Answer;
use crate::coherence::{Coherence, Local, Served};
use crate::error::{Error, Kind, Result};
use crate::listing::{Entry, Listings};
use crate::object::{Key, ObjectVersion};
use crate::single_flight::SingleFlight;
use crate::store::ObjectStore;

/// How long a miss is remembered.
const MISS_TTL: Duration = Duration::from_secs(1);
/// Misses remembered at a time.
const MISSES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Finds keys: on disk, in a listing, among recent misses, or with one coalesced HEAD.
pub struct Lookup {
    store: Arc<dyn ObjectStore>,
    coherence: Coherence,
    listings: Arc<Listings>,
    flights: SingleFlight<Key, Entry>,
    /// Guards only the table; never held across a request.
    misses: Arc<Mutex<LruCache<Key, Instant>>>,
}

impl Lookup {
    /// Looks in `coherence`'s cache, in `listings`, in `store`.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        coherence: Coherence,
        listings: Arc<Listings>,
        runtime: Handle,
    ) -> Lookup {
        let misses = Arc::new(Mutex::new(LruCache::new(MISSES)));
        Lookup { store, coherence, listings, flights: SingleFlight::new(runtime), misses }
    }

    /// What `key` names. A complete local file, a listed name and a recent miss are known at once.
    pub fn find(&self, key: &Key) -> Answer<Entry> {
        let local = self.coherence.local(key);
        let listed = self.listings.fresh(key.dir());
        match (listed.as_ref().and_then(|listing| listing.find(key.name())), local) {
            (Some(Some(Entry::Dir(name))), _) => Answer::Now(Ok(Entry::Dir(name.clone()))),
            (_, Local::Serve(version)) => Answer::Now(Ok(Entry::File(Served::Local(version)))),
            // A local file that was listed, and is gone.
            (Some(Some(Entry::File(listed))), Local::Nothing) if listed.version().etag.is_local() => {
                self.ask(key, Local::Nothing)
            }
            (Some(Some(Entry::File(listed))), local) => {
                let version = listed.version().clone();
                let remote = if version.etag.is_local() { Err(absent(key)) } else { Ok(version) };
                Answer::Now(self.coherence.settle(local, remote).map(Entry::File))
            }
            (Some(None), Local::Ask(file)) => Answer::Now(Ok(Entry::File(Served::Local(file.version)))),
            (Some(None), Local::Nothing) => Answer::Now(Err(absent(key))),
            (None, Local::Nothing) if self.is_recent_miss(key) => Answer::Now(Err(absent(key))),
            (None, local) => self.ask(key, local),
        }
    }

    /// Forgets what is remembered about `key`, since it was found to be wrong.
    pub fn forget(&self, key: &Key) {
        self.listings.forget(key.dir());
    }

    fn is_recent_miss(&self, key: &Key) -> bool {
        let mut misses = self.misses.lock().unwrap_or_else(|e| e.into_inner());
        misses.get(key).is_some_and(|since| since.elapsed() < MISS_TTL)
    }

    fn ask(&self, key: &Key, local: Local) -> Answer<Entry> {
        let flight = self.flights.run(key.clone(), || {
            let (store, listings, coherence) =
                (self.store.clone(), self.listings.clone(), self.coherence.clone());
            let (misses, key) = (self.misses.clone(), key.clone());
            async move {
                let entry = match ask_remote(&*store, &listings, &key).await {
                    Ok(Found::Dir) => return Ok(Entry::Dir(key.name().into())),
                    Ok(Found::Object(version)) => Ok(version),
                    Err(error) => Err(error),
                };
                let settled = spawn_blocking(move || coherence.settle(local, entry)).await;
                let settled = settled
                    .unwrap_or_else(|e| Err(Error::new(Kind::Internal, format!("a disk task failed: {e}"))));
                if settled.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
                    misses.lock().unwrap_or_else(|e| e.into_inner()).put(key, Instant::now());
                }
                settled.map(Entry::File)
            }
        });
        Answer::later(flight)
    }
}

enum Found {
    Dir,
    Object(ObjectVersion),
}

/// A name with a dot in it is taken for an artifact: one HEAD, and only if there is no such object, a look for a
/// directory of the name. One without may as well be a directory, which would hide an object of its name: both
/// questions go out together.
async fn ask_remote(store: &dyn ObjectStore, listings: &Listings, key: &Key) -> Result<Found> {
    if key.name().contains('.') {
        return match store.head(key).await {
            Err(error) if error.kind() == Kind::NotFound => match listings.is_dir(key.as_str()).await? {
                true => Ok(Found::Dir),
                false => Err(error),
            },
            head => head.map(Found::Object),
        };
    }
    match join(store.head(key), listings.is_dir(key.as_str())).await {
        (_, Ok(true)) => Ok(Found::Dir),
        (Ok(version), _) => Ok(Found::Object(version)),
        (Err(error), Err(probe)) if error.kind() == Kind::NotFound => Err(probe),
        (Err(error), _) => Err(error),
    }
}

fn absent(key: &Key) -> Error {
    Error::new(Kind::NotFound, format!("{key}: no such object"))
}
