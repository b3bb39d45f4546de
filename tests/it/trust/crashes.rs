//! Daemons killed at any moment, and what the next one makes of what they left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::{beside, count_of};
use crate::common::{Mount, Place, assert_same, key, names_in, needs_fuse, wait_for};

const NAME: &str = "barretenberg-4143489f79f3d92e.zst";
const KIB: u64 = 1 << 10;
/// The largest part of a download.
const PART: u64 = 8 << 20;

/// A place with the partial file of a daemon that was killed in mid-download, the server, and how many bytes it had sent.
fn interrupted(body: &[u8]) -> (S3Server, Place, u64) {
    let server = S3Server::start();
    server.put(&key(NAME), body.to_vec());
    let place = Place::of(&server);
    let mut mount = place.mount();
    let gate = server.hold_gets(&key(NAME), 700 * KIB);
    let path = mount.file(NAME);
    let reader = thread::spawn(move || fs::read(path));
    wait_for("all connections to be held", || gate.waiting() >= 10);
    wait_for("what came to be recorded", || mount.recorded() >= 10 * 512 * KIB);
    mount.signal(libc::SIGKILL);
    mount.wait();
    assert!(reader.join().unwrap().is_err());
    gate.release();
    let sent = server.counts().bytes_of(&key(NAME));
    (server, place, sent)
}

fn partial(place: &Place) -> PathBuf {
    let names = place.partials();
    let name = names.iter().find(|name| !name.contains('.')).expect("a partial file");
    place.cache().join(".aztec-cache/partial").join(name)
}

/// Reads the artifact in a new mount; how many bytes that fetched.
fn fetched_by_the_next(server: &S3Server, place: &Place, body: &[u8]) -> u64 {
    server.reset_counts();
    let mount = place.mount();
    assert_same("the next one", &mount.read(NAME).unwrap(), body);
    place.wait_until_cached(NAME);
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), body);
    wait_for("the partial file to go", || place.partials().is_empty());
    server.counts().bytes_of(&key(NAME))
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    needs_fuse!();
    let body = random_bytes(1, 40 << 20);
    let (server, place, sent) = interrupted(&body);
    let missing = body.len() as u64 - sent;
    let fetched = fetched_by_the_next(&server, &place, &body);
    assert!(fetched <= missing + PART, "{fetched} bytes fetched, {missing} were missing");
    assert!(fetched < body.len() as u64 - 4 * 1024 * KIB, "{fetched} bytes fetched");
}

#[test]
fn of_another_version_nothing_is_used() {
    needs_fuse!();
    let body = random_bytes(2, 40 << 20);
    let (server, place, _) = interrupted(&body);
    let new = random_bytes(3, 40 << 20);
    server.put(&key(NAME), new.clone());
    server.reset_counts();
    let mount = place.mount();
    assert_same("the new version", &mount.read(NAME).unwrap(), &new);
    place.wait_until_cached(NAME);
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), &new);
}

/// What had not reached the disk when the power failed is zeros, or the records of it are.
#[test]
fn what_a_power_cut_took_is_fetched_again() {
    needs_fuse!();
    let body = random_bytes(4, 40 << 20);
    let (server, place, _) = interrupted(&body);
    let file = fs::File::options().write(true).open(partial(&place)).unwrap();
    file.write_all_at(&[0; 4096], 100_000).unwrap();
    let fetched = fetched_by_the_next(&server, &place, &body);
    assert!(fetched < body.len() as u64, "the rest was right");

    let (server, place, _) = interrupted(&body);
    let records = partial(&place).with_extension("progress");
    let mut bytes = fs::read(&records).unwrap();
    let end = bytes.len() - 40;
    bytes[end..].fill(0);
    fs::write(&records, bytes).unwrap();
    fetched_by_the_next(&server, &place, &body);

    let (server, place, _) = interrupted(&body);
    fs::write(partial(&place).with_extension("progress"), b"").unwrap();
    assert_eq!(fetched_by_the_next(&server, &place, &body), body.len() as u64);
}

