//! A store that counts what it is asked and fails on demand, around any other.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use aztec_cache::error::{Error, Kind, Result};
use aztec_cache::object::{Key, ObjectVersion};
use aztec_cache::store::{Body, ObjectStore, Page};
use futures_util::stream;

/// Faults and counters over another store.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    pub heads: AtomicU64,
    pub gets: AtomicU64,
    pub lists: AtomicU64,
    fail_gets: AtomicU64,
    fail_heads: AtomicU64,
    truncate_gets: AtomicU64,
}

impl FaultStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<FaultStore> {
        let zero = || AtomicU64::new(0);
        let (heads, gets, lists) = (zero(), zero(), zero());
        Arc::new(FaultStore {
            inner,
            heads,
            gets,
            lists,
            fail_gets: zero(),
            fail_heads: zero(),
            truncate_gets: zero(),
        })
    }

    /// The next `n` gets fail as if the server were unreachable.
    pub fn fail_gets(&self, n: u64) {
        self.fail_gets.store(n, Ordering::SeqCst);
    }

    /// The next `n` heads fail as if the server were unreachable.
    pub fn fail_heads(&self, n: u64) {
        self.fail_heads.store(n, Ordering::SeqCst);
    }

    /// The next `n` gets end after their first chunk.
    pub fn truncate_gets(&self, n: u64) {
        self.truncate_gets.store(n, Ordering::SeqCst);
    }

    fn take(counter: &AtomicU64) -> bool {
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
    }
}

fn unreachable() -> Error {
    Error::new(Kind::Unreachable, "a fault on purpose")
}

#[async_trait]
impl ObjectStore for FaultStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        self.heads.fetch_add(1, Ordering::SeqCst);
        if FaultStore::take(&self.fail_heads) { Err(unreachable()) } else { self.inner.head(key).await }
    }

    async fn list(&self, dir: &str, token: Option<String>, limit: u16) -> Result<Page> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.inner.list(dir, token, limit).await
    }

    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        if FaultStore::take(&self.fail_gets) {
            return Err(unreachable());
        }
        let mut body = self.inner.get(object, range).await?;
        if FaultStore::take(&self.truncate_gets) {
            let first = body.next().await;
            return Ok(Body::new(stream::iter(first)));
        }
        Ok(body)
    }
}
