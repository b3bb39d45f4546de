//! Remotes: where objects come from. Knows nothing of local caches.

mod breaker;
mod file;
mod s3;

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use crate::config::{Patience, Remote, S3Options};
use crate::error::Result;
use crate::object::{ETag, Key, ObjectVersion};

/// A remote that objects are read from. Every call is bounded in time. Questions are asked again where that is worth it;
/// a `get` isn't, whose caller goes on where it broke.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// The remote as its user wrote it, for messages and `user.aztec_cache.source`.
    fn url(&self) -> &str;

    /// How long it is waited for.
    fn patience(&self) -> Patience {
        Patience::default()
    }

    /// Fails at once when the remote that has `object` is known to be unreachable.
    fn check(&self, _object: &ObjectVersion) -> Result<()> {
        Ok(())
    }

    /// The current version of `key`.
    ///
    /// # Errors
    /// `NotFound` also when the remote hides whether the key exists, as S3 does from those who may not list.
    async fn head(&self, key: &Key) -> Result<ObjectVersion>;

    /// How large the parts are that this version was uploaded in (the last may be smaller), in bytes; None when that isn't
    /// known. A checksum of parts takes it.
    async fn part_size(&self, _object: &ObjectVersion) -> Result<Option<u64>> {
        Ok(None)
    }

    /// One page, of at most `limit` entries, of the directory `dir` (`""` or without a trailing slash), from
    /// the page after `token` on.
    ///
    /// # Errors
    /// `ListDenied` when the remote is fine but listing is not granted.
    async fn list(&self, dir: &str, token: Option<String>, limit: u16) -> Result<Page>;

    /// The bytes `range` (not empty, within the object) of exactly this version.
    ///
    /// # Errors
    /// `Changed` when the key holds another version by now, or none.
    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body>;
}

/// A page of a directory listing, in the remote's order.
#[derive(Debug, Default)]
pub struct Page {
    /// Objects directly in the directory.
    pub objects: Vec<ListedObject>,
    /// Names of directories directly in it, without slashes.
    pub dirs: Vec<String>,
    /// Where the next page begins; None after the last.
    pub next: Option<String>,
}

/// An object as a listing shows it; its name has not been checked.
#[derive(Clone, Debug)]
pub struct ListedObject {
    /// The last component of its key.
    pub name: String,
    /// Its entity tag.
    pub etag: ETag,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: SystemTime,
}

/// The bytes of a ranged read as they arrive. May end early or fail at any point: the taker counts.
pub struct Body(BoxStream<'static, Result<Bytes>>);

impl Body {
    /// Wraps a stream of chunks.
    pub fn new(chunks: impl futures_util::Stream<Item = Result<Bytes>> + Send + 'static) -> Body {
        Body(chunks.boxed())
    }

    /// The next chunk, never empty; None at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        loop {
            match self.0.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                other => return other,
            }
        }
    }
}

/// Opens the store of `remote`. No request is made yet: a mount needs no live remote.
///
/// # Errors
/// A directory or certificate file that can't be read.
pub fn open(remote: &Remote, options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    let store: Arc<dyn ObjectStore> = match remote {
        Remote::S3 { bucket, prefix } => Arc::new(s3::S3Store::new(bucket, prefix, options)?),
        Remote::File(dir) => Arc::new(file::FileStore::new(dir)),
    };
    Ok(Arc::new(breaker::Breaker::new(store)))
}
