//! Running programs and what they cost.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::interrupt::{self, Running};
use crate::{Result, work_dir};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(5);
/// How long a daemon must have used no CPU time to be called idle.
const IDLE: Duration = Duration::from_millis(200);

/// What a program that has ended well took and said.
pub struct Ran {
    /// From before its start until it was gone, in seconds.
    pub wall: f64,
    /// User and system time of it and of those it waited for, in seconds.
    pub cpu: f64,
    /// What it printed.
    pub stdout: Vec<u8>,
}

/// Runs a program to its end, in a process group of its own.
///
/// # Errors
/// When it doesn't end with 0: its command line and the end of its stderr.
pub fn run(command: &mut Command) -> Result<Ran> {
    interrupt::check()?;
    let failed = |command: &Command, what: &str| format!("{}: {what}", describe(command));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| failed(command, &error.to_string()))?;
    let running = Running::new(child.id());
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let complaints = std::thread::spawn(move || {
        let mut said = Vec::new();
        // What can't be read isn't missed: the exit status tells.
        let _ = stderr.read_to_end(&mut said);
        said
    });
    let mut stdout = Vec::new();
    let _ = child.stdout.take().expect("stdout is piped").read_to_end(&mut stdout);
    let (status, cpu) = wait(child);
    let wall = start.elapsed().as_secs_f64();
    drop(running);
    interrupt::check()?;
    if !status.success() {
        let said = complaints.join().unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        return Err(failed(command, &format!("{status}; {}", last_lines(&said, 5))));
    }
    Ok(Ran { wall, cpu, stdout })
}

/// Waits for a child; its exit status and CPU seconds.
fn wait(child: Child) -> (ExitStatus, f64) {
    let pid = child.id().cast_signed();
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals of the right types; nobody else waits for this child.
    while unsafe { libc::wait4(pid, &mut status, 0, &mut usage) } < 0 {
        assert_eq!(
            std::io::Error::last_os_error().kind(),
            std::io::ErrorKind::Interrupted,
            "{pid} is a child of ours"
        );
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (ExitStatus::from_raw(status), seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

/// The program and its arguments, for error texts.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The last lines of a text, in one.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

/// What a program calls its version, if it is on PATH and runs at all.
pub fn find(program: impl AsRef<OsStr>, version_flag: &str) -> Option<String> {
    let output = Command::new(program).arg(version_flag).stdin(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| said.lines().next().unwrap_or_default().trim().to_owned())
}

/// CPU seconds that a process has used so far.
pub fn cpu_of(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // The program's name, in brackets, may hold spaces.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map_or(Vec::new(), |(_, fields)| fields.split(' ').collect());
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let used = ticks(11).zip(ticks(12)).ok_or_else(|| format!("{path}: no times"))?;
    // SAFETY: sysconf takes no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok((used.0 + used.1) / per_second)
}

/// The most memory that a process has held so far, in MiB (VmHWM).
pub fn peak_memory_of(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| format!("{path}: no VmHWM"))
}

/// Waits until a process has used no CPU time for a moment.
pub fn wait_until_idle(pid: u32) -> Result<()> {
    let mut last = (cpu_of(pid)?, Instant::now());
    wait_for("the daemon to be idle", || {
        let now = cpu_of(pid)?;
        if now > last.0 + 0.011 {
            last = (now, Instant::now());
        }
        Ok(last.1.elapsed() > IDLE)
    })
}

/// Waits until `condition` holds, for at most a minute.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        interrupt::check()?;
        if start.elapsed() > Duration::from_secs(60) {
            return Err(format!("waited a minute in vain for {what}"));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Waits for a child for so long, then kills it.
pub fn end(child: &mut Child, patience: Duration) {
    let start = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && start.elapsed() < patience {
        std::thread::sleep(POLL);
    }
    // Both fail only when it is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// This program, to be started again in another role: also by an ordinary user, wherever it lies, and also when it has
/// been built anew in the meantime.
pub const OWN_BINARY: &str = "/proc/self/exe";

/// Writes everything to disk, so that what came before doesn't burden what is measured next.
pub fn settle_disk() {
    work_dir::sync();
}
