//! `evict` and `prune`: local copies go, the remote's stay.

use std::fs::{self, File};
use std::process::Output;
use std::time::{Duration, SystemTime};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::quiet_output;
use crate::common::{Place, assert_refused, assert_same, key, names_in, needs_fuse};

const NAMES: [&str; 4] = ["a.zst", "b.zst", "c.zst", "d.zst"];

/// Four files of 100 KiB, used one hour after the other, the last just now.
fn four() -> (S3Server, Place) {
    let server = S3Server::start();
    let place = Place::of(&server);
    for (n, name) in NAMES.into_iter().enumerate() {
        server.put(&key(name), random_bytes(n as u64, 100 << 10));
    }
    quiet_output(&place, &[&["prefetch"], &NAMES[..]].concat());
    for (age, name) in NAMES.into_iter().rev().enumerate() {
        let used = SystemTime::now() - Duration::from_secs(age as u64 * 3600);
        let file = File::options().write(true).open(place.cache().join(name)).unwrap();
        file.set_times(fs::FileTimes::new().set_accessed(used)).unwrap();
    }
    (server, place)
}

fn run(place: &Place, args: &[&str]) -> Output {
    place.command(args).output().expect("the binary runs")
}

fn cached(place: &Place) -> Vec<String> {
    names_in(place.cache()).into_iter().filter(|name| !name.starts_with('.')).collect()
}

#[test]
fn a_copy_goes_by_its_name_and_is_fetched_again() {
    needs_fuse!();
    let (server, place) = four();
    let mount = place.mount();
    let open = File::open(mount.file("b.zst")).unwrap();
    let evicted = run(&place, &["evict", "b.zst", "c.zst"]);
    assert!(evicted.status.success() && evicted.stderr.is_empty(), "{evicted:?}");
    assert_eq!(cached(&place), ["a.zst", "d.zst"]);
    assert_eq!(names_in(&place.cache().join(".aztec-cache/meta")), ["a.zst", "d.zst"]);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &open, &mut bytes).unwrap();
    assert_same("whoever reads it goes on", &bytes, &random_bytes(1, 100 << 10));
    assert_same("fetched again", &mount.read("c.zst").unwrap(), &random_bytes(2, 100 << 10));
    assert!(server.keys().contains(&key("b.zst")), "the remote's stays");
    let again = run(&place, &["evict", "b.zst", "a.zst"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("b.zst: not in the local cache"), "{again:?}");
    assert!(!cached(&place).contains(&"a.zst".to_owned()), "the others go all the same");
}

#[test]
fn the_least_recently_used_go_first() {
    let (_server, place) = four();
    let dry = run(&place, &["prune", "--max-size", "250KiB", "--dry-run"]);
    assert_eq!(String::from_utf8_lossy(&dry.stdout), "a.zst\nb.zst\n");
    assert_eq!(cached(&place), NAMES, "a dry run removes nothing");
    let done = run(&place, &["prune", "--max-size", "250KiB"]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "a.zst\nb.zst\n");
    assert!(String::from_utf8_lossy(&done.stderr).contains("2 removed, 200.0 KiB"), "{done:?}");
    assert_eq!(cached(&place), ["c.zst", "d.zst"]);
    let old = run(&place, &["prune", "--older-than", "30m"]);
    assert!(old.status.success(), "{old:?}");
    assert_eq!(cached(&place), ["d.zst"]);
}

#[test]
fn what_others_put_there_stays_unless_it_is_an_artifact() {
    let (_server, place) = four();
    fs::create_dir(place.cache().join("extracted")).unwrap();
    fs::write(place.cache().join("extracted/file"), "x").unwrap();
    fs::write(place.cache().join(".lock.noir"), "x").unwrap();
    std::os::unix::fs::symlink("a.zst", place.cache().join("link.zst")).unwrap();
    assert!(run(&place, &["prune", "--max-size", "0"]).status.success());
    assert_eq!(names_in(place.cache()), [".aztec-cache", ".lock.noir", "extracted", "link.zst"]);
    assert!(place.cache().join("extracted/file").exists());
    assert_eq!(run(&place, &["evict", "link.zst", "extracted"]).status.code(), Some(1));
    assert_eq!(names_in(place.cache()).len(), 4);
}

#[test]
fn a_file_in_use_is_not_pruned() {
    needs_fuse!();
    let (_server, place) = four();
    let mount = place.mount();
    let open = File::open(mount.file("a.zst")).unwrap();
    assert!(run(&place, &["prune", "--max-size", "0"]).status.success());
    assert_eq!(cached(&place), ["a.zst"]);
    drop(open);
}

#[test]
fn wrong_usage_is_said() {
    let (_server, mut place) = four();
    assert_refused(&run(&place, &["prune"]), 2, &["--max-size", "--older-than"]);
    assert_refused(&run(&place, &["prune", "--max-size", "much"]), 2, &["--max-size", "much"]);
    assert_refused(&run(&place, &["prune", "--older-than", "long"]), 2, &["--older-than", "long"]);
    assert_refused(&run(&place, &["evict", "/etc/passwd"]), 2, &["/etc/passwd"]);
    place.cache = None;
    assert_refused(&run(&place, &["evict", "a.zst"]), 2, &["CACHE_LOCAL_DIR"]);
}
