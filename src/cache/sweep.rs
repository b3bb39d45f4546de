//! Removes what nobody will come back for: nothing of ours grows without bound.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::dir::Type;
use nix::fcntl::OFlag;
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;

use crate::cache::dirs::{Dirs, read_dir};
use crate::cache::{beneath, journal, meta, notes, partial, quarantine, spool};
use crate::object::Key;

/// An interrupted download can be gone on with for so long.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);
/// Damaged files can be looked at for so long.
const QUARANTINE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// What was worth noting is forgotten after so long.
const NOTE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// What is being written is locked. Who is about to lock it finds out that it has gone, and begins anew.
const UNLOCKED_AGE: Duration = Duration::ZERO;
/// Metadata is written shortly before its file gets its name, and to a temporary file shortly before that.
const METADATA_AGE: Duration = Duration::from_secs(3600);

/// The file whose modification time says when the last sweep began, by whatever process.
const STAMP: &str = "swept";
/// A sweep looks at every artifact, so that a command makes one only when there was none for so long.
const EVERY: Duration = Duration::from_secs(3600);

/// Whether the last sweep was long ago.
pub fn is_due(dirs: &Dirs) -> bool {
    let stamp = beneath::open(&dirs.state, Path::new(STAMP), OFlag::O_PATH).and_then(|fd| Ok(fstat(&fd)?));
    let began = stamp.map(|stat| SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.max(0) as u64));
    // One in the future is of a clock that was wrong.
    !began.is_ok_and(|began| began.elapsed().is_ok_and(|age| age < EVERY))
}

/// Before anything is removed: of many commands that begin at once, few need to do it.
fn note_begin(dirs: &Dirs) {
    let stamp = beneath::open(&dirs.state, Path::new(STAMP), OFlag::O_WRONLY | OFlag::O_CREAT);
    if let Err(e) = stamp.and_then(|fd| Ok(futimens(&fd, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)?)) {
        log::debug!("can't note that what is old is removed: {e}");
    }
}

/// Walks our own directories and removes what is too old. Files that a process is working on are locked, or young.
pub fn sweep(dirs: &Dirs) {
    note_begin(dirs);
    remove_old(dirs, partial::DIR, |path| match path.extension() {
        None => PARTIAL_AGE,
        Some(_) => METADATA_AGE,
    });
    remove_old(dirs, spool::DIR, |_| UNLOCKED_AGE);
    remove_old(dirs, quarantine::DIR, |_| QUARANTINE_AGE);
    journal::sweep(dirs);
    remove_old(dirs, notes::DIR, |path| match path.extension() {
        None => NOTE_AGE,
        Some(_) => METADATA_AGE,
    });
    remove_orphans(dirs, "");
}

/// Removes the unlocked files of `dir` that were last written longer ago than `age` says.
fn remove_old(dirs: &Dirs, dir: &str, age: impl Fn(&Path) -> Duration) {
    for (name, _) in read_dir(&dirs.state, Path::new(dir)).unwrap_or_default() {
        let path = Path::new(dir).join(name);
        // A progress file is removed with its partial file; alone, it is of no use.
        let owner = path.with_extension("");
        if path.extension().is_some_and(|extension| extension == partial::PROGRESS) && exists(dirs, &owner) {
            continue;
        }
        if is_old(dirs, &path, age(&path)) {
            log::info!("removing {}, which nobody came back for", dirs.path.join(&path).display());
            partial::unlink(dirs, &path);
            if path.extension().is_none() {
                partial::unlink(dirs, &partial::progress_of(&path));
            }
        }
    }
}

fn is_old(dirs: &Dirs, path: &Path, age: Duration) -> bool {
    let Ok(fd) = beneath::open(&dirs.state, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) else { return false };
    let file = File::from(fd);
    let written = file.metadata().and_then(|meta| meta.modified());
    written.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age)) && file.try_lock().is_ok()
}

fn exists(dirs: &Dirs, path: &Path) -> bool {
    beneath::open(&dirs.state, path, OFlag::O_PATH).is_ok()
}

/// Removes the metadata of files that are gone, in `dir` and below.
fn remove_orphans(dirs: &Dirs, dir: &str) {
    for (name, kind) in read_dir(&dirs.state, &Path::new(meta::DIR).join(dir)).unwrap_or_default() {
        let Ok(key) = Key::in_dir(dir, &name) else { continue };
        if kind == Some(Type::Directory) {
            remove_orphans(dirs, key.as_str());
        } else if dirs.stat(&key).is_none() && is_old(dirs, &meta::path(&key), METADATA_AGE) {
            meta::remove(dirs.state.as_fd(), &key);
        }
    }
}
