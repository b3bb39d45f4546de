//! Several daemons on one cache directory.

use std::fs;
use std::thread;
use std::time::Instant;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::{beside, count_of};
use crate::common::{Mount, Place, assert_same, key, needs_fuse, wait_for, within};

const NAME: &str = "noir-b786c534d2b9261d.tar.gz";
const KIB: u64 = 1 << 10;

/// Reads `keys` artifacts through each of `daemons` mounts at once; each may be fetched once.
fn all_at_once(daemons: usize, keys: usize) {
    let server = S3Server::start();
    let name = |n: usize| format!("circuit-{n}.tar.gz");
    let body = |n: usize| random_bytes(n as u64, 200_000 + 100_000 * (n % 20));
    (0..keys).for_each(|n| drop(server.put(&key(&name(n)), body(n))));
    let place = Place::of(&server);
    let places: Vec<Place> = (0..daemons).map(|_| beside(&place, &server)).collect();
    let mounts: Vec<Mount> = places.iter().map(Place::mount).collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        for (d, mount) in mounts.iter().enumerate() {
            for n in 0..keys {
                scope.spawn(move || {
                    let n = (n + d) % keys;
                    assert_same(&name(n), &mount.read(&name(n)).unwrap(), &body(n));
                });
            }
        }
    });
    eprintln!("{daemons} daemons, {keys} keys: {:?}", begun.elapsed());
    for n in 0..keys {
        let (fetched, size) = (server.counts().bytes_of(&key(&name(n))), body(n).len() as u64);
        assert_eq!(fetched, size, "{} was fetched more than once", name(n));
    }
}

#[test]
fn one_download_for_all_daemons() {
    needs_fuse!();
    all_at_once(6, 20);
}

/// `cargo test --test it -- --ignored fifty_daemons --nocapture`
#[test]
#[ignore = "takes 50 daemons"]
fn fifty_daemons() {
    needs_fuse!();
    all_at_once(count_of("AZTEC_CACHE_DAEMONS", 50), 20);
}

/// Two daemons of which the first fetches, held at the server, and the other reads along.
struct Pair {
    server: S3Server,
    places: [Place; 2],
    body: Vec<u8>,
}

impl Pair {
    fn new() -> Pair {
        let body = random_bytes(9, 20 << 20);
        let server = S3Server::start();
        server.put(&key(NAME), body.clone());
        let place = Place::of(&server);
        let mut other = beside(&place, &server);
        other.arg("-vv");
        Pair { places: [place, other], server, body }
    }

    /// Runs `meanwhile` while both wait, which says whether it killed the first; returns what the other one read.
    fn read_while(&self, meanwhile: impl FnOnce(&mut Mount) -> bool) -> Vec<u8> {
        let (mut first, other) = (self.places[0].mount(), self.places[1].mount());
        let gate = self.server.hold_gets(&key(NAME), 512 * KIB);
        let path = first.file(NAME);
        let one = thread::spawn(move || fs::read(path));
        wait_for("the first one's connections to be held", || gate.waiting() >= 8);
        let path = other.file(NAME);
        let two = thread::spawn(move || fs::read(path));
        wait_for("the other to follow", || other.said().contains("another process is fetching it"));
        let killed = meanwhile(&mut first);
        gate.release();
        let read = within(crate::common::PATIENCE, "the other's read", move || two.join().unwrap().unwrap());
        if !killed {
            first.signal(libc::SIGCONT);
        }
        drop(one.join().unwrap());
        // By whom is all the same.
        self.places[0].wait_until_cached(NAME);
        assert_same("the artifact", &fs::read(self.places[0].cache().join(NAME)).unwrap(), &self.body);
        read
    }

    fn fetched(&self) -> u64 {
        self.server.counts().bytes_of(&key(NAME))
    }
}

#[test]
fn the_other_reads_along() {
    needs_fuse!();
    let pair = Pair::new();
    assert_same("the other", &pair.read_while(|_| false), &pair.body);
    assert_eq!(pair.fetched(), pair.body.len() as u64);
}

#[test]
fn the_other_goes_on_when_the_first_one_dies() {
    needs_fuse!();
    let pair = Pair::new();
    let read = pair.read_while(|first| {
        first.signal(libc::SIGKILL);
        first.wait();
        true
    });
    assert_same("the other", &read, &pair.body);
    let (fetched, size) = (pair.fetched(), pair.body.len() as u64);
    assert!(fetched <= size + (8 << 20), "{fetched} bytes fetched of {size}");
}

#[test]
fn nobody_waits_for_a_daemon_that_was_stopped() {
    needs_fuse!();
    let pair = Pair::new();
    let read = pair.read_while(|first| {
        first.signal(libc::SIGSTOP);
        false
    });
    assert_same("the other", &read, &pair.body);
}

#[test]
fn people_may_do_as_they_like_meanwhile() {
    needs_fuse!();
    let server = S3Server::start();
    let body = random_bytes(12, 700_000);
    server.put(&key(NAME), body.clone());
    let place = Place::of(&server);
    let places = [beside(&place, &server), beside(&place, &server)];
    let mounts: Vec<Mount> = places.iter().map(Place::mount).collect();
    let file = place.cache().join(NAME);
    for round in 0..8 {
        for mount in &mounts {
            assert_same("read", &mount.read(NAME).unwrap(), &body);
        }
        place.wait_until_cached(NAME);
        match round % 4 {
            0 => fs::remove_file(&file).unwrap(),
            1 => fs::File::options().write(true).open(&file).unwrap().set_len(1000).unwrap(),
            2 => fs::write(&file, random_bytes(13, 700_000)).unwrap(),
            _ => {
                fs::write(place.cache().join("new"), "another").unwrap();
                fs::rename(place.cache().join("new"), &file).unwrap();
            }
        }
        wait_for("the next open to be right", || {
            mounts.iter().all(|mount| mount.read(NAME).is_ok_and(|read| read == body))
        });
    }
}
