//! Uploads: the first writer wins, whatever of that the server can see to itself.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::ByteStream;
use tokio::sync::SemaphorePermit;

use crate::checksum::{Algorithm, Checksum};
use crate::error::{Error, Kind, Result};
use crate::object::{ETag, Key, ObjectVersion};
use crate::store::attempts::Attempts;
use crate::store::payload::Transfer;
use crate::store::s3::client::S3Client;
use crate::store::s3::failure::Failure;
use crate::store::s3::{S3Store, multipart};
use crate::store::{Existing, ObjectStore, Payload, Put};

/// What of S3 the server takes along with an upload. Others than Amazon's lack this or that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    conditions: Conditions,
    /// `x-amz-checksum-crc64nvme`; without it MD5s are sent.
    pub checksums: bool,
}

/// What is known of conditional writes (`If-None-Match: *`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conditions {
    /// Nothing: some servers ignore the header. It is sent, and the object asked for first all the same.
    Unknown,
    /// A write was refused by one.
    Honoured,
    /// The header is refused.
    Refused,
}

impl Dialect {
    /// What is known of a server before it has taken an upload.
    pub fn new(is_amazon: bool) -> Dialect {
        let conditions = if is_amazon { Conditions::Honoured } else { Conditions::Unknown };
        Dialect { conditions, checksums: true }
    }

    /// What to try next after `failure`, which may be due to something that isn't a must; None when nothing of the kind is
    /// left. The condition goes first, and comes back when it wasn't that.
    fn simpler(self, failure: &Failure, existing: Existing) -> Option<Dialect> {
        let conditional = existing == Existing::Keep && self.conditions != Conditions::Refused;
        let plain = Dialect { checksums: false, ..self };
        match failure {
            _ if failure.is_not_implemented() && conditional => Some(self.unconditional()),
            _ if failure.is_not_implemented() && self.checksums => {
                Some(Dialect { conditions: Conditions::Unknown, ..plain })
            }
            _ if failure.is_bad_request() && self.checksums => Some(plain),
            _ => None,
        }
    }

    /// The same without conditions, which the server refuses.
    pub fn unconditional(self) -> Dialect {
        Dialect { conditions: Conditions::Refused, ..self }
    }

    /// Whether the server sees to it that what is there is kept.
    pub fn keeps_by_itself(self) -> bool {
        self.conditions == Conditions::Honoured
    }
}

/// An upload under way.
pub(super) struct Upload<'a> {
    pub store: &'a S3Store,
    pub client: &'a S3Client,
    pub key: &'a Key,
    pub payload: &'a Payload,
    pub existing: Existing,
    pub dialect: Dialect,
    /// Names the object, for messages.
    pub what: String,
    /// A request of which no answer came may have stored it.
    pub unheard: bool,
}

impl S3Store {
    /// [`ObjectStore::put`].
    pub(super) async fn upload(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        let client = self.client().await;
        let dialect = self.dialect(client);
        let what = self.what(key);
        if let Some(id) = &payload.multipart.left {
            multipart::abort(self, client, key, &what, id).await;
        }
        Upload { store: self, client, key, payload, existing, dialect, what, unheard: false }.run().await
    }

    /// [`ObjectStore::delete`].
    pub(super) async fn remove(&self, key: &Key) -> Result<()> {
        let request = self.client().await.sdk().delete_object().bucket(&self.bucket).key(self.full_key(key));
        match request.send().await.map_err(|e| Failure::of_write(&e, &self.what(key))) {
            Err(failure) if !failure.is_no_object() => Err(failure.error),
            _ => Ok(()),
        }
    }

    /// Room for one more body on its way to the server.
    pub(super) async fn slot(&self) -> Result<SemaphorePermit<'_>> {
        self.slots.acquire().await.map_err(|_| Error::new(Kind::Internal, "uploads have ended"))
    }

    /// What is known of the server.
    fn dialect(&self, client: &S3Client) -> Dialect {
        let known = *self.dialect.lock().unwrap_or_else(|e| e.into_inner());
        known.unwrap_or(Dialect::new(client.is_amazon))
    }

    /// Remembers what an upload has shown, and says once what is missing.
    fn learn(&self, dialect: Dialect) {
        let before = self.dialect.lock().unwrap_or_else(|e| e.into_inner()).replace(dialect);
        let is_news = |known: fn(&Dialect) -> bool| known(&dialect) && !before.as_ref().is_some_and(known);
        if is_news(|dialect| dialect.conditions == Conditions::Refused) {
            log::warn!(
                "{}: the server has no conditional writes (If-None-Match): whether an artifact exists is asked before each \
                 upload, and of two writers at the same moment the last wins",
                self.url
            );
        }
        if is_news(|dialect| !dialect.checksums) {
            log::info!("{}: the server doesn't know CRC64NVME checksums: MD5s are sent", self.url);
        }
    }
}

