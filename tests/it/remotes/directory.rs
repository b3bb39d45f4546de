//! `file:///DIR/`: a directory of artifacts, such as a network share.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use aztec_cache_test_support::artifacts::random_bytes;

use crate::common::{Place, errno, needs_fuse, needs_root, wait_for, xattr};

/// A place whose remote is a directory in it, which is not made yet.
fn place() -> (Place, PathBuf) {
    let mut place = Place::new("http://127.0.0.1:1");
    let remote = place.dir.path().join("remote");
    place.args.clear();
    place.arg("--remote").arg(format!("file://{}/", remote.display()));
    (place, remote)
}

#[track_caller]
fn wait_until_kept(place: &Place, name: &str) {
    let kept = place.cache().join(name);
    wait_for("the cached file", || kept.exists());
}

#[test]
fn read_cold_then_warm_with_the_directory_gone() {
    needs_fuse!();
    let (place, remote) = place();
    let bytes = random_bytes(1, 9_000_000);
    fs::create_dir_all(remote.join("dir/deeper")).unwrap();
    fs::write(remote.join("noir-1.tar.gz"), &bytes).unwrap();
    fs::write(remote.join("dir/deeper/nested.zst"), "nested bytes").unwrap();
    fs::write(remote.join("empty.tar.gz"), "").unwrap();
    let mount = place.mount();
    assert!(mount.said().contains(&format!("file://{}/ mounted at ", remote.display())), "{}", mount.said());
    assert_eq!(mount.list("").unwrap(), ["dir", "empty.tar.gz", "noir-1.tar.gz"]);
    assert_eq!(mount.list("dir").unwrap(), ["deeper"]);
    assert_eq!(mount.list("dir/deeper").unwrap(), ["nested.zst"]);
    assert_eq!(fs::metadata(mount.file("noir-1.tar.gz")).unwrap().len(), bytes.len() as u64);
    assert_eq!(xattr(&mount.file("noir-1.tar.gz"), "user.aztec_cache.state").as_deref(), Some("remote"));
    assert!(mount.read("noir-1.tar.gz").unwrap() == bytes);
    assert_eq!(mount.read("dir/deeper/nested.zst").unwrap(), b"nested bytes");
    assert_eq!(mount.read("empty.tar.gz").unwrap(), b"");
    ["noir-1.tar.gz", "dir/deeper/nested.zst"].iter().for_each(|name| wait_until_kept(&place, name));
    mount.unmount();
    fs::rename(&remote, remote.with_extension("away")).unwrap();
    let mount = place.mount();
    assert!(mount.read("noir-1.tar.gz").unwrap() == bytes);
    assert_eq!(mount.read("dir/deeper/nested.zst").unwrap(), b"nested bytes");
    let source = xattr(&mount.file("noir-1.tar.gz"), "user.aztec_cache.source");
    assert_eq!(source, Some(format!("file://{}/", remote.display())));
    mount.unmount();
}

/// Puts a file with some bytes there, whole at once: a mount that looks in between takes it for what it is then.
fn appear(remote: &Path, name: &str) {
    let temporary = remote.join(".appearing");
    fs::write(&temporary, "bytes").unwrap();
    fs::rename(temporary, remote.join(name)).unwrap();
}

#[test]
fn a_missing_name_is_enoent_until_it_appears() {
    needs_fuse!();
    let (place, remote) = place();
    fs::create_dir(&remote).unwrap();
    let mount = place.mount();
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::ENOENT);
    assert_eq!(errno(mount.read("plain")), libc::ENOENT);
    assert_eq!(errno(mount.list("dir")), libc::ENOENT);
    appear(&remote, "noir-1.tar.gz");
    wait_for("the new file", || mount.read("noir-1.tar.gz").is_ok_and(|read| read == b"bytes"));
    mount.unmount();
}

#[test]
fn a_missing_directory_is_warned_about_and_may_come_later() {
    needs_fuse!();
    let (place, remote) = place();
    fs::create_dir(place.cache()).unwrap();
    fs::write(place.cache().join("adopted.tar.gz"), "adopted bytes").unwrap();
    let mount = place.mount();
    wait_for("a warning", || mount.said().contains("warning"));
    let said = mount.said();
    let warning = said.lines().find(|line| line.contains("warning")).unwrap();
    assert!(warning.contains(remote.to_str().unwrap()), "{said}");
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::ENOENT);
    assert_eq!(mount.read("adopted.tar.gz").unwrap(), b"adopted bytes");
    // A share that is mounted late.
    fs::create_dir(&remote).unwrap();
    appear(&remote, "noir-1.tar.gz");
    wait_for("the file", || mount.read("noir-1.tar.gz").is_ok_and(|read| read == b"bytes"));
    mount.unmount();
}

