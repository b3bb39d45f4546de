//! The unpacker: entries become what they stand for, in their order.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::extract::Result;
use crate::extract::attributes::{Attributes, Rules};
use crate::extract::entries::{Entries, Entry, What};
use crate::extract::name::Name;
use crate::extract::sparse::{Extent, Map};
use crate::extract::stream::Stream;
use crate::extract::tree::Tree;
use crate::extract::writers::{Job, Output, Writers};

/// Unpacks `stream` into `tree`; what is in the files is left to `writers`.
///
/// # Errors
/// As for [`super::extract`].
pub fn run(tree: Tree, stream: Stream, writers: Writers) -> Result<()> {
    let (rules, entries) = (Rules::new()?, Entries::new(stream));
    let mut unpacker = Unpacker { tree, entries, rules, writers, stripped: false };
    let unpacked = unpacker.all();
    let Unpacker { mut tree, writers, .. } = unpacker;
    let unwritten = writers.finish()?;
    for file in &unwritten {
        tree.discard(&file.path);
    }
    if let Some(first) = unwritten.first() {
        let errno = Errno::from_raw(first.error.raw_os_error().unwrap_or(libc::EIO));
        return Err(tree.error(&first.path, errno));
    }
    unpacked?;
    tree.finish()
}

struct Unpacker {
    tree: Tree,
    entries: Entries,
    rules: Rules,
    writers: Writers,
    /// It has been said that slashes are cut off.
    stripped: bool,
}

impl Unpacker {
    /// Unpacks all entries, or stops at the first file that can't be written.
    fn all(&mut self) -> Result<()> {
        while let Some(entry) = self.entries.next()? {
            if self.writers.have_failed() {
                return Ok(());
            }
            self.entry(entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        let name = self.name(&entry.name)?;
        let attributes = self.rules.apply(&entry)?;
        match entry.what {
            What::File(map) => self.file(&name, map.as_ref(), attributes),
            What::Directory => self.tree.directory(&name, attributes),
            What::HardLink(target) => {
                let target = self.name(&target)?;
                self.tree.hard_link(&name, &target)
            }
            What::Symlink(target) => self.tree.symlink(&name, OsStr::from_bytes(&target), &attributes),
            What::Fifo => self.tree.node(&name, SFlag::S_IFIFO, (0, 0), &attributes),
            What::CharDevice(major, minor) => {
                self.tree.node(&name, SFlag::S_IFCHR, (major, minor), &attributes)
            }
            What::BlockDevice(major, minor) => {
                self.tree.node(&name, SFlag::S_IFBLK, (major, minor), &attributes)
            }
        }
    }

    fn name(&mut self, bytes: &[u8]) -> Result<Name> {
        let name = Name::new(bytes)?;
        if name.was_absolute && !std::mem::replace(&mut self.stripped, true) {
            log::warn!("'{}': the leading '/' of names is left out", bytes.escape_ascii());
        }
        Ok(name)
    }

    fn file(&mut self, name: &Name, map: Option<&Map>, attributes: Attributes) -> Result<()> {
        let file = self.tree.file(name, map.map_or(0, |map| map.size), &attributes)?;
        let output = Arc::new(Output { file, path: name.path().to_owned(), attributes });
        let copied = self.copy(&output, map);
        if copied.is_err() {
            self.tree.discard(name.path());
        }
        copied
    }

    /// Has the entry's data written.
    fn copy(&mut self, output: &Arc<Output>, map: Option<&Map>) -> Result<()> {
        let whole = [Extent { offset: 0, length: self.entries.left() }];
        let lane = self.writers.lane();
        let job = |at, bytes| Job { output: output.clone(), at, bytes, last: false };
        let mut job_ahead = job(0, Bytes::new());
        for extent in map.map_or(&whole[..], |map| &map.extents) {
            let mut at = extent.offset;
            while at < extent.offset + extent.length {
                let bytes = self.entries.data(extent.offset + extent.length - at)?;
                let length = bytes.len() as u64;
                self.writers.write(lane, std::mem::replace(&mut job_ahead, job(at, bytes)))?;
                at += length;
            }
        }
        job_ahead.last = true;
        self.writers.write(lane, job_ahead)
    }
}
