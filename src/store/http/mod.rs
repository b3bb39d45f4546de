//! `https://HOST/PATH/` and `http://…`: objects on a plain web server, by GET and HEAD.

mod client;
mod put;
mod version;

use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::{Credentials, Patience, S3Options};
use crate::error::{Error, Kind, Result, chain};
use crate::object::{Key, ObjectVersion};
use crate::store::{Body, Existing, ObjectStore, Page, Payload, Put, RemoteState, takes_no_uploads};
use client::{Answer, Client};

/// What a key's bytes are written as in a URL: all but the unreserved characters (RFC 3986, 2.3) and the slash.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Who we say asks.
const USER_AGENT: &str = concat!("aztec-cache/", env!("CARGO_PKG_VERSION"));

/// How often a question is asked at most: it is what a `lookup` waits for. A read is asked for once, since who reads goes on
/// by itself.
const ATTEMPTS: u32 = 3;

/// Whether the server sends parts of objects.
const RANGES_UNKNOWN: u8 = 0;
const RANGES_SERVED: u8 = 1;
/// It was seen not to: for good.
const RANGES_IGNORED: u8 = 2;

/// A web server, or the part of it below a path.
pub struct HttpStore {
    url: Arc<str>,
    client: Client,
    ranges: AtomicU8,
    /// HEAD isn't among the methods that the server knows.
    head_refused: AtomicBool,
    /// It takes PUTs.
    writable: bool,
}

impl HttpStore {
    /// The store of the objects below `url`, which ends in `/`; whether uploads are tried at all, `writable` says.
    ///
    /// # Errors
    /// A CA bundle that can't be used.
    pub fn new(
        url: &str,
        credentials: Option<&Credentials>,
        writable: bool,
        options: &S3Options,
    ) -> Result<HttpStore> {
        Ok(HttpStore {
            url: url.into(),
            client: Client::new(credentials, options)?,
            ranges: AtomicU8::new(RANGES_UNKNOWN),
            head_refused: AtomicBool::new(false),
            writable,
        })
    }

    fn what(&self, key: &Key) -> String {
        format!("{}{}", self.url, key)
    }

    fn uri(&self, path: &str, what: &str) -> Result<Uri> {
        let uri = format!("{}{}", self.url, utf8_percent_encode(path, IN_PATH));
        uri.parse().map_err(|e| Error::usage(format!("{what}: not a URL: {e}; check --remote")))
    }

    async fn send(&self, method: Method, key: &Key, headers: HeaderMap, attempts: u32) -> Result<Answer> {
        self.send_to(method, key.as_str(), headers, attempts, &self.what(key)).await
    }

    async fn send_to(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        attempts: u32,
        what: &str,
    ) -> Result<Answer> {
        let uri = self.uri(path, what)?;
        // An artifact is its bytes as they lie there: whatever they are packed with is for its reader to unpack.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        self.client.send(method, &uri, headers, attempts, what).await
    }

    /// Asks by HEAD. None when that doesn't tell: the server doesn't do HEAD or doesn't tell the length, or sends us on to
    /// where a HEAD isn't allowed, as an address signed for a GET alone has it.
    async fn try_head(&self, key: &Key) -> Result<Option<ObjectVersion>> {
        if self.head_refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let answer = self.send(Method::HEAD, key, HeaderMap::new(), ATTEMPTS).await?;
        let (status, headers) = (answer.response.status(), answer.response.headers());
        match status {
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                self.head_refused.store(true, Ordering::Relaxed);
                Ok(None)
            }
            StatusCode::OK => {
                match version::text(headers, header::ACCEPT_RANGES) {
                    Some("none") => self.learn_ranges(RANGES_IGNORED),
                    Some(_) => self.learn_ranges(RANGES_SERVED),
                    None => {}
                }
                let size = version::content_length(headers);
                Ok(size.map(|size| version::version(key, headers, size, self.url.clone())))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                if answer.redirected =>
            {
                Ok(None)
            }
            _ => Err(refusal(&answer, &self.what(key))),
        }
    }

    /// Asks by a GET of the first byte.
    async fn head_by_get(&self, key: &Key) -> Result<ObjectVersion> {
        let what = self.what(key);
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        let answer = self.send(Method::GET, key, headers, ATTEMPTS).await?;
        let headers = answer.response.headers();
        let size = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                self.learn_ranges(RANGES_SERVED);
                version::total_length(headers)
            }
            StatusCode::OK => {
                self.learn_ranges(RANGES_IGNORED);
                version::content_length(headers)
            }
            // It has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE => Some(0),
            _ => return Err(refusal(&answer, &what)),
        };
        let size = size.ok_or_else(|| {
            Error::new(Kind::Remote, format!("{what}: the server doesn't say how long it is; check --remote"))
        })?;
        Ok(version::version(key, headers, size, self.url.clone()))
    }

    fn learn_ranges(&self, seen: u8) {
        self.ranges.fetch_max(seen, Ordering::Relaxed);
    }
}

