//! The directory to mount on: what is there now, making it fit, and taking a mount off it.

use std::ffi::OsString;
use std::fs::{self, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Display, Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::sys::wait::waitpid;
use nix::unistd::{self, ForkResult, dup2_stderr, dup2_stdout, fork, pipe};

use crate::error::{Error, Kind, Result};

/// The file system type that the mount table shows.
pub const FS_TYPE: &str = "fuse.aztec-cache";

/// A living mount answers within this, unless its daemon hangs.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long another process may take to mount on the same directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A directory that is fit to mount on. Nobody else gets one on the same path until it is dropped.
#[derive(Debug)]
pub struct Mountpoint {
    path: PathBuf,
    _lock: fs::File,
}

impl Mountpoint {
    /// Makes `path` fit to mount on: created when missing, a dead mount taken off.
    ///
    /// # Errors
    /// Something is mounted there already; it is not an empty directory; it can't be made.
    pub fn prepare(path: &Path) -> Result<Mountpoint> {
        let name = path.display();
        let error = |why: String| Error::new(Kind::Mount, format!("{name}: {why}"));
        let path = real_path(path);
        free(&path, &name)?;
        make_dir(&path).map_err(error)?;
        let lock = fs::File::open(&path).map_err(|e| error(format!("{e}; name a directory of yours")))?;
        if !wait_for_lock(&lock) {
            return Err(error("another 'aztec-cache mount' is at work there; try again".to_owned()));
        }
        // Whoever had the lock may have mounted.
        free(&path, &name)?;
        let entries = fs::read_dir(&path).map_err(|e| error(format!("{e}; name a directory of yours")));
        if entries?.next().is_some() {
            return Err(error("not empty; move its files away or name an empty directory".to_owned()));
        }
        Ok(Mountpoint { path, _lock: lock })
    }

    /// Its real path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes dead mounts off `path`, which its user calls `name`; a living one is an error.
fn free(path: &Path, name: &Display<'_>) -> Result<()> {
    while let Some(Mounted { fs_type, .. }) = mounted(path)? {
        if !fs_type.starts_with("fuse") {
            break;
        }
        if !is_dead(path) {
            let message = match fs_type == FS_TYPE {
                true => format!(
                    "{name}: already mounted; run 'aztec-cache unmount {name}' first, or use it as it is"
                ),
                false => format!(
                    "{name}: a {fs_type} file system is mounted there; unmount it or choose another directory"
                ),
            };
            return Err(Error::new(Kind::Mount, message));
        }
        log::info!("{name}: taking off a dead mount");
        detach(path)?;
    }
    Ok(())
}

/// Makes the directory `path` when it is missing; what is wrong with it otherwise.
fn make_dir(path: &Path) -> Result<(), String> {
    const REMEDY: &str = "name a directory that you may write";
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err("not a directory; name one to mount on".to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(|e| format!("can't create it: {e}; {REMEDY}"))
        }
        Err(e) => Err(format!("{e}; {REMEDY}")),
    }
}

/// Locks `dir` against other processes that want to mount there; false when one of them takes too long.
fn wait_for_lock(dir: &fs::File) -> bool {
    let start = Instant::now();
    while let Err(TryLockError::WouldBlock) = dir.try_lock() {
        if start.elapsed() > LOCK_TIMEOUT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // A file system that knows no locks, as some on the network: then without.
    true
}

/// Unmounts what of ours is mounted on `path`, lazily when it is in use. Nothing there is fine, and another file system
/// that we were mounted over stays.
///
/// # Errors
/// Another file system is mounted there, or unmounting is not permitted.
pub fn unmount(path: &Path) -> Result<()> {
    let path = &real_path(path);
    let mut unmounted = false;
    while let Some(Mounted { fs_type, .. }) = mounted(path)? {
        if fs_type == FS_TYPE {
            detach(path)?;
            unmounted = true;
        } else if unmounted {
            break;
        } else {
            let message = format!(
                "{}: a {fs_type} file system is mounted there, not aztec-cache; use umount(8)",
                path.display()
            );
            return Err(Error::new(Kind::Mount, message));
        }
    }
    Ok(())
}

/// Whether a file system of ours is mounted on `path`, alive or not.
///
/// # Errors
/// The mount table can't be read.
pub fn is_mounted(path: &Path) -> Result<bool> {
    Ok(mounted(&real_path(path))?.is_some_and(|mounted| mounted.fs_type == FS_TYPE))
}

/// This process's own mount, whose session has not ended. Another one may have its place by the time it is to be
/// unmounted.
#[derive(Clone, Debug)]
pub struct OwnMount {
    path: PathBuf,
    mounted: Option<Mounted>,
}

impl OwnMount {
    /// The mount that has just been made on `path`, a real path.
    ///
    /// # Errors
    /// The mount table can't be read.
    pub fn made_on(path: &Path) -> Result<OwnMount> {
        let mounted = mounted(path)?.filter(|mounted| mounted.fs_type == FS_TYPE);
        Ok(OwnMount { path: path.to_owned(), mounted })
    }

    /// Unmounts it, lazily when it is in use. Does nothing when it isn't there any more.
    ///
    /// # Errors
    /// Unmounting is not permitted.
    pub fn unmount(&self) -> Result<()> {
        let is_there = self.mounted.is_some() && mounted(&self.path)? == self.mounted;
        if is_there { detach(&self.path) } else { Ok(()) }
    }
}

/// The path without symbolic links in it, but never asking what is mounted on it, which may be dead.
fn real_path(path: &Path) -> PathBuf {
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => {
            let path = parent.join(name);
            match fs::read_link(&path) {
                Ok(target) => fs::canonicalize(parent.join(target)).unwrap_or(path),
                Err(_) => path,
            }
        }
        _ => path.to_owned(),
    }
}

/// Takes the topmost mount off `path`: at once if nobody uses it, else lazily, so that open files stay readable
/// until they are closed or the daemon ends.
fn detach(path: &Path) -> Result<()> {
    let plain = umount2(path, MntFlags::UMOUNT_NOFOLLOW);
    let result = match plain {
        Err(Errno::EBUSY) => umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH),
        other => other,
    };
    match result {
        // EINVAL: it went away by itself.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EPERM) => fusermount_unmount(path),
        Err(e) => Err(Error::new(Kind::Mount, format!("{}: can't unmount: {e}", path.display()))),
    }
}

