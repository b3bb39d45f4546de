//! Ctrl-C and its like: they end the command under way, and then the demo, in order.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::Failure;

/// The signals caught so far, and what they are to end.
pub struct Interrupts {
    /// The last signal's number, 0 before the first.
    caught: AtomicI32,
    /// The process group of the command under way. Held over its spawn and its end, so that no other is hit.
    running: Mutex<Option<Pid>>,
}

impl Interrupts {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on. Must be called before any thread is started.
    pub fn catch() -> Result<Arc<Interrupts>, Failure> {
        let interrupts = Arc::new(Interrupts { caught: AtomicI32::new(0), running: Mutex::new(None) });
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        // Threads started later inherit this; the standard library undoes it for commands.
        set.thread_block().map_err(|e| Failure::new("signals", &e.into(), "try again"))?;
        let catcher = interrupts.clone();
        std::thread::spawn(move || {
            while let Ok(signal) = set.wait() {
                catcher.end(signal);
            }
        });
        Ok(interrupts)
    }

    /// # Errors
    /// A signal has been caught.
    pub fn check(&self) -> Result<(), Failure> {
        match self.caught.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(Failure::Interrupted(signal)),
        }
    }

    /// Runs `command` to its end, or until a signal ends it. It has to have a process group of its own.
    pub fn run(&self, command: &mut Command) -> io::Result<ExitStatus> {
        let mut child = self.start(command)?;
        let pid = Pid::from_raw(child.id().try_into().map_err(io::Error::other)?);
        // Not reaped here, so that the number stays taken until nobody can signal it any more.
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        *self.running() = None;
        child.wait()
    }

    fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut running = self.running();
        let child = command.spawn()?;
        let group = Pid::from_raw(child.id().try_into().map_err(io::Error::other)?);
        *running = Some(group);
        if self.check().is_err() {
            let _ = killpg(group, Signal::SIGTERM);
        }
        Ok(child)
    }

    fn end(&self, signal: Signal) {
        self.caught.store(signal as i32, Ordering::SeqCst);
        if let Some(group) = *self.running() {
            // It may have ended by itself.
            let _ = killpg(group, Signal::SIGTERM);
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Pid>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
