//! What the story needs, made at its beginning and gone at its end: a home, a server with artifacts, the program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aztec_cache_test_support::artifacts;
use aztec_cache_test_support::s3::{Access, Fault, Options, S3Server};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::Failure;
use crate::interrupts::Interrupts;
use crate::shell::Shell;

/// The name under which this program is aztec-cache.
pub const PROGRAM: &str = "aztec-cache";

/// How far away the server seems to be.
pub const LATENCY: Duration = Duration::from_millis(40);
/// Bytes per second on each connection to it.
pub const RATE: u64 = 5_000_000;

/// How long a daemon may take to end once it is unmounted; one whose mount is still in use is told to end, and then
/// lets its readers finish for 5 s.
const UNMOUNTED: Duration = Duration::from_secs(2);
const TOLD: Duration = Duration::from_secs(10);

/// Everything that has to be cleaned up.
pub struct Stage {
    /// The bucket's server.
    pub server: S3Server,
    /// The names of the artifacts in it, largest first.
    pub names: Vec<String>,
    /// Where the commands run.
    pub shell: Shell,
    /// None once everything is cleared away.
    home: Option<TempDir>,
}

impl Stage {
    /// Makes all of it. Nothing is mounted yet.
    pub fn set_up(interrupts: &Arc<Interrupts>) -> Result<Stage, Failure> {
        // Daemons become our children, to be waited for.
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|e| Failure::new("prctl", &e.into(), "try again"))?;
        let home = make_home().map_err(|e| {
            let temp = std::env::temp_dir();
            Failure::new(temp.display(), &e, "set TMPDIR to a directory that you may write")
        })?;
        let server = S3Server::start_with(Options {
            anonymous: Access { list: true, ..Access::GET },
            ..Options::default()
        });
        let names = fill(&server);
        server.set_faults([Fault::delay(LATENCY), Fault::throttle(RATE)]);
        let shell = Shell::new(home.path(), interrupts);
        // Nobody outside this machine is asked for credentials, and a nearly full disk will do.
        shell.set("AWS_EC2_METADATA_DISABLED", "true");
        shell.set("AZTEC_CACHE_MIN_FREE", "100MB");
        Ok(Stage { server, names, shell, home: Some(home) })
    }

    /// Unmounts and removes everything.
    pub fn strike(mut self) -> Result<(), Failure> {
        self.clear()?;
        // Whoever closed stdout doesn't want to know.
        let _ = self.shell.remark("Unmounted, and everything removed.");
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Failure> {
        let Some(home) = self.home.take() else { return Ok(()) };
        let unmount = self.shell.sh("aztec-cache unmount").stdout(Stdio::null()).status();
        end_children();
        let path = home.path().display().to_string();
        if !unmount.is_ok_and(|status| status.success()) {
            let _ = home.keep();
            let remedy = format!("run 'umount -l {path}/.aztec-cache/remote' as root and remove {path}");
            return Err(Failure::Broken(format!("can't unmount; {remedy}")));
        }
        home.close().map_err(|e| Failure::new(path, &e, "remove it yourself"))
    }

    /// What is `~` in the story.
    pub fn home(&self) -> &Path {
        self.home.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// The cache directory.
    pub fn cache(&self) -> PathBuf {
        self.home().join(".aztec-cache")
    }
}

fn make_home() -> io::Result<TempDir> {
    let home = tempfile::Builder::new().prefix("aztec-demo-").tempdir()?;
    for dir in [".bin", "cold", "warm", "again"] {
        fs::create_dir(home.path().join(dir))?;
    }
    std::os::unix::fs::symlink(std::env::current_exe()?, home.path().join(".bin").join(PROGRAM))?;
    Ok(home)
}

/// Puts artifacts under names like the build's; returns the names.
fn fill(server: &S3Server) -> Vec<String> {
    let artifacts = [
        ("barretenberg-clang20", "zst", 40_000_000, 60),
        ("noir", "tar.gz", 20_000_000, 40),
        ("yarn-project", "tar.gz", 6_000_000, 80),
        ("contract", "tar.gz", 300_000, 3),
        ("bench", "tar.gz", 40_000, 2),
    ];
    let put = |(seed, (component, ext, size, files)): (usize, (&str, &str, usize, usize))| {
        let seed = seed as u64;
        let name = artifacts::name(component, seed, ext);
        let body = match ext {
            "zst" => artifacts::tar_zst(seed, size, files),
            _ => artifacts::tar_gz(seed, size, files),
        };
        server.put(&format!("build-cache/{name}"), body);
        name
    };
    artifacts.into_iter().enumerate().map(put).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Only after a panic is there anything left to do.
        let _ = self.clear();
    }
}

/// Waits for the daemons to end, telling those to that don't by themselves.
fn end_children() {
    if all_ended_within(UNMOUNTED) {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for pid in children() {
            let _ = kill(pid, signal);
        }
        if all_ended_within(TOLD) {
            return;
        }
    }
}

fn all_ended_within(time: Duration) -> bool {
    let start = Instant::now();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) if start.elapsed() > time => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(5)),
            _ => {}
        }
    }
}

/// The processes whose parent is this one: only what we started (proc(5): the fourth field of `stat`, counted from the
/// parenthesis that ends the second).
fn children() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let is_ours = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(&*own)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_ours).map(Pid::from_raw).collect()
}
