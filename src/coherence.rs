//! Which version of a key is served when the disk and the remote both have one.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{CacheDir, CachedFile, FileId, Origin, Verdict};
use crate::error::Result;
use crate::object::{ADOPTED, Key, ObjectVersion, UPLOAD};

/// The rules. Names carry content hashes, so a complete file of a known version is served without asking
/// (`--revalidate never`); a file that someone else put there is compared with the remote once.
#[derive(Clone)]
pub struct Coherence {
    cache: Option<Arc<CacheDir>>,
    revalidate: Option<Duration>,
}

/// What the disk has to say about a key.
#[derive(Debug)]
pub enum Local {
    /// A file to serve without asking the remote.
    Serve(CachedFile),
    /// A file to serve if the remote agrees, or can't be asked.
    Ask(CachedFile),
    /// A file to serve, or not, after a look at all its bytes ([`Coherence::verify`]).
    Verify(CachedFile),
    /// No file.
    Nothing,
}

/// A version of an object, and where its bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum Served {
    /// In a complete local file.
    Local {
        /// The version it is taken for.
        version: ObjectVersion,
        /// The very file: the bytes of another one may differ, whatever version that is taken for.
        file: FileId,
        /// Whether we fetched it, so that its bytes are the remote's for sure.
        fetched: bool,
    },
    /// To be fetched.
    Remote(ObjectVersion),
}

impl Served {
    /// The version.
    pub fn version(&self) -> &ObjectVersion {
        match self {
            Served::Local { version, .. } | Served::Remote(version) => version,
        }
    }

    /// Whether its bytes are in a complete local file.
    pub fn is_local(&self) -> bool {
        matches!(self, Served::Local { .. })
    }

    /// Whether its bytes are those that the remote gives, or gave, for the version.
    pub fn is_genuine(&self) -> bool {
        !matches!(self, Served::Local { fetched: false, .. })
    }
}

impl From<CachedFile> for Served {
    fn from(file: CachedFile) -> Served {
        // Only what we fetched has a checksum of what we got.
        Served::Local { version: file.version, file: file.id, fetched: file.checksum.is_some() }
    }
}

impl Coherence {
    /// Rules for `cache`; `revalidate` is the age after which a known version is asked about again.
    pub fn new(cache: Option<Arc<CacheDir>>, revalidate: Option<Duration>) -> Coherence {
        Coherence { cache, revalidate }
    }

    /// The local directory, if there is one.
    pub fn cache(&self) -> Option<&Arc<CacheDir>> {
        self.cache.as_ref()
    }

    /// What the disk has to say about `key`.
    pub fn local(&self, key: &Key) -> Local {
        let Some(file) = self.cache.as_ref().and_then(|cache| cache.lookup(key)) else {
            return Local::Nothing;
        };
        match (&file.origin, self.revalidate) {
            (Origin::Pending, _) | (Origin::Known { .. }, None) => Local::Serve(file),
            (Origin::Known { confirmed, .. }, Some(age)) if confirmed.elapsed().is_ok_and(|e| e < age) => {
                Local::Serve(file)
            }
            (Origin::Touched, _) => Local::Verify(file),
            _ => Local::Ask(file),
        }
    }

    /// Looks at all bytes of a file that someone has touched since it was fetched. If they are not those that were fetched,
    /// it is moved out of the way. Takes a while: blocks on the disk.
    pub fn verify(&self, key: &Key) {
        let Some(cache) = &self.cache else { return };
        match cache.verify(key, &mut |_| {}) {
            Ok(Verdict::Right | Verdict::Unknown) => {}
            Ok(Verdict::Damaged) => drop(cache.quarantine(key, "it was changed since it was fetched")),
            Err(e) => log::info!("{key}: the local file can't be verified: {e}"),
        }
    }

    /// The version to serve, given both answers. Records what was learnt: blocks on the disk, briefly.
    ///
    /// # Errors
    /// The remote's, when there is no local file.
    pub fn settle(&self, local: Local, remote: Result<ObjectVersion>) -> Result<Served> {
        match (local, remote) {
            (Local::Serve(file), _) => Ok(file.into()),
            (Local::Nothing | Local::Verify(_), remote) => remote.map(Served::Remote),
            // Unreachable, refused or gone there: it is here, and nobody says that it's wrong.
            (Local::Ask(file), Err(error)) => {
                log::debug!("{}: the local file is served unasked: {error}", file.version.key);
                Ok(file.into())
            }
            (Local::Ask(file), Ok(remote)) if self.agree(&file, &remote) => {
                let version = ObjectVersion { source: file.version.source.clone(), ..remote };
                Ok(Served::from(CachedFile { version, ..file }))
            }
            (Local::Ask(_), Ok(remote)) => Ok(Served::Remote(remote)),
        }
    }

    /// Whether the local file holds the remote's version; records it if so.
    fn agree(&self, file: &CachedFile, remote: &ObjectVersion) -> bool {
        let (Some(cache), key) = (&self.cache, &remote.key) else { return false };
        match file.origin {
            Origin::Known { .. } if file.version.is(remote) || is_taken_for(file, remote) => {
                cache.confirm(key);
                true
            }
            Origin::Adopted if cache.adopt(remote) => true,
            Origin::Known { .. } => {
                log::info!("{key}: the remote has a new version; it replaces the local one");
                false
            }
            Origin::Pending => true,
            Origin::Adopted | Origin::Touched => {
                let difference = match (file.version.size, remote.size) {
                    (local, remote) if local == remote => "is not the remote's".to_owned(),
                    (local, remote) => format!("has {local} bytes, the remote's {remote}"),
                };
                log::warn!("{key}: the local file {difference}: it is not served, and replaced when opened");
                false
            }
        }
    }
}

/// Whether `file` has been taken for `remote` before, or become it by being uploaded: which remote that was isn't recorded.
fn is_taken_for(file: &CachedFile, remote: &ObjectVersion) -> bool {
    [ADOPTED, UPLOAD].contains(&&*file.version.source) && file.version.etag == remote.etag
}
