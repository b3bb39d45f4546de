//! What a path names: a directory, a version of an object, or nothing.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::join;
use lru::LruCache;
use tokio::runtime::Handle;

use crate::answer::{Answer, blocking};
use crate::coherence::{Coherence, Local};
use crate::error::{Error, Kind, Result};
use crate::listing::{Entry, Listings};
use crate::object::{Key, ObjectVersion};
use crate::single_flight::SingleFlight;
use crate::store::ObjectStore;

/// How long the remote's answer about a key is remembered: that it has it, or that it doesn't.
const ANSWER_TTL: Duration = Duration::from_secs(1);
/// Answers remembered at a time.
const ANSWERS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// What the remote has under a name.
#[derive(Clone, Debug)]
enum Found {
    Dir,
    Object(ObjectVersion),
    Nothing,
}

/// Finds keys: on disk, in a listing, among recent answers, or with one coalesced HEAD.
pub struct Lookup {
    store: Arc<dyn ObjectStore>,
    coherence: Coherence,
    listings: Arc<Listings>,
    flights: SingleFlight<Key, Found>,
    verifying: SingleFlight<Key, ()>,
    answers: Arc<Answers>,
}

/// The remote's recent answers.
struct Answers(
    /// Guards only the table; never held across a request.
    Mutex<LruCache<Key, (Instant, Found)>>,
);

impl Lookup {
    /// Looks in `coherence`'s cache, in `listings`, in `store`.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        coherence: Coherence,
        listings: Arc<Listings>,
        runtime: Handle,
    ) -> Lookup {
        let answers = Arc::new(Answers(Mutex::new(LruCache::new(ANSWERS))));
        let (flights, verifying) = (SingleFlight::new(runtime.clone()), SingleFlight::new(runtime));
        Lookup { store, coherence, listings, flights, verifying, answers }
    }

    /// What `key` names. A complete local file, a listed name and a recent answer are known at once.
    pub fn find(self: &Arc<Lookup>, key: &Key) -> Answer<Entry> {
        match (self.known(key), self.coherence.local(key)) {
            (Some(Found::Dir), _) => Answer::Now(Ok(Entry::Dir(key.name().into()))),
            (_, Local::Verify(_)) => self.verify(key),
            (_, Local::Serve(file)) => Answer::Now(Ok(Entry::File(file.into()))),
            (Some(found), Local::Nothing) => {
                if matches!(found, Found::Nothing) {
                    self.listings.note_miss(key.dir());
                }
                Answer::Now(settle(&self.coherence, key, Local::Nothing, Ok(found)))
            }
            // It may have to be compared with the remote's, byte by byte.
            (Some(found), local) => {
                let (coherence, key) = (self.coherence.clone(), key.clone());
                Answer::later(
                    async move { blocking(move || settle(&coherence, &key, local, Ok(found))).await? },
                )
            }
            (None, local) => self.ask(key, local),
        }
    }

    /// Forgets what is remembered about `key`, since it was found to be wrong.
    pub fn forget(&self, key: &Key) {
        self.listings.forget(key.dir());
        self.answers.forget(key);
    }

    /// What the remote was seen to have a moment ago.
    fn known(&self, key: &Key) -> Option<Found> {
        match self.listings.find(key.dir(), key.name()) {
            Some(Some(Entry::Dir(_))) => Some(Found::Dir),
            // Listed because it was here, not there.
            Some(Some(Entry::File(served))) if served.version().etag.is_local() => self.answers.get(key),
            Some(Some(Entry::File(served))) => Some(Found::Object(served.version().clone())),
            // It may have appeared after it was listed, and have been seen.
            Some(None) => Some(self.answers.get(key).unwrap_or(Found::Nothing)),
            None => self.answers.get(key),
        }
    }

    /// Finds `key` once its file, which someone has touched, was looked at.
    fn verify(self: &Arc<Lookup>, key: &Key) -> Answer<Entry> {
        let flight = self.verifying.run(key.clone(), || {
            let (coherence, key) = (self.coherence.clone(), key.clone());
            blocking(move || coherence.verify(&key))
        });
        let (lookup, key) = (self.clone(), key.clone());
        Answer::later(async move {
            flight.await?;
            match (lookup.known(&key), lookup.coherence.local(&key)) {
                // Touched again, or not readable: what is there is not shown.
                (None, local @ Local::Verify(_)) => lookup.ask(&key, local).wait().await,
                (Some(found), local @ Local::Verify(_)) => settle(&lookup.coherence, &key, local, Ok(found)),
                _ => lookup.find(&key).wait().await,
            }
        })
    }

    fn ask(&self, key: &Key, local: Local) -> Answer<Entry> {
        let flight = self.flights.run(key.clone(), || {
            let (store, listings) = (self.store.clone(), self.listings.clone());
            let (answers, key) = (self.answers.clone(), key.clone());
            async move {
                // It may have come after it was looked for, and before this began.
                if let Some(found) = answers.get(&key) {
                    return Ok(found);
                }
                listings.note_question(key.dir());
                // A listing under way may be the first to know.
                let found = tokio::select! {
                    found = ask_remote(&*store, &listings, &key) => found?,
                    () = listings.wait_missing(key.dir(), key.name()) => Found::Nothing,
                };
                if matches!(found, Found::Nothing) {
                    listings.note_miss(key.dir());
                }
                answers.put(key, found.clone());
                Ok(found)
            }
        });
        let (coherence, key) = (self.coherence.clone(), key.clone());
        Answer::later(async move {
            let found = flight.await;
            blocking(move || settle(&coherence, &key, local, found)).await?
        })
    }
}

