//! Names that don't exist: few requests, and no longer believed than promised.

use std::fs;
use std::time::{Duration, Instant};

use aztec_cache_test_support::s3::{Options, S3Server};

use crate::common::{Mount, Place, needs_fuse, wait_for};

/// What is promised is 1 s; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// Looks for `names` artifacts that don't exist.
fn miss(mount: &Mount, round: &str, names: usize) {
    for n in 0..names {
        let name = format!("missing-{round}-{n}.tar.gz");
        assert!(!mount.file(&name).exists(), "{name}");
    }
}

/// Looks for missing names until the directory's listing answers.
fn miss_until_listed(server: &S3Server, mount: &Mount) {
    let mut round = 0;
    wait_for("a miss without a request", || {
        round += 1;
        let before = server.counts().head;
        miss(mount, &format!("warm-up-{round}"), 3);
        server.counts().head == before
    });
}

#[test]
fn an_artifact_s_name_takes_one_head_and_another_a_look_for_a_directory() {
    needs_fuse!();
    let server = S3Server::start();
    server.put("build-cache/odd.tar.gz/x", "content");
    let place = Place::of(&server);
    // Each by itself: after a miss, the directory is listed when another name is asked for.
    for (name, requests) in [("a.tar.gz", (1, 0)), ("v1.2", (1, 1))] {
        let mount = place.mount();
        server.reset_counts();
        assert!(!mount.file(name).exists());
        assert_eq!((server.counts().head, server.counts().list), requests, "{name}");
        mount.unmount();
    }
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), ["odd.tar.gz"]);
    assert!(fs::metadata(mount.file("odd.tar.gz")).unwrap().is_dir(), "the listing showed it");
}

#[test]
fn many_missing_names_are_answered_by_one_listing() {
    needs_fuse!();
    let server = S3Server::start();
    server.put("build-cache/there.tar.gz", "content");
    let place = Place::of(&server);
    let mount = place.mount();
    miss_until_listed(&server, &mount);
    server.reset_counts();
    miss(&mount, "again", 300);
    let counts = server.counts();
    assert!(counts.head + counts.list < 100, "{counts:?}");
    assert_eq!(mount.read("there.tar.gz").unwrap(), b"content");
}

#[test]
fn what_appears_is_seen_soon_although_misses_go_on() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    for round in 0..3 {
        miss_until_listed(&server, &mount);
        let name = format!("new-{round}.tar.gz");
        assert!(!mount.file(&name).exists());
        server.put(&format!("build-cache/{name}"), "content");
        let since = Instant::now();
        while !mount.file(&name).exists() {
            assert!(since.elapsed() < SOON, "{name} is still missing");
            miss(&mount, &format!("{round}"), 3);
        }
    }
}

#[test]
fn a_large_directory_is_not_listed_for_its_misses() {
    needs_fuse!();
    let server = S3Server::start_with(Options { page_size: 10, ..Options::default() });
    for n in 0..400 {
        server.put(&format!("build-cache/artifact-{n:03}.tar.gz"), "x");
    }
    let place = Place::of(&server);
    let mount = place.mount();
    server.reset_counts();
    miss(&mount, "first", 3);
    wait_for("an attempt", || server.counts().list > 0);
    miss(&mount, "then", 300);
    let counts = server.counts();
    assert_eq!(counts.head, 303, "a part of a listing answers nothing");
    assert!(counts.list <= 20, "{}", counts.list);
}
