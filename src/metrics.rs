//! Counters of what happened since the process began. One process serves one mount, so they are the mount's; like the log's,
//! their place is known to all, and nothing but a report reads them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Counts one more.
    pub fn count(&self) {
        self.add(1);
    }

    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How much was counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Artifacts opened: from a complete local file, by a download that this process began or took over, or along with one under
/// way in this process or another. What becomes of an open that begins a download is known a moment later.
pub static HITS: Counter = Counter::new();
/// See [`HITS`].
pub static MISSES: Counter = Counter::new();
/// See [`HITS`].
pub static COALESCED: Counter = Counter::new();
/// All opens of artifacts.
pub static OPENS: Counter = Counter::new();

/// Bytes of complete local files that were read through this process; those that the kernel reads by itself (passthrough),
/// has in its page cache, or that are read by a symbolic link, are not known.
pub static BYTES_FROM_CACHE: Counter = Counter::new();
/// Bytes of objects that remotes sent.
pub static BYTES_FROM_REMOTE: Counter = Counter::new();

/// Requests sent to remotes, by kind, each attempt counted.
pub static REQUESTS: Requests = Requests {
    head: Counter::new(),
    get: Counter::new(),
    list: Counter::new(),
    put: Counter::new(),
    delete: Counter::new(),
};
/// Those of them that were sent, or whose bodies were asked for, since an attempt before had failed.
pub static RETRIES: Counter = Counter::new();

/// Requests by kind. A piece of an upload counts as a put.
#[derive(Debug)]
pub struct Requests {
    /// Questions about an object.
    pub head: Counter,
    /// Ranges of an object, or all of it.
    pub get: Counter,
    /// Pages of listings.
    pub list: Counter,
    /// Uploads and what belongs to them.
    pub put: Counter,
    /// Removals.
    pub delete: Counter,
}

/// Numbers of errors that have a counter: Linux has fewer than that.
const ERRNOS: usize = 256;

/// Errors that the mount answered, each at its errno's index.
static ERRORS: [Counter; ERRNOS] = [const { Counter::new() }; ERRNOS];

/// Counts an answer of `errno`.
pub fn count_error(errno: i32) {
    if let Some(counter) = usize::try_from(errno).ok().and_then(|errno| ERRORS.get(errno)) {
        counter.count();
    }
}

/// How often each errno was answered that was answered at all.
pub fn errors() -> impl Iterator<Item = (i32, u64)> {
    let counted = (0..).zip(&ERRORS).map(|(errno, counter)| (errno, counter.get()));
    counted.filter(|(_, count)| *count > 0)
}
