//! What may be written, replaced, removed and renamed, and what not.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use aztec_cache_test_support::s3::{Fault, Op, S3Server};

use super::{assert_published, bash, said, succeeded};
use crate::common::{PATIENCE, Place, assert_same, errno, key, needs_fuse, wait_for};

const THERE: &str = "noir-b786c534d2b9261d.bin";

fn with_an_artifact(flags: &[&str]) -> (S3Server, Place) {
    let server = S3Server::start();
    server.put(&key(THERE), &b"the first writer's"[..]);
    let mut place = Place::of(&server);
    for flag in flags {
        place.arg(*flag);
    }
    (server, place)
}

#[test]
fn an_artifact_that_exists_is_kept_and_its_second_writer_succeeds() {
    needs_fuse!();
    for read_before in [false, true] {
        let (server, place) = with_an_artifact(&[]);
        let mount = place.mount();
        let mut reader = None;
        if read_before {
            mount.read(THERE).unwrap();
            reader = Some(File::open(mount.file(THERE)).unwrap());
        }
        for script in ["cp src $M/$N", "cat src > $M/$N", "cp src $M/.x && mv $M/.x $M/$N"] {
            let script = format!("set -e; N={THERE}; echo another > src; {script}; cat $M/$N");
            let output = bash(&place, &mount, &script);
            succeeded(&output);
            assert_same("the first", &output.stdout, b"the first writer's");
        }
        if let Some(reader) = reader {
            let mut bytes = [0; 18];
            reader.read_exact_at(&mut bytes, 0).unwrap();
            assert_same("to who had it open", &bytes, b"the first writer's");
        }
        assert_same("there", &server.object(&key(THERE)).unwrap(), b"the first writer's");
        assert_same("here", &mount.read(THERE).unwrap(), b"the first writer's");
        wait_for("it to be said", || mount.said().lines().any(|line| line.contains(THERE)));
    }
}

#[test]
fn an_artifact_is_replaced_when_that_is_allowed() {
    needs_fuse!();
    for (flags, env) in [(&["--allow-overwrite"][..], None), (&[], Some(("S3_FORCE_UPLOAD", "1")))] {
        let (server, mut place) = with_an_artifact(flags);
        if let Some((name, value)) = env {
            place.env(name, value);
        }
        let mount = place.mount();
        let old = File::open(mount.file(THERE)).unwrap();
        let mut first = [0; 3];
        old.read_exact_at(&mut first, 0).unwrap();
        succeeded(&bash(&place, &mount, &format!("echo newer > $M/{THERE} && grep newer $M/{THERE}")));
        wait_for("the upload", || server.object(&key(THERE)).unwrap() == "newer\n");
        assert_same("to new readers", &mount.read(THERE).unwrap(), b"newer\n");
        let mut bytes = [0; 18];
        old.read_exact_at(&mut bytes, 0).unwrap();
        assert_same("to who had it open", &bytes, b"the first writer's");
    }
}

#[test]
fn artifacts_are_not_changed_in_place() {
    needs_fuse!();
    for flags in [&[][..], &["--allow-overwrite"]] {
        let (server, place) = with_an_artifact(flags);
        let mount = place.mount();
        let path = mount.file(THERE);
        assert_eq!(errno(File::options().append(true).open(&path)), libc::EPERM);
        assert_eq!(errno(File::options().read(true).write(true).open(&path)), libc::EPERM);
        let truncated = bash(&place, &mount, &format!("LC_ALL=C truncate -s 3 $M/{THERE}"));
        assert!(said(&truncated).contains("Operation not permitted"), "{}", said(&truncated));
        assert_same("as it was", &mount.read(THERE).unwrap(), b"the first writer's");
        // Times and modes are taken and left at that.
        succeeded(&bash(&place, &mount, &format!("touch $M/{THERE} && chmod 600 $M/{THERE}")));
        assert_same("there", &server.object(&key(THERE)).unwrap(), b"the first writer's");
    }
}

#[test]
fn what_the_remote_has_is_neither_removed_nor_renamed() {
    needs_fuse!();
    let (server, place) = with_an_artifact(&[]);
    let mount = place.mount();
    for cached in [false, true] {
        if cached {
            mount.read(THERE).unwrap();
            place.wait_until_cached(THERE);
        }
        assert_eq!(errno(fs::remove_file(mount.file(THERE))), libc::EPERM);
        assert_eq!(errno(fs::rename(mount.file(THERE), mount.file("other.bin"))), libc::EPERM);
        assert_same("as it was", &mount.read(THERE).unwrap(), b"the first writer's");
    }
    assert!(server.object(&key(THERE)).is_some());
    assert_eq!(server.counts().delete, 0);
}

#[test]
fn artifacts_are_removed_there_and_here_when_that_is_allowed() {
    needs_fuse!();
    let (server, place) = with_an_artifact(&["--allow-delete"]);
    let mount = place.mount();
    mount.read(THERE).unwrap();
    place.wait_until_cached(THERE);
    fs::remove_file(mount.file(THERE)).unwrap();
    assert_eq!(server.object(&key(THERE)), None);
    assert!(!place.cache().join(THERE).exists());
    assert_eq!(errno(fs::metadata(mount.file(THERE))), libc::ENOENT);
}

#[test]
fn what_is_only_here_is_removed_and_renamed() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--upload=never");
    let mount = place.mount();
    fs::write(mount.file("local.bin"), b"mine").unwrap();
    fs::rename(mount.file("local.bin"), mount.file("renamed.bin")).unwrap();
    assert_eq!(errno(fs::metadata(mount.file("local.bin"))), libc::ENOENT);
    assert_same("renamed", &mount.read("renamed.bin").unwrap(), b"mine");
    fs::remove_file(mount.file("renamed.bin")).unwrap();
    assert_eq!(mount.list("").unwrap(), Vec::<String>::new());
    assert_eq!(errno(fs::metadata(mount.file("renamed.bin"))), libc::ENOENT);
    assert!(!place.cache().join("renamed.bin").exists());
    assert_eq!((server.counts().put, server.counts().delete), (0, 0));
}

