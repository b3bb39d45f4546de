//! Faults: how the next requests go wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::counts::Logged;
use super::gate::Latch;
use super::request::{Op, range_start};

/// One way to go wrong, and the requests it is for.
///
/// Without limits a fault is for every GET of an object (a delay or a status, and what happens to uploads: for every request). All faults that
/// match a request act on it together; of a kind that can only act once, the one added first.
///
/// ```
/// use aztec_cache_test_support::s3::{Fault, Op};
/// let twice = Fault::status(503, "SlowDown").on(Op::Get).key("noir.tar.gz").times(2);
/// ```
#[derive(Clone)]
pub struct Fault {
    kind: Kind,
    op: Option<Op>,
    key: Option<String>,
    from: u64,
    skip: u64,
    times: Option<u64>,
}

#[derive(Clone)]
enum Kind {
    Delay(Duration),
    Status(u16, String),
    Truncate(u64),
    Corrupt(u64),
    IgnoreRange,
    WrongEtag,
    Throttle(u64),
    Replace(Bytes),
    Hold(u64, Latch),
    CutUpload(u64),
    CorruptUpload(u64),
    LoseAnswer,
}

impl Fault {
    /// Waits before the request is looked at.
    pub fn delay(time: Duration) -> Fault {
        Fault::new(Kind::Delay(time), None)
    }

    /// Answers `status` with an S3 error body that carries `code`, such as (503, "SlowDown").
    pub fn status(status: u16, code: &str) -> Fault {
        Fault::new(Kind::Status(status, code.to_owned()), None)
    }

    /// Sends `after` body bytes (all of them arrive) and then closes the connection.
    pub fn truncate(after: u64) -> Fault {
        Fault::new(Kind::Truncate(after), Some(Op::Get))
    }

    /// Flips a bit of the byte `at` of the answer's body.
    pub fn corrupt(at: u64) -> Fault {
        Fault::new(Kind::Corrupt(at), Some(Op::Get))
    }

    /// Answers 200 with the whole object although a range was asked for.
    pub fn ignore_range() -> Fault {
        Fault::new(Kind::IgnoreRange, Some(Op::Get))
    }

    /// Answers a range with another ETag than the object's.
    pub fn wrong_etag() -> Fault {
        Fault::new(Kind::WrongEtag, Some(Op::Get))
    }

    /// Sends bodies at this rate, shared by what one connection sends.
    pub fn throttle(bytes_per_second: u64) -> Fault {
        Fault::new(Kind::Throttle(bytes_per_second.max(1)), Some(Op::Get))
    }

    /// Replaces the object by these bytes as soon as a GET of it has begun; that GET still sends the old bytes.
    /// `Fault::replace(bytes).key(key).skip(k - 1).times(1)` does so at the k-th GET.
    pub fn replace(body: impl Into<Bytes>) -> Fault {
        Fault::new(Kind::Replace(body.into()), Some(Op::Get)).times(1)
    }

    /// Closes the connection when `after` bytes of a request's body have come, if it is longer; nothing is stored. For every
    /// request.
    pub fn cut_upload(after: u64) -> Fault {
        Fault::new(Kind::CutUpload(after), None)
    }

    /// Flips a bit of the byte `at` of a request's body before it is looked at. For every request.
    pub fn corrupt_upload(at: u64) -> Fault {
        Fault::new(Kind::CorruptUpload(at), None)
    }

    /// Does what the request wants, and closes the connection instead of answering. For every request.
    pub fn lose_answer() -> Fault {
        Fault::new(Kind::LoseAnswer, None)
    }

    pub(super) fn hold(after: u64, latch: Latch) -> Fault {
        Fault::new(Kind::Hold(after, latch), Some(Op::Get))
    }

    fn new(kind: Kind, op: Option<Op>) -> Fault {
        Fault { kind, op, key: None, from: 0, skip: 0, times: None }
    }

    /// Only for requests of one kind.
    pub fn on(mut self, op: Op) -> Fault {
        self.op = Some(op);
        self
    }

    /// Only for one key (one prefix, for a listing).
    pub fn key(mut self, key: &str) -> Fault {
        self.key = Some(key.to_owned());
        self
    }

    /// Only for ranges that begin at this byte of the object or behind it.
    pub fn from_byte(mut self, offset: u64) -> Fault {
        self.from = offset;
        self
    }

    /// Lets the first `n` requests it would be for go unharmed.
    pub fn skip(mut self, n: u64) -> Fault {
        self.skip = n;
        self
    }

    /// Only for the first `n` requests after those skipped.
    pub fn times(mut self, n: u64) -> Fault {
        self.times = Some(n);
        self
    }

    fn matches(&self, request: &Logged) -> bool {
        self.op.is_none_or(|op| op == request.op)
            && self.key.as_ref().is_none_or(|key| *key == request.key)
            && range_start(request.range.as_deref()) >= self.from
    }
}

/// What the faults make of one request.
#[derive(Clone, Default)]
pub(super) struct Plan {
    pub delay: Duration,
    pub status: Option<(u16, String)>,
    pub corrupt: Option<u64>,
    pub truncate: Option<u64>,
    pub ignore_range: bool,
    pub wrong_etag: bool,
    pub throttle: Option<u64>,
    pub replace: Option<Bytes>,
    /// Body bytes to send before waiting at the gate.
    pub hold: Option<(u64, Latch)>,
    pub cut_upload: Option<u64>,
    pub corrupt_upload: Option<u64>,
    pub lose_answer: bool,
}

impl Plan {
    fn add(&mut self, kind: &Kind) {
        match kind {
            Kind::Delay(time) => self.delay += *time,
            Kind::Status(status, code) => {
                self.status.get_or_insert_with(|| (*status, code.clone()));
            }
            Kind::Corrupt(at) => self.corrupt = self.corrupt.or(Some(*at)),
            Kind::Truncate(after) => self.truncate = self.truncate.or(Some(*after)),
            Kind::IgnoreRange => self.ignore_range = true,
            Kind::WrongEtag => self.wrong_etag = true,
            Kind::Throttle(rate) => self.throttle = self.throttle.or(Some(*rate)),
            Kind::Replace(body) => {
                self.replace.get_or_insert_with(|| body.clone());
            }
            Kind::Hold(after, latch) => {
                self.hold.get_or_insert_with(|| (*after, latch.clone()));
            }
            Kind::CutUpload(after) => self.cut_upload = self.cut_upload.or(Some(*after)),
            Kind::CorruptUpload(at) => self.corrupt_upload = self.corrupt_upload.or(Some(*at)),
            Kind::LoseAnswer => self.lose_answer = true,
        }
    }
}

/// The faults in force.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Vec<Fault>>>);

impl Faults {
    pub fn add(&self, fault: Fault) {
        self.lock().push(fault);
    }

    /// Replaces all faults but gates.
    pub fn set(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut all = self.lock();
        all.retain(|fault| matches!(fault.kind, Kind::Hold(..)));
        all.extend(faults);
    }

    /// Takes what is due for `request`.
    pub fn plan(&self, request: &Logged) -> Plan {
        let mut plan = Plan::default();
        let mut faults = self.lock();
        faults.retain(Fault::is_live);
        for fault in faults.iter_mut().filter(|fault| fault.matches(request)) {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if let Some(times) = &mut fault.times {
                *times -= 1;
            }
            plan.add(&fault.kind);
        }
        plan
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fault {
    fn is_live(&self) -> bool {
        let open = matches!(&self.kind, Kind::Hold(_, latch) if latch.is_open());
        self.times != Some(0) && !open
    }
}
