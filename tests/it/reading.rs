//! The main job: read through the mount, keep a plain file, read it again without the server.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aztec_cache_test_support::artifacts::{self, random_bytes};
use aztec_cache_test_support::pattern::splitmix;
use aztec_cache_test_support::s3::S3Server;

use crate::common::{PATIENCE, Place, assert_same, key, needs_fuse, read_range, wait_for, within};

const NAME: &str = "barretenberg-clang20-4143489f79f3d92e.zst";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn tar_from_the_mount_cold_then_warm_with_the_server_gone() {
    needs_fuse!();
    let server = S3Server::start();
    let (gz, zst) = (artifacts::name("noir", 1, "tar.gz"), artifacts::name("barretenberg-clang20", 2, "zst"));
    let bodies = [(&gz, artifacts::tar_gz(1, 3_000_000, 20)), (&zst, artifacts::tar_zst(2, 3_000_000, 20))];
    for (name, body) in &bodies {
        server.put(&format!("build-cache/{name}"), body.clone());
    }
    let place = Place::of(&server);
    let mount = place.mount();
    let untar = |name: &str, to: &str| {
        let to = place.dir.path().join(to);
        fs::create_dir_all(&to).unwrap();
        let output =
            Command::new("tar").arg("-xf").arg(mount.file(name)).arg("-C").arg(&to).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (path, content) in artifacts::files_of(if name == gz { 1 } else { 2 }, 3_000_000, 20) {
            assert_eq!(fs::read(to.join(&path)).unwrap(), content, "{path}");
        }
    };
    untar(&gz, "cold-gz");
    untar(&zst, "cold-zst");
    for (name, body) in &bodies {
        let path = place.cache().join(name);
        wait_for("the plain file in the cache directory", || path.exists());
        assert_eq!(&fs::read(path).unwrap(), body);
    }
    let before = server.counts().requests();
    server.stop();
    untar(&gz, "warm-gz");
    untar(&zst, "warm-zst");
    mount.unmount();
    let mount = place.mount();
    assert_eq!(mount.read(&gz).unwrap(), bodies[0].1);
    assert_eq!(server.counts().requests(), before);
}

#[test]
fn objects_of_any_size_read_right_cold_and_warm() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    // Nothing, one byte, a page, and around the ends of the first two parts.
    let edges = [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 9 * MIB - 1, 9 * MIB, 9 * MIB + 1];
    for size in edges {
        let name = format!("size-{size}.tar.gz");
        let body = random_bytes(size, size as usize);
        server.put(&key(&name), body.clone());
        assert_same(&name, &mount.read(&name).unwrap(), &body);
        place.wait_until_cached(&name);
        assert_same(&name, &fs::read(place.cache().join(&name)).unwrap(), &body);
        assert_eq!(server.counts().bytes_of(&key(&name)), size);
    }
    mount.unmount();
    server.stop();
    let mount = place.mount();
    for size in edges {
        let name = format!("size-{size}.tar.gz");
        assert_same(&name, &mount.read(&name).unwrap(), &random_bytes(size, size as usize));
    }
}

#[test]
fn a_cold_open_costs_a_head_and_a_get_and_a_warm_one_nothing() {
    needs_fuse!();
    let server = S3Server::start();
    let names = ["noir-1.tar.gz", "noir-2.tar.gz"];
    let body = random_bytes(1, 200_000);
    names.iter().for_each(|name| drop(server.put(&key(name), body.clone())));
    let place = Place::of(&server);
    let mount = place.mount();
    server.reset_counts();
    assert_same("cold", &mount.read(names[0]).unwrap(), &body);
    let counts = server.counts();
    assert_eq!((counts.head, counts.get, counts.requests()), (1, 1, 2));
    place.wait_until_cached(names[0]);
    server.reset_counts();
    assert_same("warm", &mount.read(names[0]).unwrap(), &body);
    assert_eq!(server.counts().requests(), 0, "{:?}", server.log());

    assert_eq!(mount.list("").unwrap(), names);
    server.reset_counts();
    assert_same("cold after ls", &mount.read(names[1]).unwrap(), &body);
    assert_eq!((server.counts().get, server.counts().requests()), (1, 1), "{:?}", server.log());
    place.wait_until_cached(names[1]);
    mount.unmount();
    let mount = place.mount();
    server.reset_counts();
    names.iter().for_each(|name| assert_same("after a restart", &mount.read(name).unwrap(), &body));
    assert_eq!(server.counts().requests(), 0, "{:?}", server.log());
}