#[test]
fn what_was_just_written_is_renamed_until_the_remote_has_it() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--upload=background");
    let mount = place.mount();
    let rename = |from: &str, to: &str| fs::rename(mount.file(from), mount.file(to));
    // Before its upload begins.
    fs::write(mount.file("first.bin"), b"mine").unwrap();
    rename("first.bin", "second.bin").unwrap();
    assert_published(&server, &place, &mount, "second.bin", b"mine");
    assert_eq!(server.counts().puts_of(&key("first.bin")), 0);
    // While it is being uploaded: it depends on how that ends.
    for (n, fault, moves) in [(1, None, false), (2, Some(Fault::status(403, "AccessDenied")), true)] {
        let (old, new) = (format!("sent-{n}.bin"), format!("moved-{n}.bin"));
        server.set_faults(fault.map(|fault| fault.on(Op::Put).key(&key(&old))));
        let gate = server.hold(Op::Put, Some(&key(&old)));
        fs::write(mount.file(&old), b"mine").unwrap();
        assert!(gate.wait_until_waiting(1, PATIENCE));
        let renamed = std::thread::scope(|scope| {
            let renaming = scope.spawn(|| rename(&old, &new));
            gate.release();
            renaming.join().unwrap()
        });
        if moves {
            renamed.unwrap();
        } else {
            assert_eq!(errno(renamed), libc::EPERM);
            wait_for("a word of the log", || mount.said().contains("save it under the other name, too"));
        }
        assert_published(&server, &place, &mount, if moves { &new } else { &old }, b"mine");
        assert_eq!(mount.file(&old).exists(), !moves);
    }
    // While it can't be uploaded.
    server.stop();
    fs::write(mount.file("later.bin"), b"mine").unwrap();
    wait_for("a warning", || mount.said().contains("later.bin"));
    rename("later.bin", "waiting.bin").unwrap();
    server.restart();
    wait_for("the upload", || server.object(&key("waiting.bin")).is_some());
    assert_eq!(server.object(&key("later.bin")), None);
}

#[test]
fn what_a_close_has_uploaded_is_not_renamed() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    fs::write(mount.file("first.bin"), b"mine").unwrap();
    assert_eq!(errno(fs::rename(mount.file("first.bin"), mount.file("second.bin"))), libc::EPERM);
    wait_for("a word of the log", || mount.said().contains("first.bin: a remote has it"));
    assert_published(&server, &place, &mount, "first.bin", b"mine");
    assert_eq!(server.object(&key("second.bin")), None);
}

#[test]
fn a_file_may_be_renamed_while_it_is_written() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let mut file = File::create(mount.file("before.txt")).unwrap();
    file.write_all(b"one ").unwrap();
    fs::rename(mount.file("before.txt"), mount.file("after.txt")).unwrap();
    file.write_all(b"two").unwrap();
    drop(file);
    assert_published(&server, &place, &mount, "after.txt", b"one two");
    assert_eq!(server.keys(), [key("after.txt")]);
    assert_eq!(errno(fs::metadata(mount.file("before.txt"))), libc::ENOENT);
}

#[test]
fn directories_are_made_for_nested_keys() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    fs::create_dir_all(mount.file("a/b")).unwrap();
    assert_eq!(errno(fs::create_dir(mount.file("a"))), libc::EEXIST);
    assert_eq!(mount.list("").unwrap(), ["a"]);
    assert_eq!(mount.list("a/b").unwrap(), Vec::<String>::new());
    assert_eq!(errno(fs::rename(mount.file("a"), mount.file("c"))), libc::ENOTSUP);
    assert_eq!(errno(fs::remove_dir(mount.file("a"))), libc::ENOTEMPTY);
    fs::create_dir(mount.file("empty")).unwrap();
    fs::remove_dir(mount.file("empty")).unwrap();
    assert_eq!(errno(fs::metadata(mount.file("empty"))), libc::ENOENT);
    fs::write(mount.file("a/b/c.txt"), b"nested").unwrap();
    assert_published(&server, &place, &mount, "a/b/c.txt", b"nested");
    assert_eq!(errno(fs::remove_dir(mount.file("a/b"))), libc::ENOTEMPTY);
    assert_eq!(mount.list("a/b").unwrap(), ["c.txt"]);
}

#[test]
fn names_that_are_never_kept_are_refused() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let long = "n".repeat(256);
    for (name, expected) in [("noir-disabled-cache.tar.gz", libc::EPERM), (long.as_str(), libc::ENAMETOOLONG)]
    {
        assert_eq!(errno(File::create(mount.file(name))), expected, "{name}");
        assert_eq!(errno(fs::create_dir(mount.file(name))), expected, "{name}");
    }
    // Ours, and a directory already.
    assert_eq!(errno(File::create(mount.file(".aztec-cache"))), libc::EISDIR);
    assert_eq!(errno(fs::create_dir(mount.file(".aztec-cache"))), libc::EEXIST);
    assert_eq!(errno(File::create(mount.file(".aztec-cache/x"))), libc::EPERM);
    wait_for("it to be said", || mount.said().contains("noir-disabled-cache"));
    assert_eq!(errno(std::os::unix::fs::symlink("x", mount.file("link"))), libc::EPERM);
    fs::write(mount.file("x.txt"), b"x").unwrap();
    assert_eq!(errno(fs::hard_link(mount.file("x.txt"), mount.file("y.txt"))), libc::EPERM);
}
