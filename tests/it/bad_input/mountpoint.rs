//! A mountpoint, or a machine, that can't be mounted on: exit code 6, and nothing is left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{BINARY, Place, assert_refused, mounted, names_in, needs_fuse, needs_root};

/// A place whose remote is never asked.
fn place() -> Place {
    Place::new("http://127.0.0.1:1")
}

#[test]
fn a_file() {
    needs_fuse!();
    let place = place();
    fs::write(place.mountpoint(), "mine").unwrap();
    let path = place.mountpoint();
    let parts = [path.to_str().unwrap(), "not a directory", "name one"];
    assert_refused(&place.mount_daemon(&[]).0, 6, &parts);
    assert_eq!(fs::read(place.mountpoint()).unwrap(), b"mine");
}

#[test]
fn below_a_file() {
    needs_fuse!();
    let place = place();
    let file = place.dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let path = file.join("mnt");
    let output = place.command(&["mount"]).arg(&path).args(&place.args).output().unwrap();
    assert_refused(&output, 6, &[path.to_str().unwrap(), "name a directory"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn not_empty() {
    needs_fuse!();
    let place = place();
    fs::create_dir(place.mountpoint()).unwrap();
    fs::write(place.mountpoint().join(".hidden"), "mine").unwrap();
    let path = place.mountpoint();
    let parts = [path.to_str().unwrap(), "not empty", "name an empty directory"];
    assert_refused(&place.mount_daemon(&[]).0, 6, &parts);
    assert_eq!(mounted(&place.mountpoint()), None);
    assert_eq!(names_in(&place.mountpoint()), [".hidden"]);
}

#[test]
fn no_home_to_put_the_default_in() {
    let output = place().command(&["mount"]).env_remove("HOME").output().unwrap();
    assert_refused(&output, 2, &["MOUNTPOINT", "HOME"]);
}

#[test]
fn not_permitted() {
    needs_fuse!();
    needs_root!("an ordinary user's mount on a directory of root's");
    let mut place = place();
    place.of_ordinary_user();
    for taken in ["mnt", "parent/mnt"] {
        // Made by root, the tester, after the place was handed over.
        let path = place.dir.path().join(taken);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if taken == "mnt" {
            fs::create_dir(&path).unwrap();
        }
        let output = place.command(&["mount"]).arg(&path).args(&place.args).output().unwrap();
        assert_refused(&output, 6, &[path.to_str().unwrap(), "director"]);
        assert_eq!(mounted(&path), None);
    }
}

#[test]
fn no_fuse_device() {
    needs_root!("a machine without /dev/fuse");
    let place = place();
    // A /dev of our own with nothing in it but /dev/null.
    let script = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && exec \"$@\"";
    for how in [&["mount"][..], &["mount", "--foreground"]] {
        let inner = place.command(how);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh", BINARY]).args(how);
        command.arg(place.mountpoint()).args(&place.args);
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.output().unwrap();
        assert_refused(&output, 6, &["/dev/fuse", "modprobe fuse", "--device /dev/fuse"]);
    }
    assert!(Path::new("/dev/zero").exists(), "the tester's own /dev is as it was");
}

#[test]
fn no_fusermount_for_an_ordinary_user() {
    needs_fuse!();
    let mut place = place();
    place.of_ordinary_user();
    let empty = place.dir.path().as_os_str().to_owned();
    place.env("PATH", empty);
    assert_refused(&place.mount_daemon(&[]).0, 6, &["fusermount3", "apt-get install fuse3"]);
    assert_eq!(mounted(&place.mountpoint()), None);
}
