//! The inode table: which number names which directory or object version, for as long as the kernel knows it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::coherence::Served;
use crate::object::ObjectVersion;
use crate::spooled::SpooledFile;

/// The root directory's inode number (`FUSE_ROOT_ID` in the kernel's `include/uapi/linux/fuse.h`).
pub const ROOT: u64 = 1;

/// What an inode number names.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A directory, by its path below the mount; `""` is the root.
    Dir(Arc<str>),
    /// One version of an object. Another version gets another number, so that pages the kernel keeps are never another
    /// version's.
    File(Served),
    /// A file that is being written and has no version yet.
    Spooled(Arc<SpooledFile>),
}

/// What a node is found by when it is looked up again. What is being written under a name has nothing to do with what
/// others see there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Path(Arc<str>),
    Spooled(u64),
}

impl Node {
    fn name(&self) -> Name {
        match self {
            Node::Dir(path) => Name::Path(path.clone()),
            Node::File(served) => Name::Path(served.version().key.shared()),
            Node::Spooled(file) => Name::Spooled(file.id()),
        }
    }

    /// Whether what the kernel keeps of one file is right for the other.
    fn has_pages_of(&self, other: &Node) -> bool {
        match (self, other) {
            (Node::File(a), Node::File(b)) => a.version() == b.version() && a.is_genuine() && b.is_genuine(),
            _ => false,
        }
    }
}

/// The table. A number lives from its first lookup until the kernel has forgotten it as often as it was looked up,
/// and is never used again.
#[derive(Debug)]
pub struct Nodes {
    separate: AtomicBool,
    /// Guards the whole table; never held across a wait.
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    by_number: HashMap<u64, Known>,
    by_name: HashMap<Name, u64>,
    next: u64,
}

#[derive(Debug)]
struct Known {
    node: Node,
    lookups: u64,
    /// The remote holds another version by now.
    outdated: bool,
}

impl Default for Nodes {
    fn default() -> Nodes {
        let (by_number, by_name) = (HashMap::new(), HashMap::new());
        Nodes {
            separate: AtomicBool::new(false),
            table: Mutex::new(Table { by_number, by_name, next: ROOT + 1 }),
        }
    }
}

impl Nodes {
    /// From now on a version gets another number once it is complete locally: the kernel can't read a file by itself while
    /// its number is open for reads through us, nor turn a file into a link. Else the pages that it has of the version
    /// stay useful.
    pub fn separate_complete_files(&self) {
        self.separate.store(true, Ordering::Relaxed);
    }

    /// The number of `node`, which the kernel is about to be told: counts one lookup.
    pub fn look_up(&self, node: Node) -> u64 {
        let separate = self.separate.load(Ordering::Relaxed);
        let mut table = self.table();
        let name = node.name();
        if let Some(number) = table.by_name.get(&name).copied()
            && let Some(known) = table.by_number.get_mut(&number)
            && (known.node == node || !separate && known.node.has_pages_of(&node))
        {
            known.node = node;
            known.lookups += 1;
            return number;
        }
        let number = table.next;
        table.next += 1;
        table.by_name.insert(name, number);
        table.by_number.insert(number, Known { node, lookups: 1, outdated: false });
        number
    }

    /// What `number` names; None when the kernel was never told, or has forgotten.
    pub fn get(&self, number: u64) -> Option<Node> {
        if number == ROOT {
            return Some(Node::Dir("".into()));
        }
        self.table().by_number.get(&number).map(|known| known.node.clone())
    }

    /// Notes that the remote no longer holds `version`: its path gets another number at the next lookup.
    pub fn outdate(&self, version: &ObjectVersion) {
        let mut table = self.table();
        let name = Name::Path(version.key.shared());
        let Some(number) = table.by_name.get(&name).copied() else { return };
        if let Some(known) = table.by_number.get_mut(&number)
            && matches!(&known.node, Node::File(served) if served.version() == version)
        {
            known.outdated = true;
            table.by_name.remove(&name);
        }
    }

