//! Ctrl-C and its like: what runs is ended, and the benchmark fails in order, cleaning up on its way.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::Result;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Process groups that end with the benchmark.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Listens for SIGINT, SIGTERM and SIGHUP from now on, on a thread of its own.
pub fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("a thread for signals: {error}"))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let installed =
                [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
            let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = installed else { return };
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
                _ = hangup.recv() => (),
            }
            INTERRUPTED.store(true, Ordering::SeqCst);
            for group in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                // Fails only when it has just ended.
                let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
            }
        });
    });
    Ok(())
}

/// Fails once the benchmark has been interrupted.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err("interrupted".to_owned()) } else { Ok(()) }
}

/// A process group that is killed when the benchmark is interrupted.
pub struct Running(i32);

impl Running {
    /// Watches over the group that the child `pid` leads.
    pub fn new(pid: u32) -> Running {
        let group = pid.cast_signed();
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
        if INTERRUPTED.load(Ordering::SeqCst) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        Running(group)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}
