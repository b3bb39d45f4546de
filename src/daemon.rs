//! Becoming a daemon whose start its parent waits for and reports.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

use crate::error::{Error, Kind, Result};

/// Ends the child's text: what precedes it is for the terminal, what follows is the exit code.
const END: u8 = 0;

/// Where the process goes on after [`fork_daemon`].
pub enum Side {
    /// The one the user started: exits with this code.
    Parent(u8),
    /// The daemon, in a session of its own. Its stderr reaches the parent's until [`Ready::tell`].
    Child(Ready),
}

/// The daemon's word to its waiting parent.
pub struct Ready(File);

/// Forks. The parent's side returns once the daemon is ready or has failed; everything the daemon writes to stderr until
/// then has been printed.
///
/// Must be called while the process has one thread.
pub fn fork_daemon() -> Result<Side> {
    let error = |what: &str, e: Errno| Error::new(Kind::Mount, format!("{what}: {e}; try --foreground"));
    let (read, write) = pipe().map_err(|e| error("pipe", e))?;
    // SAFETY: there is one thread, so the child may do whatever the parent might.
    match unsafe { fork() }.map_err(|e| error("fork", e))? {
        ForkResult::Parent { child } => {
            drop(write);
            Ok(Side::Parent(wait_for(child, read)))
        }
        ForkResult::Child => {
            drop(read);
            become_daemon(write).map(Side::Child).map_err(|e| error("becoming a daemon", e))
        }
    }
}

fn become_daemon(write: OwnedFd) -> nix::Result<Ready> {
    setsid()?;
    chdir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|_| Errno::ENOENT)?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&write)?;
    Ok(Ready(write.into()))
}

impl Ready {
    /// Lets go of the parent's terminal and tells it that all is well.
    pub fn tell(mut self) {
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = dup2_stderr(&null);
        }
        // A parent that was killed doesn't need to know.
        let _ = self.0.write_all(&[END, 0]);
    }
}

/// Prints what the daemon says until it is ready or dead; returns the exit code.
fn wait_for(child: Pid, read: OwnedFd) -> u8 {
    let mut pipe = File::from(read);
    let mut buffer = [0; 4096];
    loop {
        let said = match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => &buffer[..length],
        };
        let end = said.iter().position(|b| *b == END);
        let _ = std::io::stderr().write_all(&said[..end.unwrap_or(said.len())]);
        if end.is_some() {
            return 0;
        }
    }
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(6),
        status => {
            eprintln!("aztec-cache: the daemon died before it was ready ({status:?}); try --foreground -v");
            6
        }
    }
}
