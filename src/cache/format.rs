//! Our directory in the cache directory: made, and known to be of a format that we understand.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{AccessFlags, faccessat};

use crate::cache::{beneath, journal, meta, partial, spool};
use crate::object::RESERVED;

/// The file that names the format of what is there.
pub const FILE: &str = "format";

/// The version of everything below `.aztec-cache/`. Bump it when a change makes older programs misread it.
pub const VERSION: &str = "1\n";

/// Makes `.aztec-cache/` and what belongs in it, and checks that it and the cache directory can be written.
pub fn prepare(root: &OwnedFd) -> io::Result<OwnedFd> {
    let make = |dir: &OwnedFd, name: &str| match mkdirat(dir, name, Mode::S_IRWXU) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => beneath::open_dir(dir, Path::new(name)),
        Err(e) => Err(e.into()),
    };
    let state = make(root, RESERVED)?;
    let check = |dir: &OwnedFd| {
        faccessat(dir, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)
            .map_err(io::Error::from)
    };
    check(root)?;
    check(&state)?;
    for dir in [meta::DIR, partial::DIR, spool::DIR, journal::DIR] {
        check(&make(&state, dir)?)?;
    }
    write_version(&state)?;
    Ok(state)
}

/// Writes the format version, if there is none yet.
fn write_version(state: &OwnedFd) -> io::Result<()> {
    match beneath::open(state, Path::new(FILE), OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL) {
        Ok(fd) => io::Write::write_all(&mut File::from(fd), VERSION.as_bytes()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Checks that the directory's format, if it has one yet, is ours.
pub fn check(root: &OwnedFd) -> io::Result<()> {
    let text = match beneath::open(root, &Path::new(RESERVED).join(FILE), OFlag::O_RDONLY) {
        Ok(fd) => io::read_to_string(File::from(fd))?,
        // None yet, or it can't be read: then nothing can be written beside it either.
        Err(_) => return Ok(()),
    };
    // Empty: another process is about to write it, or a full disk kept it from doing so.
    if text == VERSION || text.is_empty() {
        return Ok(());
    }
    let text = text.trim().escape_debug().to_string();
    Err(io::Error::other(format!(
        "its format '{text}' is of a newer aztec-cache; use that one, or another --cache-dir"
    )))
}

/// Whether processes can lock files there: over a network file system perhaps not.
///
/// # Errors
/// Why they can't.
pub fn check_locks(state: &OwnedFd) -> io::Result<()> {
    let file = File::from(beneath::open(state, Path::new(FILE), OFlag::O_RDWR)?);
    match file.try_lock() {
        // Someone else holds it: then locks work.
        Ok(()) | Err(std::fs::TryLockError::WouldBlock) => Ok(()),
        Err(std::fs::TryLockError::Error(e)) => Err(e),
    }
}