impl Answers {
    fn get(&self, key: &Key) -> Option<Found> {
        let fresh = self.table().get(key).filter(|(since, _)| since.elapsed() < ANSWER_TTL).cloned();
        fresh.map(|(_, found)| found)
    }

    fn put(&self, key: Key, found: Found) {
        self.table().put(key, (Instant::now(), found));
    }

    fn forget(&self, key: &Key) {
        self.table().pop(key);
    }

    fn table(&self) -> MutexGuard<'_, LruCache<Key, (Instant, Found)>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What is shown, given what is here and what is there. Blocks on the disk, briefly.
fn settle(coherence: &Coherence, key: &Key, local: Local, found: Result<Found>) -> Result<Entry> {
    let remote = match found {
        Ok(Found::Dir) => return Ok(Entry::Dir(key.name().into())),
        Ok(Found::Object(version)) => Ok(version),
        Ok(Found::Nothing) => Err(Error::new(Kind::NotFound, format!("{key}: no such object"))),
        Err(error) => Err(error),
    };
    coherence.settle(local, remote).map(Entry::File)
}

/// A name that ends like an artifact's takes one HEAD. One with a dot elsewhere is taken for an artifact, too, and only if
/// there is no such object, for a directory. One without may as well be a directory, which would hide an object
/// of its name: both questions go out together.
async fn ask_remote(store: &dyn ObjectStore, listings: &Listings, key: &Key) -> Result<Found> {
    let (head, dir) = if key.name().contains('.') {
        match store.head(key).await {
            Err(error) if error.kind() == Kind::NotFound => {
                let dir =
                    if may_be_dir(listings, key) { listings.is_dir(key.as_str()).await } else { Ok(false) };
                (Err(error), dir)
            }
            head => (head, Ok(false)),
        }
    } else {
        join(store.head(key), listings.is_dir(key.as_str())).await
    };
    match (head, dir) {
        (_, Ok(true)) => Ok(Found::Dir),
        (Ok(version), _) => Ok(Found::Object(version)),
        (Err(error), dir) if error.kind() == Kind::NotFound => dir.map(|_| Found::Nothing),
        (Err(error), _) => Err(error),
    }
}

fn may_be_dir(listings: &Listings, key: &Key) -> bool {
    // No directory is called like an artifact, unless a listing showed it.
    !key.is_artifact() || listings.was_dir(key.dir(), key.name())
}
