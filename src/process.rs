//! What `/proc` tells of the processes that write: whether one is failing, and what it still has open (proc(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};

/// `PF_EXITING` in the flags of `/proc/PID/stat` (`include/linux/sched.h`).
const EXITING: u64 = 0x4;
/// Where the flags and the exit code stand in `/proc/PID/stat`, counted from the field behind the name.
const FLAGS_FIELD: usize = 6;
const EXIT_CODE_FIELD: usize = 49;
/// So many descendants of a process are looked at.
const DESCENDANTS: usize = 256;

/// How often to look whether a question waits for the process that it is about.
const LOOK: Duration = Duration::from_millis(3);

/// How far a process has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It goes on; or that can't be told, as for a process of another pid namespace.
    Running,
    /// It ends by itself, and calls that success.
    Succeeding,
    /// It was killed, or ends with a failure: the wait status.
    Failing(i32),
}

/// A file, as the kernel tells files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The device number of its file system: major and minor.
    pub device: (u32, u32),
    /// Its inode number.
    pub inode: u64,
}

/// What came of a question.
pub enum Asked<T> {
    /// The answer.
    Answer(T),
    /// It waits for the process that it is about.
    Waits(JoinHandle<T>),
}

/// Asks `question`, one of those here, about a process that itself waits for us, without waiting for each other: a process in
/// the middle of execve(2) answers no question until that is over (its `exec_update_lock` is taken, fs/exec.c), and
/// it may be waiting in there for a file of ours to be closed.
pub async fn ask<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Result<Asked<T>> {
    let asker = Arc::new(AtomicI32::new(0));
    let own = asker.clone();
    let mut answer = spawn_blocking(move || {
        own.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
        question()
    });
    loop {
        match timeout(LOOK, &mut answer).await {
            Ok(answer) => {
                let failed = |e| Error::new(Kind::Internal, format!("a question to /proc failed: {e}"));
                return answer.map(Asked::Answer).map_err(failed);
            }
            Err(_) if sleeps(asker.load(Ordering::Relaxed)) => return Ok(Asked::Waits(answer)),
            // It has not had its turn yet.
            Err(_) => {}
        }
    }
}

/// Whether the thread `tid` of this process sleeps in the kernel.
fn sleeps(tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D')))
}

/// How far the thread `tid` of a process has got.
pub fn stage(tid: u32) -> Stage {
    let Ok(stat) = fs::read_to_string(proc(tid).join("stat")) else { return Stage::Running };
    match parse_stat(&stat) {
        Some((flags, _)) if flags & EXITING == 0 => Stage::Running,
        Some((_, 0)) => Stage::Succeeding,
        Some((_, status)) => Stage::Failing(status),
        None => Stage::Running,
    }
}

/// Flags and exit code. The name before them may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(u64, i32)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some((fields.get(FLAGS_FIELD)?.parse().ok()?, fields.get(EXIT_CODE_FIELD)?.parse().ok()?))
}

/// Whether the thread `tid` is in a system call that makes a name, or gives one to something; false when that can't be told, which
/// takes the right to trace it (ptrace(2), "Ptrace access mode checking").
pub fn makes_name(tid: u32) -> bool {
    fs::read_to_string(proc(tid).join("syscall")).is_ok_and(|call| parse_syscall(&call).unwrap_or(false))
}

/// The number of the call, and its arguments.
fn parse_syscall(call: &str) -> Option<bool> {
    let mut fields = call.split_ascii_whitespace();
    let number: i64 = fields.next()?.parse().ok()?;
    let mut arguments = fields.map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16));
    let mut creates = |argument: usize| Some(arguments.nth(argument)?.ok()? & libc::O_CREAT as u64 != 0);
    match number {
        libc::SYS_openat => creates(2),
        libc::SYS_mkdirat | libc::SYS_renameat2 => Some(true),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => creates(1),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat | libc::SYS_mkdir | libc::SYS_rename | libc::SYS_renameat => Some(true),
        _ => Some(false),
    }
}

