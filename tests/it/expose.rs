//! `--expose=symlink`: complete files as links into the cache directory.

use std::fs;
use std::path::Path;
use std::process::Command;

use aztec_cache_test_support::artifacts;
use aztec_cache_test_support::s3::S3Server;

use crate::common::{Place, needs_fuse, wait_for};

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().is_symlink()
}

#[test]
fn a_complete_file_is_a_link_and_an_incomplete_one_a_file() {
    needs_fuse!();
    let server = S3Server::start();
    let body = artifacts::tar_zst(1, 2_000_000, 5);
    server.put("build-cache/a.zst", body.clone());
    server.put("build-cache/sub/b.zst", body.clone());
    let mut place = Place::of(&server);
    place.arg("--expose=symlink");
    let mount = place.mount();
    for name in ["a.zst", "sub/b.zst"] {
        assert!(!is_link(&mount.file(name)));
        assert_eq!(mount.read(name).unwrap(), body);
        wait_for("the link", || is_link(&mount.file(name)));
        assert_eq!(fs::read_link(mount.file(name)).unwrap(), place.cache().join(name));
        assert_eq!(fs::metadata(mount.file(name)).unwrap().len(), body.len() as u64);
    }
    server.stop();
    let output = Command::new("tar").arg("-tf").arg(mount.file("a.zst")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = Command::new("ls").arg("-l").arg(&mount.path).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("a.zst -> "), "{listed}");
}

#[test]
fn a_link_whose_file_is_gone_is_a_file_again() {
    needs_fuse!();
    let server = S3Server::start();
    server.put("build-cache/a.zst", "content");
    let mut place = Place::of(&server);
    place.env("AZTEC_CACHE_EXPOSE", "symlink");
    let mount = place.mount();
    mount.read("a.zst").unwrap();
    wait_for("the link", || is_link(&mount.file("a.zst")));
    fs::remove_file(place.cache().join("a.zst")).unwrap();
    assert!(!is_link(&mount.file("a.zst")));
    assert_eq!(mount.read("a.zst").unwrap(), b"content");
}