    /// Whether `number` names a version that the remote no longer holds.
    pub fn is_outdated(&self, number: u64) -> bool {
        self.table().by_number.get(&number).is_some_and(|known| known.outdated)
    }

    /// The number of the directory at `path`, for a `..` entry; the root's if the kernel doesn't know it.
    pub fn number_of_dir(&self, path: &str) -> u64 {
        self.table().by_name.get(&Name::Path(path.into())).copied().unwrap_or(ROOT)
    }

    /// Whether the kernel knows a directory at `path`.
    pub fn is_dir(&self, path: &str) -> bool {
        let table = self.table();
        let number = table.by_name.get(&Name::Path(path.into()));
        number
            .and_then(|number| table.by_number.get(number))
            .is_some_and(|known| matches!(known.node, Node::Dir(_)))
    }

    /// Takes `lookups` off `number`'s count.
    pub fn forget(&self, number: u64, lookups: u64) {
        let mut table = self.table();
        let Some(known) = table.by_number.get_mut(&number) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        let name = known.node.name();
        table.by_number.remove(&number);
        // The path may name a newer version by now.
        if table.by_name.get(&name) == Some(&number) {
            table.by_name.remove(&name);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::cache::FileId;
    use crate::object::{ETag, Key};

    fn file(name: &str, etag: &str) -> Node {
        let (key, etag) = (Key::new(name).unwrap(), ETag::new(etag));
        let (modified, source) = (SystemTime::UNIX_EPOCH, "s3://b/".into());
        Node::File(Served::Remote(ObjectVersion { key, etag, size: 1, modified, checksum: None, source }))
    }

    #[test]
    fn a_version_keeps_its_number_and_another_gets_another() {
        let nodes = Nodes::default();
        let first = nodes.look_up(file("a", "1"));
        assert_eq!(nodes.look_up(file("a", "1")), first);
        let second = nodes.look_up(file("a", "2"));
        assert_ne!(first, second);
        assert_eq!(nodes.get(first), Some(file("a", "1")), "the old version's handles go on");
    }

    #[test]
    fn a_complete_file_keeps_its_number_unless_numbers_are_separate() {
        let local = |fetched| {
            let Node::File(served) = file("a", "1") else { unreachable!("it is a file") };
            Node::File(Served::Local { version: served.version().clone(), file: FileId::default(), fetched })
        };
        let nodes = Nodes::default();
        let number = nodes.look_up(file("a", "1"));
        assert_eq!(nodes.look_up(local(true)), number);
        assert_eq!(nodes.get(number), Some(local(true)));
        assert_ne!(nodes.look_up(local(false)), number, "someone else's bytes may differ");
        let nodes = Nodes::default();
        nodes.separate_complete_files();
        assert_ne!(nodes.look_up(file("a", "1")), nodes.look_up(local(true)));
    }

    #[test]
    fn an_outdated_version_is_looked_up_anew() {
        let nodes = Nodes::default();
        let old = nodes.look_up(file("a", "1"));
        let Node::File(served) = file("a", "1") else { unreachable!("it is a file") };
        nodes.outdate(served.version());
        assert!(nodes.is_outdated(old));
        let put_back = nodes.look_up(file("a", "1"));
        assert!(put_back != old && !nodes.is_outdated(put_back));
        nodes.forget(old, 1);
        assert_eq!(nodes.look_up(file("a", "1")), put_back);
    }

    #[test]
    fn forgotten_numbers_are_gone_for_good() {
        let nodes = Nodes::default();
        let old = nodes.look_up(file("a", "1"));
        nodes.look_up(file("a", "1"));
        let new = nodes.look_up(file("a", "2"));
        nodes.forget(old, 2);
        assert_eq!(nodes.get(old), None);
        assert_eq!(
            nodes.look_up(file("a", "2")),
            new,
            "forgetting the old version leaves the new one's path"
        );
        nodes.forget(new, 2);
        assert!(nodes.look_up(file("a", "1")) > new);
        assert_eq!(nodes.get(ROOT), Some(Node::Dir("".into())));
    }
}
