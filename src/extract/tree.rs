//! The directory that is unpacked into. Nothing leads out of it: each path is resolved below it by the kernel
//! (`RESOLVE_BENEATH`, openat2(2)), so that a symbolic link is followed as long as it stays inside.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, ftruncate, linkat, symlinkat, unlinkat};

use crate::error::Error;
use crate::extract::attributes::{Attributes, Notes};
use crate::extract::name::Name;
use crate::extract::{Failure, Result};

/// What things are made in.
pub struct Tree {
    root: OwnedFd,
    /// As the user spells it.
    shown: PathBuf,
    /// The directory that something was made in last: much of an archive lies together.
    parent: Option<(PathBuf, OwnedFd)>,
    /// What directories get at the end, when nothing is put in them any more.
    directories: BTreeMap<PathBuf, Attributes>,
    notes: Arc<Notes>,
}

impl Tree {
    /// Opens `dir`, and makes it when it is missing.
    ///
    /// # Errors
    /// It can't be made or opened.
    pub fn open(dir: &Path) -> Result<Tree> {
        let error = |e: &io::Error| Error::local(format!("can't unpack into {}", dir.display()), e);
        fs::create_dir_all(dir).map_err(|e| error(&e))?;
        let root =
            nix::fcntl::open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        Ok(Tree {
            root: root.map_err(|e| error(&e.into()))?,
            shown: dir.to_owned(),
            parent: None,
            directories: BTreeMap::new(),
            notes: Arc::default(),
        })
    }

    /// What couldn't be made as it should be.
    pub fn notes(&self) -> &Arc<Notes> {
        &self.notes
    }