#[test]
fn names_that_are_no_keys_are_left_out() {
    needs_fuse!();
    let (place, remote) = place();
    fs::create_dir_all(remote.join(".aztec-cache")).unwrap();
    fs::write(remote.join(".aztec-cache/x"), "hidden").unwrap();
    fs::write(remote.join("good.tar.gz"), "bytes").unwrap();
    fs::write(remote.join(OsStr::from_bytes(b"bad-\xff.tar.gz")), "bytes").unwrap();
    fs::write(remote.join("new\nline.tar.gz"), "line bytes").unwrap();
    symlink("nowhere", remote.join("dangling.tar.gz")).unwrap();
    symlink("good.tar.gz", remote.join("link.tar.gz")).unwrap();
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), ["good.tar.gz", "link.tar.gz", "new\nline.tar.gz"]);
    assert_eq!(mount.read("new\nline.tar.gz").unwrap(), b"line bytes");
    assert_eq!(mount.read("link.tar.gz").unwrap(), b"bytes");
    assert_eq!(errno(fs::read(mount.path.join(OsStr::from_bytes(b"bad-\xff.tar.gz")))), libc::ENOENT);
    assert_eq!(errno(mount.read("dangling.tar.gz")), libc::ENOENT);
    assert!(mount.read(".aztec-cache/x").is_err());
    let said = mount.said();
    assert!(said.contains("not UTF-8") && said.lines().all(|l| l.starts_with("aztec-cache: ")), "{said}");
    mount.unmount();
}

#[test]
fn a_file_that_may_not_be_read_is_access_denied() {
    needs_fuse!();
    needs_root!("a file of root's in an ordinary user's remote");
    let (mut place, remote) = place();
    fs::create_dir(&remote).unwrap();
    fs::write(remote.join("secret.tar.gz"), "bytes").unwrap();
    fs::set_permissions(remote.join("secret.tar.gz"), fs::Permissions::from_mode(0o600)).unwrap();
    place.of_ordinary_user();
    let mount = place.mount();
    let output = place.program("cat").arg(mount.file("secret.tar.gz")).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"), "{output:?}");
    assert!(output.stdout.is_empty());
    mount.unmount();
}

/// Replaces `path` by a new file, as a good publisher does.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Writes over `path` in place, as a bad one does.
fn overwrite(path: &Path, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_file_replaced_while_it_is_read_is_stale_and_then_new() {
    needs_fuse!();
    let (old, new) = (random_bytes(1, 32 << 20), random_bytes(2, 32 << 20));
    for (how, change) in [("replaced", replace as fn(&Path, &[u8])), ("overwritten", overwrite)] {
        let (mut place, remote) = place();
        // Nowhere to keep it: bytes come from the remote as they are read, not before.
        place.cache = None;
        place.env("TMPDIR", "/nonexistent");
        fs::create_dir(&remote).unwrap();
        let path = remote.join("noir-1.tar.gz");
        fs::write(&path, &old).unwrap();
        let mount = place.mount();
        let file = File::open(mount.file("noir-1.tar.gz")).unwrap();
        let mut first = vec![0; 100_000];
        file.read_exact_at(&mut first, 0).unwrap();
        assert!(first == old[..100_000], "{how}");
        change(&path, &new);
        assert_eq!(errno(file.read_exact_at(&mut first, 30 << 20)), libc::ESTALE, "{how}");
        drop(file);
        wait_for("the new bytes", || mount.read("noir-1.tar.gz").is_ok_and(|read| read == new));
        mount.unmount();
    }
}

#[test]
fn a_file_replaced_at_any_moment_is_never_mixed() {
    needs_fuse!();
    let (place, remote) = place();
    fs::create_dir(&remote).unwrap();
    let mount = place.mount();
    let versions = [random_bytes(1, 12 << 20), random_bytes(2, 12 << 20)];
    for round in 0..8 {
        let name = format!("noir-{round}.tar.gz");
        fs::write(remote.join(&name), &versions[0]).unwrap();
        let path = mount.file(&name);
        // The download begins with the open: from here on it races with the change.
        let file = File::open(&path).unwrap();
        let change = if round % 2 == 0 { replace } else { overwrite };
        std::thread::scope(|scope| {
            scope.spawn(|| change(&remote.join(&name), &versions[1]));
            let mut read = vec![0; versions[0].len()];
            match file.read_exact_at(&mut read, 0) {
                Ok(()) => assert!(versions.contains(&read), "{name}: mixed"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{name}"),
            }
        });
        drop(file);
        let kept = || fs::read(place.cache().join(&name)).ok();
        assert!(kept().is_none_or(|kept| versions.contains(&kept)), "{name}: kept a mixture");
    }
    mount.unmount();
}

#[test]
fn a_file_that_shrinks_or_vanishes_while_it_is_read_is_stale() {
    needs_fuse!();
    let bytes = random_bytes(1, 32 << 20);
    for how in ["shrinks", "vanishes"] {
        let (mut place, remote) = place();
        place.cache = None;
        place.env("TMPDIR", "/nonexistent");
        fs::create_dir(&remote).unwrap();
        let path = remote.join("noir-1.tar.gz");
        fs::write(&path, &bytes).unwrap();
        let mount = place.mount();
        let file = File::open(mount.file("noir-1.tar.gz")).unwrap();
        let mut first = vec![0; 100_000];
        file.read_exact_at(&mut first, 0).unwrap();
        match how {
            "shrinks" => File::options().write(true).open(&path).unwrap().set_len(1_000_000).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        assert_eq!(errno(file.read_exact_at(&mut first, 30 << 20)), libc::ESTALE, "{how}");
        drop(file);
        mount.unmount();
    }
}
