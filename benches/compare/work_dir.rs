//! Where the benchmark puts what it makes: below cargo's target directory, on a real disk, gone when it ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use aztec_cache_test_support::user::User;
use tempfile::TempDir;

use crate::Result;

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap_or(tmp).to_owned()
}

/// The benchmark's own directory.
pub struct WorkDir(TempDir);

impl WorkDir {
    /// Makes a new one.
    pub fn new() -> Result<WorkDir> {
        let parent = target_dir().join("bench");
        fs::create_dir_all(&parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        let dir = tempfile::Builder::new().prefix("work-").tempdir_in(&parent);
        let dir = dir.map_err(|error| format!("{}: {error}", parent.display()))?;
        open_to_all(dir.path())?;
        Ok(WorkDir(dir))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A directory in it that is made if it isn't there.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// A new directory for a while, `user`'s if there is one.
    pub fn scratch(&self, prefix: &str, user: Option<&User>) -> Result<Scratch> {
        let error = |error: std::io::Error| format!("{}: {error}", self.path().display());
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(self.path()).map_err(error)?;
        let dir = Scratch(dir.keep());
        open_to_all(dir.path())?;
        give(dir.path(), user)?;
        Ok(dir)
    }
}

/// Hands a directory to `user`, if there is one.
pub fn give(path: &Path, user: Option<&User>) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    chown(path, Some(user.uid), Some(user.gid)).map_err(|error| format!("{}: {error}", path.display()))
}

fn open_to_all(path: &Path) -> Result<()> {
    let mode = Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).map_err(|error| format!("{}: {error}", path.display()))
}

/// Has everything written to disk.
pub fn sync() {
    // SAFETY: sync(2) takes nothing and can't fail.
    unsafe { libc::sync() };
}

/// Empties the kernel's page cache, and its directory entries and inodes. False when that isn't allowed.
pub fn drop_caches() -> bool {
    sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// A directory for a while. When that is over its files are emptied, but stay until the benchmark ends: where files were deleted
/// within the last five minutes, ext4 without a journal looks at each of their inodes whenever it makes one (`recently_deleted`
/// in fs/ext4/ialloc.c), which would be the time of whoever comes next.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be emptied takes some room for a while.
        if let Ok(own) = fs::metadata(&self.0) {
            let _ = empty_below(&self.0, own.dev());
        }
    }
}

/// Empties the files below `dir` that are on the device `dev`: what is still mounted there is left alone.
fn empty_below(dir: &Path, dev: u64) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.dev() == dev && meta.is_dir() {
            empty_below(&path, dev)?;
        } else if meta.dev() == dev && meta.is_file() {
            fs::File::create(&path)?;
        }
    }
    Ok(())
}

/// How many files lie below a directory.
pub fn count_files(dir: &Path) -> Result<usize> {
    let error = |error: std::io::Error| format!("{}: {error}", dir.display());
    let mut count = 0;
    for entry in fs::read_dir(dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        let kind = entry.file_type().map_err(error)?;
        count += if kind.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}
