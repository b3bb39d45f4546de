//! `unmount` and its alias: what is ours goes, nothing else does.

use std::fs::{self, File};
use std::io::Read;
use std::process::Output;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::serve;
use crate::common::{Place, Tmpfs, assert_refused, key, mounted, needs_fuse, needs_root, wait_for};

#[track_caller]
fn assert_quiet_success(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn both_names_unmount_and_the_daemon_ends() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    for name in ["unmount", "umount"] {
        let mut mount = place.mount();
        assert_quiet_success(&place.command(&[name]).arg(&mount.path).output().unwrap());
        assert_eq!(mounted(&mount.path), None);
        assert_eq!(mount.wait(), Some(0), "{}", mount.said());
    }
}

#[test]
fn with_a_file_open_it_is_readable_to_its_end() {
    needs_fuse!();
    let (server, bytes) = (S3Server::start(), random_bytes(1, 8 << 20));
    server.put(&key("cached.tar.gz"), bytes.clone());
    let place = Place::of(&server);
    let mut mount = place.mount();
    let mut file = File::open(mount.file("cached.tar.gz")).unwrap();
    let kept = place.cache().join("cached.tar.gz");
    wait_for("the cached file", || kept.exists());
    assert_quiet_success(&place.command(&["unmount"]).arg(&mount.path).output().unwrap());
    assert_eq!(mounted(&mount.path), None);
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == bytes);
    drop(file);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
}

#[test]
fn with_a_download_under_way_its_reader_gets_everything() {
    needs_fuse!();
    let (server, bytes) = (S3Server::start(), random_bytes(1, 8 << 20));
    server.put(&key("cold.tar.gz"), bytes.clone());
    let gate = server.hold_gets(&key("cold.tar.gz"), 1000);
    let place = Place::of(&server);
    let mut mount = place.mount();
    let path = mount.file("cold.tar.gz");
    let reader = std::thread::spawn(move || fs::read(path));
    assert!(gate.wait_until_waiting(1, crate::common::PATIENCE));
    assert_quiet_success(&place.command(&["unmount"]).arg(&mount.path).output().unwrap());
    assert_eq!(mounted(&mount.path), None);
    gate.release();
    assert!(reader.join().unwrap().unwrap() == bytes);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
}

#[test]
fn nothing_mounted_is_fine() {
    let place = Place::new("http://127.0.0.1:1");
    let plain = place.dir.path().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::write(plain.join("file"), "mine").unwrap();
    for path in [plain.clone(), plain.join("file"), plain.join("missing/deeper")] {
        assert_quiet_success(&place.command(&["unmount"]).arg(&path).output().unwrap());
    }
    assert_quiet_success(&place.command(&["unmount"]).output().unwrap());
    assert_eq!(fs::read(plain.join("file")).unwrap(), b"mine");
}

#[test]
fn another_file_system_is_left_alone() {
    needs_root!("a mount of another file system");
    let place = Place::new("http://127.0.0.1:1");
    let path = place.mountpoint();
    let _tmpfs = Tmpfs::at(&path, "size=1m");
    fs::write(path.join("file"), "mine").unwrap();
    let output = place.command(&["unmount"]).arg(&path).output().unwrap();
    assert_refused(&output, 6, &[path.to_str().unwrap(), "tmpfs", "umount(8)"]);
    assert_eq!(fs::read(path.join("file")).unwrap(), b"mine");
}

#[test]
fn a_mount_over_another_file_system_comes_off_alone() {
    needs_fuse!();
    needs_root!("a mount of another file system");
    let server = serve();
    let place = Place::of(&server);
    let path = place.mountpoint();
    let _tmpfs = Tmpfs::at(&path, "size=1m");
    for signal in [None, Some(libc::SIGTERM)] {
        let mut mount = place.mount();
        assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
        match signal {
            None => assert_quiet_success(&place.command(&["unmount"]).arg(&path).output().unwrap()),
            Some(signal) => mount.signal(signal),
        }
        assert_eq!(mount.wait(), Some(0), "{}", mount.said());
        assert_eq!(mounted(&path).map(|(_, kind)| kind).as_deref(), Some("tmpfs"), "{signal:?}");
    }
}

#[test]
fn an_old_daemon_leaves_a_new_mount_alone() {
    needs_fuse!();
    let (server, bytes) = (S3Server::start(), random_bytes(1, 8 << 20));
    server.put(&key("large.tar.gz"), bytes.clone());
    let place = Place::of(&server);
    for how in ["it ends by itself", "it is told to end"] {
        let mut old = place.mount();
        let file = File::open(old.file("large.tar.gz")).unwrap();
        assert_quiet_success(&place.command(&["unmount"]).arg(&old.path).output().unwrap());
        let new = place.mount();
        if how == "it is told to end" {
            old.signal(libc::SIGTERM);
            old.signal(libc::SIGTERM);
        }
        drop(file);
        assert_eq!(old.wait(), Some(0), "{}", old.said());
        assert!(mounted(&new.path).is_some(), "{how}");
        assert!(new.read("large.tar.gz").unwrap() == bytes, "{how}");
        new.unmount();
    }
}

#[test]
fn unmounting_and_mounting_again_at_once_never_loses_the_new_mount() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    for round in 0..10 {
        let (output, guard) = place.mount_daemon(&["-q"]);
        assert_quiet_success(&output);
        assert_quiet_success(&place.command(&["unmount"]).arg(&guard.0).output().unwrap());
        let (output, guard) = place.mount_daemon(&["-q"]);
        assert_quiet_success(&output);
        let read = fs::read(guard.0.join("noir-1.tar.gz"));
        assert_eq!(read.unwrap(), b"bytes", "round {round}");
    }
}
