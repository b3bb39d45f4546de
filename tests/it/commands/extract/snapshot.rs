//! All that can be seen of a tree: bytes, holes, modes, owners, times, links.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What is under each path, in words, without the bytes.
type Snapshot = BTreeMap<PathBuf, String>;

/// Fails at the first difference of the two trees.
#[track_caller]
pub fn assert_same(what: &str, ours: &Path, theirs: &Path) {
    let (our, their) = (snapshot(ours), snapshot(theirs));
    for path in our.keys().chain(their.keys()) {
        assert_eq!(our.get(path), their.get(path), "{what}: {} (ours left, theirs right)", path.display());
    }
    for path in our.keys().filter(|path| theirs.join(path).symlink_metadata().unwrap().is_file()) {
        let (a, b) = (data(&ours.join(path)), data(&theirs.join(path)));
        let lengths = |data: &Data| data.iter().map(|(at, bytes)| (*at, bytes.len())).collect::<Vec<_>>();
        assert_eq!(lengths(&a), lengths(&b), "{what}: the holes of {}", path.display());
        assert!(a == b, "{what}: the bytes of {}", path.display());
    }
}

fn snapshot(root: &Path) -> Snapshot {
    let (mut seen, mut links) = (Snapshot::new(), BTreeMap::new());
    look(root, Path::new(""), &mut seen, &mut links);
    seen
}

fn look(root: &Path, path: &Path, seen: &mut Snapshot, links: &mut BTreeMap<(u64, u64), PathBuf>) {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let kind = meta.file_type();
    let mut text = format!(
        "mode {:o}, owner {}:{}, mtime {}.{:09}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    if kind.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            look(root, &path.join(name), seen, links);
        }
    } else {
        let first = links.entry((meta.dev(), meta.ino())).or_insert_with(|| path.to_owned());
        text += &format!(", size {}, {} links, first {}", meta.size(), meta.nlink(), first.display());
    }
    if kind.is_symlink() {
        text += &format!(", to {:?}", fs::read_link(&full).unwrap());
    }
    if kind.is_char_device() || kind.is_block_device() {
        text += &format!(", device {:x}", meta.rdev());
    }
    seen.insert(path.to_owned(), text);
}

/// What a file holds, without its holes, and where.
type Data = Vec<(u64, Vec<u8>)>;

/// A root's look at the file, or an owner's who may not read it.
fn data(path: &Path) -> Data {
    let mode = fs::metadata(path).unwrap().permissions();
    if File::open(path).is_err() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let file = File::open(path).unwrap();
    fs::set_permissions(path, mode).unwrap();
    // SAFETY: lseek of an open descriptor takes no pointers.
    let seek = |at: u64, whence| unsafe { libc::lseek(file.as_raw_fd(), at as i64, whence) };
    let (mut data, mut at) = (Data::new(), 0);
    while let Ok(begin) = u64::try_from(seek(at, libc::SEEK_DATA)) {
        at = seek(begin, libc::SEEK_HOLE) as u64;
        let mut bytes = vec![0; (at - begin) as usize];
        file.read_exact_at(&mut bytes, begin).unwrap();
        data.push((begin, bytes));
    }
    data
}
