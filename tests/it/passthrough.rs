//! Complete local files, read by the kernel itself where it may: the same bytes, whatever happens to the file.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use crate::common::{Mount, Place, needs_fuse, wait_for};

const KEY: &str = "build-cache/a.zst";

/// A mount whose `a.zst` is complete in the local cache, and which knows it.
fn warm(server: &S3Server, place: &Place, body: &[u8]) -> Mount {
    server.put(KEY, body.to_vec());
    let mount = place.mount();
    let streamed = fs::metadata(mount.file("a.zst")).unwrap().ino();
    assert_eq!(mount.read("a.zst").unwrap(), body);
    wait_for("an inode of its own for the complete file", || {
        fs::metadata(mount.file("a.zst")).unwrap().ino() != streamed
    });
    mount
}

#[test]
fn reads_go_past_the_daemon() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let body = random_bytes(1, 3_000_000);
    let mut mount = warm(&server, &place, &body);
    let file = File::open(mount.file("a.zst")).unwrap();
    if !mount.said().contains(", passthrough") {
        eprintln!("SKIPPED: no passthrough here: {}", mount.said());
        return;
    }
    // The kernel has none of its pages yet: what it reads now can only come from the file.
    mount.signal(libc::SIGKILL);
    mount.wait();
    let mut read = vec![0; body.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, body);
}

/// How many of a file's pages the kernel has.
fn pages_in_memory(file: &File) -> usize {
    let length = file.metadata().unwrap().len() as usize;
    let mut pages = vec![0u8; length.div_ceil(4096)];
    // SAFETY: a new mapping of the whole file, which nothing reads and which is taken away again; mincore writes a byte for each
    // of its pages.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(file),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        assert_eq!(libc::mincore(map, length, pages.as_mut_ptr()), 0);
        libc::munmap(map, length);
    }
    pages.iter().filter(|page| **page & 1 == 1).count()
}

#[test]
fn pages_of_a_fetched_file_are_freed_after_its_last_close() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let body = random_bytes(7, 3_000_000);
    server.put(KEY, body.clone());
    let mount = place.mount();
    if !mount.said().contains(", passthrough") {
        eprintln!("SKIPPED: no passthrough here: {}", mount.said());
        return;
    }
    // Stands for the inode without being a handle, whatever the name leads to.
    let inode = File::options().read(true).custom_flags(libc::O_PATH).open(mount.file("a.zst")).unwrap();
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inode));
    let reader = File::open(&again).unwrap();
    let mut read = vec![0; body.len()];
    reader.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, body);
    place.wait_until_cached("a.zst");
    assert!(pages_in_memory(&reader) > 0, "this test would mean nothing");
    drop(reader);
    wait_for("no pages", || pages_in_memory(&File::open(&again).unwrap()) == 0);
    assert_eq!(mount.read("a.zst").unwrap(), body);
}

#[test]
fn a_handle_from_before_completion_and_one_from_after_read_the_same() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let body = random_bytes(2, 6_000_000);
    server.put(KEY, body.clone());
    let gate = server.hold_gets(KEY, 100_000);
    let mount = place.mount();
    let before = File::open(mount.file("a.zst")).unwrap();
    let mut start = [0; 1000];
    before.read_exact_at(&mut start, 0).unwrap();
    gate.release();
    wait_for("publication", || place.cache().join("a.zst").exists());
    let first = before.metadata().unwrap().ino();
    wait_for("the complete file's own inode", || fs::metadata(mount.file("a.zst")).unwrap().ino() != first);
    let after = File::open(mount.file("a.zst")).unwrap();
    for file in [&before, &after, &before] {
        let mut read = vec![0; body.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, body);
    }
}

#[test]
fn a_removed_local_file_is_fetched_again_although_the_kernel_knows_it() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let body = random_bytes(3, 2_000_000);
    let mount = warm(&server, &place, &body);
    let open = File::open(mount.file("a.zst")).unwrap();
    fs::remove_file(place.cache().join("a.zst")).unwrap();
    assert_eq!(mount.read("a.zst").unwrap(), body);
    let mut read = vec![0; body.len()];
    open.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, body, "the open handle goes on");
    assert!(server.counts().gets_of(KEY) >= 2);
}

#[test]
fn a_truncated_local_file_is_not_served_by_a_new_open() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let body = random_bytes(4, 2_000_000);
    let mount = warm(&server, &place, &body);
    File::options().write(true).open(place.cache().join("a.zst")).unwrap().set_len(1000).unwrap();
    assert_eq!(mount.read("a.zst").unwrap(), body);
}

#[test]
fn many_opens_racing_with_completion_are_all_right() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    for round in 0..20 {
        let (name, body) = (format!("race-{round}.zst"), random_bytes(round, 1_500_000));
        server.put(&format!("build-cache/{name}"), body.clone());
        std::thread::scope(|scope| {
            for delay in 0..8 {
                let (path, body) = (mount.file(&name), &body);
                scope.spawn(move || {
                    // Spreads the opens over the download's end, whenever that is.
                    std::thread::sleep(Duration::from_millis(delay * 2));
                    assert_eq!(&fs::read(path).unwrap(), body);
                });
            }
        });
    }
}
