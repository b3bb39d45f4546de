//! Turns among the threads of this process: who waits sleeps until it is woken, where a lock on a file would have to be
//! looked at again and again.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Gives one thread at a time its turn.
#[derive(Debug, Default)]
pub struct Turns {
    /// Whether a thread has its turn. Guards only that; nothing else is done under it.
    taken: Mutex<bool>,
    free: Condvar,
}

/// A thread's turn; ends on drop.
#[derive(Debug)]
pub struct TurnOfThread<'a>(&'a Turns);

impl Turns {
    /// Waits for a turn, until `deadline` at most. None when it didn't come.
    pub fn wait_until(&self, deadline: Instant) -> Option<TurnOfThread<'_>> {
        let patience = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let waited = self.free.wait_timeout_while(self.taken(), patience, |taken| *taken);
        let (mut taken, _) = waited.unwrap_or_else(|e| e.into_inner());
        (!std::mem::replace(&mut *taken, true)).then(|| TurnOfThread(self))
    }

    fn taken(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for TurnOfThread<'_> {
    fn drop(&mut self) {
        *self.0.taken() = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_thread_at_a_time_has_its_turn() {
        let (turns, inside, had) = (Turns::default(), AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _turn = turns.wait_until(Instant::now() + LONG).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        had.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(had.into_inner(), 800);
    }

    #[test]
    fn a_turn_that_does_not_come_is_given_up_and_takes_nobody_elses() {
        let turns = Turns::default();
        let first = turns.wait_until(Instant::now() + LONG).unwrap();
        assert!(turns.wait_until(Instant::now()).is_none());
        assert!(turns.wait_until(Instant::now()).is_none(), "the first one goes on");
        drop(first);
        assert!(turns.wait_until(Instant::now()).is_some());
    }
}
