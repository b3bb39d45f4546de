//! Files that others have us keep for them, by a name of any length: what is worth knowing again after a restart.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, renameat};
use sha2::{Digest, Sha256};

use crate::cache::dirs::Dirs;
use crate::cache::{beneath, partial};

/// The directory of notes, below the state directory.
pub const DIR: &str = "notes";

/// Writes the note `name` in place of the one before, unless that is younger than `period`.
pub fn save(
    dirs: &Dirs,
    name: &str,
    period: Duration,
    write: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let target = path(name);
    let young = open(dirs, name)
        .and_then(|file| file.metadata()?.modified())
        .is_ok_and(|written| written.elapsed().is_ok_and(|age| age < period));
    if young {
        return Ok(());
    }
    let dir = beneath::make_dirs(&dirs.state, Path::new(DIR))?;
    let temporary = format!("{}-{}.new", std::process::id(), fastrand::u64(..));
    let file = beneath::open(&dir, Path::new(&temporary), OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
    let written =
        write(&File::from(file)).and_then(|()| Ok(renameat(&dir, temporary.as_str(), &dirs.state, &target)?));
    if written.is_err() {
        partial::unlink(dirs, &Path::new(DIR).join(temporary));
    }
    written
}

/// Opens the note `name`.
pub fn open(dirs: &Dirs, name: &str) -> io::Result<File> {
    beneath::open(&dirs.state, &path(name), OFlag::O_RDONLY).map(File::from)
}

fn path(name: &str) -> PathBuf {
    let digest = Sha256::digest(name.as_bytes());
    Path::new(DIR).join(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
