//! `file://`: a share that takes files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};

use aztec_cache::checksum::Checksum;
use aztec_cache::error::Kind;
use aztec_cache::store::{Existing, Put};
use aztec_cache_test_support::artifacts::random_bytes;

use super::{MIB, NAME, Remotes, payload};
use crate::common::{Tmpfs, assert_same, names_in, needs_root};

#[test]
fn files_of_all_sizes_arrive_whole_and_nothing_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let remotes = Remotes::directory(dir.path());
    assert!(remotes.accepts_uploads());
    for size in [0, 1, 300_001, 5 * MIB] {
        let (name, body) = (format!("size-{size}.zst"), random_bytes(size as u64, size));
        let version = remotes.store(&name, &body);
        assert_same(&name, &fs::read(dir.path().join(&name)).unwrap(), &body);
        assert!(remotes.head(&name).unwrap().is(&version));
    }
    remotes.store("deep/er/nested.zst", b"nested");
    assert_eq!(fs::read(dir.path().join("deep/er/nested.zst")).unwrap(), b"nested");
    assert_eq!(names_in(&dir.path().join("deep/er")), ["nested.zst"]);
    assert_eq!(names_in(dir.path()).len(), 5);
    // As for any file that a program makes: whoever shares the directory may read it.
    let made = fs::File::create(dir.path().join("made")).unwrap().metadata().unwrap().permissions();
    let put = fs::metadata(dir.path().join("size-1.zst")).unwrap().permissions();
    assert_eq!(put.mode(), made.mode());
}

#[test]
fn the_first_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let remotes = Remotes::directory(dir.path());
    fs::write(dir.path().join(NAME), "theirs").unwrap();
    assert_eq!(remotes.put(NAME, &payload(b"ours"), Existing::Keep).unwrap(), Put::Kept);
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), b"theirs");
    let replaced = remotes.put(NAME, &payload(b"ours"), Existing::Replace).unwrap();
    assert!(matches!(replaced, Put::Stored(version) if version.is(&remotes.head(NAME).unwrap())));
    assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), b"ours");
    assert_eq!(names_in(dir.path()), [NAME]);
    remotes.delete(NAME).unwrap();
    remotes.delete(NAME).unwrap();
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn of_many_writers_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let name = format!("{round}.zst");
        let bodies: Vec<_> = (0..4).map(|n| random_bytes(n, 100_000)).collect();
        let barrier = Barrier::new(bodies.len());
        let put = |body: &Vec<u8>| {
            let remotes = Remotes::directory(dir.path());
            let payload = payload(body);
            barrier.wait();
            remotes.put(&name, &payload, Existing::Keep).unwrap()
        };
        let ends: Vec<Put> = thread::scope(|scope| {
            let writers: Vec<_> = bodies.iter().map(|body| scope.spawn(|| put(body))).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let winners: Vec<usize> = (0..ends.len()).filter(|n| ends[*n] != Put::Kept).collect();
        assert_eq!(winners.len(), 1, "{ends:?}");
        assert_same(&name, &fs::read(dir.path().join(&name)).unwrap(), &bodies[winners[0]]);
    }
    assert_eq!(names_in(dir.path()).len(), 10);
}

#[test]
fn what_cannot_be_written_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Remotes::directory(&dir.path().join("unmounted"));
    assert!(!missing.accepts_uploads());
    let (kind, said) = missing.fail(NAME, b"bytes");
    assert!(kind == Kind::Unreachable && said.contains("mounted"), "{said}");
    assert!(!dir.path().join("unmounted").exists());

    let remotes = Remotes::directory(dir.path());
    fs::create_dir(dir.path().join("dir.zst")).unwrap();
    fs::write(dir.path().join("file.zst"), "bytes").unwrap();
    for name in ["dir.zst", "file.zst/below.zst"] {
        assert_eq!(remotes.fail(name, b"bytes").0, Kind::Refused, "{name}");
    }
    let error = remotes.put("dir.zst", &payload(b"bytes"), Existing::Replace).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    let mut changed = payload(b"bytes");
    changed.checksum = Checksum::crc64nvme(1);
    assert_eq!(remotes.put(NAME, &changed, Existing::Keep).unwrap_err().kind(), Kind::Local);
    assert_eq!(names_in(dir.path()), ["dir.zst", "file.zst"]);
}

#[test]
fn a_full_disk_and_one_that_may_only_be_read() {
    needs_root!("file systems of its own");
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::at(&dir.path().join("disk"), "size=1m");
    let remotes = Remotes::directory(&dir.path().join("disk"));
    let (kind, said) = remotes.fail(NAME, &random_bytes(1, 2 * MIB));
    assert!(kind == Kind::Remote && said.contains("No space"), "{said}: there may be some later");
    assert!(names_in(&dir.path().join("disk")).is_empty());
    remotes.store(NAME, b"bytes");
    disk.make_read_only();
    assert!(!remotes.accepts_uploads());
    let (kind, said) = remotes.fail("other.zst", b"bytes");
    assert!(kind == Kind::AccessDenied && said.contains("writable"), "{said}");
    assert_eq!(remotes.delete(NAME).unwrap_err().kind(), Kind::AccessDenied);
}

/// Killed in the middle, a writer leaves its file behind, which is nobody's artifact.
#[test]
fn files_that_are_being_written_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".aztec-cache-put-x1y2z3"), "half").unwrap();
    fs::write(dir.path().join(NAME), "whole").unwrap();
    let remotes = Remotes::directory(dir.path());
    let page = remotes.runtime.block_on(remotes.store.list("", None, 1000)).unwrap();
    let names: Vec<_> = page.objects.into_iter().map(|object| object.name).collect();
    assert_eq!(names, [NAME]);
}

#[test]
fn what_a_dead_writer_left_goes_with_the_next_put_into_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    fs::create_dir(&below).unwrap();
    let file = |name: &str, age: Duration| {
        let file = fs::File::create(below.join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        file
    };
    let (hour, week) = (Duration::from_secs(3600), Duration::from_secs(7 * 24 * 3600));
    drop((file(".aztec-cache-put-dead", week), file(".aztec-cache-put-fresh", hour), file("old.zst", week)));
    let slow = file(".aztec-cache-put-slow", week);
    slow.lock().unwrap();
    let remotes = Remotes::directory(dir.path());
    remotes.store(NAME, b"elsewhere");
    assert_eq!(names_in(&below).len(), 4);
    remotes.store("below/new.zst", b"bytes");
    let left = [".aztec-cache-put-fresh", ".aztec-cache-put-slow", "new.zst", "old.zst"];
    assert_eq!(names_in(&below), left);
}
