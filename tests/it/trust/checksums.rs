//! Damage, whatever the remote has to compare with, and in files of many parts.

use std::fs;
use std::io::Read;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Fault, Kept, ObjectOptions, S3Server};

use crate::common::{PATIENCE, Place, assert_same, key, needs_fuse, read_range, wait_for};

const NAME: &str = "noir-b786c534d2b9261d.tar.gz";
const MIB: u64 = 1 << 20;

#[test]
fn each_kind_of_checksum_finds_damage_in_a_large_file() {
    needs_fuse!();
    let body = random_bytes(31, 12_000_000);
    let parts = Kept::Sha256OfParts(5 * MIB);
    for kept in [Some(Kept::Crc64Nvme), Some(Kept::Crc32c), Some(Kept::Sha256), Some(parts), None] {
        let server = S3Server::start();
        match kept {
            Some(kept) => server.put_checked(&key(NAME), body.clone(), kept),
            // Its ETag is the MD5.
            None => server.put(&key(NAME), body.clone()),
        };
        server.add_fault(Fault::corrupt(300_000).from_byte(4 * MIB).times(1));
        let place = Place::of(&server);
        let mount = place.mount();
        drop(mount.read(NAME));
        wait_for("the damage to be found", || mount.said().contains("does not fit its checksum"));
        assert!(!place.cache().join(NAME).exists(), "{kept:?}: damaged bytes were kept");
        for _ in 0..2 {
            assert_same(&format!("{kept:?}: from now on"), &mount.read(NAME).unwrap(), &body);
        }
        place.wait_until_cached(NAME);
        assert_same("kept", &fs::read(place.cache().join(NAME)).unwrap(), &body);
        assert!(!mount.said().contains("are not used as such"), "{kept:?}: {}", mount.said());
    }
}

#[test]
fn damage_is_found_without_a_cache_directory() {
    needs_fuse!();
    let body = random_bytes(32, 6_000_000);
    let server = S3Server::start();
    server.put_checked(&key(NAME), body.clone(), Kept::Crc64Nvme);
    server.add_fault(Fault::corrupt(300_000).from_byte(MIB).times(1));
    let mut place = Place::of(&server);
    place.cache = None;
    let mount = place.mount();
    drop(mount.read(NAME));
    wait_for("the damage to be found", || mount.said().contains("does not fit its checksum"));
    for _ in 0..2 {
        assert_same("from now on", &mount.read(NAME).unwrap(), &body);
    }
}

/// With servers whose ETags aren't MD5s every object would be doubted: its first reader must not suffer.
#[test]
fn the_first_reader_of_a_large_file_whose_tag_looks_like_an_md5_gets_all_of_it() {
    needs_fuse!();
    let body = random_bytes(33, 12_000_000);
    let server = S3Server::start();
    let etag = Some(format!("{:032x}", 33));
    server.put_with(&key(NAME), body.clone(), ObjectOptions { etag, ..ObjectOptions::default() });
    let place = Place::of(&server);
    let mount = place.mount();
    let mut file = fs::File::open(mount.file(NAME)).unwrap();
    let mut read = vec![0; 1_000_000];
    file.read_exact(&mut read).unwrap();
    // A reader slower than the download.
    wait_for("a decision", || place.cache().join(NAME).exists() || mount.said().contains("does not fit"));
    file.read_to_end(&mut read).unwrap();
    assert_same("the first reader", &read, &body);
    assert_same("the next", &mount.read(NAME).unwrap(), &body);
    place.wait_until_cached(NAME);
    assert_eq!(mount.said().matches("are not used as such").count(), 1, "{}", mount.said());
}

/// Who reads the beginning alone ends the download, or leaves it to others, before anything is checked.
#[test]
fn what_was_read_of_a_download_that_ended_unchecked_is_read_again() {
    needs_fuse!();
    let body = random_bytes(34, 6_000_000);
    let server = S3Server::start();
    server.put_checked(&key(NAME), body.clone(), Kept::Crc64Nvme);
    server.add_fault(Fault::corrupt(1000).times(1));
    let mut place = Place::of(&server);
    place.cache = None;
    let mount = place.mount();
    let gate = server.hold_gets_from(&key(NAME), MIB, 1);
    let path = mount.file(NAME);
    drop(read_range(&path, 0..4096).unwrap());
    assert!(gate.wait_until_waiting(1, PATIENCE));
    gate.release();
    for _ in 0..2 {
        assert_same("from now on", &mount.read(NAME).unwrap(), &body);
    }
}

#[test]
fn what_was_read_along_of_a_file_that_turned_out_damaged_is_read_again() {
    needs_fuse!();
    let body = random_bytes(35, 6_000_000);
    // Whoever reads along closes the file before the damage is found, or has it open still.
    for closes in [true, false] {
        let server = S3Server::start();
        server.put_checked(&key(NAME), body.clone(), Kept::Crc64Nvme);
        server.add_fault(Fault::corrupt(1000).times(1));
        let place = Place::of(&server);
        let mut other = super::beside(&place, &server);
        other.arg("-vv");
        let (first, second) = (place.mount(), other.mount());
        let gate = server.hold_gets_from(&key(NAME), MIB, 1);
        let path = first.file(NAME);
        let one = std::thread::spawn(move || fs::read(path));
        assert!(gate.wait_until_waiting(1, PATIENCE));
        let file = fs::File::open(second.file(NAME)).unwrap();
        (&file).read_exact(&mut [0; 4096]).unwrap();
        wait_for("the second to read along", || second.said().contains("another process is fetching it"));
        let file = Some(file).filter(|_| !closes);
        gate.release();
        wait_for("the damage to be found", || first.said().contains("does not fit its checksum"));
        drop(one.join().unwrap());
        drop(file);
        for mount in [&second, &first] {
            wait_for("the right bytes", || mount.read(NAME).is_ok_and(|read| read == body));
            assert_same("and ever after", &mount.read(NAME).unwrap(), &body);
        }
    }
}
