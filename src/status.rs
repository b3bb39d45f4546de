//! What a mount, or a cache directory by itself, has to report of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::cache::{CacheDir, PendingUpload};
use crate::error::{Error, Kind, Result};
use crate::fetch::Fetcher;
use crate::metrics;
use crate::object::Key;
use crate::spooled::SpooledFiles;
use crate::store::{ObjectStore, RemoteState};
use crate::upload::Uploads;

/// The report, as `status --json` prints it. What isn't known is null; counters begin with the mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The program's.
    pub version: String,
    /// The daemon's process id; null without a mount, as are most that follow.
    pub pid: Option<u32>,
    /// Where it is mounted.
    pub mountpoint: Option<String>,
    /// The remotes, in the order they are asked in; none without a mount.
    pub remotes: Vec<RemoteState>,
    /// The local cache.
    pub cache: CacheStatus,
    /// Artifacts opened: hits, misses and those that were coalesced.
    pub opens: Option<u64>,
    /// Opens of complete local files.
    pub hits: Option<u64>,
    /// Opens that began a download.
    pub misses: Option<u64>,
    /// Opens that shared a download under way.
    pub coalesced: Option<u64>,
    /// Bytes of complete local files read through the daemon. What the kernel reads by itself, in passthrough mode or from its
    /// page cache, or through a symbolic link, isn't known to it.
    pub bytes_from_cache: Option<u64>,
    /// Bytes of objects that remotes sent.
    pub bytes_from_remote: Option<u64>,
    /// Requests sent to remotes.
    pub requests: RequestCounts,
    /// Requests that were sent again.
    pub retries: Option<u64>,
    /// Errors answered to processes, by the name of their errno.
    pub errors: Option<BTreeMap<String, u64>>,
    /// Whether the kernel reads complete files by itself.
    pub passthrough: Option<bool>,
    /// What is being fetched by this mount.
    pub in_flight: Option<Vec<InFlight>>,
    /// What is still to be uploaded, by whichever process; null without a local cache.
    pub pending_uploads: Option<Vec<Pending>>,
}

/// The local cache.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Where it is; null when there is none.
    pub dir: Option<String>,
    /// Artifacts in it.
    pub files: Option<u64>,
    /// The disk space in use.
    pub bytes: Option<u64>,
    /// `--max-cache-size`; null when there is no cap.
    pub max_bytes: Option<u64>,
    /// The disk space of artifacts that can't be evicted now: they are open, or still to be uploaded.
    pub pinned_bytes: Option<u64>,
    /// Files that this mount has evicted.
    pub evicted_files: Option<u64>,
}

/// Requests by kind, each attempt counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RequestCounts {
    /// Questions about an object.
    pub head: Option<u64>,
    /// Ranges of an object, or all of it.
    pub get: Option<u64>,
    /// Pages of listings.
    pub list: Option<u64>,
    /// Uploads, or pieces of them.
    pub put: Option<u64>,
    /// Removals.
    pub delete: Option<u64>,
}

/// An artifact that is being fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InFlight {
    /// Its name.
    pub name: String,
    /// How many bytes are here.
    pub bytes: u64,
    /// How many there will be.
    pub size: u64,
}

/// An artifact that is still to be uploaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// What the journal has of it.
    #[serde(flatten)]
    pub upload: PendingUpload,
    /// How many bytes have been sent, while this mount uploads it.
    pub sent: Option<u64>,
}

/// What a mount would still have to do if it were unmounted now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unfinished {
    /// The daemon's process id.
    pub pid: u32,
    /// The namespace that it is one in, as `/proc/PID/ns/pid` names it.
    pub pid_namespace: PathBuf,
    /// Files that are being written, or have been and aren't artifacts yet.
    pub writing: usize,
    /// Artifacts to be uploaded.
    pub uploads: usize,
    /// The local cache, whose journal has them.
    pub cache_dir: Option<PathBuf>,
}

/// A mount's parts, that know what to report.
pub struct Mounted {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Where artifacts come from.
    pub store: Arc<dyn ObjectStore>,
    /// What fetches them.
    pub fetcher: Arc<Fetcher>,
    /// What uploads them.
    pub uploads: Arc<Uploads>,
    /// What is being written.
    pub spooled: Arc<SpooledFiles>,
    /// Whether the kernel reads complete files by itself.
    pub passthrough: bool,
}

