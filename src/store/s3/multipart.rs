//! Large objects, sent in parts, several at a time.

use std::ops::Range;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::checksum::{Algorithm, Checksum, combine_crc64nvme};
use crate::config::Patience;
use crate::error::{Error, Kind};
use crate::object::{Key, ObjectVersion};
use crate::store::attempts::Attempts;
use crate::store::payload::Transfer;
use crate::store::s3::S3Store;
use crate::store::s3::client::S3Client;
use crate::store::s3::failure::Failure;
use crate::store::s3::put::Upload;
use crate::store::{Existing, Payload};

const MIB: u64 = 1 << 20;
/// What is larger goes in parts.
const AT_ONCE_MAX: u64 = 8 * MIB;
/// How many bodies are on their way at a time, of all uploads to a remote.
pub(super) const AT_ONCE: usize = 16;
/// S3's least size of a part that isn't the last, and the size from which larger ones bring nothing.
const PART_SIZES: Range<u64> = 5 * MIB..16 * MIB;
/// S3 takes no more (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
const MOST_PARTS: u64 = 10_000;
/// How many times as long the last request may take as others: the server may put the parts together then.
const COMPLETION: u32 = 6;

/// Whether `payload` is sent in parts.
pub(super) fn takes(payload: &Payload) -> bool {
    payload.size > AT_ONCE_MAX
}

/// How large the parts of an object of `size` bytes are, but for the last.
pub(super) fn part_size(size: u64) -> u64 {
    let even = (size / AT_ONCE as u64).clamp(PART_SIZES.start, PART_SIZES.end);
    even.max(size.div_ceil(MOST_PARTS)).next_multiple_of(MIB)
}

/// A part that the server has.
struct Part {
    number: i32,
    length: u64,
    etag: String,
    checksum: Checksum,
    /// Counts as sent for as long as it may become a part of the object.
    transfer: Transfer,
}

/// Sends the payload of `upload`. Whatever keeps it from being stored, its parts don't stay.
pub(super) async fn send(upload: &mut Upload<'_>) -> Result<ObjectVersion, Failure> {
    let pending = create(upload).await?;
    let parts = send_parts(upload, &pending.id).await;
    let done = match parts {
        Ok(parts) => complete(upload, &pending.id, parts).await,
        Err(failure) => Err(failure),
    };
    match done {
        Ok((etag, crc)) => {
            pending.forget();
            upload.verify(etag.as_deref(), crc.as_deref()).await
        }
        Err(failure) => {
            pending.abort().await;
            Err(failure)
        }
    }
}

/// Aborts the upload `id` of `key`, if the server still has it.
pub(super) async fn abort(store: &S3Store, client: &S3Client, key: &Key, what: &str, id: &str) {
    Pending::new(store, client, key, what, id).abort().await;
}

async fn create(upload: &Upload<'_>) -> Result<Pending, Failure> {
    let (store, what) = (upload.store, &upload.what);
    let key = store.full_key(upload.key);
    let created = persist(store.options.patience, || async {
        let request = upload.client.once().create_multipart_upload().bucket(&store.bucket).key(&key);
        let request = match upload.dialect.checksums {
            true => request
                .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
                .checksum_type(ChecksumType::FullObject),
            false => request,
        };
        request.send().await.map_err(|e| Failure::of_write(&e, what))
    })
    .await?;
    let id = created.upload_id().ok_or_else(|| super::not_s3(what, "no upload's id"))?;
    if let Some(begun) = &upload.payload.multipart.begun {
        // Nobody may want to know any more.
        let _ = begun.send(id.to_owned());
    }
    Ok(Pending::new(store, upload.client, upload.key, what, id))
}

