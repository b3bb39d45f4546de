//! A cache directory that is none, and disks without room: the cache may fail, the read may not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use crate::common::{Place, Tmpfs, key, names_in, needs_fuse, needs_root, wait_for};

const NAME: &str = "noir-1.tar.gz";

/// A server with one artifact of `size` bytes, and the bytes.
fn serve(size: usize) -> (S3Server, Vec<u8>) {
    let (server, bytes) = (S3Server::start(), random_bytes(1, size));
    server.put(&key(NAME), bytes.clone());
    (server, bytes)
}

/// Sends temporary files into a directory of the place's own, to see what is left there.
fn with_own_tmp(place: &mut Place) -> PathBuf {
    let tmp = place.dir.path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    place.env("TMPDIR", &tmp);
    tmp
}

/// Checks that a mount warns once that it can't have its cache directory, reads on, and leaves nothing on disk.
#[track_caller]
fn assert_reads_without_a_cache(place: &mut Place, bytes: &[u8]) {
    let tmp = with_own_tmp(place);
    let before = names_in(place.dir.path());
    let mount = place.mount();
    assert_eq!(mount.read(NAME).unwrap(), bytes);
    assert_eq!(mount.read(NAME).unwrap(), bytes);
    let said = mount.said();
    let warning = format!("aztec-cache: warning: Cannot create local cache dir {},", place.cache().display());
    assert_eq!(said.matches(&warning).count(), 1, "{said}");
    assert_eq!(said.matches("warning").count(), 1, "{said}");
    assert!(said.contains(": no local cache, "), "{said}");
    mount.unmount();
    assert_eq!(names_in(&tmp), [""; 0]);
    fs::remove_dir(place.mountpoint()).unwrap();
    assert_eq!(names_in(place.dir.path()), before);
}

#[test]
fn a_cache_directory_that_is_a_file() {
    needs_fuse!();
    let (server, bytes) = serve(100_000);
    let mut place = Place::of(&server);
    fs::write(place.cache(), "mine").unwrap();
    assert_reads_without_a_cache(&mut place, &bytes);
    assert_eq!(fs::read(place.cache()).unwrap(), b"mine");
}

#[test]
fn a_cache_directory_that_cannot_be_made() {
    needs_fuse!();
    let (server, bytes) = serve(100_000);
    let mut place = Place::of(&server);
    let file = place.dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    place.cache = Some(file.join("cache"));
    assert_reads_without_a_cache(&mut place, &bytes);
}

#[test]
fn a_cache_directory_of_a_later_format_is_left_alone() {
    needs_fuse!();
    let (server, bytes) = serve(100_000);
    let mut place = Place::of(&server);
    let state = place.cache().join(".aztec-cache");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("format"), "99\n").unwrap();
    fs::write(place.cache().join(NAME), "whatever that format means by this file").unwrap();
    assert_reads_without_a_cache(&mut place, &bytes);
    assert_eq!(names_in(&state), ["format"]);
    assert_eq!(fs::read_to_string(state.join("format")).unwrap(), "99\n");
    assert_eq!(names_in(place.cache()), [".aztec-cache", NAME]);
}

#[test]
fn a_warning_about_a_later_format_says_what_to_do() {
    needs_fuse!();
    let (server, _) = serve(1);
    let place = Place::of(&server);
    let state = place.cache().join(".aztec-cache");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("format"), "99\n").unwrap();
    let mount = place.mount();
    let said = mount.said();
    assert!(said.contains("format '99'") && said.contains("another --cache-dir"), "{said}");
    mount.unmount();
}

/// Checks that a cached and an adopted file come from `place`'s cache directory, which can't be written, without a
/// GET, and that `NAME` streams through.
#[track_caller]
fn assert_serves_hits_only(place: &Place, server: &S3Server, bytes: &[u8]) {
    let before = names_in(place.cache());
    let mount = place.mount();
    assert!(mount.said().contains(": can't be written ("), "{}", mount.said());
    assert!(mount.said().contains(&format!("local cache {} (not writable)", place.cache().display())));
    server.reset_counts();
    let read = |name: &str| place.program("cat").arg(mount.file(name)).output().unwrap().stdout;
    assert_eq!(read("cached.tar.gz"), b"cached bytes");
    assert_eq!(read("adopted.tar.gz"), b"adopted bytes");
    assert_eq!(server.counts().get, 0);
    assert!(read(NAME) == bytes);
    assert!(server.counts().get > 0);
    let seen = place.program("ls").arg(&mount.path).output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&seen), format!("adopted.tar.gz\ncached.tar.gz\n{NAME}\n"));
    assert_eq!(names_in(place.cache()), before);
    mount.unmount();
}

/// Fetches `cached.tar.gz` into the place's cache directory and puts `adopted.tar.gz` beside it.
fn fill_cache(place: &Place, server: &S3Server) {
    server.put(&key("cached.tar.gz"), "cached bytes");
    server.put(&key("adopted.tar.gz"), "adopted bytes");
    let mount = place.mount();
    let output = place.program("cat").arg(mount.file("cached.tar.gz")).output().unwrap();
    assert_eq!(output.stdout, b"cached bytes");
    let kept = place.cache().join("cached.tar.gz");
    wait_for("the cached file", || kept.exists());
    mount.unmount();
    fs::write(place.cache().join("adopted.tar.gz"), "adopted bytes").unwrap();
}

