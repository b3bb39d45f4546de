//! Files that are written here: spooled, published, renamed, uploaded, removed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::renameat;

use crate::cache::beneath;
use crate::cache::dir::CacheDir;
use crate::cache::journal::{self, Claim, PendingUpload};
use crate::cache::meta::{self, Meta};
use crate::cache::spool::Spool;
use crate::checksum::Checksum;
use crate::object::{Key, ObjectVersion};

impl CacheDir {
    /// A new file to be written, under `.aztec-cache/spool/`, locked while it is open, swept when its process is gone.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn spool(&self) -> io::Result<Spool> {
        if !self.is_writable() {
            return Err(Errno::EROFS.into());
        }
        Spool::create(&self.dirs, &self.space)
    }

    /// Claims `key`, to publish, upload, rename or remove its file; None while somebody else has it.
    ///
    /// # Errors
    /// Trouble with the disk.
    pub fn claim(&self, key: &Key) -> io::Result<Option<Claim>> {
        Claim::take(&self.dirs, key)
    }

    /// The journal: what is still to be uploaded, oldest first.
    pub fn pending(&self) -> Vec<PendingUpload> {
        let mut entries = journal::entries(&self.dirs);
        entries.sort_by(|a, b| (a.since, &a.name).cmp(&(b.since, &b.name)));
        entries
    }

    /// The journal's entry of `key`, if it has one.
    pub fn pending_upload(&self, key: &Key) -> Option<PendingUpload> {
        journal::entry(&self.dirs, key)
    }

    /// Records that a remote has the file that `claim` is for, which was written here, as `version`; `source` says how it
    /// came here.
    ///
    /// # Errors
    /// Nothing is known of such a file any more, or it can't be recorded.
    pub fn record_uploaded(&self, claim: &Claim, version: &ObjectVersion, source: &str) -> io::Result<()> {
        let meta = self.meta_of(claim.key())?;
        let meta = Meta {
            etag: version.etag.as_str().to_owned(),
            modified_ns: meta::nanos(version.modified),
            source: source.to_owned(),
            ..meta
        };
        self.try_write_meta(claim.key(), &meta)
    }

    /// Takes the file that `claim` is for, put there by someone else, for one that was written here, if it has this size and
    /// checksum. Reads all of it.
    ///
    /// # Errors
    /// It can't be read, or recorded.
    pub fn take_over(&self, claim: &Claim, size: u64, checksum: &Checksum) -> io::Result<bool> {
        let file = self.open_unnoticed(claim.key())?;
        let meta = Meta::of_written(&file.metadata()?, checksum);
        let fits = meta.size == size && checksum.fits(&file, u64::MAX)?;
        if fits {
            self.try_write_meta(claim.key(), &meta)?;
        }
        Ok(fits)
    }

    /// Gives the file that `from` is for, with its metadata and its journal entry, the name that `to` is for, in place of any
    /// other. After a crash at any point it has one of the two, and is in the journal if it was.
    ///
    /// # Errors
    /// There is no such file, something that isn't an artifact is in the way, or trouble with the disk.
    pub fn rename_claimed(&self, from: &mut Claim, to: &mut Claim) -> io::Result<()> {
        let (old, new) = (from.key().clone(), to.key().clone());
        if !self.has_room_for_name(&new) {
            return Err(Errno::EEXIST.into());
        }
        let meta = self.meta_of(&old)?;
        let old_dir = beneath::open_dir(&self.dirs.root, Path::new(old.dir()))?;
        let new_dir = beneath::make_dirs(&self.dirs.root, Path::new(new.dir()))?;
        self.try_write_meta(&new, &meta)?;
        if let Some(entry) = from.entry() {
            to.write(&PendingUpload { name: new.as_str().to_owned(), upload_id: None, ..entry })?;
        }
        self.space.rename(&new, || Ok(renameat(&old_dir, old.name(), &new_dir, new.name())?))?;
        from.clear()?;
        meta::remove(self.dirs.state.as_fd(), &old);
        File::from(new_dir).sync_all()
    }

    /// Removes the file that `claim` is for and its journal entry; who reads it now goes on. False when there is none.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove_claimed(&self, claim: &mut Claim) -> io::Result<bool> {
        let removed = self.unlink(claim.key())?;
        claim.clear()?;
        Ok(removed)
    }

    fn meta_of(&self, key: &Key) -> io::Result<Meta> {
        let found = meta::read(self.dirs.state.as_fd(), key);
        found.map(|(meta, _)| meta).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
