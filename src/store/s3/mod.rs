//! `s3://BUCKET/PREFIX/`.

mod client;
mod connector;
mod failure;
mod multipart;
mod put;

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumMode, EncodingType};
use bytes::Bytes;
use futures_util::{Stream, stream};
use percent_encoding::percent_decode_str;
use tokio::sync::{OnceCell, Semaphore};

use crate::checksum::{Algorithm, Checksum};
use crate::config::{Patience, S3Options};
use crate::error::{Error, Kind, Result, chain};
use crate::object::{ETag, Key, ObjectVersion};
use crate::store::{Body, Existing, ListedObject, ObjectStore, Page, Payload, Put, RemoteState};
use failure::Failure;
use put::Dialect;

/// How long the answer to "may we list?" holds, which decides what a 403 means.
const LIST_RIGHT_TTL: Duration = Duration::from_secs(60);

/// A bucket, or the part of it below a prefix.
pub struct S3Store {
    bucket: String,
    prefix: String,
    url: Arc<str>,
    options: S3Options,
    http: connector::Connector,
    /// Made at the first request: finding credentials may itself take network round trips.
    client: OnceCell<client::S3Client>,
    /// Guards only the remembered answer; never held across a request.
    list_right: Mutex<Option<(Instant, ListRight)>>,
    /// What uploads have shown of the server. Guards only that; never held across a request.
    dialect: Mutex<Option<Dialect>>,
    /// One for each body that may be on its way to the server.
    slots: Semaphore,
}

/// What the remote lets us see.
#[derive(Clone, Debug)]
enum ListRight {
    /// A missing key is a 404, so a 403 means no.
    Granted,
    /// A missing key is a 403, as the S3 API has it for those without `s3:ListBucket`
    /// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html>).
    Denied,
    /// The credentials themselves are refused.
    BadCredentials(Error),
}

impl S3Store {
    /// The store of the objects in `bucket` whose keys begin with `prefix` (empty, or ending in `/`).
    ///
    /// # Errors
    /// A CA bundle that can't be used.
    pub fn new(bucket: &str, prefix: &str, options: &S3Options) -> Result<S3Store> {
        Ok(S3Store {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            url: format!("s3://{bucket}/{prefix}").into(),
            options: options.clone(),
            http: connector::Connector::new(options)?,
            client: OnceCell::new(),
            list_right: Mutex::new(None),
            dialect: Mutex::new(None),
            slots: Semaphore::new(multipart::AT_ONCE),
        })
    }

    async fn client(&self) -> &client::S3Client {
        self.client.get_or_init(|| client::connect(&self.options, self.http.clone())).await
    }

    fn full_key(&self, key: &Key) -> String {
        format!("{}{}", self.prefix, key.as_str())
    }

    fn what(&self, key: &Key) -> String {
        format!("{}{}", self.url, key)
    }

    /// What a 403 for an object means: nothing of the kind exists, or we may not have it.
    async fn explain_forbidden(&self, client: &client::S3Client, failure: Failure, what: &str) -> Error {
        let hidden =
            || Error::new(Kind::NotFound, format!("{what}: no such object, or none that may be read"));
        if !client.signed {
            return hidden();
        }
        match self.list_right(client.sdk()).await {
            ListRight::Denied => hidden(),
            ListRight::Granted => failure.error,
            ListRight::BadCredentials(error) => error,
        }
    }

    async fn list_right(&self, client: &Client) -> ListRight {
        if let Some(right) = self.remembered_list_right() {
            return right;
        }
        let right = match self.try_listing(client).await {
            Ok(()) => ListRight::Granted,
            Err(failure) if failure.is_list_denial() => ListRight::Denied,
            Err(failure) if failure.error.kind() == Kind::AccessDenied => {
                ListRight::BadCredentials(failure.error)
            }
            // No answer is no news about rights: a 403 was given for the object, so it stands.
            Err(_) => return ListRight::Granted,
        };
        self.remember_list_right(right.clone());
        right
    }

