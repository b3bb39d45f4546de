//! Directories that hold something already: files are replaced as tar replaces them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::archives::{end, entry, file};
use super::{Bench, snapshot};

/// Does `prepare` in both directories, unpacks with both, and compares.
#[track_caller]
fn compare(what: &str, archive: Vec<u8>, prepare: impl Fn(&Path)) {
    let bench = Bench::new();
    // What is outside is the same for both.
    fs::create_dir(bench.dir("outside")).unwrap();
    fs::write(bench.dir("outside/file"), "not to be touched").unwrap();
    for name in ["ours", "theirs"] {
        fs::create_dir(bench.dir(name)).unwrap();
        prepare(&bench.dir(name));
    }
    let archive = end([entry("./", b'5', "", b""), archive].concat());
    bench.assert_as_tar(what, &archive);
    assert_eq!(fs::read(bench.dir("outside/file")).unwrap(), b"not to be touched", "{what}");
}

/// Sets the time, so that both sides are the same.
fn old(path: &Path) {
    fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
}

#[test]
fn what_is_there_is_replaced_and_never_written_through() {
    let new = || file("a", b"new");
    compare("a file", new(), |dir| fs::write(dir.join("a"), "old and longer").unwrap());
    compare("a file that may not be written", new(), |dir| {
        fs::write(dir.join("a"), "old").unwrap();
        fs::set_permissions(dir.join("a"), Permissions::from_mode(0o400)).unwrap();
    });
    compare("a file with another name", new(), |dir| {
        fs::write(dir.join("b"), "old").unwrap();
        old(&dir.join("b"));
        fs::hard_link(dir.join("b"), dir.join("a")).unwrap();
    });
    compare("a link out", new(), |dir| symlink("../outside/file", dir.join("a")).unwrap());
    compare("an empty directory", new(), |dir| fs::create_dir(dir.join("a")).unwrap());
}

#[test]
fn links_replace_what_is_there() {
    let link = || entry("a", b'2', "target", b"");
    compare("a file", link(), |dir| fs::write(dir.join("a"), "old").unwrap());
    compare("another link", link(), |dir| symlink("../outside/file", dir.join("a")).unwrap());
    compare("an empty directory", link(), |dir| fs::create_dir(dir.join("a")).unwrap());
    let hard = || [file("b", b"new"), entry("a", b'1', "b", b"")].concat();
    compare("a file, by another name", hard(), |dir| fs::write(dir.join("a"), "old").unwrap());
    compare("the same file", hard(), |dir| {
        fs::write(dir.join("a"), "old").unwrap();
        fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
    });
    let itself = || [file("a", b"new"), entry("a", b'1', "a", b"")].concat();
    compare("itself", itself(), |_| {});
}

#[test]
fn directories_replace_files_and_links_and_take_over_directories() {
    let directory = || [entry("a/", b'5', "", b""), file("a/b", b"new")].concat();
    compare("a file", directory(), |dir| fs::write(dir.join("a"), "old").unwrap());
    compare("a link out", directory(), |dir| symlink("../outside", dir.join("a")).unwrap());
    compare("a link within", directory(), |dir| {
        fs::create_dir(dir.join("real")).unwrap();
        old(&dir.join("real"));
        symlink("real", dir.join("a")).unwrap();
    });
    compare("a directory", directory(), |dir| {
        fs::create_dir(dir.join("a")).unwrap();
        fs::write(dir.join("a/other"), "kept").unwrap();
        old(&dir.join("a/other"));
        fs::set_permissions(dir.join("a"), Permissions::from_mode(0o700)).unwrap();
    });
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let twice = [file("a", &[1; 300_000]), file("a", b"second"), entry("a", b'2', "third", b"")];
    compare("of files", twice[..2].concat(), |_| {});
    compare("of files and links", twice.concat(), |_| {});
    let mut closed = entry("d/", b'5', "", b"");
    closed[100..108].copy_from_slice(b"0000500\0");
    super::archives::seal(&mut closed);
    let both = [closed.clone(), file("d/a", b""), entry("d/", b'5', "", b"")].concat();
    compare("of directories", both, |_| {});
    // The directory goes, and what it was to get with it.
    compare("of a directory and a file", [closed, file("d", b"x")].concat(), |_| {});
}

#[test]
fn a_link_that_stays_within_is_followed() {
    let within = [entry("real/", b'5', "", b""), entry("a", b'2', "real", b""), file("a/b", b"new")].concat();
    compare("to a directory", [within, entry("real/", b'5', "", b"")].concat(), |_| {});
}

#[test]
fn a_directory_that_holds_something_does_not_go() {
    let bench = Bench::new();
    fs::create_dir_all(bench.dir("ours/a/b")).unwrap();
    let path = bench.dir("ours/a");
    for entry in [file("a", b"new"), entry("a", b'2', "target", b"")] {
        bench.assert_refused(&end(entry), 5, &[path.to_str().unwrap(), "not empty"]);
    }
    assert!(path.join("b").is_dir());
}

#[test]
fn unpacking_again_gives_the_same() {
    let bench = Bench::new();
    let archive = super::archives::simple(10);
    bench.assert_as_tar("once", &archive);
    fs::write(bench.dir("ours/file-3"), "changed").unwrap();
    fs::remove_file(bench.dir("ours/file-4")).unwrap();
    bench.assert_as_tar("twice", &archive);
    snapshot::assert_same("both", &bench.dir("ours"), &bench.dir("theirs"));
}
