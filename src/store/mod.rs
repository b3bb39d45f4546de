//! Remotes: where objects come from. Knows nothing of local caches.

mod attempts;
mod breaker;
mod chain;
mod connector;
mod file;
mod http;
mod payload;
mod s3;
mod tls;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use crate::checksum::Checksum;
use crate::config::{Patience, Remote, S3Options};
use crate::error::{Error, Kind, Result};
use crate::object::{ETag, Key, ObjectVersion};

/// A remote that objects are read from. Every call is bounded in time. Questions are asked again where that is worth it;
/// a `get` isn't, whose caller goes on where it broke.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// The remote as its user wrote it, but for a user and a password, for messages and `user.aztec_cache.source`.
    fn url(&self) -> &str;

    /// What is known of each remote that is asked, in order. Asks nothing.
    fn remotes(&self) -> Vec<RemoteState> {
        vec![RemoteState { url: self.url().to_owned(), reachable: None, can_list: None }]
    }

    /// How long it is waited for.
    fn patience(&self) -> Patience {
        Patience::default()
    }

    /// Fails at once when the remote that has `object` is known to be unreachable.
    fn check(&self, _object: &ObjectVersion) -> Result<()> {
        Ok(())
    }

    /// Finds out whether there is anything wrong with the remote.
    ///
    /// # Errors
    /// `ListDenied` when it is fine but listing is not granted.
    async fn probe(&self) -> Result<()> {
        self.list("", None, 1).await.map(drop)
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

    /// Whether parts of `object` can be had by themselves. Else every `get` has the server send it from the start, so
    /// that one `get` of the whole is best.
    fn serves_ranges(&self, _object: &ObjectVersion) -> bool {
        true
    }

    /// Whether uploads are expected to be accepted: requests are signed, or else identify who makes them. May ask for
    /// credentials; asks nothing of the remote.
    async fn accepts_uploads(&self) -> bool {
        false
    }

    /// The URL of the remote that uploads go to. May ask for credentials; asks nothing of the remote.
    async fn upload_url(&self) -> String {
        self.url().to_owned()
    }

    /// The first S3 remote of a chain that takes uploads, and the URLs of those that are asked only after it: what they have is found
    /// sooner once it is there, too. May ask for credentials; asks nothing of the remotes.
    async fn nearby(&self) -> Option<(Arc<dyn ObjectStore>, Vec<String>)> {
        None
    }

    /// Makes `payload` the object `key`, atomically: nobody sees a part of it, and a put that fails leaves nothing behind,
    /// pieces on the server neither. Failures that may pass are tried again, boundedly.
    ///
    /// # Errors
    /// Transient ones ([`Error::is_transient`]) when it may go through later; `AccessDenied` and `Refused` when it won't;
    /// `Unsupported` when this remote takes no uploads.
    async fn put(&self, key: &Key, _payload: &Payload, _existing: Existing) -> Result<Put> {
        Err(takes_no_uploads(self.url(), key))
    }

    /// Removes the object `key`; there being none is fine.
    ///
    /// # Errors
    /// As for [`ObjectStore::put`].
    async fn delete(&self, key: &Key) -> Result<()> {
        Err(takes_no_uploads(self.url(), key))
    }
}

fn takes_no_uploads(url: &str, key: &Key) -> Error {
    Error::new(
        Kind::Unsupported,
        format!("{url}{key}: this remote can't be written; name an s3:// one, and credentials for it"),
    )
}

/// What is known of a remote; None: nothing yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteState {
    /// Its URL, without a password.
    pub url: String,
    /// Whether it answered when it was asked last.
    pub reachable: Option<bool>,
    /// Whether listing is granted.
    pub can_list: Option<bool>,
}

/// A whole file that is to become an object.
#[derive(Clone, Debug)]
pub struct Payload {
    /// Where its bytes are; they don't change any more.
    pub file: Arc<File>,
    /// How many there are.
    pub size: u64,
    /// The checksum of all of them, sent along so that the remote takes no others.
    pub checksum: Checksum,
    /// How many of them have been sent, for whoever shows it. Goes back when some are sent again.
    pub sent: Arc<AtomicU64>,
    /// What else there is of it on the server.
    pub multipart: Multipart,
}

/// Uploads in parts, of which a server keeps what it has got until they are completed or aborted.
#[derive(Clone, Debug, Default)]
pub struct Multipart {
    /// The id of one that was broken off, perhaps by a crash. It is aborted first.
    pub left: Option<String>,
    /// Is told the id of each that begins.
    pub begun: Option<UnboundedSender<String>>,
}

/// What a put does about an object that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays: the first writer wins.
    Keep,
    /// It is replaced.
    Replace,
}

/// What became of a put.
#[derive(Clone, Debug, PartialEq)]
pub enum Put {
    /// The remote has the payload now, as this version.
    Stored(ObjectVersion),
    /// One was there already and stays.
    Kept,
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
    /// The URL of the remote that has all these.
    pub source: Arc<str>,
    /// Why names are missing that another remote of a chain may have.
    pub gap: Option<Error>,
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
    pub fn new(chunks: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Body {
        Body(chunks.boxed())
    }

    /// The `length` bytes after the first `skip` of a stream of chunks; fewer if it ends before.
    fn window(chunks: impl Stream<Item = Result<Bytes>> + Send + 'static, skip: u64, length: u64) -> Body {
        let chunks = chunks.boxed();
        Body::new(stream::try_unfold((chunks, skip, length), |(mut chunks, mut skip, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            while let Some(chunk) = chunks.next().await.transpose()? {
                let skipped = skip.min(chunk.len() as u64);
                skip -= skipped;
                let chunk = chunk.slice(skipped as usize..);
                if !chunk.is_empty() {
                    let chunk = chunk.slice(..chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                    let left = left - chunk.len() as u64;
                    return Ok(Some((chunk, (chunks, skip, left))));
                }
            }
            Ok(None)
        }))
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

/// Opens the store of `remotes`, which are asked in order. No request is made yet: a mount needs no live remote.
///
/// # Errors
/// A certificate file that can't be read.
pub fn open(remotes: &[Remote], options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    let mut stores = remotes.iter().map(|remote| open_one(remote, options)).collect::<Result<Vec<_>>>()?;
    match stores.pop() {
        Some(only) if stores.is_empty() => Ok(only),
        last => {
            stores.extend(last);
            Ok(Arc::new(chain::Chain::new(stores)))
        }
    }
}

/// One remote, with a memory of its own for whether it is down.
fn open_one(remote: &Remote, options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    let store: Arc<dyn ObjectStore> = match remote {
        Remote::S3 { bucket, prefix } => Arc::new(s3::S3Store::new(bucket, prefix, options)?),
        Remote::Http { url, credentials, writable } => {
            Arc::new(http::HttpStore::new(url, credentials.as_ref(), *writable, options)?)
        }
        Remote::File(dir) => Arc::new(file::FileStore::new(dir)),
    };
    Ok(Arc::new(breaker::Breaker::new(store)))
}
