//! Where a mount may lie: made when missing, inside the cache directory, behind a symbolic link, with a space in it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use aztec_cache_test_support::s3::S3Server;

use super::serve;
use crate::common::{Mount, Place, key, mounted, names_in, needs_fuse, wait_for};

/// A mount in front on `path`.
fn mount_on(place: &Place, path: PathBuf) -> Mount {
    let mut command = place.command(&["mount", "--foreground"]);
    command.arg(&path).args(&place.args);
    Mount::start(command, path).unwrap_or_else(|said| panic!("the mount failed:\n{said}"))
}

/// A place whose mount is the default one, inside the cache directory.
fn inside_the_cache(server: &S3Server) -> (Place, PathBuf) {
    let mut place = Place::of(server);
    let cache = place.dir.path().join(".aztec-cache");
    let path = cache.join("remote");
    place.cache = Some(cache);
    (place, path)
}

/// A mount in front on the default mountpoint.
fn mount_default(place: &Place, path: &std::path::Path) -> Mount {
    let mut command = place.command(&["mount", "--foreground"]);
    command.args(&place.args);
    Mount::start(command, path.to_owned()).unwrap_or_else(|said| panic!("the mount failed:\n{said}"))
}

#[test]
fn a_missing_mountpoint_is_made_with_its_parents() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let mount = mount_on(&place, place.dir.path().join("a/b/c"));
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.unmount();
}

#[test]
fn a_path_with_a_space_and_other_characters() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    for name in ["with a space", "back\\slash", "täb\tand\nline", "a,b=c"] {
        let mut mount = mount_on(&place, place.dir.path().join(name));
        assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes", "{name}");
        let output = place.command(&["unmount"]).arg(&mount.path).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(mount.wait(), Some(0), "{name}");
        assert_eq!(names_in(&mount.path), [""; 0], "{name}");
    }
}

#[test]
fn a_path_relative_to_where_the_command_is_run() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let guard = crate::common::Unmount(place.dir.path().join("relative"));
    for path in ["relative", "./relative", "other/../relative/"] {
        fs::create_dir_all(place.dir.path().join("other")).unwrap();
        let output = place.command(&["mount", path]).args(&place.args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read(guard.0.join("noir-1.tar.gz")).unwrap(), b"bytes", "{path}");
        let output = place.command(&["unmount", path]).output().unwrap();
        assert!(output.status.success() && mounted(&guard.0).is_none(), "{path}: {output:?}");
    }
}

