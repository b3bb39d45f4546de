//! Daemons that die or stop while others depend on them.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::beside;
use crate::common::{Mount, Place, assert_same, key, needs_fuse, wait_for, within};

const NAME: &str = "barretenberg-4143489f79f3d92e.zst";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The largest part of a download.
const PART: u64 = 8 << 20;

/// One of those who read along goes on with the file, and the others read along with that one.
#[test]
fn those_who_read_along_with_a_daemon_that_died_read_along_with_the_next() {
    needs_fuse!();
    let body = random_bytes(41, 24 << 20);
    let server = S3Server::start();
    server.put(&key(NAME), body.clone());
    let mut first = Place::of(&server);
    first.arg("-vv");
    let others: Vec<Place> = (0..4).map(|_| beside(&first, &server)).collect();
    let (mut leader, followers) = (first.mount(), others.iter().map(Place::mount).collect::<Vec<Mount>>());
    // Several records of each part.
    let gate = server.hold_gets(&key(NAME), 1300 * KIB);
    let read = |mount: &Mount| {
        let path = mount.file(NAME);
        thread::spawn(move || fs::read(path))
    };
    let led = read(&leader);
    wait_for("the connections to be held", || gate.waiting() >= 10);
    let readers: Vec<_> = followers.iter().map(read).collect();
    for follower in &followers {
        wait_for("the others to follow", || follower.said().contains("another process is fetching it"));
    }
    for mount in followers.iter().chain([&leader]) {
        wait_for("what was sent to be known to all", || mount.recorded() >= 15 * MIB);
    }
    leader.signal(libc::SIGKILL);
    leader.wait();
    drop(led.join().unwrap());
    gate.release();
    for reader in readers {
        let read = within(crate::common::PATIENCE, "a read", move || reader.join().unwrap().unwrap());
        assert_same("read along", &read, &body);
    }
    let (fetched, size) = (server.counts().bytes_of(&key(NAME)), body.len() as u64);
    assert!(fetched <= size + PART, "{fetched} bytes fetched of {size}");
}

/// A daemon that was stopped while it made room holds the ledger of the space in use.
#[test]
fn nobody_waits_for_a_daemon_that_was_stopped_while_it_made_room() {
    needs_fuse!();
    let body = random_bytes(42, 3_000_000);
    let server = S3Server::start();
    server.put(&key(NAME), body.clone());
    let mut place = Place::of(&server);
    place.arg("--max-cache-size").arg("10MB");
    let mount = place.mount();
    // As the other daemon would, which is none the wiser.
    let ledger = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(place.cache().join(".aztec-cache/space"))
        .unwrap();
    ledger.lock().unwrap();
    let path = mount.file(NAME);
    let read = within(Duration::from_secs(25), "a read", move || fs::read(path).unwrap());
    assert_same("not kept", &read, &body);
    assert!(!place.cache().join(NAME).exists(), "kept without a turn at the ledger");
    drop(ledger);
    wait_for("it to be kept again", || {
        assert_same("once the other goes on", &mount.read(NAME).unwrap(), &body);
        place.cache().join(NAME).exists()
    });
}