impl Mounted {
    /// What there is to report now. Walks the cache directory: not for a session thread.
    pub fn report(&self) -> Status {
        let cache = self.fetcher.cache().map(|cache| &**cache);
        let requests = &metrics::REQUESTS;
        Status {
            pid: Some(std::process::id()),
            mountpoint: Some(self.mountpoint.display().to_string()),
            remotes: self.store.remotes(),
            cache: CacheStatus {
                evicted_files: cache.map(|cache| cache.space().evicted()),
                ..CacheStatus::of(cache)
            },
            opens: Some(metrics::OPENS.get()),
            hits: Some(metrics::HITS.get()),
            misses: Some(metrics::MISSES.get()),
            coalesced: Some(metrics::COALESCED.get()),
            bytes_from_cache: Some(metrics::BYTES_FROM_CACHE.get()),
            bytes_from_remote: Some(metrics::BYTES_FROM_REMOTE.get()),
            requests: RequestCounts {
                head: Some(requests.head.get()),
                get: Some(requests.get.get()),
                list: Some(requests.list.get()),
                put: Some(requests.put.get()),
                delete: Some(requests.delete.get()),
            },
            retries: Some(metrics::RETRIES.get()),
            errors: Some(metrics::errors().map(|(errno, count)| (name(errno), count)).collect()),
            passthrough: Some(self.passthrough),
            in_flight: Some(self.in_flight()),
            pending_uploads: cache.map(|cache| pending(cache, Some(&self.uploads))),
            ..Status::unknown()
        }
    }

    /// What there would still be to do. Blocks on the disk, briefly.
    pub fn unfinished(&self) -> Unfinished {
        Unfinished {
            pid: std::process::id(),
            pid_namespace: pid_namespace(),
            writing: self.spooled.count(),
            uploads: self.uploads.count_unfinished(),
            cache_dir: self.fetcher.cache().map(|cache| cache.path().to_owned()),
        }
    }

    fn in_flight(&self) -> Vec<InFlight> {
        let under_way = self.fetcher.in_flight().into_iter();
        let mut under_way: Vec<InFlight> = under_way
            .map(|(object, bytes)| InFlight {
                name: object.key.as_str().to_owned(),
                bytes,
                size: object.size,
            })
            .collect();
        under_way.sort_by(|a, b| a.name.cmp(&b.name));
        under_way
    }
}

impl Unfinished {
    /// As JSON text.
    ///
    /// # Errors
    /// A defect.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        to_json(self)
    }

    /// Whether the daemon's process id means to us what it means to it.
    pub fn is_of_our_namespace(&self) -> bool {
        self.pid_namespace == pid_namespace()
    }
}

impl Status {
    /// What a cache directory alone tells, if there is one.
    pub fn of_cache(cache: Option<&CacheDir>) -> Status {
        let pending_uploads = cache.map(|cache| pending(cache, None));
        Status { cache: CacheStatus::of(cache), pending_uploads, ..Status::unknown() }
    }

    /// What is known of a cache directory that isn't there yet: that nothing is in it.
    pub fn of_missing_cache(dir: &Path) -> Status {
        let none = Some(0);
        let dir = Some(dir.display().to_string());
        let cache =
            CacheStatus { dir, files: none, bytes: none, pinned_bytes: none, ..CacheStatus::default() };
        Status { cache, pending_uploads: Some(Vec::new()), ..Status::unknown() }
    }

    /// As JSON text, for people and machines.
    ///
    /// # Errors
    /// A defect.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        to_json(self)
    }

    fn unknown() -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: None,
            mountpoint: None,
            remotes: Vec::new(),
            cache: CacheStatus::default(),
            opens: None,
            hits: None,
            misses: None,
            coalesced: None,
            bytes_from_cache: None,
            bytes_from_remote: None,
            requests: RequestCounts::default(),
            retries: None,
            errors: None,
            passthrough: None,
            in_flight: None,
            pending_uploads: None,
        }
    }
}

impl CacheStatus {
    fn of(cache: Option<&CacheDir>) -> CacheStatus {
        let Some(cache) = cache else { return CacheStatus::default() };
        let usage = cache.usage();
        CacheStatus {
            dir: Some(cache.path().display().to_string()),
            files: Some(usage.files),
            bytes: Some(usage.bytes),
            max_bytes: cache.space().cap(),
            pinned_bytes: usage.pinned,
            evicted_files: None,
        }
    }
}

fn to_json(report: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(report)
        .map_err(|e| Error::new(Kind::Internal, format!("the status can't be told: {e}")))?;
    text.push(b'\n');
    Ok(text)
}

/// This process's; empty where that can't be told.
fn pid_namespace() -> PathBuf {
    std::fs::read_link("/proc/self/ns/pid").unwrap_or_default()
}

fn pending(cache: &CacheDir, uploads: Option<&Uploads>) -> Vec<Pending> {
    let sent = |name: &str| uploads?.sent(&Key::new(name).ok()?);
    let entries = cache.pending().into_iter();
    entries.map(|upload| Pending { sent: sent(&upload.name), upload }).collect()
}

/// `ENOENT` and its like; its number when it has no name.
fn name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => errno.to_string(),
        known => format!("{known:?}"),
    }
}
