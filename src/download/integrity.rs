//! Whether what was fetched is what the remote says it has.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::answer::blocking;
use crate::checksum::{Checksum, extend_crc64nvme};
use crate::download::retry::RangeFetch;
use crate::error::{Error, Kind, Result};
use crate::object::{ObjectVersion, VersionId};
use crate::store::ObjectStore;

/// What is known against checksums: an ETag is an MD5 with S3 itself, but not with every server, and a checksum of parts can
/// only be computed when the parts' sizes are known.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Versions whose bytes were found to be wrong after some of them had been given out. Guards only the set.
    damaged: Mutex<HashSet<VersionId>>,
    /// Remotes whose ETags were seen not to be MD5s. Guards only the set.
    not_md5: Mutex<HashSet<Arc<str>>>,
}

/// What bytes can be compared with.
enum Evidence {
    /// The server's own word.
    Offered(Arc<Checksum>),
    /// What the ETag looks like.
    ETag(Checksum),
    Nothing,
}

impl Doubts {
    /// Compares `file`, which holds all bytes of `object`, with the checksum that the server told, or else with its ETag.
    /// `crc` is the bytes' CRC64NVME as they were received. Other checksums take another look at the file.
    ///
    /// # Errors
    /// `Damaged` when the bytes are others. Against a checksum that can be doubted they are fetched once more: if the same
    /// ones come again, it is no evidence. The remote's, when they don't come.
    pub async fn check(
        &self,
        object: &ObjectVersion,
        crc: u64,
        file: &Arc<File>,
        store: &dyn ObjectStore,
    ) -> Result<()> {
        let (checksum, certain) = match self.evidence(object) {
            Evidence::Nothing => return Ok(()),
            Evidence::Offered(checksum) if checksum.as_crc64nvme().is_some() => {
                let fits = checksum.as_crc64nvme() == Some(crc);
                return if fits { Ok(()) } else { Err(damaged(object, &checksum)) };
            }
            Evidence::Offered(checksum) => (checksum.clone(), !checksum.is_composite()),
            Evidence::ETag(checksum) => (Arc::new(checksum), false),
        };
        let part_size = match checksum.is_composite() {
            false => u64::MAX,
            true => match store.part_size(object).await {
                Ok(Some(size)) => size,
                other => {
                    log::debug!("{}: the size of its parts isn't known: {other:?}", object.key);
                    return Ok(());
                }
            },
        };
        let (whole, offered) = (file.clone(), checksum.clone());
        let fits = blocking(move || offered.fits(FromStart { file: &whole, at: 0 }, part_size)).await?;
        match fits.map_err(|e| Error::local(format!("{}: can't read its local file", object.key), &e))? {
            true => Ok(()),
            false if !certain && fetch_crc(object, store).await? == crc => {
                if self.not_md5().insert(object.source.clone()) {
                    log::warn!(
                        "{}{}: the same bytes came twice and don't fit {checksum}, which is no checksum of them then; \
                         ETags of this remote are not used as such from now on",
                        object.source,
                        object.key
                    );
                }
                Ok(())
            }
            false => Err(damaged(object, &checksum)),
        }
    }

    fn evidence(&self, object: &ObjectVersion) -> Evidence {
        match &object.checksum {
            Some(checksum) => Evidence::Offered(checksum.clone()),
            None if self.not_md5().contains(&object.source) => Evidence::Nothing,
            None => match Checksum::of_etag(object.etag.as_str()) {
                Some(checksum) if !checksum.is_composite() => Evidence::ETag(checksum),
                _ => Evidence::Nothing,
            },
        }
    }

    /// Runs `condemn`, which keeps the bytes of `object` from being given out any more, and remembers that some were: an open
    /// sees both or neither.
    pub fn condemn(&self, object: &ObjectVersion, condemn: impl FnOnce()) {
        let mut damaged = self.damaged_set();
        damaged.insert(object.id());
        condemn();
    }

    /// Whether bytes of `object` were found to be wrong since this was last asked.
    pub fn take_damaged(&self, object: &ObjectVersion) -> bool {
        let mut damaged = self.damaged_set();
        // Nearly always empty.
        !damaged.is_empty() && damaged.remove(&object.id())
    }

    fn not_md5(&self) -> MutexGuard<'_, HashSet<Arc<str>>> {
        self.not_md5.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn damaged_set(&self) -> MutexGuard<'_, HashSet<VersionId>> {
        self.damaged.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The CRC64NVME of `object`'s bytes, fetched for that alone.
async fn fetch_crc(object: &ObjectVersion, store: &dyn ObjectStore) -> Result<u64> {
    let (mut crc, mut fetch) = (0, RangeFetch::new(store, object, 0..object.size));
    while let Some(chunk) = fetch.next().await? {
        crc = extend_crc64nvme(crc, &chunk);
    }
    Ok(crc)
}

fn damaged(object: &ObjectVersion, checksum: &Checksum) -> Error {
    let key = &object.key;
    Error::new(
        Kind::Damaged,
        format!("{key}: what was fetched does not fit its checksum, {checksum}; open it again"),
    )
}

/// A shared file read from its start.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}