/// An ordinary user's way, through the set-user-id helper.
fn fusermount_unmount(path: &Path) -> Result<()> {
    for flags in [&["-u", "-q"][..], &["-u", "-q", "-z"]] {
        let helper =
            Command::new("fusermount3").args(flags).arg("--").arg(path).stdin(Stdio::null()).output();
        match helper {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(no_fusermount(&e)),
        }
    }
    if mounted(path)?.is_none() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Mount,
        format!("{}: not permitted to unmount; do it as the user who mounted it, or as root", path.display()),
    ))
}

/// What to say when fusermount3 can't be run.
pub fn no_fusermount(error: &io::Error) -> Error {
    Error::new(
        Kind::Mount,
        format!("fusermount3: {error}; an ordinary user needs it to mount: apt-get install fuse3"),
    )
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    /// The device number, which no other file system has as long as this one lives.
    device: String,
    /// Its type.
    fs_type: String,
}

/// The file system mounted last on `path`, a real path.
fn mounted(path: &Path) -> Result<Option<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")
        .map_err(|e| Error::new(Kind::Mount, format!("/proc/self/mountinfo: {e}; is /proc mounted?")))?;
    Ok(last_at(&table, path))
}

/// Reads proc(5)'s mountinfo: the third field is the device, the fifth the mount point, the type follows the lone
/// dash.
fn last_at(table: &[u8], path: &Path) -> Option<Mounted> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let mount = |line: &[u8]| -> Option<(PathBuf, Mounted)> {
        let mut fields = line.split(|b| *b == b' ');
        let device = text(fields.nth(2)?);
        let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
        let fs_type = text(fields.skip_while(|field| *field != b"-").nth(1)?);
        Some((point, Mounted { device, fs_type }))
    };
    let mut mounts = table.split(|b| *b == b'\n').filter_map(mount);
    mounts.rfind(|(point, _)| point == path).map(|(_, mounted)| mounted)
}

/// Undoes the table's `\040` for spaces and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Whether the daemon behind the mount is gone. A daemon that hangs is not dead; asking it happens on a thread that
/// may be left behind.
fn is_dead(path: &Path) -> bool {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        // Not stat(2): the kernel answers it from memory for a while after the daemon's death. It never does so here.
        let answer = statvfs(&path);
        let _ = tell.send(matches!(answer, Err(Errno::ENOTCONN | Errno::ECONNABORTED)));
    });
    told.recv_timeout(ALIVE_TIMEOUT).unwrap_or(false)
}

/// Whether the mount on `path` answers. Another process asks, so that a daemon that hangs holds up neither this one nor its end:
/// a request that such a daemon has taken can't be interrupted. Must be called while the process has one thread.
pub fn answers(path: &Path) -> bool {
    let Ok((read, write)) = pipe() else { return false };
    // SAFETY: there is one thread, so the child may do whatever the parent might.
    let Ok(fork) = (unsafe { fork() }) else { return false };
    match fork {
        ForkResult::Child => {
            drop(read);
            // Nobody who reads to the end of what we print has to wait for it.
            let null = fs::File::options().read(true).write(true).open("/dev/null");
            let let_go = null.is_ok_and(|null| dup2_stdout(&null).and(dup2_stderr(&null)).is_ok());
            // Opening it asks the daemon.
            let told = let_go && fs::File::open(path).is_ok() && unistd::write(&write, b"!").is_ok();
            std::process::exit(i32::from(!told));
        }
        ForkResult::Parent { child } => {
            drop(write);
            let timeout = PollTimeout::try_from(ALIVE_TIMEOUT).unwrap_or(PollTimeout::ZERO);
            let ended = poll(&mut [PollFd::new(read.as_fd(), PollFlags::POLLIN)], timeout);
            if !matches!(ended, Ok(1..)) {
                let _ = kill(child, Signal::SIGKILL);
                return false;
            }
            let answers = matches!(unistd::read(&read, &mut [0]), Ok(1));
            let _ = waitpid(child, None);
            answers
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            90 22 0:50 / /mnt/a\\040b rw,nosuid - fuse.sshfs x rw\n\
            91 22 0:51 / /mnt/a\\040b ro,nosuid shared:7 - fuse.aztec-cache s3://b/ rw,user_id=0\n";
        let last = |path: &str| last_at(table, Path::new(path)).map(|m| (m.device, m.fs_type));
        assert_eq!(last("/mnt/a b"), Some(("0:51".to_owned(), FS_TYPE.to_owned())));
        assert_eq!(last("/"), Some(("8:1".to_owned(), "ext4".to_owned())));
        assert_eq!(last("/mnt"), None);
    }
}
