//! The objects in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use s3s::crypto::Checksum as _;
use s3s::dto::Checksum;

use super::checksums;
use super::content::Content;

/// What [`S3Server::put_with`](super::S3Server::put_with) may set of an object.
#[derive(Clone, Debug, Default)]
pub struct ObjectOptions {
    /// Cut to whole seconds, as S3 has it. Now by default.
    pub last_modified: Option<SystemTime>,
    /// With or without quotes. The MD5 in hexadecimal by default, as for a single PUT.
    pub etag: Option<String>,
    /// Keeps a full-object CRC64NVME, which an answer to `x-amz-checksum-mode: ENABLED` carries.
    pub checksum: bool,
}

/// A checksum that [`S3Server::put_checked`](super::S3Server::put_checked) keeps with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The CRC64NVME of all bytes.
    Crc64Nvme,
    /// The CRC32C of all bytes.
    Crc32c,
    /// The SHA-256 of all bytes.
    Sha256,
    /// The SHA-256 of the SHA-256s of parts of so many bytes, as a multipart upload with checksums leaves it.
    Sha256OfParts(u64),
}

/// One version of an object.
#[derive(Debug)]
pub(super) struct Stored {
    pub content: Content,
    /// Without quotes.
    pub etag: String,
    pub last_modified: SystemTime,
    pub checksum: Option<Checksum>,
    /// The length in bytes of the parts it was uploaded in, of all but the last; 0 for a single PUT.
    pub part_size: u64,
}

impl Stored {
    /// A version made now.
    pub fn new(content: Content, etag: String, checksum: Option<Checksum>) -> Stored {
        Stored { content, etag, last_modified: whole_seconds(SystemTime::now()), checksum, part_size: 0 }
    }
}

/// The parts of a multipart upload by number.
#[derive(Default)]
pub(super) struct Upload {
    pub key: String,
    pub parts: BTreeMap<i32, Part>,
}

/// One part.
#[derive(Clone)]
pub(super) struct Part {
    pub bytes: Bytes,
    /// Without quotes.
    pub etag: String,
}

/// The bucket.
#[derive(Default)]
pub(super) struct Store(Mutex<Contents>);

/// What the lock guards.
#[derive(Default)]
pub(super) struct Contents {
    pub objects: BTreeMap<String, Arc<Stored>>,
    pub uploads: HashMap<String, Upload>,
    uploads_made: u64,
}

impl Contents {
    /// Starts a multipart upload and names it.
    pub fn new_upload(&mut self, key: String) -> String {
        self.uploads_made += 1;
        let id = format!("upload-{}", self.uploads_made);
        self.uploads.insert(id.clone(), Upload { key, parts: BTreeMap::new() });
        id
    }
}

impl Store {
    pub fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.lock().objects.get(key).cloned()
    }

    /// Puts an object from inside the process and returns its ETag in quotes.
    pub fn put(&self, key: &str, bytes: Bytes, options: ObjectOptions) -> String {
        let etag = options.etag.map_or_else(|| md5_hex(&bytes), |etag| etag.trim_matches('"').to_owned());
        let checksum = options.checksum.then(|| checksums::crc64nvme(&bytes));
        let mut stored = Stored::new(Content::Bytes(bytes), etag, checksum);
        if let Some(time) = options.last_modified {
            stored.last_modified = whole_seconds(time);
        }
        self.insert(key, stored)
    }

    /// Puts an object with a checksum from inside the process and returns its ETag in quotes.
    pub fn put_checked(&self, key: &str, bytes: Bytes, kept: Kept) -> String {
        let checksum = Some(checksums::of(&bytes, kept));
        let stored = match kept {
            Kept::Sha256OfParts(part_size) => {
                let parts = bytes.chunks(part_size as usize).map(|part| {
                    let bytes = bytes.slice_ref(part);
                    Part { etag: md5_hex(&bytes), bytes }
                });
                let etag = multipart_etag(&parts.collect::<Vec<_>>());
                Stored { part_size, ..Stored::new(Content::Bytes(bytes), etag, checksum) }
            }
            _ => {
                let etag = md5_hex(&bytes);
                Stored::new(Content::Bytes(bytes), etag, checksum)
            }
        };
        self.insert(key, stored)
    }

    /// Puts an object whose bytes are made on the fly.
    pub fn put_sparse(&self, key: &str, size: u64, seed: u64) -> String {
        let etag = format!("{:032x}-{}", seed ^ size.rotate_left(32), size.div_ceil(8 << 20).max(1));
        self.insert(key, Stored::new(Content::Sparse { size, seed }, etag, None))
    }

    fn insert(&self, key: &str, stored: Stored) -> String {
        let etag = format!("\"{}\"", stored.etag);
        self.lock().objects.insert(key.to_owned(), Arc::new(stored));
        etag
    }
}

/// The ETag of an object that was put in one request.
pub(super) fn md5_hex(bytes: &[u8]) -> String {
    hex(md5(bytes).as_ref())
}

/// The ETag of a multipart upload: the MD5 of the parts' MD5s, which are their ETags, and the number of parts.
pub(super) fn multipart_etag(parts: &[Part]) -> String {
    let digests: Vec<u8> = parts.iter().flat_map(|part| unhex(&part.etag)).collect();
    format!("{}-{}", md5_hex(&digests), parts.len())
}

fn md5(bytes: &[u8]) -> impl AsRef<[u8]> {
    s3s::crypto::Md5::checksum(bytes)
}

fn unhex(text: &str) -> impl Iterator<Item = u8> {
    let digits = text.bytes().map(|digit| (digit as char).to_digit(16).unwrap_or(0) as u8);
    let digits: Vec<u8> = digits.collect();
    (0..digits.len() / 2).map(move |at| digits[2 * at] << 4 | digits[2 * at + 1])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    UNIX_EPOCH + Duration::from_secs(seconds)
}
