//! Where damaged files go, so that nothing is lost that someone may want to look at.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::renameat;

use crate::cache::dirs::Dirs;
use crate::cache::{beneath, meta};
use crate::object::Key;

/// The directory of damaged files, below the state directory.
pub const DIR: &str = "quarantine";

/// Moves the file under `key`'s name there; returns where it is now. Its metadata goes.
pub fn put(dirs: &Dirs, key: &Key) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = key.as_str().replace('/', "_");
    // A file name has 255 bytes at most.
    let name = &name[..name.floor_char_boundary(200)];
    let target = Path::new(DIR).join(format!("{}-{name}", now.as_millis()));
    beneath::make_dirs(&dirs.state, Path::new(DIR))?;
    let dir = beneath::open_dir(&dirs.root, Path::new(key.dir()))?;
    renameat(&dir, key.name(), &dirs.state, &target)?;
    meta::remove(dirs.state.as_fd(), key);
    Ok(dirs.path.join(crate::object::RESERVED).join(target))
}
