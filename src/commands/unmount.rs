//! `aztec-cache unmount`

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::cli::UnmountArgs;
use crate::config::{self, Free, SpaceLimits};
use crate::engine::open_cache;
use crate::error::Result;
use crate::mount::DRAIN;
use crate::mountpoint;
use crate::object::RESERVED;
use crate::status::Unfinished;

/// A daemon that hasn't said by then what it still has to do hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is done within this is not talked about.
const SHORT: Duration = Duration::from_millis(500);
/// How long the daemon may take to end: a little more than it goes on uploading.
const LIMIT: Duration = DRAIN.saturating_add(Duration::from_secs(5));

/// Unmounts, and waits for what the mount has still to upload, for a while; nothing mounted there is fine.
pub fn run(args: &UnmountArgs) -> Result<()> {
    let path = config::mountpoint(args.mountpoint.as_deref(), &|name| std::env::var_os(name))?;
    let unfinished = if mountpoint::is_mounted(&path)? { ask(&path) } else { None };
    let daemon = unfinished.as_ref().and_then(daemon);
    mountpoint::unmount(&path)?;
    if let (Some(unfinished), Some(daemon)) = (unfinished, daemon) {
        wait(&unfinished, &daemon);
    }
    Ok(())
}

/// Asks the mount what it has still to do; None when it doesn't say. By another process: one that waits for a daemon that hangs
/// can't always end.
fn ask(mountpoint: &Path) -> Option<Unfinished> {
    let report = mountpoint.join(RESERVED).join("unfinished.json");
    let mut cat = Command::new("cat");
    cat.arg("--").arg(report).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let cat = cat.spawn().ok()?;
    let pid = Pid::from_raw(i32::try_from(cat.id()).ok()?);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(cat.wait_with_output()));
    match told.recv_timeout(PATIENCE) {
        Ok(output) => serde_json::from_slice(&output.ok()?.stdout).ok(),
        Err(_) => {
            let _ = kill(pid, Signal::SIGKILL);
            None
        }
    }
}

/// The mount's process, if there is something to wait for.
fn daemon(unfinished: &Unfinished) -> Option<OwnedFd> {
    let is_busy = unfinished.writing + unfinished.uploads > 0;
    let pid = i32::try_from(unfinished.pid).ok().filter(|_| is_busy && unfinished.is_of_our_namespace())?;
    pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Waits until the daemon has ended, and says what it left.
fn wait(unfinished: &Unfinished, daemon: &OwnedFd) {
    if !ends(daemon, SHORT) {
        let files = counted(unfinished.writing + unfinished.uploads, "file");
        eprintln!("aztec-cache: waiting for {files} to be saved, at most {} s", LIMIT.as_secs());
        if !ends(daemon, LIMIT - SHORT) {
            eprintln!(
                "aztec-cache: still at work, by itself: look at its log, or stop process {}",
                unfinished.pid
            );
        }
    }
    let limits = SpaceLimits { max_cache_size: None, min_free: Free::Bytes(0) };
    let left =
        open_cache(unfinished.cache_dir.as_deref(), limits, None).map_or(0, |cache| cache.pending().len());
    if left > 0 {
        let (uploads, dir) =
            (counted(left, "upload"), unfinished.cache_dir.as_deref().unwrap_or(Path::new("")));
        eprintln!("aztec-cache: {uploads} left to the next mount that keeps files in {}", dir.display());
    }
}

/// Whether the process ends within `limit`.
fn ends(process: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        let rest = PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], rest) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result != Ok(0),
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
