//! What the server was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::request::Op;

/// Requests the server got since it started or since the last reset.
///
/// Every request that arrived counts, whatever it was answered, faults included.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// HeadObject.
    pub head: u64,
    /// GetObject.
    pub get: u64,
    /// ListObjectsV2.
    pub list: u64,
    /// PutObject and UploadPart.
    pub put: u64,
    /// DeleteObject.
    pub delete: u64,
    /// All others: HeadBucket, the rest of a multipart upload, what isn't implemented.
    pub other: u64,
    /// Body bytes of good answers to GETs of objects, counted when they were handed to the connection.
    pub bytes_sent: u64,
    /// TCP connections accepted.
    pub connections: u64,
    /// GETs of objects that are being answered now.
    pub gets_in_flight: u64,
    /// The most GETs of objects that were being answered at one time.
    pub peak_gets: u64,
    by_key: HashMap<String, KeyCounts>,
}

#[derive(Clone, Debug, Default)]
struct KeyCounts {
    head: u64,
    get: u64,
    put: u64,
    bytes: u64,
}

/// One request, in the order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// What was asked.
    pub op: Op,
    /// The object's key, or the listing's prefix.
    pub key: String,
    /// The `Range` header as sent.
    pub range: Option<String>,
    /// The `If-Match` header as sent.
    pub if_match: Option<String>,
    /// The `If-None-Match` header as sent.
    pub if_none_match: Option<String>,
    /// Which part of a multipart upload it is about.
    pub part: Option<u32>,
    /// The CRC64NVME that it says its body has, in base64.
    pub checksum: Option<String>,
    /// Whether the request carried a signature.
    pub signed: bool,
}

impl Counts {
    /// GETs of one key.
    pub fn gets_of(&self, key: &str) -> u64 {
        self.of(key, |counts| counts.get)
    }

    /// HEADs of one key.
    pub fn heads_of(&self, key: &str) -> u64 {
        self.of(key, |counts| counts.head)
    }

    /// PUTs of one key, parts included.
    pub fn puts_of(&self, key: &str) -> u64 {
        self.of(key, |counts| counts.put)
    }

    /// Body bytes of GETs of one key.
    pub fn bytes_of(&self, key: &str) -> u64 {
        self.of(key, |counts| counts.bytes)
    }

    /// All requests of any kind.
    pub fn requests(&self) -> u64 {
        self.head + self.get + self.list + self.put + self.delete + self.other
    }

    fn of(&self, key: &str, field: impl Fn(&KeyCounts) -> u64) -> u64 {
        self.by_key.get(key).map_or(0, field)
    }

    fn begin(&mut self, logged: &Logged) {
        let of_key = self.by_key.entry(logged.key.clone()).or_default();
        match logged.op {
            Op::Head => {
                self.head += 1;
                of_key.head += 1;
            }
            Op::Get => {
                self.get += 1;
                of_key.get += 1;
                self.gets_in_flight += 1;
                self.peak_gets = self.peak_gets.max(self.gets_in_flight);
            }
            Op::Put | Op::Part => {
                self.put += 1;
                of_key.put += 1;
            }
            Op::List => self.list += 1,
            Op::Delete => self.delete += 1,
            Op::Create | Op::Complete | Op::Abort | Op::Other => self.other += 1,
        }
    }
}

/// The counters that all requests share.
#[derive(Clone, Default)]
pub(super) struct Counters(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    counts: Counts,
    log: Vec<Logged>,
}

impl Counters {
    /// Counts a request; the answer's body keeps what is returned for as long as it lives.
    pub fn begin(&self, logged: Logged) -> Ongoing {
        let key = (logged.op == Op::Get).then(|| logged.key.clone());
        let mut recorded = self.lock();
        recorded.counts.begin(&logged);
        recorded.log.push(logged);
        Ongoing { key, counters: self.clone() }
    }

    pub fn connected(&self) {
        self.lock().counts.connections += 1;
    }

    pub fn snapshot(&self) -> Counts {
        self.lock().counts.clone()
    }

    pub fn log(&self) -> Vec<Logged> {
        self.lock().log.clone()
    }

    pub fn reset(&self) {
        let mut recorded = self.lock();
        let gets_in_flight = recorded.counts.gets_in_flight;
        let counts = Counts { gets_in_flight, peak_gets: gets_in_flight, ..Counts::default() };
        *recorded = Recorded { counts, log: Vec::new() };
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered.
pub(super) struct Ongoing {
    key: Option<String>,
    counters: Counters,
}

impl Ongoing {
    /// Counts body bytes of a good answer as handed out, if this is a GET.
    pub fn sent(&self, bytes: u64) {
        let Some(key) = &self.key else { return };
        let counts = &mut self.counters.lock().counts;
        counts.bytes_sent += bytes;
        match counts.by_key.get_mut(key) {
            Some(of_key) => of_key.bytes += bytes,
            // The counts were reset since the request began.
            None => drop(counts.by_key.insert(key.clone(), KeyCounts { bytes, ..KeyCounts::default() })),
        }
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        if self.key.is_some() {
            self.counters.lock().counts.gets_in_flight -= 1;
        }
    }
}
