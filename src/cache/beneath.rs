//! Paths below a directory that is open: never through a symbolic link, never into another mount.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// Opens `path` below `dir`. A symbolic link anywhere in it is ELOOP, a mount EXDEV: someone else's file is never
/// taken for an artifact, and our own mount inside the cache directory is never entered, where we would
/// wait for ourselves (openat2(2), Linux 5.6).
pub fn open(dir: impl AsFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o666) } else { Mode::empty() })
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    loop {
        match openat2(dir.as_fd(), path, how) {
            // EAGAIN: a rename elsewhere raced with the check for `..`.
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            other => return Ok(other?),
        }
    }
}

/// Opens the directory `path` below `dir`; an empty path is `dir` itself.
pub fn open_dir(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open(dir, path, OFlag::O_DIRECTORY | OFlag::O_RDONLY)
}

/// Opens the directory `path` below `dir`, making what is missing of it.
pub fn make_dirs(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let mut current = open_dir(dir, Path::new(""))?;
    for component in path.components() {
        match mkdirat(&current, component.as_os_str(), Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        current = open_dir(&current, Path::new(component.as_os_str()))?;
    }
    Ok(current)
}