impl Upload<'_> {
    async fn run(mut self) -> Result<Put> {
        let mut attempts = Attempts::new(self.store.options.patience);
        loop {
            if (self.unheard || self.asks_first())
                && let Some(put) = self.look().await?
            {
                return Ok(put);
            }
            let failure = match self.send().await {
                Ok(stored) => {
                    self.store.learn(self.dialect);
                    return Ok(Put::Stored(stored));
                }
                Err(failure) => failure,
            };
            if failure.is_taken() {
                return self.settle_taken().await;
            }
            self.unheard |= failure.error.is_transient();
            match self.dialect.simpler(&failure, self.existing) {
                Some(simpler) => self.dialect = simpler,
                None if failure.may_pass() && attempts.again(&failure.error).await => {}
                None => return Err(failure.error),
            }
        }
    }

    /// Whether the object is asked for before anything is sent: it may cost much in vain, or replace what is there.
    fn asks_first(&self) -> bool {
        self.existing == Existing::Keep && (!self.dialect.keeps_by_itself() || multipart::takes(self.payload))
    }

    /// What the key holds already, as far as that settles the upload.
    async fn look(&self) -> Result<Option<Put>> {
        let Some(found) = self.find().await? else { return Ok(None) };
        if self.unheard && self.payload.is(&found, multipart::part_size(found.size)).await? {
            self.payload.sent.fetch_add(self.payload.size, Ordering::Relaxed);
            return Ok(Some(Put::Stored(found)));
        }
        Ok((self.existing == Existing::Keep).then_some(Put::Kept))
    }

    /// What a failed precondition comes to: another's object, or our own, of which we had no answer.
    async fn settle_taken(mut self) -> Result<Put> {
        if self.dialect.conditions == Conditions::Unknown {
            self.dialect.conditions = Conditions::Honoured;
        }
        self.store.learn(self.dialect);
        let found = if self.unheard { self.look().await? } else { None };
        Ok(found.unwrap_or(Put::Kept))
    }

    /// The object that the key holds, as far as that can be seen: who may write may not be allowed to read.
    pub async fn find(&self) -> Result<Option<ObjectVersion>> {
        match self.store.head(self.key).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(None),
        }
    }

    async fn send(&mut self) -> Result<ObjectVersion, Failure> {
        if multipart::takes(self.payload) { multipart::send(self).await } else { self.send_at_once().await }
    }

    async fn send_at_once(&self) -> Result<ObjectVersion, Failure> {
        let whole = 0..self.payload.size;
        let checksum = self.checksum(whole.clone()).await?;
        self.payload.check(&checksum, &self.what)?;
        let transfer = Transfer::new(self.payload, whole);
        let request = self.client.upload().put_object().bucket(&self.store.bucket);
        let request = request.key(self.store.full_key(self.key)).set_if_none_match(self.condition());
        let request = request.set_checksum_crc64_nvme(checksum.header_if(Algorithm::Crc64Nvme));
        let request = request.set_content_md5(checksum.header_if(Algorithm::Md5));
        let _slot = self.store.slot().await?;
        let answer = request.body(ByteStream::new(transfer.body())).send();
        let answer = transfer.watch(self.store.options.patience, &self.what, answer).await?;
        let output = answer.map_err(|e| Failure::of_write(&e, &self.what))?;
        transfer.settle();
        self.verify(output.e_tag(), output.checksum_crc64_nvme()).await
    }

    /// The checksum that is sent along with the bytes `range`: a CRC64NVME, or an MD5 where that isn't known.
    pub async fn checksum(&self, range: Range<u64>) -> Result<Checksum> {
        let algorithm = if self.dialect.checksums { Algorithm::Crc64Nvme } else { Algorithm::Md5 };
        self.payload.checksum_of(algorithm, range).await
    }

    /// The condition that the key holds nothing, where it is wanted and the server knows it.
    pub fn condition(&self) -> Option<String> {
        let conditional = self.existing == Existing::Keep && self.dialect.conditions != Conditions::Refused;
        conditional.then(|| "*".to_owned())
    }

    /// The version that was stored, of which the server told `etag` and `crc`. If it didn't confirm the checksum, it is asked
    /// what it has.
    pub async fn verify(&self, etag: Option<&str>, crc: Option<&str>) -> Result<ObjectVersion, Failure> {
        let told = etag.map(|etag| self.version(etag));
        if let (Some(version), Some(crc)) = (&told, crc)
            && crc == self.payload.checksum.to_header()
        {
            return Ok(version.clone());
        }
        match (self.store.head(self.key).await, told) {
            (Ok(found), _) if found.size == self.payload.size => Ok(found),
            // Replaced by another writer since.
            (Ok(found), Some(version)) if found.etag != version.etag => Ok(version),
            (Ok(found), _) => {
                let (what, size, got) = (&self.what, self.payload.size, found.size);
                let text = format!("{what}: {size} bytes were sent, {got} are there; try again");
                Err(Error::new(Kind::Damaged, text).into())
            }
            (Err(error), Some(version)) if !error.is_transient() => {
                log::debug!("can't be looked at after it was written: {error}");
                Ok(version)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// The version of the payload that got the tag `etag` now.
    fn version(&self, etag: &str) -> ObjectVersion {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        ObjectVersion {
            key: self.key.clone(),
            etag: ETag::new(etag),
            size: self.payload.size,
            // In whole seconds, as servers have it.
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()),
            checksum: Some(Arc::new(self.payload.checksum.clone())),
            source: self.store.url.clone(),
        }
    }
}
