//! Gates: requests held until a test lets them go.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Holds requests so that a test can look at the state in between without sleeping.
///
/// Made by [`S3Server::hold_gets`](super::S3Server::hold_gets). Dropping it releases what it holds.
#[must_use = "dropping a gate opens it"]
pub struct Gate {
    shared: Arc<Shared>,
}

impl Gate {
    pub(super) fn new() -> (Gate, Latch) {
        let shared = Arc::new(Shared {
            counts: Mutex::default(),
            changed: Condvar::new(),
            open: watch::Sender::new(false),
        });
        (Gate { shared: shared.clone() }, Latch(shared))
    }

    /// Lets all held requests go on, and holds no more.
    pub fn release(&self) {
        self.shared.open.send_replace(true);
    }

    /// Requests held at this moment. One whose client has gone away isn't counted any more.
    pub fn waiting(&self) -> usize {
        self.shared.lock().waiting
    }

    /// Requests that ever reached the gate.
    pub fn arrived(&self) -> usize {
        self.shared.lock().arrived
    }

    /// Blocks until at least `n` requests are held; `false` when that hasn't happened within `timeout`.
    pub fn wait_until_waiting(&self, n: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut counts = self.shared.lock();
        while counts.waiting < n {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(counts, left);
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release();
    }
}

/// The server's side of a [`Gate`].
#[derive(Clone)]
pub(super) struct Latch(Arc<Shared>);

impl Latch {
    /// Whether nothing is held any more.
    pub fn is_open(&self) -> bool {
        *self.0.open.borrow()
    }

    /// Returns when the gate is open.
    pub async fn wait(self) {
        if self.is_open() {
            return;
        }
        let mut open = self.0.open.subscribe();
        let _waiting = Waiting::new(self.0.clone());
        let _ = open.wait_for(|open| *open).await;
    }
}

struct Shared {
    counts: Mutex<Counts>,
    changed: Condvar,
    open: watch::Sender<bool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Counts {
    waiting: usize,
    arrived: usize,
}

/// Counts one request as held for as long as it lives.
struct Waiting(Arc<Shared>);

impl Waiting {
    fn new(shared: Arc<Shared>) -> Self {
        let mut counts = shared.lock();
        counts.waiting += 1;
        counts.arrived += 1;
        drop(counts);
        shared.changed.notify_all();
        Waiting(shared)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
        self.0.changed.notify_all();
    }
}