/// Sends all parts; they come back in their order.
async fn send_parts(upload: &Upload<'_>, id: &str) -> Result<Vec<Part>, Failure> {
    let (total, size) = (upload.payload.size, part_size(upload.payload.size));
    let ranges = (0..total.div_ceil(size)).map(|index| index * size..total.min((index + 1) * size));
    let sending = stream::iter((1..).zip(ranges)).map(|(number, range)| send_part(upload, id, number, range));
    let mut parts: Vec<Part> = sending.buffer_unordered(AT_ONCE).try_collect().await?;
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

async fn send_part(upload: &Upload<'_>, id: &str, number: i32, range: Range<u64>) -> Result<Part, Failure> {
    let (store, what) = (upload.store, &upload.what);
    let checksum = upload.checksum(range.clone()).await?;
    let crc = checksum.header_if(Algorithm::Crc64Nvme);
    let (output, transfer) = persist(store.options.patience, || async {
        let transfer = Transfer::new(upload.payload, range.clone());
        let request =
            upload.client.upload().upload_part().bucket(&store.bucket).key(store.full_key(upload.key));
        let request = request.upload_id(id).part_number(number).set_checksum_crc64_nvme(crc.clone());
        let request = request.set_content_md5(checksum.header_if(Algorithm::Md5));
        let _slot = store.slot().await?;
        let answer = request.body(ByteStream::new(transfer.body())).send();
        let answer = transfer.watch(store.options.patience, what, answer).await?;
        let output = answer.map_err(|e| Failure::of_write(&e, what))?;
        Ok((output, transfer))
    })
    .await?;
    let etag = output.e_tag().ok_or_else(|| super::not_s3(what, "no ETag of a part"))?.to_owned();
    Ok(Part { number, length: range.end - range.start, etag, checksum, transfer })
}

/// Makes the parts the object; the ETag and the checksum that the server says it has.
async fn complete(
    upload: &mut Upload<'_>,
    id: &str,
    parts: Vec<Part>,
) -> Result<(Option<String>, Option<String>), Failure> {
    let whole = joined(&parts);
    whole.as_ref().map_or(Ok(()), |whole| upload.payload.check(whole, &upload.what))?;
    let named = parts.iter().map(completed).collect();
    let named = CompletedMultipartUpload::builder().set_parts(Some(named)).build();
    let patience = upload.store.options.patience;
    let mut attempts = Attempts::new(patience);
    loop {
        if upload.existing == Existing::Keep && !upload.dialect.keeps_by_itself() && !upload.unheard {
            // Long after the first look.
            if upload.find().await?.is_some() {
                return Err(Failure::taken(&upload.what));
            }
        }
        let request = upload.client.upload().complete_multipart_upload().bucket(&upload.store.bucket);
        let request = request.key(upload.store.full_key(upload.key)).upload_id(id);
        let request = request.set_if_none_match(upload.condition()).multipart_upload(named.clone());
        let request = match &whole {
            Some(whole) => {
                request.checksum_crc64_nvme(whole.to_header()).checksum_type(ChecksumType::FullObject)
            }
            None => request,
        };
        let failure = match timeout(patience.first_byte * COMPLETION, request.send()).await {
            Ok(Ok(output)) => {
                parts.iter().for_each(|part| part.transfer.settle());
                return Ok((
                    output.e_tag().map(str::to_owned),
                    output.checksum_crc64_nvme().map(str::to_owned),
                ));
            }
            Ok(Err(error)) => Failure::of_write(&error, &upload.what),
            Err(_) => late(&upload.what).into(),
        };
        upload.unheard |= failure.error.is_transient();
        if failure.is_not_implemented() && upload.condition().is_some() {
            upload.dialect = upload.dialect.unconditional();
        } else if failure.is_no_upload() || !failure.may_pass() {
            return Err(failure);
        } else if !attempts.again(&failure.error).await {
            return Err(failure.spent());
        }
    }
}

/// The checksum of all parts, if theirs can be put together.
fn joined(parts: &[Part]) -> Option<Checksum> {
    let crc = parts
        .iter()
        .try_fold(0, |crc, part| Some(combine_crc64nvme(crc, part.checksum.as_crc64nvme()?, part.length)));
    crc.map(Checksum::crc64nvme)
}

fn completed(part: &Part) -> CompletedPart {
    CompletedPart::builder()
        .part_number(part.number)
        .set_checksum_crc64_nvme(part.checksum.header_if(Algorithm::Crc64Nvme))
        .e_tag(&part.etag)
        .build()
}

fn late(what: &str) -> Error {
    Error::new(
        Kind::TimedOut,
        format!(
            "{what}: the remote doesn't confirm the upload in time; check the network and --endpoint-url"
        ),
    )
}

/// Makes a request until it is answered well or for good, as often as `patience` has it.
async fn persist<T, F>(patience: Patience, request: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut attempts = Attempts::new(patience);
    loop {
        match request().await {
            Err(failure) if failure.is_no_upload() || !failure.may_pass() => return Err(failure),
            Err(failure) => {
                if !attempts.again(&failure.error).await {
                    return Err(failure.spent());
                }
            }
            done => return done,
        }
    }
}

/// A multipart upload that the server keeps parts of. Aborted when it is dropped.
struct Pending {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    what: String,
    patience: Patience,
    runtime: Handle,
    is_open: bool,
}

impl Pending {
    fn new(store: &S3Store, client: &S3Client, key: &Key, what: &str, id: &str) -> Pending {
        Pending {
            client: client.once().clone(),
            bucket: store.bucket.clone(),
            key: store.full_key(key),
            id: id.to_owned(),
            what: what.to_owned(),
            patience: store.options.patience,
            runtime: Handle::current(),
            is_open: true,
        }
    }

    /// Leaves it to the server, which has made an object of it.
    fn forget(mut self) {
        self.is_open = false;
    }

    /// Removes its parts from the server. Where nothing is heard that goes on by itself.
    async fn abort(mut self) {
        let _ = timeout(self.patience.first_byte, self.begin_abort()).await;
    }

    fn begin_abort(&mut self) -> JoinHandle<()> {
        self.is_open = false;
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key);
        let request = request.upload_id(&self.id);
        let (what, patience) = (self.what.clone(), self.patience);
        self.runtime.spawn(async move {
            let aborted = persist(patience, || async {
                request.clone().send().await.map_err(|e| Failure::of_write(&e, &what))
            });
            match aborted.await {
                Err(failure) if !failure.is_no_upload() => log::warn!(
                    "{}; parts of an upload that was broken off stay there until the bucket's rules remove them",
                    failure.error
                ),
                _ => {}
            }
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_open {
            drop(self.begin_abort());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_within_s3_s_limits_whatever_the_size() {
        for size in [AT_ONCE_MAX + 1, 100 * MIB, 512 * MIB, 10 << 30, 200 << 30, 5 << 40] {
            let part = part_size(size);
            assert!(part >= PART_SIZES.start && size.div_ceil(part) <= MOST_PARTS, "{size}");
            assert_eq!(part % MIB, 0);
        }
        assert_eq!([part_size(9 * MIB), part_size(1 << 30)], [PART_SIZES.start, PART_SIZES.end]);
    }
}
