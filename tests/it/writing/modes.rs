//! Where what is written goes, and what happens when it can't go there now.

use std::fs::{self, File};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Access, Op, Options, S3Server};

use super::{assert_published, bash, succeeded};
use crate::common::{PATIENCE, Place, assert_same, errno, key, names_in, needs_fuse, wait_for, xattr};

const NAME: &str = "contract-1.bin";
const STATE: &str = "user.aztec_cache.state";

fn journal(place: &Place) -> Vec<String> {
    names_in(&place.cache().join(".aztec-cache/journal"))
}

fn place(server: &S3Server, flags: &[&str]) -> Place {
    let mut place = Place::of(server);
    for flag in flags {
        place.arg(*flag);
    }
    place
}

#[test]
fn in_the_background_close_waits_for_the_disk_alone() {
    needs_fuse!();
    let server = S3Server::start();
    let gate = server.hold(Op::Put, None);
    let place = place(&server, &["--upload=background"]);
    let mount = place.mount();
    fs::write(mount.file(NAME), b"durable").unwrap();
    assert!(gate.wait_until_waiting(1, PATIENCE), "it is being uploaded");
    assert_same("here already", &fs::read(place.cache().join(NAME)).unwrap(), b"durable");
    assert_eq!(xattr(&mount.file(NAME), STATE).as_deref(), Some("pending-upload"));
    assert_eq!(journal(&place).len(), 1);
    gate.release();
    wait_for("the upload", || xattr(&mount.file(NAME), STATE).as_deref() == Some("cached"));
    assert_published(&server, &place, &mount, NAME, b"durable");
    assert_eq!(journal(&place), Vec::<String>::new());
}

#[test]
fn what_can_t_be_uploaded_now_is_uploaded_later() {
    needs_fuse!();
    for mode in ["--upload=through", "--upload=background"] {
        let server = S3Server::start();
        let place = place(&server, &[mode, "--attempts", "1"]);
        let mount = place.mount();
        server.stop();
        fs::write(mount.file(NAME), b"for later").unwrap();
        assert_same("here", &mount.read(NAME).unwrap(), b"for later");
        wait_for("a warning", || mount.said().lines().any(|line| line.contains(NAME)));
        assert_eq!(xattr(&mount.file(NAME), STATE).as_deref(), Some("pending-upload"));
        server.restart();
        wait_for("the upload", || server.object(&key(NAME)).is_some());
        wait_for("the journal to be empty", || journal(&place).is_empty());
        assert_published(&server, &place, &mount, NAME, b"for later");
    }
}

#[test]
fn what_waits_for_a_remote_known_to_be_out_of_reach_is_said_once() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server, &["--upload=background"]);
    let mount = place.mount();
    server.stop();
    assert_eq!(errno(fs::metadata(mount.file("other.bin"))), libc::EHOSTUNREACH);
    wait_for("the outage to be known", || mount.said().contains("files in the local cache are still served"));
    fs::write(mount.file(NAME), b"for later").unwrap();
    let said = || mount.said().matches(&format!("{NAME} is kept here and uploaded later")).count();
    wait_for("a warning", || said() > 0);
    server.restart();
    wait_for("the upload", || server.object(&key(NAME)).is_some());
    assert_eq!(said(), 1);
}

#[test]
fn a_daemon_killed_in_the_middle_of_an_upload_leaves_it_to_the_next() {
    needs_fuse!();
    let server = S3Server::start();
    let gate = server.hold(Op::Put, None);
    let place = place(&server, &["--upload=background"]);
    let mut mount = place.mount();
    let body = random_bytes(5, 400_000);
    fs::write(mount.file(NAME), &body).unwrap();
    assert!(gate.wait_until_waiting(1, PATIENCE));
    mount.signal(libc::SIGKILL);
    mount.wait();
    drop(mount);
    gate.release();
    server.reset_counts();
    let mount = place.mount();
    wait_for("the journal to be empty", || journal(&place).is_empty());
    assert_same("there", &server.object(&key(NAME)).unwrap(), &body);
    assert_same("here", &mount.read(NAME).unwrap(), &body);
    assert_eq!(xattr(&mount.file(NAME), STATE).as_deref(), Some("cached"));
}