#[test]
fn a_path_through_symbolic_links() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let real = place.dir.path().join("real");
    fs::create_dir_all(real.join("mnt")).unwrap();
    let (parent, itself) = (place.dir.path().join("parent-link"), place.dir.path().join("link"));
    symlink(&real, &parent).unwrap();
    symlink("real/mnt", &itself).unwrap();
    for path in [parent.join("mnt"), itself] {
        let mut mount = mount_on(&place, path.clone());
        assert!(mounted(&real.join("mnt")).is_some());
        assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
        let again = place.command(&["mount"]).arg(&path).args(&place.args).output().unwrap();
        crate::common::assert_refused(&again, 6, &["already mounted"]);
        let output = place.command(&["unmount"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(mounted(&real.join("mnt")), None, "{}", path.display());
        assert_eq!(mount.wait(), Some(0));
    }
}

#[test]
fn the_default_lies_inside_the_cache_directory() {
    needs_fuse!();
    let server = serve();
    server.put(&key("dir/nested.tar.gz"), "nested bytes");
    let (place, path) = inside_the_cache(&server);
    let guard = crate::common::Unmount(path.clone());
    // The first time, after an unmount, and with files in the cache.
    for round in 0..2 {
        let output = place.command(&["mount"]).args(&place.args).output().unwrap();
        assert!(output.status.success(), "{round}: {output:?}");
        assert_eq!(fs::read(path.join("noir-1.tar.gz")).unwrap(), b"bytes");
        assert_eq!(fs::read(path.join("dir/nested.tar.gz")).unwrap(), b"nested bytes");
        place.wait_until_cached("noir-1.tar.gz");
        place.wait_until_cached("dir/nested.tar.gz");
        assert_eq!(names_in(&path), ["dir", "noir-1.tar.gz"], "{round}");
        assert!(
            fs::metadata(path.join("remote")).is_err() && fs::metadata(path.join(".aztec-cache/x")).is_err()
        );
        let output = place.command(&["unmount"]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(mounted(&path), None);
    }
    assert_eq!(names_in(place.cache()), [".aztec-cache", "dir", "noir-1.tar.gz", "remote"]);
    drop(guard);
}

#[test]
fn inside_the_cache_directory_after_a_crash() {
    needs_fuse!();
    let server = serve();
    let (place, path) = inside_the_cache(&server);
    let mut dead = mount_default(&place, &path);
    assert_eq!(dead.read("noir-1.tar.gz").unwrap(), b"bytes");
    wait_for("the cached file", || place.cache().join("noir-1.tar.gz").exists());
    dead.signal(libc::SIGKILL);
    assert_eq!(dead.wait(), None);
    server.stop();
    let mount = mount_default(&place, &path);
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    assert_eq!(mount.list("").unwrap(), ["noir-1.tar.gz"]);
    mount.unmount();
    assert_eq!(mounted(&path), None);
}

#[test]
fn a_cache_directory_named_by_a_symbolic_link_around_the_mountpoint() {
    needs_fuse!();
    let server = serve();
    let (mut place, path) = inside_the_cache(&server);
    fs::create_dir(place.cache()).unwrap();
    let link = place.dir.path().join("link");
    symlink(place.cache(), &link).unwrap();
    place.cache = Some(link);
    let mount = mount_default(&place, &path);
    assert_eq!(mount.list("").unwrap(), ["noir-1.tar.gz"]);
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.unmount();
}

#[test]
fn keys_named_like_the_mountpoint_or_our_own_directory_do_no_harm() {
    needs_fuse!();
    for (name, top) in [("remote", "remote"), ("remote/x.tar.gz", "remote")] {
        let server = serve();
        server.put(&key(name), "hostile bytes");
        server.put(&key(".aztec-cache/x"), "hidden bytes");
        let (place, path) = inside_the_cache(&server);
        let mount = mount_default(&place, &path);
        assert_eq!(mount.list("").unwrap(), ["noir-1.tar.gz", top]);
        for _ in 0..2 {
            assert_eq!(mount.read(name).unwrap(), b"hostile bytes");
        }
        assert!(mount.read(".aztec-cache/x").is_err());
        assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
        mount.unmount();
        assert_eq!(names_in(&path), [""; 0], "{name}: nothing was put under the mountpoint");
        let own = place.cache().join(".aztec-cache");
        let expected = ["format", "journal", "meta", "notes", "partial", "space", "spool", "swept"];
        assert_eq!(names_in(&own), expected, "{name}");
    }
}

#[test]
fn a_second_mount_elsewhere_shares_the_cache_directory() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let (first, second) = (place.mount(), mount_on(&place, place.dir.path().join("second")));
    assert_eq!(first.read("noir-1.tar.gz").unwrap(), b"bytes");
    let kept = place.cache().join("noir-1.tar.gz");
    wait_for("the cached file", || kept.exists());
    assert_eq!(second.read("noir-1.tar.gz").unwrap(), b"bytes");
    assert_eq!(server.counts().gets_of(&key("noir-1.tar.gz")), 1);
    first.unmount();
    assert_eq!(second.read("noir-1.tar.gz").unwrap(), b"bytes");
    second.unmount();
}

#[test]
fn the_mount_table_says_what_is_mounted_where() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let mount = place.mount();
    let expected = ("s3://aztec-ci-artifacts/build-cache/".to_owned(), "fuse.aztec-cache".to_owned());
    assert_eq!(mounted(&mount.path), Some(expected));
    let output = Command::new("findmnt").args(["-n", "-o", "OPTIONS"]).arg(&mount.path).output().unwrap();
    let options = String::from_utf8_lossy(&output.stdout).into_owned();
    for option in ["rw", "nosuid", "nodev", "default_permissions"] {
        assert!(options.trim().split(',').any(|o| o == option), "{option}: {options}");
    }
    mount.unmount();
}
