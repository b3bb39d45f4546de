//! Owner, permissions and time of what is unpacked, by tar's rules: root unpacks owners and permissions as they are; others
//! own what they unpack, their umask holds, and nothing runs as its owner.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Group, Uid, User, fchown, fchownat, geteuid};

use crate::error::{Error, Kind};
use crate::extract::entries::{Entry, Owner};
use crate::extract::{Failure, Result};

/// The access time stays as it is.
const OMIT: TimeSpec = TimeSpec::UTIME_OMIT;

/// The rules for whoever runs this.
#[derive(Debug)]
pub struct Rules {
    umask: u32,
    /// For root alone.
    owners: Option<Owners>,
}

/// What is made gets these.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    mode: u32,
    umask: u32,
    owner: Option<(Uid, Gid)>,
    mtime: TimeSpec,
}

impl Rules {
    /// Those of this process.
    ///
    /// # Errors
    /// Its umask can't be read.
    pub fn new() -> Result<Rules> {
        let umask = umask().ok_or_else(|| {
            Error::new(Kind::Local, "can't read the umask from /proc/self/status; mount /proc")
        })?;
        Ok(Rules { umask, owners: geteuid().is_root().then(Owners::default) })
    }

    /// What `entry` gets.
    ///
    /// # Errors
    /// Its owner's number is none.
    pub fn apply(&mut self, entry: &Entry) -> Result<Attributes> {
        let owner = self.owners.as_mut().map(|owners| owners.of(&entry.owner)).transpose()?;
        let mode = if owner.is_some() { entry.mode } else { entry.mode & 0o777 & !self.umask };
        Ok(Attributes { mode, umask: self.umask, owner, mtime: entry.mtime })
    }
}

/// Linux says it without changing it, for which other threads would have to hold still.
fn umask() -> Option<u32> {
    // Room for all of it, whose length nobody knows before.
    let mut status = String::with_capacity(4096);
    File::open("/proc/self/status").ok()?.read_to_string(&mut status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

impl Attributes {
    /// The mode to make a file with, which lets nobody do what the entry doesn't.
    pub fn first_mode(&self) -> Mode {
        Mode::from_bits_truncate(self.mode & 0o777 & !self.umask)
    }

    /// The mode of a directory as long as things are put in it.
    pub fn open_mode(&self) -> Mode {
        self.first_mode() | Mode::S_IRWXU
    }

    /// Sets all of an open file that was made with the first mode.
    ///
    /// # Errors
    /// Others than a lack of rights, which is noted.
    pub fn set(&self, file: impl AsFd, path: &Path, notes: &Notes) -> nix::Result<()> {
        if let Some((uid, gid)) = self.owner {
            notes.unless_done(path, "owner", fchown(&file, Some(uid), Some(gid)))?;
        }
        if self.mode != self.first_mode().bits() {
            notes.unless_done(path, "permissions", fchmod(&file, Mode::from_bits_truncate(self.mode)))?;
        }
        notes.unless_done(path, "time", futimens(&file, &OMIT, &self.mtime))
    }

    /// Sets all of `name` in `dir`, and permissions only `with_mode`: a link has none.
    ///
    /// # Errors
    /// Others than a lack of rights, which is noted.
    pub fn set_at(
        &self,
        (dir, name): (impl AsFd, &OsStr),
        with_mode: bool,
        path: &Path,
        notes: &Notes,
    ) -> nix::Result<()> {
        if let Some((uid, gid)) = self.owner {
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            notes.unless_done(path, "owner", fchownat(&dir, name, Some(uid), Some(gid), flags))?;
        }
        let times = utimensat(&dir, name, &OMIT, &self.mtime, UtimensatFlags::NoFollowSymlink);
        notes.unless_done(path, "time", times)?;
        if with_mode {
            let mode = Mode::from_bits_truncate(self.mode);
            let changed = fchmodat(&dir, name, mode, FchmodatFlags::FollowSymlink);
            notes.unless_done(path, "permissions", changed)?;
        }
        Ok(())
    }
}

/// Numbers of owners: those of their names here, else the archive's. The last ones are remembered.
#[derive(Debug, Default)]
struct Owners {
    user: (Vec<u8>, Option<Uid>),
    group: (Vec<u8>, Option<Gid>),
}

impl Owners {
    fn of(&mut self, owner: &Owner) -> Result<(Uid, Gid)> {
        if self.user.0 != owner.user {
            let known = str::from_utf8(&owner.user).ok().and_then(|name| User::from_name(name).ok()?);
            self.user = (owner.user.clone(), known.map(|user| user.uid));
        }
        if self.group.0 != owner.group {
            let known = str::from_utf8(&owner.group).ok().and_then(|name| Group::from_name(name).ok()?);
            self.group = (owner.group.clone(), known.map(|group| group.gid));
        }
        let number = |number: i64| u32::try_from(number).map_err(|_| no_owner(number));
        let uid = self.user.1.map_or_else(|| number(owner.uid).map(Uid::from_raw), Ok)?;
        let gid = self.group.1.map_or_else(|| number(owner.gid).map(Gid::from_raw), Ok)?;
        Ok((uid, gid))
    }
}

fn no_owner(number: i64) -> Failure {
    Failure::Archive(format!("damaged: {number} is no user or group"))
}

/// What could not be made as the archive has it, for a lack of rights. All else is unpacked before it is said.
#[derive(Debug, Default)]
pub struct Notes {
    /// What came first, and how many came after it. Guards nothing else.
    noted: Mutex<Option<(String, u64)>>,
}

impl Notes {
    /// Notes that `what` went wrong.
    pub fn add(&self, what: String) {
        let mut noted = self.noted();
        match &mut *noted {
            None => *noted = Some((what, 0)),
            Some((_, more)) => *more += 1,
        }
    }

    /// What is noted, as a failure.
    pub fn result(&self) -> Result<()> {
        let (what, more) = match &*self.noted() {
            None => return Ok(()),
            Some((what, 0)) => (what.clone(), String::new()),
            Some((what, more)) => (what.clone(), format!(", and {more} more like it")),
        };
        Err(Error::new(Kind::Local, format!("{what}{more}; all else is unpacked")).into())
    }

    /// Passes on other failures than a lack of rights.
    fn unless_done(&self, path: &Path, what: &str, done: nix::Result<()>) -> nix::Result<()> {
        match done {
            // EINVAL: an owner that doesn't exist in this user namespace.
            Err(error @ (Errno::EPERM | Errno::EINVAL)) => {
                self.add(format!("can't set the {what} of '{}': {}", path.display(), error.desc()));
                Ok(())
            }
            other => other,
        }
    }

    fn noted(&self) -> MutexGuard<'_, Option<(String, u64)>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