/// The process that the thread `tid` belongs to; None when that can't be told.
pub fn process_of(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(proc(tid).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

/// Whether the process `pid`, or one that descends from it, has `file` open or mapped; true when that can't be told.
pub fn holds(pid: u32, file: FileIdentity) -> bool {
    let mut left = vec![pid];
    for seen in 0..DESCENDANTS {
        let Some(next) = left.pop() else { return false };
        match has(next, file) {
            Ok(false) => left.extend(children(next)),
            // It has ended since it was listed.
            Err(_) if seen > 0 && !proc(next).exists() => {}
            Ok(true) | Err(_) => return true,
        }
    }
    true
}

/// Whether the process `pid` itself has `file` open or mapped.
fn has(pid: u32, file: FileIdentity) -> io::Result<bool> {
    let mut descriptors = fs::read_dir(proc(pid).join("fd"))?;
    if descriptors.any(|descriptor| descriptor.is_ok_and(|descriptor| is(&descriptor.path(), file))) {
        return Ok(true);
    }
    let device = format!("{:02x}:{:02x}", file.device.0, file.device.1);
    let inode = file.inode.to_string();
    let maps = fs::read_to_string(proc(pid).join("maps"))?;
    Ok(maps.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        fields.next() == Some(&*device) && fields.next() == Some(&*inode)
    }))
}

/// Whether `path`, an entry of a descriptor table, is `file`. Nothing is asked of the file systems that the files are on, ours
/// least of all (`AT_STATX_DONT_SYNC`).
fn is(path: &Path, file: FileIdentity) -> bool {
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
    found.is_ok_and(|found| {
        found.stx_ino == file.inode && (found.stx_dev_major, found.stx_dev_minor) == file.device
    })
}

/// The processes that threads of `pid` have begun; none where the kernel doesn't tell (`CONFIG_PROC_CHILDREN`).
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(proc(pid).join("task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn proc(id: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{id}"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn identity(file: &File) -> FileIdentity {
        let meta = file.metadata().unwrap();
        let device = (nix::sys::stat::major(meta.dev()) as u32, nix::sys::stat::minor(meta.dev()) as u32);
        FileIdentity { device, inode: meta.ino() }
    }

    #[test]
    fn flags_and_exit_code_behind_any_name() {
        let mut fields = vec!["0"; 48];
        fields[6 - 1] = "4194308";
        let line = format!("12 (a) R (b)) S {} 768", fields.join(" "));
        assert_eq!(parse_stat(&line), Some((4_194_308, 768)));
        assert_eq!(parse_stat("12 (short) R 1"), None);
    }

    #[test]
    fn calls_that_make_names() {
        let open = |flags: i32| {
            format!("{} 0xffffff9c 0x7ffd0 {flags:#x} 0x1b6 0x0 0x0 0x7ffd 0x7f12", libc::SYS_openat)
        };
        assert_eq!(parse_syscall(&open(libc::O_CREAT | libc::O_WRONLY)), Some(true));
        assert_eq!(parse_syscall(&open(libc::O_WRONLY | libc::O_TRUNC)), Some(false));
        assert_eq!(parse_syscall(&format!("{} 0xffffff9c 0x7ffd0", libc::SYS_mkdirat)), Some(true));
        assert_eq!(parse_syscall(&format!("{} 0x7ffd0", libc::SYS_newfstatat)), Some(false));
        assert_eq!(parse_syscall("running"), None);
    }

    #[test]
    fn this_process_is_running_and_its_threads_belong_to_it() {
        let pid = std::process::id();
        assert_eq!((stage(pid), process_of(pid)), (Stage::Running, Some(pid)));
        let tid = std::thread::spawn(|| nix::unistd::gettid().as_raw() as u32).join().unwrap();
        assert_ne!(tid, pid);
        assert_eq!(stage(u32::MAX), Stage::Running, "nobody has that number");
    }

    #[test]
    fn open_files_are_found_also_in_descendants() {
        let file = tempfile::tempfile().unwrap();
        let wanted = identity(&file);
        let me = std::process::id();
        assert!(holds(me, wanted));
        // The shell's own descriptor is closed, its child's isn't.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 3<&0; sleep 60 <&3 & exec 0</dev/null 3<&-; echo; wait"]);
        let mut shell = shell.stdin(file.try_clone().unwrap()).stdout(Stdio::piped()).spawn().unwrap();
        let mut byte = [0];
        io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut byte).unwrap();
        let sleeping = children(shell.id());
        assert!(!has(shell.id(), wanted).unwrap() && holds(shell.id(), wanted));
        drop(file);
        assert!(
            sleeping.iter().all(|pid| Command::new("kill").arg(pid.to_string()).status().unwrap().success())
        );
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert!(holds(u32::MAX, wanted), "what can't be told counts as held");
    }
}