#[test]
fn what_nobody_came_back_for_is_removed_in_the_end() {
    needs_fuse!();
    let body = random_bytes(5, 40 << 20);
    let (_server, place, _) = interrupted(&body);
    let days_ago = std::time::SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    fs::File::options().write(true).open(partial(&place)).unwrap().set_modified(days_ago).unwrap();
    let _mount = place.mount();
    wait_for("the old partial file to go", || place.partials().is_empty());
}

/// Kills one of two daemons on one cache directory again and again, at random moments, while both are read from.
fn kill_again_and_again(kills: usize, flags: &[&str]) {
    let server = S3Server::start();
    let sizes = [3_000, 40_000, 300_000, 1_100_000, 2_500_000, 9_000_000];
    let bodies: Vec<(String, Vec<u8>)> = (0..18)
        .map(|n| (format!("contract-{n}.tar.gz"), random_bytes(n as u64, sizes[n % sizes.len()] + n)))
        .collect();
    bodies.iter().for_each(|(name, body)| drop(server.put(&key(name), body.clone())));
    let mut place = Place::of(&server);
    for flag in flags {
        place.arg(*flag);
    }
    let places = [beside(&place, &server), beside(&place, &server)];
    let mut mounts: Vec<Mount> = places.iter().map(Place::mount).collect();
    let (done, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let bodies = Arc::new(bodies);
    let readers: Vec<_> = (0..6)
        .map(|n: usize| {
            let path = mounts[n % 2].path.clone();
            let (done, reads, bodies) = (done.clone(), reads.clone(), bodies.clone());
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let (name, body) = &bodies[fastrand::usize(..bodies.len())];
                    // Without a daemon there are errors.
                    if let Ok(read) = fs::read(path.join(name)) {
                        assert_same(name, &read, body);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let artifacts = || -> BTreeSet<String> {
        names_in(place.cache()).into_iter().filter(|name| !name.starts_with('.')).collect()
    };
    let mut complete = BTreeSet::new();
    for kill in 0..kills {
        // The moment is the point: anywhere in a download, a publication, an eviction.
        thread::sleep(Duration::from_micros(fastrand::u64(0..120_000)));
        let victim = fastrand::usize(..2);
        mounts[victim].signal(libc::SIGKILL);
        mounts[victim].wait();
        if flags.is_empty() {
            let now = artifacts();
            assert!(complete.is_subset(&now), "lost: {:?}", complete.difference(&now));
            complete = now;
            // Or there would soon be nothing left to fetch.
            if complete.len() == bodies.len() {
                complete.clear();
                bodies.iter().for_each(|(name, _)| drop(fs::remove_file(place.cache().join(name))));
            }
        }
        let dead = mounts.remove(victim);
        drop(dead);
        mounts.insert(victim, places[victim].mount());
        assert!(place.partials().len() <= 3 * bodies.len(), "kill {kill}: {:?}", place.partials());
    }
    done.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().expect("no reader saw a wrong byte"));
    for (name, body) in bodies.iter() {
        assert_same(name, &mounts[0].read(name).unwrap(), body);
    }
    let verified = place.command(&["verify"]).args(&place.args).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    eprintln!("{kills} kills, {} whole reads, none wrong", reads.load(Ordering::Relaxed));
}

#[test]
fn daemons_killed_at_random_moments_leave_nothing_wrong() {
    needs_fuse!();
    kill_again_and_again(6, &[]);
    kill_again_and_again(6, &["--max-cache-size", "12MB"]);
}

/// `AZTEC_CACHE_KILLS=1000 cargo test --test it -- --ignored a_thousand_kills --nocapture`
#[test]
#[ignore = "takes minutes"]
fn a_thousand_kills() {
    needs_fuse!();
    let kills = count_of("AZTEC_CACHE_KILLS", 1000);
    kill_again_and_again(kills / 2, &[]);
    kill_again_and_again(kills - kills / 2, &["--max-cache-size", "12MB"]);
}
