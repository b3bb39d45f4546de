//! Reads that leave nothing on disk, for when the disk has no room: a few blocks in memory.

use std::future::ready;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures_util::future::Either;
use lru::LruCache;
use tokio::runtime::Handle;

use crate::download::retry::RangeFetch;
use crate::error::Result;
use crate::object::ObjectVersion;
use crate::single_flight::SingleFlight;
use crate::store::ObjectStore;

const BLOCK: u64 = 1 << 20;
/// What one object keeps in memory, in blocks.
const BLOCKS: NonZeroUsize = NonZeroUsize::new(6).unwrap();
/// How many blocks are fetched ahead of a reader.
const AHEAD: u64 = 3;

/// A window of one object version, fetched block by block.
pub struct DirectReader {
    object: ObjectVersion,
    store: Arc<dyn ObjectStore>,
    flights: SingleFlight<u64, Bytes>,
    /// Guards only the table; never held across a request.
    blocks: Arc<Mutex<LruCache<u64, Bytes>>>,
}

impl DirectReader {
    /// A reader of `object` with nothing in memory.
    pub fn new(object: ObjectVersion, store: Arc<dyn ObjectStore>, runtime: Handle) -> DirectReader {
        let blocks = Arc::new(Mutex::new(LruCache::new(BLOCKS)));
        DirectReader { object, store, flights: SingleFlight::new(runtime), blocks }
    }

    /// The bytes `range`, which lies within the object.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let (first, last) = (range.start / BLOCK, range.end.saturating_sub(1) / BLOCK);
        let blocks: Vec<_> = (first..=last).map(|index| self.block(index)).collect();
        let ahead = last + 1..(last + 1 + AHEAD).min(self.object.size.div_ceil(BLOCK));
        // Dropping the future joins nothing, but the request it began runs on.
        ahead.for_each(|index| drop(self.block(index)));
        let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
        for (index, block) in (first..=last).zip(blocks) {
            let (block, start) = (block.await?, index * BLOCK);
            let from = range.start.max(start) - start;
            let to = range.end.min(start + BLOCK) - start;
            bytes.extend_from_slice(&block[from as usize..to as usize]);
        }
        Ok(bytes.freeze())
    }

    fn block(&self, index: u64) -> impl Future<Output = Result<Bytes>> + Send + 'static {
        if let Some(block) = known(&self.blocks, index) {
            return Either::Left(ready(Ok(block)));
        }
        Either::Right(self.flights.run(index, || {
            let (store, object, blocks) = (self.store.clone(), self.object.clone(), self.blocks.clone());
            async move {
                // It may have come after it was looked for, and before this began.
                if let Some(block) = known(&blocks, index) {
                    return Ok(block);
                }
                let block = fetch_block(&*store, &object, index).await?;
                blocks.lock().unwrap_or_else(|e| e.into_inner()).put(index, block.clone());
                Ok(block)
            }
        }))
    }
}

fn known(blocks: &Mutex<LruCache<u64, Bytes>>, index: u64) -> Option<Bytes> {
    blocks.lock().unwrap_or_else(|e| e.into_inner()).get(&index).cloned()
}

async fn fetch_block(store: &dyn ObjectStore, object: &ObjectVersion, index: u64) -> Result<Bytes> {
    let range = index * BLOCK..((index + 1) * BLOCK).min(object.size);
    let mut block = BytesMut::with_capacity((range.end - range.start) as usize);
    let mut fetch = RangeFetch::new(store, object, range);
    while let Some(chunk) = fetch.next().await? {
        block.extend_from_slice(&chunk);
    }
    Ok(block.freeze())
}
