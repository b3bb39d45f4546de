//! Bytes that went bad on the way.

use std::fs;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Fault, ObjectOptions, S3Server};

use super::cat;
use crate::common::{Place, assert_same, key, needs_fuse, wait_for, xattr};

const NAME: &str = "noir-b786c534d2b9261d.tar.gz";

fn flipped(body: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = body.to_vec();
    flipped[at] ^= 4;
    flipped
}

#[test]
fn damaged_bytes_are_never_kept_nor_shown_again() {
    needs_fuse!();
    let body = random_bytes(1, 900_000);
    // The server's own checksum, or an ETag that is the MD5.
    for checksum in [true, false] {
        for ordinary in [false, true] {
            let server = S3Server::start();
            server.put_with(&key(NAME), body.clone(), ObjectOptions { checksum, ..ObjectOptions::default() });
            server.add_fault(Fault::corrupt(400_000).times(1));
            let mut place = Place::of(&server);
            if ordinary {
                place.of_ordinary_user();
            }
            let mount = place.mount();
            // It may have got the damaged bytes: they are given out as they come.
            drop(cat(&place, &mount, NAME));
            wait_for("the damage to be found", || mount.said().contains("does not fit its checksum"));
            assert!(!place.cache().join(NAME).exists(), "damaged bytes were kept");
            for _ in 0..3 {
                assert_same("from now on", &cat(&place, &mount, NAME).unwrap(), &body);
            }
            place.wait_until_cached(NAME);
            assert_same("kept", &fs::read(place.cache().join(NAME)).unwrap(), &body);
            if !ordinary {
                let recorded =
                    xattr(&mount.file(NAME), "user.aztec_cache.checksum").expect("it was recorded");
                assert!(recorded.starts_with("crc64nvme:"), "{recorded}");
            }
        }
    }
}

#[test]
fn a_tag_that_only_looks_like_an_md5_is_found_out() {
    needs_fuse!();
    let server = S3Server::start();
    let bodies: Vec<Vec<u8>> = (0..3).map(|n| random_bytes(n, 200_000)).collect();
    let name = |n: usize| format!("vk-{n}.zst");
    for (n, body) in bodies.iter().enumerate() {
        let etag = Some(format!("{n:032x}"));
        server.put_with(&key(&name(n)), body.clone(), ObjectOptions { etag, ..ObjectOptions::default() });
    }
    let place = Place::of(&server);
    let mount = place.mount();
    for (n, body) in bodies.iter().enumerate() {
        assert_same("each", &mount.read(&name(n)).unwrap(), body);
        place.wait_until_cached(&name(n));
        let twice = if n == 0 { 2 } else { 1 };
        assert_eq!(server.counts().bytes_of(&key(&name(n))), twice * body.len() as u64, "{}", name(n));
    }
    assert_eq!(mount.said().matches("are not used as such").count(), 1, "{}", mount.said());
    assert_eq!(mount.said().matches("warning").count(), 1, "{}", mount.said());
    // A command is the first reader each time.
    let output = place.command(&["get", &name(1), "--cache-dir", ""]).args(&place.args).output().unwrap();
    assert!(
        output.stdout == bodies[1] && output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn what_others_put_there_is_compared_with_the_remotes_checksum() {
    needs_fuse!();
    let server = S3Server::start();
    let body = random_bytes(7, 500_000);
    server.put_with(&key(NAME), body.clone(), ObjectOptions { checksum: true, ..ObjectOptions::default() });
    let place = Place::of(&server);
    fs::create_dir_all(place.cache()).unwrap();
    fs::write(place.cache().join(NAME), flipped(&body, 77)).unwrap();
    let mount = place.mount();
    assert_same("the remote's", &mount.read(NAME).unwrap(), &body);
    wait_for("it to be replaced", || fs::read(place.cache().join(NAME)).unwrap() == body);
    mount.unmount();
    fs::remove_dir_all(place.cache()).unwrap();
    fs::create_dir_all(place.cache()).unwrap();
    fs::write(place.cache().join(NAME), &body).unwrap();
    server.reset_counts();
    let mount = place.mount();
    assert_same("adopted", &mount.read(NAME).unwrap(), &body);
    assert_eq!((server.counts().head, server.counts().get), (1, 0));
}
