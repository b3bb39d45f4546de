//! The S3 operations over the objects in memory.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use s3s::auth::Credentials;
use s3s::dto::*;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};

use super::access::Rules;
use super::checksums;
use super::conditions::ReadConditions;
use super::content::{Content, ContentBody};
use super::dialect::Dialect;
use super::listing::{self, Marker, url_encode};
use super::multipart;
use super::service::IgnoreRange;
use super::store::{Store, Stored, md5_hex};

/// The bucket as `s3s` sees it. That the bucket exists and the caller may do this has been checked before.
pub(super) struct Backend {
    pub store: Arc<Store>,
    pub rules: Rules,
    pub page_size: usize,
    pub dialect: Dialect,
}

impl Backend {
    fn find(&self, key: &str, credentials: Option<&Credentials>) -> S3Result<Arc<Stored>> {
        match self.store.get(key) {
            Some(stored) => Ok(stored),
            None if self.rules.of(credentials).list => {
                Err(s3_error!(NoSuchKey, "The specified key does not exist."))
            }
            None => Err(s3_error!(AccessDenied, "Access Denied")),
        }
    }

    fn list(&self, query: &listing::Query, encode: bool) -> ListObjectsV2Output {
        let name = |key: &str| if encode { url_encode(key) } else { key.to_owned() };
        let contents = self.store.lock();
        let page = listing::page(&contents.objects, query);
        let objects: Vec<Object> =
            page.objects.iter().map(|(key, stored)| entry(name(key), stored)).collect();
        let groups: Vec<CommonPrefix> =
            page.groups.iter().map(|group| CommonPrefix { prefix: Some(name(group)) }).collect();
        ListObjectsV2Output {
            key_count: Some((objects.len() + groups.len()) as i32),
            contents: Some(objects),
            common_prefixes: Some(groups),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.as_ref().map(Marker::token),
            prefix: Some(name(&query.prefix)),
            delimiter: query.delimiter.as_deref().map(name),
            start_after: query.start_after.as_deref().map(name),
            encoding_type: encode.then(|| EncodingType::from_static(EncodingType::URL)),
            max_keys: Some(query.max_keys as i32),
            ..ListObjectsV2Output::default()
        }
    }
}

fn entry(key: String, stored: &Stored) -> Object {
    Object {
        key: Some(key),
        size: Some(stored.content.len() as i64),
        e_tag: Some(ETag::Strong(stored.etag.clone())),
        last_modified: Some(stored.last_modified.into()),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        ..Object::default()
    }
}

/// What of an object is sent, and what is said of it.
struct Selection {
    bytes: Range<u64>,
    content_range: Option<String>,
    /// Not with a range: AWS sends no checksum of the whole object with a part of it.
    checksum: Checksum,
}

fn select(
    stored: &Stored,
    range: Option<s3s::dto::Range>,
    mode: Option<&ChecksumMode>,
) -> S3Result<Selection> {
    let size = stored.content.len();
    let Some(range) = range else {
        let wanted = mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
        let checksum = stored.checksum.clone().filter(|_| wanted).unwrap_or_default();
        return Ok(Selection { bytes: 0..size, content_range: None, checksum });
    };
    let bytes = range.check(size)?;
    if bytes.is_empty() {
        return Err(s3_error!(InvalidRange, "The requested range is not satisfiable"));
    }
    let content_range = format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1);
    Ok(Selection { bytes, content_range: Some(content_range), checksum: Checksum::default() })
}

/// How many parts a multipart upload had; None for a single PUT.
fn part_count(stored: &Stored) -> Option<i32> {
    let count = (stored.part_size > 0).then(|| stored.content.len().div_ceil(stored.part_size))?;
    i32::try_from(count).ok()
}

/// The range of a part, counted from 1; None for the only part of a single PUT.
fn part(stored: &Stored, number: i32) -> S3Result<Option<s3s::dto::Range>> {
    let number = u64::try_from(number).unwrap_or(0);
    let count = part_count(stored).map_or(1, i64::from);
    if !(1..=count.unsigned_abs()).contains(&number) {
        return Err(s3_error!(InvalidPart, "The requested partnumber is not satisfiable"));
    }
    let first = (number - 1) * stored.part_size;
    Ok((stored.part_size > 0).then(|| s3s::dto::Range::Int {
        first,
        last: Some((first + stored.part_size).min(stored.content.len()) - 1),
    }))
}