#[async_trait]
impl ObjectStore for HttpStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn remotes(&self) -> Vec<RemoteState> {
        vec![RemoteState { url: self.url().to_owned(), reachable: None, can_list: Some(false) }]
    }

    fn patience(&self) -> Patience {
        self.client.patience()
    }

    /// What it says of its own address doesn't matter, as long as it speaks to us.
    async fn probe(&self) -> Result<()> {
        let answer = self.send_to(Method::HEAD, "", HeaderMap::new(), ATTEMPTS, &self.url).await?;
        match refusal(&answer, &self.url) {
            refused if refused.kind() == Kind::AccessDenied => Err(refused),
            failed if answer.response.status().is_server_error() => Err(failed),
            _ => Ok(()),
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        match self.try_head(key).await? {
            Some(version) => Ok(version),
            None => self.head_by_get(key).await,
        }
    }

    async fn list(&self, dir: &str, _token: Option<String>, _limit: u16) -> Result<Page> {
        let dir = dir.escape_debug();
        Err(Error::new(Kind::ListDenied, format!("listing {}{dir}: a web server has no listing", self.url)))
    }

    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body> {
        let what = self.what(&object.key);
        if range.start > 0 && object.etag.is_length() {
            return Err(Error::new(
                Kind::Changed,
                format!(
                    "{what}: broken off, and the server gives neither ETag nor Last-Modified to go on by"
                ),
            ));
        }
        let mut headers = HeaderMap::new();
        let value = |text: String| {
            HeaderValue::try_from(text)
                .map_err(|_| Error::new(Kind::Damaged, format!("{what}: a tag that isn't one")))
        };
        headers.insert(header::RANGE, value(format!("bytes={}-{}", range.start, range.end - 1))?);
        if let Some((name, text)) = version::condition(object) {
            headers.insert(name, value(text)?);
        }
        let answer = self.send(Method::GET, &object.key, headers, 1).await?;
        let is_partial = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => true,
            StatusCode::OK => false,
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Error::new(
                    Kind::Changed,
                    format!("{what}: replaced while being read; open it again"),
                ));
            }
            _ => {
                return Err(match refusal(&answer, &what) {
                    // It was there when its version was learnt.
                    gone if gone.kind() == Kind::NotFound => {
                        Error::new(Kind::Changed, format!("{what}: removed while being read"))
                    }
                    error => error,
                });
            }
        };
        match is_partial {
            true => self.learn_ranges(RANGES_SERVED),
            // What was asked for may have been all of it.
            false if range != (0..object.size) => self.learn_ranges(RANGES_IGNORED),
            false => {}
        }
        let skip = version::check(answer.response.headers(), is_partial, object, &range, &what)?;
        let says_length = version::content_length(answer.response.headers()).is_some();
        let chunks = chunks(answer.response.into_body(), what.clone());
        let length = range.end - range.start;
        Ok(match is_partial || says_length {
            true => Body::window(chunks, skip, length),
            false => Body::window(exactly(object.size, chunks, what), skip, length),
        })
    }

    fn serves_ranges(&self, object: &ObjectVersion) -> bool {
        // Parts of what may be two versions are never put together.
        self.ranges.load(Ordering::Relaxed) == RANGES_SERVED && !object.etag.is_length()
    }

    async fn accepts_uploads(&self) -> bool {
        self.writable
    }

    async fn put(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        match self.writable {
            true => self.upload(key, payload, existing).await,
            false => Err(takes_no_uploads(&self.url, key)),
        }
    }
}

/// What an answer that isn't a good one means.
fn refusal(answer: &Answer, what: &str) -> Error {
    let status = answer.response.status();
    match status.as_u16() {
        404 | 410 => Error::new(Kind::NotFound, format!("{what}: no such object")),
        // What S3 behind a public name says of a missing key.
        403 if !answer.authorized => {
            Error::new(Kind::NotFound, format!("{what}: no such object, or none that may be read"))
        }
        401 if !answer.authorized => Error::new(
            Kind::AccessDenied,
            format!(
                "{what}: the server wants to know who asks; set AZTEC_CACHE_HTTP_USER and AZTEC_CACHE_HTTP_PASSWORD"
            ),
        ),
        401 | 403 => Error::new(
            Kind::AccessDenied,
            format!("{what}: HTTP status {status}: access denied; check the user and the password"),
        ),
        408 => Error::new(Kind::TimedOut, format!("{what}: HTTP status {status}: timed out; try again")),
        _ => Error::new(
            Kind::Remote,
            format!("{what}: HTTP status {status}: the remote fails; try again later"),
        ),
    }
}

/// The chunks of a body that must be of `size` bytes. The last one comes when it is known to be the last.
fn exactly(
    size: u64,
    chunks: impl Stream<Item = Result<Bytes>> + Send + 'static,
    what: String,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    stream::try_unfold((chunks.boxed(), size, what), |(mut chunks, left, what)| async move {
        let Some(chunk) = chunks.next().await.transpose()? else { return Ok(None) };
        let left = left.checked_sub(chunk.len() as u64);
        let ends = left != Some(0) || chunks.next().await.transpose()?.is_none();
        match left {
            Some(left) if ends => Ok(Some((chunk, (chunks, left, what)))),
            _ => Err(Error::new(Kind::Changed, format!("{what}: longer than it was; open it again"))),
        }
    })
}

/// The body's chunks as they come.
fn chunks(body: Incoming, what: String) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    stream::try_unfold((body, what), |(mut body, what)| async move {
        loop {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // The others are trailers.
                    if let Ok(chunk) = frame.into_data()
                        && !chunk.is_empty()
                    {
                        return Ok(Some((chunk, (body, what))));
                    }
                }
                Some(Err(e)) => {
                    let cause = chain(&e);
                    return Err(Error::new(
                        Kind::Unreachable,
                        format!("{what}: the connection broke: {cause}"),
                    ));
                }
            }
        }
    })
}
