//! Directories: reading them, page by page.

use std::sync::Arc;

use crate::answer::Answer;
use crate::config::Expose;
use crate::error::{Error, Kind, Result};
use crate::filesystem::attributes::{Attributes, FileKind, attributes, file_kind};
use crate::filesystem::{Filesystem, node};
use crate::handles::OpenDir;
use crate::listing::{Entry, Slice};
use crate::nodes::{Node, ROOT};
use crate::object::Key;

/// The entries that every directory begins with.
const DOTS: [&str; 2] = [".", ".."];

/// An entry of an open directory.
pub struct DirEntry<'a> {
    /// The offset of the entry after it.
    pub next: u64,
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub kind: FileKind,
    /// What it names; None for `.` and `..`, which are not looked up.
    pub entry: Option<&'a Entry>,
}

/// Some of an open directory's entries, from an offset on.
pub struct DirPage {
    path: Arc<str>,
    slice: Slice,
    offset: u64,
    expose: Expose,
}

impl Filesystem {
    /// Opens a directory.
    pub fn open_dir(&self, number: u64) -> Result<u64> {
        match self.node(number)? {
            Node::Dir(path) => Ok(self.dirs.add(OpenDir::new(path))),
            Node::File(served) => Err(not_directory(&served.version().key)),
            Node::Spooled(file) => Err(not_directory(&file.key())),
        }
    }

    /// Some of an open directory's entries, from `offset` on; none at the end. Reading from the start again shows the directory as it is then.
    pub fn read_dir(&self, handle: u64, offset: u64) -> Answer<DirPage> {
        let dir = match self.dirs.get(handle) {
            Ok(dir) => dir,
            Err(error) => return Answer::Now(Err(error)),
        };
        let known = if offset > 0 { dir.listing() } else { None };
        let listing = known.unwrap_or_else(|| {
            let listing = self.listings.get(&dir.path);
            dir.set_listing(listing.clone());
            listing
        });
        let (path, index) = (dir.path.clone(), offset.saturating_sub(DOTS.len() as u64) as usize);
        let answer = match listing.get(index) {
            Some(slice) => Answer::Now(slice),
            None => Answer::later(async move { listing.wait(index).await }),
        };
        let expose = self.common.expose;
        answer.map(move |slice| DirPage { path, slice, offset, expose })
    }

    /// Looks up an entry that [`Filesystem::read_dir`] gave, counting the lookup.
    pub fn look_up_entry(&self, page: &DirPage, entry: &Entry) -> Attributes {
        let node = node(entry, || join(&page.path, entry.name()).into());
        attributes(self.nodes.look_up(node.clone()), &node, self.common)
    }

    /// The attributes shown for `.` and `..`.
    pub fn dot_attributes(&self, page: &DirPage, name: &str) -> Attributes {
        let path = match name {
            "." => &*page.path,
            _ => page.path.rsplit_once('/').map_or("", |(parent, _)| parent),
        };
        let number = if path.is_empty() { ROOT } else { self.nodes.number_of_dir(path) };
        attributes(number, &Node::Dir(path.into()), self.common)
    }

    /// Closes a directory.
    pub fn release_dir(&self, handle: u64) {
        self.dirs.remove(handle);
    }
}

impl DirPage {
    /// The entries: `.` and `..` at offsets 0 and 1, then the listing's.
    pub fn entries(&self) -> impl Iterator<Item = DirEntry<'_>> {
        let dots = DOTS.into_iter().enumerate();
        let dots = dots.map(|(i, name)| DirEntry {
            next: i as u64 + 1,
            name,
            kind: FileKind::Directory,
            entry: None,
        });
        let first = self.offset.max(DOTS.len() as u64);
        let listed = self.slice.entries().iter().enumerate();
        let listed = listed.map(move |(i, entry)| DirEntry {
            next: first + i as u64 + 1,
            name: entry.name(),
            kind: match entry {
                Entry::Dir(_) => FileKind::Directory,
                Entry::File(served) => file_kind(served, self.expose),
            },
            entry: Some(entry),
        });
        dots.skip(self.offset as usize).chain(listed)
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn not_directory(key: &Key) -> Error {
    Error::new(Kind::NotDirectory, format!("{key} is a file"))
}