#[test]
fn random_reads_of_a_cold_file_are_right() {
    needs_fuse!();
    let server = S3Server::start();
    let size = 64 * MIB;
    server.put_sparse(&key(NAME), size, 3);
    let place = Place::of(&server);
    let mount = place.mount();
    let file = File::open(mount.file(NAME)).unwrap();
    for i in 0..300 {
        let from = splitmix(i) % size;
        let length = (1 + splitmix(i ^ 0xabc) % 200_000).min(size - from);
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, from).unwrap();
        assert_same(&format!("{length} bytes from {from}"), &bytes, &sparse(3, from, length));
    }
    place.wait_until_cached(NAME);
    assert_eq!(server.counts().bytes_of(&key(NAME)), size, "some bytes were fetched twice");
}

#[test]
fn a_cold_file_can_be_mapped() {
    needs_fuse!();
    let server = S3Server::start();
    let size = 20 * MIB + 5;
    server.put_sparse(&key(NAME), size, 4);
    let place = Place::of(&server);
    let mount = place.mount();
    let file = File::open(mount.file(NAME)).unwrap();
    let (length, protection) = (size as usize, libc::PROT_READ);
    // SAFETY: a new mapping of an open file; nothing else is at the address that the kernel chooses.
    let map = unsafe {
        libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
    };
    assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the mapping is that long, readable, and nobody changes a file of the mount.
    let bytes = unsafe { std::slice::from_raw_parts(map.cast::<u8>(), length) };
    assert_same("the end", &bytes[length - 1000..], &sparse(4, size - 1000, 1000));
    assert_same("the whole", bytes, &sparse(4, 0, size));
    // SAFETY: the mapping made above; no reference to it is used from here on.
    assert_eq!(unsafe { libc::munmap(map, length) }, 0);
}

#[test]
fn five_gibibytes_are_readable_anywhere_at_once() {
    needs_fuse!();
    let server = S3Server::start();
    let size = 5 * GIB;
    server.put_sparse(&key(NAME), size, 5);
    let place = Place::of(&server);
    let mount = place.mount();
    // Nobody gets more than the first 4 MiB of a part: the whole can't be here.
    let gate = server.hold_gets(&key(NAME), 4 * MIB);
    assert_eq!(fs::metadata(mount.file(NAME)).unwrap().len(), size);
    for from in [0, size / 2 + 12_345, 4 * GIB - 50_000, size - 100_000] {
        // Behind the first, each read finds all workers held.
        assert!(from == 0 || gate.wait_until_waiting(8, PATIENCE), "{} are under way", gate.waiting());
        let (path, what) = (mount.file(NAME), format!("100 kB from {from}"));
        let bytes = within(PATIENCE, &what, move || read_range(&path, from..from + 100_000)).unwrap();
        assert_same(&what, &bytes, &sparse(5, from, 100_000));
    }
    assert!(gate.waiting() >= 8);
    within(PATIENCE, "unmounting in mid-download", move || mount.unmount());
    assert!(!place.cache().join(NAME).exists());
}

#[test]
fn a_gibibyte_reads_back_right_cold_and_warm_in_bounded_memory() {
    needs_fuse!();
    let server = S3Server::start();
    server.put_sparse(&key(NAME), GIB, 6);
    let place = Place::of(&server);
    let mount = place.mount();
    let cold = timed_check(&mount.file(NAME), 6);
    place.wait_until_cached(NAME);
    let peak = peak_memory(mount.pid());
    server.stop();
    // Another mount: the kernel has none of its pages.
    mount.unmount();
    let mount = place.mount();
    let warm = timed_check(&mount.file(NAME), 6);
    assert_eq!(server.counts().bytes_of(&key(NAME)), GIB);
    let connections = server.counts().connections;
    // One for each of 24 requests at a time, and a few for what comes before.
    assert!(connections <= 28, "{connections} connections: they are not used again");
    let peak = peak.max(peak_memory(mount.pid()));
    let rate = |time: Duration| GIB as f64 / 1e6 / time.as_secs_f64();
    eprintln!(
        "1 GiB: cold {:.0} MB/s, warm {:.0} MB/s, peak memory {peak} KiB, {connections} connections",
        rate(cold),
        rate(warm)
    );
    assert!(peak < 200 * KIB, "the daemon's memory reached {peak} KiB");
}

/// Reads a file to its end and compares it with the sparse object of that seed; the time that the reads took.
fn timed_check(path: &Path, seed: u64) -> Duration {
    let mut file = File::open(path).unwrap();
    let (mut at, mut spent) = (0, Duration::ZERO);
    let mut chunk = vec![0; MIB as usize];
    loop {
        let start = Instant::now();
        let length = file.read(&mut chunk).unwrap();
        spent += start.elapsed();
        if length == 0 {
            assert_eq!(at, file.metadata().unwrap().len());
            return spent;
        }
        assert_same(&format!("from {at}"), &chunk[..length], &sparse(seed, at, length as u64));
        at += length as u64;
    }
}

fn sparse(seed: u64, from: u64, length: u64) -> Vec<u8> {
    S3Server::sparse_byte_range(seed, from..from + length)
}

/// The most memory that a process ever had, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
