//! Large directories: shown as they arrive.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use aztec_cache_test_support::s3::{Fault, Op, S3Server};

use crate::common::{Place, errno, needs_fuse, wait_for};

const PAGE_DELAY: Duration = Duration::from_secs(2);

fn server_with(keys: usize) -> S3Server {
    let server = S3Server::start();
    for n in 0..keys {
        server.put(&format!("build-cache/artifact-{n:05}.tar.gz"), vec![b'x'; n % 7]);
    }
    server
}

#[test]
fn the_first_page_is_shown_while_the_others_are_on_their_way() {
    needs_fuse!();
    let server = server_with(2500);
    let place = Place::of(&server);
    let mount = place.mount();
    server.reset_counts();
    server.set_faults([Fault::delay(PAGE_DELAY).on(Op::List).skip(1)]);
    let start = Instant::now();
    let mut entries = fs::read_dir(&mount.path).unwrap();
    entries.next().unwrap().unwrap();
    assert!(start.elapsed() < PAGE_DELAY, "the first entry took {:?}", start.elapsed());
    let mut names: HashSet<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert!(start.elapsed() >= 2 * PAGE_DELAY, "pages came too early for this test to mean anything");
    assert_eq!(names.len(), 2499);
    names = fs::read_dir(&mount.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((names.len(), server.counts().list), (2500, 3), "the second ls came from memory");
}

#[test]
fn a_listing_that_breaks_off_is_an_error_not_a_shorter_directory() {
    needs_fuse!();
    let server = server_with(2500);
    let place = Place::of(&server);
    let mount = place.mount();
    server.set_faults([Fault::status(500, "InternalError").on(Op::List).skip(2).times(100)]);
    let broken: std::io::Result<Vec<_>> = fs::read_dir(&mount.path).unwrap().collect();
    let broken = broken.map(|entries| entries.len());
    assert_eq!(errno(broken), libc::EIO);
    server.set_faults([]);
    assert_eq!(mount.list("").unwrap().len(), 2500, "the next one is whole");
}

#[test]
fn where_listing_is_not_granted_a_file_shows_as_soon_as_it_is_kept() {
    needs_fuse!();
    let server = S3Server::start();
    server.put("build-cache/a.zst", "content");
    let mut place = Place::of(&server);
    place.arg("--no-sign-request");
    let mount = place.mount();
    assert!(mount.list("").unwrap().is_empty());
    mount.read("a.zst").unwrap();
    wait_for("publication", || place.cache().join("a.zst").exists());
    assert_eq!(mount.list("").unwrap(), ["a.zst"]);
}
