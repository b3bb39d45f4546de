//! Remembers that a remote is down, so that questions fail at once instead of each waiting in vain.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::error::{Error, Kind, Result};
use crate::object::{Key, ObjectVersion};
use crate::store::{Body, ObjectStore, Page};

/// How long a failure is remembered before the remote is tried again.
const COOL_DOWN: Duration = Duration::from_secs(3);

/// A store whose `head` and `list` fail at once for a while after one of them found the remote unreachable. Reads
/// are let through: they belong to downloads under way, which retry on their own.
pub struct Breaker {
    inner: Arc<dyn ObjectStore>,
    /// Guards only the memory; never held across a request.
    tripped: Mutex<Option<(Instant, Error)>>,
}

impl Breaker {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Breaker {
        Breaker { inner, tripped: Mutex::new(None) }
    }

    fn check(&self) -> Result<()> {
        let tripped = self.tripped.lock().unwrap_or_else(|e| e.into_inner());
        match &*tripped {
            Some((since, error)) if since.elapsed() < COOL_DOWN => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn note<T>(&self, result: Result<T>) -> Result<T> {
        let mut tripped = self.tripped.lock().unwrap_or_else(|e| e.into_inner());
        match &result {
            Err(error) if matches!(error.kind(), Kind::Unreachable | Kind::TimedOut) => {
                if tripped.is_none() {
                    log::warn!("{error}; files in the local cache are still served");
                }
                *tripped = Some((Instant::now(), error.clone()));
            }
            // Any other answer came from the remote.
            _ => *tripped = None,
        }
        result
    }
}

#[async_trait]
impl ObjectStore for Breaker {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn probe(&self) -> Result<()> {
        self.check()?;
        self.note(self.inner.probe().await)
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        self.check()?;
        self.note(self.inner.head(key).await)
    }

    async fn list(&self, dir: &str, token: Option<String>, limit: u16) -> Result<Page> {
        self.check()?;
        self.note(self.inner.list(dir, token, limit).await)
    }

    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body> {
        self.inner.get(object, range).await
    }

    fn serves_ranges(&self, object: &ObjectVersion) -> bool {
        self.inner.serves_ranges(object)
    }
}