/// Reads an upload's body.
pub(super) async fn collect(body: Option<StreamingBlob>, length: Option<i64>) -> S3Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(usize::try_from(length.unwrap_or(0)).unwrap_or(0));
    let Some(mut body) = body else { return Ok(bytes.freeze()) };
    while let Some(chunk) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody))? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        if input.part_number.is_some() {
            return Err(s3_error!(NotImplemented));
        }
        let stored = self.find(&input.key, req.credentials.as_ref())?;
        let conditions = ReadConditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        conditions.check(&stored)?;
        let mut output = GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            e_tag: Some(ETag::Strong(stored.etag.clone())),
            last_modified: Some(stored.last_modified.into()),
            ..GetObjectOutput::default()
        };
        let range = input.range.filter(|_| req.extensions.get::<IgnoreRange>().is_none());
        let selection = select(&stored, range, input.checksum_mode.as_ref())?;
        output.content_type = Some("binary/octet-stream".into());
        output.content_length = Some((selection.bytes.end - selection.bytes.start) as i64);
        output.content_range = selection.content_range;
        output.checksum_crc32 = selection.checksum.checksum_crc32;
        output.checksum_crc32c = selection.checksum.checksum_crc32c;
        output.checksum_crc64nvme = selection.checksum.checksum_crc64nvme;
        output.checksum_sha1 = selection.checksum.checksum_sha1;
        output.checksum_sha256 = selection.checksum.checksum_sha256;
        output.checksum_type = selection.checksum.checksum_type;
        let body = ContentBody::new(stored.content.clone(), selection.bytes);
        output.body = Some(StreamingBlob::from(Body::http_body(body)));
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let stored = self.find(&input.key, req.credentials.as_ref())?;
        let conditions = ReadConditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        conditions.check(&stored)?;
        let mut output = HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            e_tag: Some(ETag::Strong(stored.etag.clone())),
            last_modified: Some(stored.last_modified.into()),
            ..HeadObjectOutput::default()
        };
        let range = match input.part_number {
            Some(number) => {
                output.parts_count = part_count(&stored);
                part(&stored, number)?
            }
            None => input.range,
        };
        let selection = select(&stored, range, input.checksum_mode.as_ref())?;
        output.content_type = Some("binary/octet-stream".into());
        output.content_length = Some((selection.bytes.end - selection.bytes.start) as i64);
        output.checksum_crc32 = selection.checksum.checksum_crc32;
        output.checksum_crc32c = selection.checksum.checksum_crc32c;
        output.checksum_crc64nvme = selection.checksum.checksum_crc64nvme;
        output.checksum_sha1 = selection.checksum.checksum_sha1;
        output.checksum_sha256 = selection.checksum.checksum_sha256;
        output.checksum_type = selection.checksum.checksum_type;
        output.content_range = selection.content_range;
        Ok(S3Response::new(output))
    }

    async fn head_bucket(&self, _: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let marker =
            match &input.continuation_token {
                Some(token) => Some(Marker::parse(token).ok_or_else(|| {
                    s3_error!(InvalidArgument, "The continuation token provided is incorrect")
                })?),
                None => None,
            };
        let asked = usize::try_from(input.max_keys.unwrap_or(i32::MAX))
            .map_err(|_| s3_error!(InvalidArgument, "max-keys must not be negative"))?;
        let query = listing::Query {
            prefix: input.prefix.unwrap_or_default(),
            delimiter: input.delimiter.filter(|delimiter| !delimiter.is_empty()),
            start_after: input.start_after,
            marker,
            max_keys: asked.min(self.page_size),
        };
        let encode = input.encoding_type.is_some_and(|kind| kind.as_str() == EncodingType::URL);
        let mut output = self.list(&query, encode);
        output.name = Some(input.bucket);
        output.continuation_token = input.continuation_token;
        Ok(S3Response::new(output))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let bytes = collect(input.body, input.content_length).await?;
        let claimed = Checksum {
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            checksum_type: None,
        };
        let claimed = checksums::claimed(claimed, req.trailing_headers.as_ref());
        let checksum = self.dialect.verify(std::slice::from_ref(&bytes), &claimed)?;
        checksums::verify_md5(&bytes, input.content_md5.as_deref())?;
        let etag = md5_hex(&bytes);
        let stored = Stored::new(Content::Bytes(bytes), etag.clone(), checksum.clone());
        let objects = &mut self.store.lock().objects;
        let now = objects.get(&input.key).map(Arc::as_ref);
        self.dialect.check_write(input.if_match.as_ref(), input.if_none_match.as_ref(), now)?;
        objects.insert(input.key, Arc::new(stored));
        let checksum = checksum.unwrap_or_default();
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            checksum_type: checksum.checksum_type,
            ..PutObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.store.lock().objects.remove(&req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        multipart::create(&self.store, req.input).map(S3Response::new)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        multipart::upload(&self.store, self.dialect, req).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        multipart::complete(&self.store, self.dialect, req.input).map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        multipart::abort(&self.store, &req.input).map(S3Response::new)
    }
}
