//! Room: the limits, and what goes when they are reached.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::{beside, cat};
use crate::common::{Mount, Place, Tmpfs, assert_same, key, names_in, needs_fuse, needs_root, wait_for};

const SIZE: usize = 1_000_000;
const CAP: u64 = 8_000_000;

fn name(n: usize) -> String {
    format!("bench-{n}.tar.gz")
}

fn body(n: usize) -> Vec<u8> {
    random_bytes(n as u64, SIZE)
}

/// A server of `count` artifacts and a place with a cap.
fn capped(count: usize) -> (S3Server, Place) {
    let server = S3Server::start();
    (0..count).for_each(|n| drop(server.put(&key(&name(n)), body(n))));
    let mut place = Place::of(&server);
    place.arg("--max-cache-size").arg(CAP.to_string());
    (server, place)
}

/// The disk space in use or reserved. Nobody changes it while the ledger is locked.
fn in_use(cache: &Path) -> u64 {
    let Ok(ledger) = File::open(cache.join(".aztec-cache/space")) else { return 0 };
    ledger.lock().unwrap();
    let mut sizes = HashMap::new();
    for dir in [cache.to_owned(), cache.join(".aztec-cache/partial")] {
        for name in names_in(&dir) {
            let Ok(meta) = fs::symlink_metadata(dir.join(&name)) else { continue };
            let reserved = if dir == cache { 0 } else { meta.len() };
            if meta.is_file() {
                sizes.insert(meta.ino(), reserved.max(meta.blocks() * 512));
            }
        }
    }
    sizes.values().sum()
}

fn cached(place: &Place) -> Vec<String> {
    names_in(place.cache()).into_iter().filter(|name| !name.starts_with('.')).collect()
}

#[test]
fn the_cap_holds_over_all_daemons() {
    needs_fuse!();
    for daemons in [1, 3] {
        let (server, place) = capped(30);
        let places: Vec<Place> = (0..daemons).map(|_| beside(&place, &server)).collect();
        let mounts: Vec<Mount> = places.iter().map(Place::mount).collect();
        let done = AtomicBool::new(false);
        let most = thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(in_use(place.cache()));
                }
                most
            });
            let readers: Vec<_> = (0..6)
                .map(|reader| {
                    let mounts = &mounts;
                    scope.spawn(move || {
                        for n in (0..30).filter(|n| n % 3 == reader % 3) {
                            let read = mounts[reader % daemons].read(&name(n)).unwrap();
                            assert_same(&name(n), &read, &body(n));
                        }
                    })
                })
                .collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            done.store(true, Ordering::Relaxed);
            sampler.join().unwrap()
        });
        assert!(most <= CAP + SIZE as u64, "{daemons} daemons: {most} bytes in use, {CAP} allowed");
        assert!(most > CAP / 2, "{daemons} daemons: the cap was never in the way: {most}");
    }
}

#[test]
fn what_was_used_least_recently_goes_first() {
    needs_fuse!();
    let (_server, place) = capped(12);
    let mount = place.mount();
    for n in 0..7 {
        assert_same(&name(n), &mount.read(&name(n)).unwrap(), &body(n));
        place.wait_until_cached(&name(n));
    }
    // Used again, it is younger than those after it.
    assert_same("again", &mount.read(&name(0)).unwrap(), &body(0));
    for n in 7..10 {
        assert_same(&name(n), &mount.read(&name(n)).unwrap(), &body(n));
        place.wait_until_cached(&name(n));
    }
    let kept = cached(&place);
    assert!(kept.contains(&name(0)) && kept.contains(&name(9)), "{kept:?}");
    assert!(!kept.contains(&name(1)) && !kept.contains(&name(2)), "{kept:?}");
}

#[test]
fn a_file_that_is_open_stays() {
    needs_fuse!();
    for ordinary in [false, true] {
        let (_server, mut place) = capped(20);
        if ordinary {
            place.of_ordinary_user();
        }
        let mount = place.mount();
        let read = |n: usize| cat(&place, &mount, &name(n)).unwrap();
        assert_same("first", &read(0), &body(0));
        place.wait_until_cached(&name(0));
        let script = "exec 3< \"$1\" && echo open && read _ && cat <&3";
        let mut holder = place.program("sh");
        holder.args(["-c", script, "sh"]).arg(mount.file(&name(0)));
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut go, mut out) = (holder.stdin.take().unwrap(), holder.stdout.take().unwrap());
        out.read_exact(&mut [0; "open\n".len()]).unwrap();
        for n in 1..20 {
            assert_same(&name(n), &read(n), &body(n));
        }
        assert!(cached(&place).contains(&name(0)), "it was evicted while it was open");
        go.write_all(b"go\n").unwrap();
        let mut held = Vec::new();
        out.read_to_end(&mut held).unwrap();
        assert_same("all the time", &held, &body(0));
        assert!(holder.wait().unwrap().success());
        wait_for("it to be let go", || {
            (1..20).for_each(|n| drop(read(n)));
            !cached(&place).contains(&name(0))
        });
    }
}