#[test]
fn a_daemon_killed_while_a_file_is_written_leaves_nothing_of_it() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server, &[]);
    let mut mount = place.mount();
    let mut file = File::create(mount.file(NAME)).unwrap();
    std::io::Write::write_all(&mut file, &[3; 100_000]).unwrap();
    mount.signal(libc::SIGKILL);
    mount.wait();
    drop((file, mount));
    let mount = place.mount();
    wait_for("the spool to be swept", || super::spooled(&place).is_empty());
    super::assert_nothing_published(&server, &place, &mount, NAME);
}

#[test]
fn who_can_t_sign_writes_into_the_local_cache_alone() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY");
    let mount = place.mount();
    fs::write(mount.file(NAME), b"mine alone").unwrap();
    assert_same("here", &fs::read(place.cache().join(NAME)).unwrap(), b"mine alone");
    assert_same("in the mount", &mount.read(NAME).unwrap(), b"mine alone");
    assert_eq!(xattr(&mount.file(NAME), STATE).as_deref(), Some("cached"));
    mount.unmount();
    assert_same("after a restart", &place.mount().read(NAME).unwrap(), b"mine alone");
    assert_eq!(server.counts().put, 0);
}

#[test]
fn a_remote_that_may_only_be_read_and_a_cache_that_is_written() {
    needs_fuse!();
    // The right to read and to list, and nothing more.
    let signed = Access { put: false, ..Access::ALL };
    let server = S3Server::start_with(Options { signed, ..Options::default() });
    server.put(&key("there.bin"), &b"theirs"[..]);
    let place = place(&server, &["--upload=never"]);
    let mount = place.mount();
    succeeded(&bash(&place, &mount, &format!("cp $M/there.bin $M/{NAME} && cmp $M/there.bin $M/{NAME}")));
    assert_eq!(mount.list("").unwrap(), [NAME, "there.bin"]);
    assert_same("here", &fs::read(place.cache().join(NAME)).unwrap(), b"theirs");
    // What the remote has isn't hidden by what is written here.
    server.put(&key("first.bin"), &b"the first"[..]);
    wait_for("it to be found", || mount.file("first.bin").exists());
    succeeded(&bash(&place, &mount, "echo mine > $M/first.bin; echo mine > $M/.x && mv $M/.x $M/first.bin"));
    assert_same("the remote's", &mount.read("first.bin").unwrap(), b"the first");
    assert_eq!(server.counts().put, 0);
    assert_eq!(journal(&place), Vec::<String>::new());
}

#[test]
fn a_read_only_mount_is_not_written() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key("there.bin"), &b"theirs"[..]);
    for (flags, env) in [(&["--read-only"][..], ""), (&["-o", "ro"], ""), (&[], "1")] {
        let mut place = place(&server, flags);
        place.env("AZTEC_CACHE_READ_ONLY", env);
        let mount = place.mount();
        assert!(mount.said().contains("read-only"), "{}", mount.said());
        assert_eq!(errno(File::create(mount.file(NAME))), libc::EROFS);
        assert_eq!(errno(File::create(mount.file("there.bin"))), libc::EROFS);
        assert_eq!(errno(fs::remove_file(mount.file("there.bin"))), libc::EROFS);
        assert_eq!(errno(fs::create_dir(mount.file("dir"))), libc::EROFS);
        assert_eq!(errno(fs::rename(mount.file("there.bin"), mount.file("b"))), libc::EROFS);
        assert_same("read", &mount.read("there.bin").unwrap(), b"theirs");
    }
    let mut place = place(&server, &["--read-write"]);
    place.env("AZTEC_CACHE_READ_ONLY", "1");
    let mount = place.mount();
    assert!(mount.said().contains("read-write"), "a flag wins over the environment: {}", mount.said());
    fs::write(mount.file(NAME), b"x").unwrap();
}

#[test]
fn without_a_cache_directory_writes_go_through() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = place(&server, &[]);
    place.cache = None;
    let mount = place.mount();
    fs::write(mount.file(NAME), b"straight there").unwrap();
    assert_same("there", &server.object(&key(NAME)).unwrap(), b"straight there");
    assert_same("read back", &mount.read(NAME).unwrap(), b"straight there");
    mount.unmount();
    place.arg("--upload=never");
    let mount = place.mount();
    assert_eq!(errno(File::create(mount.file("nowhere.bin"))), libc::EROFS);
}
