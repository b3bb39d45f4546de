//! How often something is tried, and the pauses in between.

use tokio::time::sleep;

use crate::config::Patience;
use crate::error::Error;
use crate::metrics::RETRIES;

/// The attempts at one request.
pub struct Attempts {
    patience: Patience,
    failed: u32,
}

impl Attempts {
    /// As many as `patience` has.
    pub fn new(patience: Patience) -> Attempts {
        Attempts { patience, failed: 0 }
    }

    /// Waits until it is time for the next attempt after one that failed with `error`; false when that was the last.
    pub async fn again(&mut self, error: &Error) -> bool {
        let attempts = self.patience.attempts;
        self.failed += 1;
        if self.failed >= attempts {
            return false;
        }
        RETRIES.count();
        log::info!("attempt {} of {attempts}: {error}", self.failed);
        sleep(self.patience.pause(self.failed)).await;
        true
    }
}