#[test]
fn what_can_never_fit_evicts_nothing() {
    needs_fuse!();
    let (server, place) = capped(5);
    let big = random_bytes(99, CAP as usize + 1);
    server.put(&key("big.zst"), big.clone());
    let mount = place.mount();
    for n in 0..5 {
        assert_same(&name(n), &mount.read(&name(n)).unwrap(), &body(n));
        place.wait_until_cached(&name(n));
    }
    assert_same("streamed", &mount.read("big.zst").unwrap(), &big);
    assert_eq!(cached(&place).len(), 5);
}

#[test]
fn copies_of_scripts_count_and_may_go_and_the_rest_stays() {
    needs_fuse!();
    let (_server, place) = capped(20);
    fs::create_dir_all(place.cache().join("extracted")).unwrap();
    for other in ["extracted/file", ".lock.noir", ".tmp.1"] {
        fs::write(place.cache().join(other), body(50)).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", place.cache().join("link.zst")).unwrap();
    for n in 0..6 {
        fs::write(place.cache().join(format!("script-{n}.tar.gz")), body(n)).unwrap();
    }
    let mount = place.mount();
    for n in 0..8 {
        assert_same(&name(n), &mount.read(&name(n)).unwrap(), &body(n));
        place.wait_until_cached(&name(n));
    }
    let kept = cached(&place);
    assert!(!kept.iter().any(|name| name.starts_with("script-0")), "{kept:?}");
    for other in ["extracted/file", ".lock.noir", ".tmp.1"] {
        assert_same(other, &fs::read(place.cache().join(other)).unwrap(), &body(50));
    }
    assert!(kept.contains(&"link.zst".to_owned()), "{kept:?}");
}

#[test]
fn a_disk_that_fills_up_in_mid_download_is_relieved() {
    needs_fuse!();
    needs_root!("a small disk");
    let (server, mut place) = capped(4);
    place.args.clear();
    let settings = Place::of(&server);
    place.args = settings.args.clone();
    place.arg("--min-free").arg("0");
    fs::create_dir_all(place.cache()).unwrap();
    let disk = Tmpfs::at(place.cache(), "size=16m");
    let big = random_bytes(77, 6_000_000);
    server.put(&key("big.zst"), big.clone());
    let mount = place.mount();
    for n in 0..4 {
        assert_same(&name(n), &mount.read(&name(n)).unwrap(), &body(n));
        place.wait_until_cached(&name(n));
    }
    let gate = server.hold_gets(&key("big.zst"), 256 << 10);
    let path = mount.file("big.zst");
    let reader = thread::spawn(move || fs::read(path));
    wait_for("the download to be held", || gate.waiting() >= 2);
    // Someone else takes what was reserved for it.
    disk.fill();
    gate.release();
    assert_same("the reader noticed nothing", &reader.join().unwrap().unwrap(), &big);
    mount.unmount();
}

#[test]
fn a_disk_that_fills_up_with_nothing_to_evict_is_read_past_with_one_warning() {
    needs_fuse!();
    needs_root!("a small disk");
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--min-free").arg("0");
    let disk = Tmpfs::at(place.cache(), "size=16m");
    let big = random_bytes(78, 12_000_000);
    server.put(&key("big.zst"), big.clone());
    let mount = place.mount();
    let gate = server.hold_gets(&key("big.zst"), 256 << 10);
    let path = mount.file("big.zst");
    let reader = thread::spawn(move || fs::read(path));
    wait_for("the download to be held", || gate.waiting() >= 2);
    disk.fill();
    gate.release();
    assert_same("the reader noticed nothing", &reader.join().unwrap().unwrap(), &big);
    wait_for("what was begun to go", || place.partials().is_empty());
    assert!(!place.cache().join("big.zst").exists());
    let said = mount.said();
    assert_eq!(said.matches("warning").count(), 1, "{said}");
    assert!(said.contains("it is read without being kept"), "{said}");
}

#[test]
fn a_fifo_or_a_directory_under_an_artifacts_name_is_left_alone() {
    needs_fuse!();
    let (_server, place) = capped(12);
    fs::create_dir_all(place.cache().join(name(1))).unwrap();
    let fifo = place.cache().join(name(0));
    assert!(place.program("mkfifo").arg(&fifo).status().unwrap().success());
    let mount = place.mount();
    for n in 0..12 {
        assert_same(&name(n), &mount.read(&name(n)).unwrap(), &body(n));
        if n > 1 {
            place.wait_until_cached(&name(n));
        }
    }
    assert!(fifo.metadata().unwrap().file_type().is_fifo());
    assert!(place.cache().join(name(1)).is_dir());
}
