//! Artifacts that are only here: renamed and removed.

use std::io;
use std::sync::Arc;

use crate::answer::blocking;
use crate::archive;
use crate::cache::{CacheDir, CachedFile, Claim, Origin};
use crate::error::{Error, Kind, Result};
use crate::object::{Key, UPLOAD};
use crate::upload::Uploads;
use crate::upload::new_file::FromStart;

impl Uploads {
    /// Whether `key` is a complete local file that was written here and that no remote is known to have. Blocks on the
    /// disk, briefly.
    pub fn is_local_only(&self, key: &Key) -> bool {
        let found = self.cache.as_ref().and_then(|cache| cache.lookup(key));
        found.is_some_and(|file| is_local_only(&file))
    }

    /// Gives an artifact that is only here another name, before it is uploaded. One that is there already stays, unless it
    /// may be overwritten: the first writer wins.
    ///
    /// # Errors
    /// `NotPermitted` when it isn't only here, `Damaged` when it isn't the whole archive that its new name says.
    pub async fn rename(self: &Arc<Uploads>, from: &Key, to: &Key) -> Result<()> {
        self.check_writable(to)?;
        let Some(cache) = &self.cache else { return Err(not_only_here(from)) };
        if from == to {
            return Ok(());
        }
        self.stop(from);
        // Always in the same order, so that two can't wait for each other.
        let (first, second) = if from < to { (from, to) } else { (to, from) };
        let (first, second) = (self.claim(cache, first).await?, self.claim(cache, second).await?);
        let (from_claim, to_claim) = if from < to { (first, second) } else { (second, first) };
        let (cache, options) = (cache.clone(), self.options);
        let renamed = blocking(move || {
            let rename = Rename { cache: &cache, from: from_claim, to: to_claim };
            rename.run(options.allow_overwrite, !options.unchecked_archives)
        });
        if renamed.await?? {
            self.enqueue(to);
        }
        Ok(())
    }

    /// Removes an artifact that is only here. One that a remote has is removed there first, where that is allowed.
    ///
    /// # Errors
    /// `NotPermitted` when a remote has it, or may have, and removing there isn't allowed; the remote's.
    pub async fn remove(&self, key: &Key) -> Result<()> {
        self.check_writable(key)?;
        self.stop(key);
        let claim = match &self.cache {
            Some(cache) => Some((cache.clone(), self.claim(cache, key).await?)),
            None => None,
        };
        let own_key = key.clone();
        let looked = blocking(move || {
            let found = claim.as_ref().and_then(|(cache, _)| cache.lookup(&own_key));
            (claim, found)
        });
        let (claim, found) = looked.await?;
        if !found.as_ref().is_some_and(is_local_only) {
            self.remove_there(key, found.as_ref()).await?;
        }
        let Some((cache, mut claim)) = claim else { return Ok(()) };
        let removed = blocking(move || cache.remove_claimed(&mut claim)).await?;
        removed.map(drop).map_err(|e| Error::local(format!("{key}: can't be removed"), &e))
    }

    /// Removes what a remote has, or may have.
    async fn remove_there(&self, key: &Key, found: Option<&CachedFile>) -> Result<()> {
        if self.options.allow_delete {
            return self.store.delete(key).await;
        }
        // Someone else's file, which no remote may have.
        if found.is_some_and(|file| file.origin == Origin::Adopted)
            && self.store.head(key).await.is_err_and(|error| error.kind() == Kind::NotFound)
        {
            return Ok(());
        }
        let why =
            "the remote has it; --allow-delete removes it there, 'aztec-cache evict' only the local copy";
        Err(Error::new(Kind::NotPermitted, format!("{key}: {why}")))
    }
}

/// Whether it was written here and no remote is known to have it.
pub fn is_local_only(file: &CachedFile) -> bool {
    let written_here = matches!(&file.origin, Origin::Known { source, .. } if source == UPLOAD);
    file.origin == Origin::Pending || written_here && file.version.etag.is_local()
}

fn not_only_here(key: &Key) -> Error {
    let why = "a remote has it, where nothing can be renamed; save it under the other name, too";
    Error::new(Kind::NotPermitted, format!("{key}: {why}"))
}

/// A renaming, with the right to both names.
struct Rename<'a> {
    cache: &'a CacheDir,
    from: Claim,
    to: Claim,
}

impl Rename<'_> {
    /// Does it; whether it is to be uploaded.
    fn run(mut self, overwrite: bool, check_archive: bool) -> Result<bool> {
        let (from, to) = (self.from.key().clone(), self.to.key().clone());
        if !self.cache.lookup(&from).as_ref().is_some_and(is_local_only) {
            return Err(not_only_here(&from));
        }
        let error = |e: io::Error| Error::local(format!("{from}: can't be renamed to {to}"), &e);
        if check_archive && archive::Format::of_name(from.name()) != archive::Format::of_name(to.name()) {
            let opened = self.cache.open_unnoticed(&from).map_err(error)?;
            archive::check(to.name(), FromStart::of(Arc::new(opened)))
                .map_err(|why| Error::new(Kind::Damaged, format!("{to}: {why}: not renamed from {from}")))?;
        }
        if !overwrite && self.cache.lookup(&to).is_some() {
            log::warn!("{to}: there is such an artifact already; it stays, and {from} is removed");
            self.cache.remove_claimed(&mut self.from).map_err(error)?;
            return Ok(false);
        }
        self.cache.rename_claimed(&mut self.from, &mut self.to).map_err(error)?;
        Ok(self.to.entry().is_some())
    }
}