    async fn try_listing(&self, client: &Client) -> Result<(), Failure> {
        let request = client.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix).max_keys(1);
        request.send().await.map(drop).map_err(|e| Failure::new(&e, &self.url))
    }

    /// Why a HEAD was a bad request, which the answer to one has no body to say: a listing's answer has. S3 says 400
    /// of an expired token and of another region's signature.
    async fn explain_bad_request(&self, client: &Client, failure: Failure) -> Error {
        match self.try_listing(client).await {
            Err(listing) if !listing.is_list_denial() => listing.error,
            _ => failure.error,
        }
    }

    fn remembered_list_right(&self) -> Option<ListRight> {
        let remembered = self.list_right.lock().unwrap_or_else(|e| e.into_inner());
        remembered
            .as_ref()
            .filter(|(asked, _)| asked.elapsed() < LIST_RIGHT_TTL)
            .map(|(_, right)| right.clone())
    }

    fn remember_list_right(&self, right: ListRight) {
        *self.list_right.lock().unwrap_or_else(|e| e.into_inner()) = Some((Instant::now(), right));
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn url(&self) -> &str {
        &self.url
    }

    fn remotes(&self) -> Vec<RemoteState> {
        let known = self.list_right.lock().unwrap_or_else(|e| e.into_inner());
        let can_list = known.as_ref().map(|(_, right)| matches!(right, ListRight::Granted));
        vec![RemoteState { url: self.url().to_owned(), reachable: None, can_list }]
    }

    fn patience(&self) -> Patience {
        self.options.patience
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        let client = self.client().await;
        let what = self.what(key);
        let request = client.sdk().head_object().bucket(&self.bucket).key(self.full_key(key));
        let request = request.checksum_mode(ChecksumMode::Enabled);
        let head = match request.send().await.map_err(|e| Failure::new(&e, &what)) {
            Ok(head) => head,
            Err(failure) if failure.error.kind() == Kind::AccessDenied => {
                return Err(self.explain_forbidden(client, failure, &what).await);
            }
            Err(failure) if failure.is_unexplained_bad_request() => {
                return Err(self.explain_bad_request(client.sdk(), failure).await);
            }
            Err(failure) => return Err(failure.error),
        };
        let (Some(etag), Some(size)) = (head.e_tag(), head.content_length()) else {
            return Err(not_s3(&what, "no ETag or no length"));
        };
        Ok(ObjectVersion {
            key: key.clone(),
            etag: ETag::new(etag),
            size: u64::try_from(size).map_err(|_| not_s3(&what, "a negative length"))?,
            modified: system_time(head.last_modified()),
            checksum: offered_checksum(&head).map(Arc::new),
            source: self.url.clone(),
        })
    }

    async fn part_size(&self, object: &ObjectVersion) -> Result<Option<u64>> {
        let client = self.client().await;
        let request = client.sdk().head_object().bucket(&self.bucket).key(self.full_key(&object.key));
        let request = request.if_match(object.etag.as_str()).part_number(1);
        let head = request.send().await.map_err(|e| Failure::new(&e, &self.what(&object.key)).error)?;
        let size = head.content_length().and_then(|size| u64::try_from(size).ok());
        // Servers that don't know parts answer with the whole.
        Ok(size.filter(|size| *size > 0 && (*size < object.size || head.parts_count() == Some(1))))
    }

    async fn list(&self, dir: &str, token: Option<String>, limit: u16) -> Result<Page> {
        let client = self.client().await;
        let prefix = if dir.is_empty() { self.prefix.clone() } else { format!("{}{dir}/", self.prefix) };
        let what = format!("listing {}{}", self.url, dir.escape_debug());
        if let Some(ListRight::Denied) = self.remembered_list_right() {
            return Err(Error::new(Kind::ListDenied, format!("{what}: not granted when last asked")));
        }
        let request = client.sdk().list_objects_v2().bucket(&self.bucket).prefix(&prefix).delimiter("/");
        let request = request.max_keys(limit.into()).set_continuation_token(token);
        // XML can't carry every byte that a key can: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
        match request.encoding_type(EncodingType::Url).send().await.map_err(|e| Failure::new(&e, &what)) {
            Ok(output) => {
                if dir.is_empty() {
                    self.remember_list_right(ListRight::Granted);
                }
                page(&output, &prefix, &what).map(|page| Page { source: self.url.clone(), ..page })
            }
            Err(failure) if failure.is_list_denial() => {
                self.remember_list_right(ListRight::Denied);
                Err(Error::new(Kind::ListDenied, failure.error.to_string()))
            }
            Err(failure) => Err(failure.error),
        }
    }

    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body> {
        let client = self.client().await;
        let what = self.what(&object.key);
        let request = client.once().get_object().bucket(&self.bucket).key(self.full_key(&object.key));
        let request = request.if_match(object.etag.as_str());
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let output = match request.send().await.map_err(|e| Failure::new(&e, &what)) {
            Ok(output) => output,
            Err(failure) => {
                return Err(match failure.error.kind() {
                    // It was there when its version was learnt.
                    Kind::NotFound => Error::new(Kind::Changed, format!("{what}: removed while being read")),
                    Kind::AccessDenied => match self.explain_forbidden(client, failure, &what).await {
                        error if error.kind() == Kind::NotFound => {
                            Error::new(Kind::Changed, error.to_string())
                        }
                        error => error,
                    },
                    _ => failure.error,
                });
            }
        };
        let skip = check_answer(&output, object, &range, &what)?;
        Ok(Body::window(chunks(output.body, what), skip, range.end - range.start))
    }

    async fn accepts_uploads(&self) -> bool {
        self.client().await.signed
    }

    async fn put(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        self.upload(key, payload, existing).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.remove(key).await
    }
}