#[test]
fn a_cache_directory_on_a_read_only_disk_serves_hits() {
    needs_fuse!();
    needs_root!("a read-only file system");
    let (server, bytes) = serve(500_000);
    let place = Place::of(&server);
    let disk = Tmpfs::at(place.cache(), "size=8m");
    fill_cache(&place, &server);
    disk.make_read_only();
    assert_serves_hits_only(&place, &server, &bytes);
}

#[test]
fn a_cache_directory_without_permission_to_write_serves_hits() {
    needs_fuse!();
    let (server, bytes) = serve(500_000);
    let mut place = Place::of(&server);
    place.of_ordinary_user();
    fill_cache(&place, &server);
    fs::set_permissions(place.cache(), Permissions::from_mode(0o555)).unwrap();
    assert_serves_hits_only(&place, &server, &bytes);
    fs::set_permissions(place.cache(), Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn someone_elses_cache_directory_serves_hits() {
    needs_fuse!();
    needs_root!("a directory of root's seen by an ordinary user");
    let (server, bytes) = serve(500_000);
    let mut place = Place::of(&server);
    fill_cache(&place, &server);
    fs::remove_dir(place.mountpoint()).unwrap();
    fs::set_permissions(place.cache(), Permissions::from_mode(0o555)).unwrap();
    place.of_ordinary_user();
    assert_serves_hits_only(&place, &server, &bytes);
}

/// Checks that `NAME` is read right, twice, and that nothing of it stays in `disk`.
#[track_caller]
fn assert_reads_past_a_full_disk(place: &Place, disk: &Path, bytes: &[u8]) {
    let mount = place.mount();
    assert!(mount.read(NAME).unwrap() == bytes);
    assert!(mount.read(NAME).unwrap() == bytes, "again");
    let said = mount.said();
    mount.unmount();
    assert!(!disk.join(NAME).exists());
    assert_eq!(names_in(&disk.join(".aztec-cache/partial")), [""; 0]);
    let lines = said.lines().filter(|line| !line.starts_with("aztec-cache: "));
    assert_eq!(lines.count(), 0, "{said}");
}

#[test]
fn an_object_larger_than_the_disk_is_read_all_the_same() {
    needs_fuse!();
    needs_root!("a full disk");
    let (server, bytes) = serve(3_000_000);
    let mut place = Place::of(&server);
    let _disk = Tmpfs::at(place.cache(), "size=1m");
    place.arg("--min-free").arg("0");
    assert_reads_past_a_full_disk(&place, place.cache(), &bytes);
}

#[test]
fn a_disk_without_a_byte_left_is_read_past() {
    needs_fuse!();
    needs_root!("a full disk");
    let (server, bytes) = serve(3_000_000);
    let mut place = Place::of(&server);
    let disk = Tmpfs::at(place.cache(), "size=1m");
    fs::write(place.cache().join("adopted.tar.gz"), "adopted bytes").unwrap();
    disk.fill();
    place.arg("--min-free").arg("0");
    assert_reads_past_a_full_disk(&place, place.cache(), &bytes);
    let mount = place.mount();
    assert_eq!(mount.read("adopted.tar.gz").unwrap(), b"adopted bytes");
    mount.unmount();
}

#[test]
fn an_object_that_would_leave_too_little_free_is_not_kept() {
    needs_fuse!();
    needs_root!("a disk of a known size");
    let (server, bytes) = serve(3_000_000);
    let mut place = Place::of(&server);
    let _disk = Tmpfs::at(place.cache(), "size=4m");
    place.arg("--min-free").arg("50%");
    assert_reads_past_a_full_disk(&place, place.cache(), &bytes);
}

#[test]
fn a_full_temporary_directory_is_read_past() {
    needs_fuse!();
    needs_root!("a full disk");
    let (server, bytes) = serve(12_000_000);
    let mut place = Place::of(&server);
    place.cache = None;
    let tmp = place.dir.path().join("tmp");
    let disk = Tmpfs::at(&tmp, "size=1m");
    place.env("TMPDIR", &tmp);
    assert_reads_past_a_full_disk(&place, &tmp, &bytes);
    disk.fill();
    assert_reads_past_a_full_disk(&place, &tmp, &bytes);
    assert_eq!(names_in(&tmp), ["filler"]);
}

#[test]
fn no_temporary_directory_at_all_is_read_past() {
    needs_fuse!();
    let (server, bytes) = serve(3_000_000);
    let mut place = Place::of(&server);
    place.cache = None;
    place.env("TMPDIR", place.dir.path().join("missing"));
    assert_reads_past_a_full_disk(&place, place.dir.path(), &bytes);
}

#[test]
fn cache_and_temporary_directory_on_one_full_disk_are_read_past() {
    needs_fuse!();
    needs_root!("a full disk");
    let (server, bytes) = serve(3_000_000);
    let mut place = Place::of(&server);
    let disk = Tmpfs::at(place.cache(), "size=1m");
    let tmp = place.cache().to_owned();
    place.arg("--min-free").arg("0").env("TMPDIR", tmp);
    disk.fill();
    assert_reads_past_a_full_disk(&place, place.cache(), &bytes);
}
