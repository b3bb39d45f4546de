//! SIGTERM, SIGINT and SIGHUP unmount; SIGKILL leaves a dead mount, which the next command repairs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::serve;
use crate::common::{Mount, Place, errno, key, mounted, needs_fuse, wait_for};

const SIZE: usize = 8 << 20;

/// The process that was started with `mountpoint` on its command line.
pub fn daemon_of(mountpoint: &Path) -> i32 {
    let path = mountpoint.as_os_str().as_encoded_bytes();
    let is_it = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == path)
    };
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(is_it).expect("the daemon's process")
}

/// Kills the daemon behind `mount` and waits until it is gone.
fn kill(mount: &mut Mount) {
    mount.signal(libc::SIGKILL);
    assert_eq!(mount.wait(), None);
    wait_for("the mount to be dead", || errno(fs::read_dir(&mount.path).map(drop)) == libc::ENOTCONN);
    assert!(mounted(&mount.path).is_some());
}

/// A mount of one large file that is cached and open, of which the kernel has not seen the end.
fn with_open_file() -> (S3Server, Place, Mount, File, Vec<u8>) {
    let (server, bytes) = (S3Server::start(), random_bytes(1, SIZE));
    server.put(&key("large.tar.gz"), bytes.clone());
    let place = Place::of(&server);
    let mount = place.mount();
    let file = File::open(mount.file("large.tar.gz")).unwrap();
    let kept = place.cache().join("large.tar.gz");
    wait_for("the cached file", || kept.exists());
    (server, place, mount, file, bytes)
}

#[track_caller]
fn assert_readable(file: &File, bytes: &[u8], at: usize) {
    let mut read = [0; 1000];
    file.read_exact_at(&mut read, at as u64).unwrap();
    assert_eq!(read[..], bytes[at..at + 1000]);
}

#[test]
fn each_unmounts_and_exits_with_0() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut mount = place.mount();
        assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
        mount.signal(signal);
        assert_eq!(mount.wait(), Some(0), "signal {signal}: {}", mount.said());
        assert_eq!(mounted(&mount.path), None, "signal {signal}");
    }
}

#[test]
fn a_daemon_unmounts_as_well() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let (output, _guard) = place.mount_daemon(&[]);
    assert!(output.status.success());
    let pid = daemon_of(&place.mountpoint());
    // SAFETY: kill(2) takes no pointers.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    wait_for("the unmount", || mounted(&place.mountpoint()).is_none());
    wait_for("the daemon's end", || !Path::new(&format!("/proc/{pid}/exe")).exists());
}

#[test]
fn with_a_file_open_the_mount_goes_at_once_and_the_daemon_with_the_file() {
    needs_fuse!();
    let (_server, _place, mut mount, file, bytes) = with_open_file();
    mount.signal(libc::SIGTERM);
    wait_for("the unmount", || mounted(&mount.path).is_none());
    assert_readable(&file, &bytes, SIZE - 5000);
    let closed = Instant::now();
    drop(file);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
    assert!(closed.elapsed() < Duration::from_secs(3), "{:?}", closed.elapsed());
}

#[test]
fn with_a_file_held_open_the_daemon_ends_after_its_grace() {
    needs_fuse!();
    let (_server, _place, mut mount, file, bytes) = with_open_file();
    let start = Instant::now();
    mount.signal(libc::SIGTERM);
    wait_for("the unmount", || mounted(&mount.path).is_none());
    assert_readable(&file, &bytes, SIZE / 2);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
    let ended = start.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&ended), "{ended:?}");
    assert_eq!(errno(file.read_at(&mut [0; 1000], SIZE as u64 - 5000)), libc::ENOTCONN);
}

#[test]
fn a_second_signal_ends_the_grace() {
    needs_fuse!();
    let (_server, _place, mut mount, file, _) = with_open_file();
    let start = Instant::now();
    mount.signal(libc::SIGINT);
    wait_for("the unmount", || mounted(&mount.path).is_none());
    mount.signal(libc::SIGINT);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    drop(file);
}

#[test]
fn a_signal_during_a_download_ends_it_and_leaves_no_part_of_it() {
    needs_fuse!();
    let server = serve();
    server.put(&key("cold.tar.gz"), random_bytes(2, SIZE));
    let gate = server.hold_gets(&key("cold.tar.gz"), 1000);
    let place = Place::of(&server);
    let mut mount = place.mount();
    let path = mount.file("cold.tar.gz");
    let reader = std::thread::spawn(move || fs::read(path));
    assert!(gate.wait_until_waiting(1, Duration::from_secs(10)));
    let start = Instant::now();
    mount.signal(libc::SIGTERM);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    assert!(reader.join().unwrap().is_err(), "never a part of the file");
    assert_eq!(crate::common::names_in(place.cache()), [".aztec-cache"]);
    assert_eq!(mounted(&mount.path), None);
}

#[test]
fn unmount_repairs_a_dead_mount() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let mut mount = place.mount();
    kill(&mut mount);
    let output = place.command(&["unmount"]).arg(&mount.path).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(mounted(&mount.path), None);
    assert_eq!(crate::common::names_in(&mount.path), [""; 0]);
}

#[test]
fn mount_repairs_a_dead_mount() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let mut dead = place.mount();
    kill(&mut dead);
    let mount = place.mount();
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.unmount();
    assert_eq!(mounted(&place.mountpoint()), None, "the dead one is gone too");
}

#[test]
fn mount_repairs_a_dead_mount_right_after_the_kill() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let mut dead = place.mount();
    // The kernel knows the root's attributes, and answers stat(2) from them for a while.
    fs::metadata(&dead.path).unwrap();
    dead.signal(libc::SIGKILL);
    assert_eq!(dead.wait(), None);
    let mount = place.mount();
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.unmount();
}

#[test]
fn a_dead_mount_with_a_file_open_is_repaired() {
    needs_fuse!();
    let (_server, place, mut dead, file, bytes) = with_open_file();
    kill(&mut dead);
    let mount = place.mount();
    assert!(mount.read("large.tar.gz").unwrap() == bytes);
    mount.unmount();
    drop(file);
}
