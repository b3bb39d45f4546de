//! Remembers that a remote is down, so that requests fail at once instead of each waiting in vain, and finds out by itself
//! when it is back.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use crate::config::Patience;
use crate::error::{Error, Kind, Result};
use crate::object::{Key, ObjectVersion};
use crate::store::{Body, Existing, ObjectStore, Page, Payload, Put, RemoteState};

/// The first and the longest pause between two looks whether the remote is back.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];

/// What is asked for then; whether it exists makes no difference.
const PROBE: &str = "aztec-cache-probe";

/// A store that is not asked anything while it is known to be unreachable. Reads that have begun are let through: they belong
/// to downloads under way, which have their own patience.
pub struct Breaker {
    inner: Arc<dyn ObjectStore>,
    open: Arc<Open>,
}

/// What the remote's answers have shown.
#[derive(Default)]
struct Open {
    /// Why requests fail at once, if they do. Guards only the error; never held across a request.
    error: Mutex<Option<Error>>,
    /// It has answered, whatever it said.
    answered: AtomicBool,
}

impl Breaker {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Breaker {
        Breaker { inner, open: Arc::default() }
    }

    fn note<T>(&self, result: Result<T>) -> Result<T> {
        match &result {
            Err(error) if is_outage(error) => {
                if self.open.open(error) {
                    log::warn!("{error}; files in the local cache are still served");
                    tokio::spawn(recover(self.inner.clone(), self.open.clone()));
                }
            }
            _ => self.open.answered.store(true, Ordering::Relaxed),
        }
        result
    }
}

impl Open {
    fn check(&self) -> Result<()> {
        self.error().as_ref().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Opens it; false when it is open already.
    fn open(&self, error: &Error) -> bool {
        let mut known = self.error();
        let news = known.is_none();
        // Whatever it was that took too long: now it is known to be out of reach.
        *known = Some(Error::new(Kind::Unreachable, error.to_string()));
        news
    }

    fn error(&self) -> MutexGuard<'_, Option<Error>> {
        self.error.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unreachable | Kind::TimedOut)
}

/// Asks until the remote answers, whatever it says.
async fn recover(inner: Arc<dyn ObjectStore>, open: Arc<Open>) {
    let Ok(probe) = Key::new(PROBE) else { return };
    let mut pause = PAUSES[0];
    loop {
        // Not all clients of a remote at the same moment.
        sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        match inner.head(&probe).await {
            Err(error) if is_outage(&error) => {
                log::debug!("still down: {error}");
                pause = (pause * 2).min(PAUSES[1]);
            }
            _ => {
                log::info!("{} answers again", inner.url());
                open.answered.store(true, Ordering::Relaxed);
                *open.error() = None;
                return;
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Breaker {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn remotes(&self) -> Vec<RemoteState> {
        let answered = self.open.answered.load(Ordering::Relaxed);
        let is_down = self.open.error().is_some();
        let reachable = (answered || is_down).then_some(!is_down);
        self.inner.remotes().into_iter().map(|remote| RemoteState { reachable, ..remote }).collect()
    }

    fn patience(&self) -> Patience {
        self.inner.patience()
    }

    fn check(&self, _object: &ObjectVersion) -> Result<()> {
        self.open.check()
    }

    async fn probe(&self) -> Result<()> {
        self.open.check()?;
        self.note(self.inner.probe().await)
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        self.open.check()?;
        self.note(self.inner.head(key).await)
    }

    async fn part_size(&self, object: &ObjectVersion) -> Result<Option<u64>> {
        self.open.check()?;
        self.note(self.inner.part_size(object).await)
    }

    async fn list(&self, dir: &str, token: Option<String>, limit: u16) -> Result<Page> {
        self.open.check()?;
        self.note(self.inner.list(dir, token, limit).await)
    }

    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body> {
        self.note(self.inner.get(object, range).await)
    }

    fn serves_ranges(&self, object: &ObjectVersion) -> bool {
        self.inner.serves_ranges(object)
    }

    async fn accepts_uploads(&self) -> bool {
        self.inner.accepts_uploads().await
    }

    async fn put(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        self.open.check()?;
        self.note(self.inner.put(key, payload, existing).await)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.open.check()?;
        self.note(self.inner.delete(key).await)
    }
}