    /// Makes a file of `hole` zeros that take no room, in place of what is there.
    ///
    /// # Errors
    /// It can't be made, or would lie elsewhere. So it is with all that follow.
    pub fn file(&mut self, name: &Name, hole: u64, attributes: &Attributes) -> Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = self.make(name, |dir, last| openat(dir, last, flags, attributes.first_mode()))?;
        let length = hole.try_into().map_err(|_| Errno::EFBIG);
        match length.and_then(|length| if length > 0 { ftruncate(&file, length) } else { Ok(()) }) {
            Ok(()) => Ok(file.into()),
            Err(e) => {
                self.discard(name.path());
                Err(self.error(name.path(), e))
            }
        }
    }

    /// Removes a file that isn't complete, if it is there.
    pub fn discard(&mut self, path: &Path) {
        if let (Some(dir), Some(last)) = (path.parent(), path.file_name())
            && let Ok(dir) = self.parent(dir)
        {
            let _ = unlinkat(dir, last, UnlinkatFlags::NoRemoveDir);
        }
    }

    /// Makes a directory, or takes the one that is there.
    pub fn directory(&mut self, name: &Name, attributes: Attributes) -> Result<()> {
        if name.split().is_some() {
            self.make(name, |dir, last| match mkdirat(dir, last, attributes.open_mode()) {
                Err(Errno::EEXIST) if is_directory(dir, last) => Ok(()),
                other => other,
            })?;
        }
        self.directories.insert(name.path().to_owned(), attributes);
        Ok(())
    }

    /// Gives the file `target` another name.
    pub fn hard_link(&mut self, name: &Name, target: &Name) -> Result<()> {
        let Some((dir, file)) = target.split() else { return Err(not_possible(name)) };
        let from = open(&self.root, dir, OFlag::empty()).map_err(|e| self.error(target.path(), e))?;
        self.make(name, |dir, last| match linkat(&from, file, dir, last, AtFlags::empty()) {
            Err(Errno::EEXIST) if is_same((from.as_fd(), file), (dir, last)) => Ok(()),
            other => other,
        })
    }

    /// Makes a link that says `target`, wherever that leads.
    pub fn symlink(&mut self, name: &Name, target: &OsStr, attributes: &Attributes) -> Result<()> {
        self.make(name, |dir, last| symlinkat(target, dir, last))?;
        self.set(name, attributes, false)
    }

    /// Makes a named pipe or a device; a device that only root may make is noted.
    pub fn node(
        &mut self,
        name: &Name,
        kind: SFlag,
        device: (u32, u32),
        attributes: &Attributes,
    ) -> Result<()> {
        let device = libc::makedev(device.0, device.1);
        let made =
            self.make(name, |dir, last| match mknodat(dir, last, kind, attributes.first_mode(), device) {
                Err(Errno::EPERM) if kind != SFlag::S_IFIFO => Ok(false),
                other => other.map(|()| true),
            })?;
        if made {
            return self.set(name, attributes, true);
        }
        self.notes.add(format!("can't make '{}', a device, for which it takes root", name.path().display()));
        Ok(())
    }

    /// Gives directories what they get, those within others first.
    pub fn finish(mut self) -> Result<()> {
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            let set = match open(&self.root, &path, OFlag::O_NOFOLLOW) {
                Ok(dir) => attributes.set_at((&dir, OsStr::new(".")), true, &path, &self.notes),
                // A later entry stands in its place.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(()),
                Err(e) => Err(e),
            };
            set.map_err(|e| self.error(&path, e))?;
        }
        self.notes.result()
    }

    /// Makes something new, by `make`, which is told where; what is there goes, but for a directory that holds something.
    fn make<T>(&mut self, name: &Name, make: impl Fn(BorrowedFd<'_>, &OsStr) -> nix::Result<T>) -> Result<T> {
        let Some((dir, last)) = name.split() else { return Err(not_possible(name)) };
        let dir = self.parent(dir)?;
        let made = match make(dir, last) {
            Err(Errno::EEXIST) => remove(dir, last).and_then(|()| make(dir, last)),
            other => other,
        };
        made.map_err(|e| self.error(name.path(), e))
    }

    fn set(&mut self, name: &Name, attributes: &Attributes, with_mode: bool) -> Result<()> {
        let Some((dir, last)) = name.split() else { return Err(not_possible(name)) };
        let notes = self.notes.clone();
        let dir = self.parent(dir)?;
        let set = attributes.set_at((dir, last), with_mode, name.path(), &notes);
        set.map_err(|e| self.error(name.path(), e))
    }

    /// The directory `dir`, made when it is missing.
    fn parent(&mut self, dir: &Path) -> Result<BorrowedFd<'_>> {
        if self.parent.as_ref().is_none_or(|(path, _)| path != dir) {
            let opened = match open(&self.root, dir, OFlag::empty()) {
                Err(Errno::ENOENT) => {
                    self.make_parents(dir).and_then(|()| open(&self.root, dir, OFlag::empty()))
                }
                other => other,
            };
            self.parent = Some((dir.to_owned(), opened.map_err(|e| self.error(dir, e))?));
        }
        Ok(self.parent.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }

    fn make_parents(&self, dir: &Path) -> nix::Result<()> {
        let mut above = PathBuf::new();
        for component in dir.components() {
            let parent = open(&self.root, &above, OFlag::empty())?;
            match mkdirat(&parent, component.as_os_str(), Mode::from_bits_truncate(0o777)) {
                Ok(()) | Err(Errno::EEXIST) => above.push(component),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// What an error on `path` is.
    pub fn error(&self, path: &Path, error: Errno) -> Failure {
        if error == Errno::EXDEV {
            let (path, dir) = (path.display(), self.shown.display());
            return Failure::Archive(format!(
                "'{path}': a symbolic link on its way leads out of {dir}: refused"
            ));
        }
        Error::local(format!("can't unpack {}", self.shown.join(path).display()), &error.into()).into()
    }
}

/// Opens the directory `path` below `root`, which is all that is needed to reach things in it.
fn open(root: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        match openat2(root.as_fd(), path, how) {
            // EAGAIN: a rename elsewhere raced with the check for `..`.
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            other => return other,
        }
    }
}

fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(dir, name, UnlinkatFlags::RemoveDir),
        other => other,
    }
}

fn is_directory(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())
}

fn is_same(a: (BorrowedFd<'_>, &OsStr), b: (BorrowedFd<'_>, &OsStr)) -> bool {
    let id = |(dir, name)| {
        fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino)).ok()
    };
    id(a).is_some_and(|a| Some(a) == id(b))
}

fn not_possible(name: &Name) -> Failure {
    Failure::Archive(format!("'{}' can only be a directory", Path::new(".").join(name.path()).display()))
}
