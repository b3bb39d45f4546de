//! Whose files a mount shows, who may read them, and that nobody may write.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Output;

use aztec_cache_test_support::artifacts;
use aztec_cache_test_support::s3::S3Server;
use aztec_cache_test_support::user::ordinary_user;

use super::serve;
use crate::common::{
    BinaryForAll, Place, assert_refused, errno, key, mounted, needs_fuse, needs_root, wait_for,
};

#[track_caller]
fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Mode, owner and group.
fn permissions(path: &Path) -> (u32, u32, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn an_ordinary_user_mounts_unpacks_and_unmounts() {
    needs_fuse!();
    let server = S3Server::start();
    let name = artifacts::name("noir", 1, "tar.gz");
    server.put(&key(&name), artifacts::tar_gz(1, 500_000, 8));
    let mut place = Place::of(&server);
    place.of_ordinary_user();
    for round in ["cold", "warm"] {
        let (output, _guard) = place.mount_daemon(&[]);
        assert_success(&output);
        let to = place.dir.path().join(round);
        assert_success(&place.program("mkdir").arg(&to).output().unwrap());
        let mut tar = place.program("tar");
        assert_success(
            &tar.arg("-xf").arg(place.mountpoint().join(&name)).arg("-C").arg(&to).output().unwrap(),
        );
        for (path, content) in artifacts::files_of(1, 500_000, 8) {
            assert_eq!(fs::read(to.join(&path)).unwrap(), content, "{round}: {path}");
        }
        let kept = place.cache().join(&name);
        wait_for("the cached file", || kept.exists());
        let stat =
            place.program("stat").args(["-c", "%a %u"]).arg(place.mountpoint().join(&name)).output().unwrap();
        let expected = format!("644 {}\n", fs::metadata(&kept).unwrap().uid());
        assert_eq!(String::from_utf8_lossy(&stat.stdout), expected);
        let again = place.command(&["mount"]).arg(place.mountpoint()).args(&place.args).output().unwrap();
        assert_refused(&again, 6, &["already mounted"]);
        assert_success(&place.command(&["unmount"]).arg(place.mountpoint()).output().unwrap());
        assert_eq!(mounted(&place.mountpoint()), None);
        server.stop();
    }
}

#[test]
fn an_ordinary_user_repairs_a_dead_mount() {
    needs_fuse!();
    let server = serve();
    let mut place = Place::of(&server);
    place.of_ordinary_user();
    for repair in ["unmount", "mount"] {
        let mut dead = place.mount();
        dead.signal(libc::SIGKILL);
        assert_eq!(dead.wait(), None);
        assert!(mounted(&dead.path).is_some());
        if repair == "unmount" {
            assert_success(&place.command(&["unmount"]).arg(&dead.path).output().unwrap());
            assert_eq!(mounted(&dead.path), None);
        } else {
            let mount = place.mount();
            let read = place.program("cat").arg(mount.file("noir-1.tar.gz")).output().unwrap();
            assert_eq!(read.stdout, b"bytes");
            mount.unmount();
            assert_eq!(mounted(&dead.path), None);
        }
    }
}

#[test]
fn an_ordinary_user_ends_a_mount_by_signal() {
    needs_fuse!();
    let server = serve();
    let mut place = Place::of(&server);
    place.of_ordinary_user();
    let mut mount = place.mount();
    mount.signal(libc::SIGTERM);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
    assert_eq!(mounted(&mount.path), None);
}

#[test]
fn an_ordinary_user_may_not_unmount_what_root_mounted() {
    needs_fuse!();
    needs_root!("that an ordinary user may not unmount root's mount");
    let server = serve();
    let place = Place::of(&server);
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let mount = place.mount();
    let user = ordinary_user().unwrap();
    let binary = BinaryForAll::new();
    let output = user.command(binary.path()).arg("unmount").arg(&mount.path).output().unwrap();
    assert_refused(&output, 6, &[mount.path.to_str().unwrap(), "not permitted", "root"]);
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.unmount();
}

#[test]
fn files_are_the_mounters_with_the_usual_modes() {
    needs_fuse!();
    let server = serve();
    server.put(&key("dir/nested.tar.gz"), "bytes");
    let place = Place::of(&server);
    let mount = place.mount();
    let own = fs::metadata(place.dir.path()).unwrap();
    let (uid, gid) = (own.uid(), own.gid());
    assert_eq!(permissions(&mount.path), (0o755, uid, gid));
    assert_eq!(permissions(&mount.file("dir")), (0o755, uid, gid));
    assert_eq!(permissions(&mount.file("noir-1.tar.gz")), (0o644, uid, gid));
    mount.unmount();
}

#[test]
fn owner_group_and_mask_are_shown_as_asked_for() {
    needs_fuse!();
    needs_root!("a mount whose files are another user's");
    let server = serve();
    for args in [
        &["--uid", "1234", "--gid", "2345", "--umask", "027"][..],
        &["-o", "uid=1234,gid=2345,umask=027"],
        &["-o", "uid=1234", "-o", "gid=1,umask=0", "--gid", "2345", "--umask", "027"],
    ] {
        let mut place = Place::of(&server);
        place.args.extend(args.iter().map(Into::into));
        let mount = place.mount();
        assert_eq!(permissions(&mount.path), (0o750, 1234, 2345), "{args:?}");
        assert_eq!(permissions(&mount.file("noir-1.tar.gz")), (0o640, 1234, 2345), "{args:?}");
        mount.unmount();
    }
}

#[test]
fn others_may_read_only_when_allowed() {
    needs_fuse!();
    needs_root!("what another user may read");
    let server = serve();
    let user = ordinary_user().unwrap();
    for (args, allowed) in [(&[][..], false), (&["--allow-other"], true), (&["-o", "allow_other"], true)] {
        let mut place = Place::of(&server);
        place.args.extend(args.iter().map(Into::into));
        fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
        let mount = place.mount();
        let output = user.command("cat").arg(mount.file("noir-1.tar.gz")).output().unwrap();
        assert_eq!(output.status.success(), allowed, "{args:?}: {output:?}");
        assert_eq!(output.stdout, if allowed { &b"bytes"[..] } else { b"" });
        if !allowed {
            assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"), "{output:?}");
        }
        mount.unmount();
    }
}

#[test]
fn others_are_kept_out_by_the_mask() {
    needs_fuse!();
    needs_root!("what another user may read");
    let server = serve();
    let user = ordinary_user().unwrap();
    let mut place = Place::of(&server);
    place.arg("--allow-other").arg("--umask").arg("077");
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let mount = place.mount();
    let output = user.command("cat").arg(mount.file("noir-1.tar.gz")).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    mount.unmount();
}

#[test]
fn an_ordinary_user_is_told_how_to_allow_others() {
    needs_fuse!();
    let allowed = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if allowed.lines().any(|line| line.trim() == "user_allow_other") {
        eprintln!("SKIPPED: /etc/fuse.conf allows user_allow_other on this machine");
        return;
    }
    let server = serve();
    let mut place = Place::of(&server);
    place.of_ordinary_user().arg("--allow-other");
    let path = place.mountpoint();
    let parts = [path.to_str().unwrap(), "user_allow_other", "/etc/fuse.conf"];
    assert_refused(&place.mount_daemon(&[]).0, 6, &parts);
    assert_eq!(mounted(&path), None);
}

#[test]
fn every_write_to_a_read_only_mount_is_refused() {
    needs_fuse!();
    let server = serve();
    server.put(&key("dir/nested.tar.gz"), "bytes");
    let mut place = Place::of(&server);
    place.arg("--read-only");
    let mount = place.mount();
    let (file, new, dir) = (mount.file("noir-1.tar.gz"), mount.file("new"), mount.file("dir"));
    let open = |path: &Path| fs::OpenOptions::new().write(true).open(path);
    for (what, result) in [
        ("create", fs::write(&new, "x")),
        ("create in a directory", fs::write(dir.join("new"), "x")),
        ("open to write", open(&file).map(drop)),
        ("truncate", fs::File::create(&file).map(drop)),
        ("unlink", fs::remove_file(&file)),
        ("mkdir", fs::create_dir(&new)),
        ("rmdir", fs::remove_dir(&dir)),
        ("rename", fs::rename(&file, &new)),
        ("link", fs::hard_link(&file, &new)),
        ("symlink", std::os::unix::fs::symlink("x", &new)),
        ("chmod", fs::set_permissions(&file, Permissions::from_mode(0o600))),
        ("chown", std::os::unix::fs::chown(&file, Some(1), None)),
        ("utimes", open(&file).and_then(|file| file.set_modified(std::time::SystemTime::now()))),
    ] {
        assert_eq!(errno(result), libc::EROFS, "{what}");
    }
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    assert_eq!(server.counts().put + server.counts().delete, 0);
    mount.unmount();
}
