//! Multipart uploads. AWS's least part size (5 MiB) isn't enforced, so that tests can use small parts.

use std::sync::Arc;

use bytes::Bytes;
use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::backend::collect;
use super::checksums;
use super::content::Content;
use super::dialect::Dialect;
use super::store::{Contents, Part, Store, Stored, Upload, md5_hex, multipart_etag};

pub(super) fn create(
    store: &Store,
    input: CreateMultipartUploadInput,
) -> S3Result<CreateMultipartUploadOutput> {
    let upload_id = store.lock().new_upload(input.key.clone());
    Ok(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(upload_id),
        ..CreateMultipartUploadOutput::default()
    })
}

pub(super) async fn upload(
    store: &Store,
    dialect: Dialect,
    req: S3Request<UploadPartInput>,
) -> S3Result<UploadPartOutput> {
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
    let checksum = dialect.verify(std::slice::from_ref(&bytes), &claimed)?.unwrap_or_default();
    if !(1..=10_000).contains(&input.part_number) {
        return Err(s3_error!(
            InvalidArgument,
            "Part number must be an integer between 1 and 10000, inclusive"
        ));
    }
    let etag = md5_hex(&bytes);
    checksums::verify_md5(&bytes, input.content_md5.as_deref())?;
    let part = Part { bytes, etag: etag.clone() };
    let mut contents = store.lock();
    find(&mut contents, &input.upload_id, &input.key)?.parts.insert(input.part_number, part);
    Ok(UploadPartOutput {
        e_tag: Some(ETag::Strong(etag)),
        checksum_crc64nvme: checksum.checksum_crc64nvme,
        ..UploadPartOutput::default()
    })
}

pub(super) fn complete(
    store: &Store,
    dialect: Dialect,
    input: CompleteMultipartUploadInput,
) -> S3Result<CompleteMultipartUploadOutput> {
    let wanted = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    let parts = {
        let mut contents = store.lock();
        chosen(find(&mut contents, &input.upload_id, &input.key)?, &wanted)?
    };
    let etag = multipart_etag(&parts);
    let claimed = Checksum { checksum_crc64nvme: input.checksum_crc64nvme, ..Checksum::default() };
    let bytes: Arc<[Bytes]> = parts.into_iter().map(|part| part.bytes).collect();
    let checksum = dialect.verify(&bytes, &claimed)?;
    let stored = Stored::new(Content::Parts(bytes), etag.clone(), checksum.clone());
    let mut contents = store.lock();
    let now = contents.objects.get(&input.key).map(Arc::as_ref);
    dialect.check_write(input.if_match.as_ref(), input.if_none_match.as_ref(), now)?;
    contents.uploads.remove(&input.upload_id);
    contents.objects.insert(input.key.clone(), Arc::new(stored));
    Ok(CompleteMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(ETag::Strong(etag)),
        checksum_crc64nvme: checksum.as_ref().and_then(|checksum| checksum.checksum_crc64nvme.clone()),
        checksum_type: checksum.and_then(|checksum| checksum.checksum_type),
        ..CompleteMultipartUploadOutput::default()
    })
}

pub(super) fn abort(
    store: &Store,
    input: &AbortMultipartUploadInput,
) -> S3Result<AbortMultipartUploadOutput> {
    let mut contents = store.lock();
    find(&mut contents, &input.upload_id, &input.key)?;
    contents.uploads.remove(&input.upload_id);
    Ok(AbortMultipartUploadOutput::default())
}

fn find<'a>(contents: &'a mut Contents, id: &str, key: &str) -> S3Result<&'a mut Upload> {
    contents
        .uploads
        .get_mut(id)
        .filter(|upload| upload.key == key)
        .ok_or_else(|| s3_error!(NoSuchUpload, "The specified upload does not exist."))
}

/// The parts that a completion names, in its order.
fn chosen(upload: &Upload, wanted: &[CompletedPart]) -> S3Result<Vec<Part>> {
    if wanted.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    if !wanted.is_sorted_by(|a, b| a.part_number < b.part_number) {
        return Err(s3_error!(InvalidPartOrder));
    }
    wanted
        .iter()
        .map(|part| {
            let found = part.part_number.and_then(|number| upload.parts.get(&number));
            let claimed = part.e_tag.as_ref().map(ETag::value);
            found.filter(|found| claimed == Some(&found.etag)).cloned().ok_or_else(|| s3_error!(InvalidPart))
        })
        .collect()
}
