//! A range's bytes, whole or an error: goes on where a connection broke, a bounded number of times.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::{sleep, timeout};

use crate::config::Patience;
use crate::error::{Error, Kind, Result};
use crate::metrics::{BYTES_FROM_REMOTE, RETRIES};
use crate::object::ObjectVersion;
use crate::store::{Body, ObjectStore};

/// The bytes of one range of one object version, in order.
pub struct RangeFetch<'a> {
    store: &'a dyn ObjectStore,
    object: &'a ObjectVersion,
    range: Range<u64>,
    patience: Patience,
    body: Option<Body>,
    /// Attempts since the last byte.
    failed: u32,
}

impl<'a> RangeFetch<'a> {
    /// A fetch of `range`, which lies within the object; nothing is requested yet.
    pub fn new(store: &'a dyn ObjectStore, object: &'a ObjectVersion, range: Range<u64>) -> RangeFetch<'a> {
        RangeFetch { store, object, range, patience: store.patience(), body: None, failed: 0 }
    }

    /// The next chunk; None once the whole range has been given out.
    ///
    /// # Errors
    /// The object was replaced, access is refused, or all attempts in a row brought nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.range.is_empty() {
            match self.attempt().await {
                Ok(chunk) => {
                    self.failed = 0;
                    self.advance(&chunk);
                    return Ok(Some(chunk));
                }
                Err(error) => {
                    let attempts = self.patience.attempts;
                    self.body = None;
                    self.failed += 1;
                    if !error.is_transient() || self.failed >= attempts {
                        return Err(error);
                    }
                    RETRIES.count();
                    log::info!("attempt {} of {attempts}: {error}", self.failed);
                    sleep(self.patience.pause(self.failed)).await;
                }
            }
        }
        Ok(None)
    }

    /// The next chunk if it comes within `patience`; zero: if it is here already.
    pub async fn next_within(&mut self, patience: Duration) -> Option<Bytes> {
        let next = self.body.as_mut()?.next();
        let chunk = if patience.is_zero() { next.now_or_never() } else { timeout(patience, next).await.ok() };
        let chunk = chunk??.ok()?;
        let chunk = self.trim(chunk);
        self.advance(&chunk);
        (!chunk.is_empty()).then_some(chunk)
    }

    fn advance(&mut self, chunk: &Bytes) {
        let length = chunk.len() as u64;
        BYTES_FROM_REMOTE.add(length);
        self.range.start += length;
    }

    async fn attempt(&mut self) -> Result<Bytes> {
        let body = match &mut self.body {
            Some(body) => body,
            None => self.body.insert(self.store.get(self.object, self.range.clone()).await?),
        };
        match timeout(self.patience.stall, body.next()).await {
            Err(_) => Err(self.error(Kind::TimedOut, "the body stalled")),
            Ok(None) => Err(self.error(Kind::Damaged, "the body ended early")),
            Ok(Some(chunk)) => chunk.map(|chunk| self.trim(chunk)),
        }
    }

    /// A store gives no more than was asked for; if one did, the excess is not the range's.
    fn trim(&self, chunk: Bytes) -> Bytes {
        let left = self.range.end - self.range.start;
        chunk.slice(..chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    fn error(&self, kind: Kind, what: &str) -> Error {
        let (key, at) = (&self.object.key, self.range.start);
        Error::new(kind, format!("{}{key}: {what} at byte {at} of {}", self.object.source, self.object.size))
    }
}