/// The best checksum that the answer holds: one of all bytes before one of the parts' checksums.
fn offered_checksum(head: &HeadObjectOutput) -> Option<Checksum> {
    let offered = [
        (Algorithm::Crc64Nvme, head.checksum_crc64_nvme()),
        (Algorithm::Sha256, head.checksum_sha256()),
        (Algorithm::Sha1, head.checksum_sha1()),
        (Algorithm::Crc32c, head.checksum_crc32_c()),
        (Algorithm::Crc32, head.checksum_crc32()),
    ];
    let offered = offered.into_iter().filter_map(|(algorithm, text)| Checksum::from_header(algorithm, text?));
    offered.min_by_key(Checksum::is_composite)
}

/// Checks that the answer to a ranged GET is what was asked for; returns how many bytes of its body come before
/// the range, since some servers answer a ranged request with the whole object (200), which RFC 9110 allows.
fn check_answer(
    output: &GetObjectOutput,
    object: &ObjectVersion,
    range: &Range<u64>,
    what: &str,
) -> Result<u64> {
    if output.e_tag().map(ETag::new).as_ref() != Some(&object.etag) {
        let got = output.e_tag().unwrap_or("no ETag");
        return Err(Error::new(
            Kind::Changed,
            format!("{what}: asked for version {}, got {got}", object.etag.as_str()),
        ));
    }
    let expected = format!("bytes {}-{}/{}", range.start, range.end - 1, object.size);
    match output.content_range() {
        Some(got) if got == expected => Ok(0),
        Some(got) => Err(Error::new(Kind::Damaged, format!("{what}: asked for '{expected}', got '{got}'"))),
        None if output.content_length() == i64::try_from(object.size).ok() => Ok(range.start),
        None => Err(Error::new(
            Kind::Damaged,
            format!("{what}: the whole object with a length that isn't its own"),
        )),
    }
}

/// The body's chunks as they come.
fn chunks(body: ByteStream, what: String) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    stream::try_unfold((body, what), |(mut body, what)| async move {
        match body.next().await {
            None => Ok(None),
            Some(Ok(chunk)) => Ok(Some((chunk, (body, what)))),
            Some(Err(e)) => {
                let cause = chain(&e);
                Err(Error::new(Kind::Unreachable, format!("{what}: the connection broke: {cause}")))
            }
        }
    })
}

fn page(output: &ListObjectsV2Output, prefix: &str, what: &str) -> Result<Page> {
    // Servers that don't know the encoding don't echo it.
    let encoded = output.encoding_type() == Some(&EncodingType::Url);
    let name = |key: &str| -> Option<String> {
        let key = if encoded {
            percent_decode_str(&key.replace('+', " ")).decode_utf8().ok()?.into_owned()
        } else {
            key.to_owned()
        };
        key.strip_prefix(prefix).map(str::to_owned)
    };
    let mut page = Page::default();
    for object in output.contents() {
        let Some(name) = object.key().and_then(name) else {
            log::warn!("{what}: left out {:?}, which is not a key below the prefix", object.key());
            continue;
        };
        let (Some(etag), Some(size)) =
            (object.e_tag(), object.size().and_then(|size| u64::try_from(size).ok()))
        else {
            return Err(not_s3(what, "an object without an ETag or a size"));
        };
        // A key that ends in a slash stands for its directory, as consoles create them.
        if !name.is_empty() {
            let modified = system_time(object.last_modified());
            page.objects.push(ListedObject { name, etag: ETag::new(etag), size, modified });
        }
    }
    for dir in output.common_prefixes().iter().filter_map(|p| name(p.prefix()?)) {
        page.dirs.push(dir.trim_end_matches('/').to_owned());
    }
    page.next = match (output.is_truncated(), output.next_continuation_token()) {
        (Some(true), Some(token)) => Some(token.to_owned()),
        (Some(true), None) => return Err(not_s3(what, "a truncated page without a continuation token")),
        _ => None,
    };
    Ok(page)
}

fn system_time(time: Option<&DateTime>) -> SystemTime {
    time.and_then(|t| SystemTime::try_from(*t).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn not_s3(what: &str, why: &str) -> Error {
    Error::new(Kind::Remote, format!("{what}: the server answered {why}; is the endpoint an S3 server?"))
}
