//! What the mount tells of itself: `status.json` and `unfinished.json` in `.aztec-cache`, which are there for who names them, and in
//! no listing.

use std::ffi::OsStr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::answer::{Answer, blocking};
use crate::error::{Error, Kind, Result};
use crate::filesystem::attributes::{Attributes, Common, FileKind, SHORT_TTL};
use crate::nodes::ROOT;
use crate::object::RESERVED;

/// Inode numbers; those of others count up from the root's.
const DIR: u64 = u64::MAX - 1;
const STATUS: u64 = u64::MAX - 2;
const UNFINISHED: u64 = u64::MAX - 3;

/// The reports' names.
const STATUS_NAME: &str = "status.json";
const UNFINISHED_NAME: &str = "unfinished.json";

/// What makes the report. Blocks on the disk.
pub type Report = dyn Fn() -> Result<Vec<u8>> + Send + Sync;

/// The reports of a mount.
pub struct Reports {
    /// `status.json`.
    pub status: Arc<Report>,
    /// `unfinished.json`: what the mount would still have to do if it were unmounted now. Made in no time.
    pub unfinished: Arc<Report>,
}

/// The directory and the files in it, once there is something to report.
#[derive(Default)]
pub(super) struct Own(OnceLock<Reports>);

/// An open report, as of when it was first read.
pub(super) struct OpenReport {
    report: Arc<Report>,
    bytes: Arc<OnceCell<Bytes>>,
}

impl Own {
    pub fn set(&self, reports: Reports) {
        let _ = self.0.set(reports);
    }

    /// Whether `number` is one of them.
    pub fn has(&self, number: u64) -> bool {
        matches!(number, DIR | STATUS | UNFINISHED)
    }

    /// What `name` in the directory `parent` is, if that is decided here.
    pub fn find(&self, parent: u64, name: &OsStr, common: &Common) -> Option<Result<Attributes>> {
        self.0.get()?;
        match parent {
            ROOT if name == RESERVED => self.attributes(DIR, common).map(Ok),
            DIR if name == STATUS_NAME => self.attributes(STATUS, common).map(Ok),
            DIR if name == UNFINISHED_NAME => self.attributes(UNFINISHED, common).map(Ok),
            DIR => Some(Err(Error::new(Kind::NotFound, format!("{}: not kept here", name.display())))),
            _ => None,
        }
    }

    /// The attributes of `number`, if it is one of them. The directory may be searched, but not read: there is nothing to be
    /// discovered. A report's length isn't known before it is made.
    pub fn attributes(&self, number: u64, common: &Common) -> Option<Attributes> {
        let (kind, mode) = match number {
            DIR => (FileKind::Directory, 0o111),
            STATUS | UNFINISHED => (FileKind::Regular, 0o444),
            _ => return None,
        };
        let Common { uid, gid, umask, .. } = *common;
        let modified = SystemTime::now();
        Some(Attributes { number, kind, size: 0, modified, mode: mode & !umask, uid, gid, ttl: SHORT_TTL })
    }

    /// Opens `number`, if that is a report's.
    pub fn open(&self, number: u64) -> Option<OpenReport> {
        let Reports { status, unfinished } = self.0.get()?;
        let report = match number {
            STATUS => status.clone(),
            UNFINISHED => unfinished.clone(),
            _ => return None,
        };
        Some(OpenReport { report, bytes: Arc::default() })
    }
}

impl OpenReport {
    /// Up to `size` bytes of it from `offset` on.
    pub fn read(&self, offset: u64, size: u32) -> Answer<Bytes> {
        let (report, bytes) = (self.report.clone(), self.bytes.clone());
        Answer::later(async move {
            let make = || async { Ok::<_, Error>(Bytes::from(blocking(move || report()).await??)) };
            let bytes = bytes.get_or_try_init(make).await?;
            let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            Ok(bytes.slice(within(offset)..within(offset.saturating_add(size.into()))))
        })
    }
}
