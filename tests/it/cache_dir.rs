//! The cache directory: with and without one, and files in it that others put there, change or remove.

use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{ObjectOptions, S3Server};

use crate::common::{
    Mount, PATIENCE, Place, assert_same, errno, key, names_in, needs_fuse, wait_for, within, xattr,
};

const NAME: &str = "yarn-project-5d7c5a1f2b3c4d5e.tar.gz";

/// A server with `body` under `NAME`, and a place for its mounts, with the cache directory made.
fn place_of(body: &[u8]) -> (S3Server, Place) {
    let server = S3Server::start();
    server.put(&key(NAME), body.to_vec());
    let place = Place::of(&server);
    fs::create_dir(place.cache()).unwrap();
    (server, place)
}

fn cached(place: &Place) -> PathBuf {
    place.cache().join(NAME)
}

/// Fetches `NAME` through a mount and waits until it is kept.
fn fetch(place: &Place, mount: &Mount, body: &[u8]) {
    assert_same("fetched", &mount.read(NAME).unwrap(), body);
    place.wait_until_cached(NAME);
}

/// Every open gives the right bytes, and one of them puts the file back: maybe not the first, which may share the last
/// moments of the download before.
fn assert_right_and_kept_again(what: &str, place: &Place, mount: &Mount, body: &[u8]) {
    wait_for(&format!("{what}: the file to be kept again"), || {
        assert_same(what, &mount.read(NAME).unwrap(), body);
        fs::read(cached(place)).is_ok_and(|kept| kept == body)
    });
}

fn source(mount: &Mount) -> Option<String> {
    xattr(&mount.file(NAME), "user.aztec_cache.source")
}

#[test]
fn without_a_cache_directory_nothing_is_left_on_disk() {
    needs_fuse!();
    let body = random_bytes(1, 3 << 20);
    for empty in [false, true] {
        let (server, mut place) = place_of(&body);
        fs::remove_dir(place.cache()).unwrap();
        place.cache = None;
        let tmp = place.dir.path().join("tmp");
        fs::create_dir(&tmp).unwrap();
        place.env("TMPDIR", &tmp);
        if empty {
            place.env("CACHE_LOCAL_DIR", "");
        }
        let mount = place.mount();
        assert!(mount.said().contains("no local cache"), "{}", mount.said());
        let gate = server.hold_gets(&key(NAME), 512 << 10);
        let readers = [0, 1].map(|_| {
            let path = mount.file(NAME);
            thread::spawn(move || fs::read(path).unwrap())
        });
        assert!(gate.wait_until_waiting(1, PATIENCE));
        assert!(names_in(&tmp).is_empty(), "{:?}", names_in(&tmp));
        let third = File::open(mount.file(NAME)).unwrap();
        gate.release();
        readers.into_iter().for_each(|reader| assert_same("a reader", &reader.join().unwrap(), &body));
        assert_eq!(server.counts().bytes_of(&key(NAME)), body.len() as u64, "not shared");
        let state = || xattr(&mount.file(NAME), "user.aztec_cache.state");
        assert_eq!(state().as_deref(), Some("partial"), "not kept for the one who has it open");
        drop(third);
        wait_for("the download to be forgotten", || state().as_deref() == Some("remote"));
        mount.unmount();
        assert_eq!(names_in(place.dir.path()), ["mnt", "tmp"], "left in the home directory");
        assert!(names_in(&tmp).is_empty(), "{:?}", names_in(&tmp));
    }
}

#[test]
fn a_copy_of_the_right_size_is_adopted_with_one_question() {
    needs_fuse!();
    let body = random_bytes(2, 700_000);
    let (server, place) = place_of(&body);
    fs::write(cached(&place), &body).unwrap();
    let inode = fs::metadata(cached(&place)).unwrap().ino();
    let mount = place.mount();
    server.reset_counts();
    assert_same("adopted", &mount.read(NAME).unwrap(), &body);
    assert_eq!((server.counts().head, server.counts().requests()), (1, 1), "{:?}", server.log());
    assert_eq!(source(&mount).as_deref(), Some("adopted"));
    mount.unmount();
    let mount = place.mount();
    server.reset_counts();
    assert_same("recorded", &mount.read(NAME).unwrap(), &body);
    assert_eq!(server.counts().requests(), 0, "{:?}", server.log());
    assert_eq!(fs::metadata(cached(&place)).unwrap().ino(), inode, "the file was replaced");
}

#[test]
fn a_truncated_copy_is_replaced() {
    needs_fuse!();
    let body = random_bytes(3, 700_000);
    let (_server, place) = place_of(&body);
    fs::write(cached(&place), &body[..300_000]).unwrap();
    let mount = place.mount();
    assert_same("the remote's bytes", &mount.read(NAME).unwrap(), &body);
    wait_for("the copy to be replaced", || fs::read(cached(&place)).unwrap() == body);
    assert_eq!(source(&mount).as_deref(), Some("s3://aztec-ci-artifacts/build-cache/"));
}

#[test]
fn copies_are_served_when_the_remote_cannot_vouch_for_them() {
    needs_fuse!();
    let body = random_bytes(4, 700_000);
    let (server, place) = place_of(&body);
    fs::write(cached(&place), &body[..500_000]).unwrap();
    fs::write(place.cache().join("ours-alone.tar.gz"), "never uploaded").unwrap();
    let mount = place.mount();
    assert_same("unknown there", &mount.read("ours-alone.tar.gz").unwrap(), b"never uploaded");
    server.stop();
    mount.unmount();
    let mount = place.mount();
    let path = mount.file(NAME);
    let read = within(Duration::from_secs(10), "a read without the server", move || fs::read(path).unwrap());
    assert_same("the copy, of whatever size", &read, &body[..500_000]);
    assert_same("unknown there", &mount.read("ours-alone.tar.gz").unwrap(), b"never uploaded");
}

#[test]
fn a_person_may_remove_replace_or_truncate_cached_files() {
    needs_fuse!();
    let body = random_bytes(5, 700_000);
    let (_server, place) = place_of(&body);
    let mount = place.mount();
    fetch(&place, &mount, &body);
    fs::remove_file(cached(&place)).unwrap();
    assert_right_and_kept_again("removed", &place, &mount, &body);

    File::options().write(true).open(cached(&place)).unwrap().set_len(100_000).unwrap();
    assert_right_and_kept_again("truncated", &place, &mount, &body);

    let other = place.cache().join("other");
    fs::write(&other, "something else").unwrap();
    fs::rename(&other, cached(&place)).unwrap();
    assert_right_and_kept_again("replaced", &place, &mount, &body);

    let open = File::open(mount.file(NAME)).unwrap();
    fs::remove_file(cached(&place)).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &open, &mut bytes).unwrap();
    assert_same("removed while open", &bytes, &body);
}

#[test]
fn a_copy_of_the_same_size_put_there_is_not_taken_for_what_was_fetched() {
    needs_fuse!();
    let (old, new) = (random_bytes(22, 700_000), random_bytes(23, 700_000));
    // With the kernel reading local files by itself, if it may, and without.
    for ordinary in [false, true] {
        let (_server, mut place) = place_of(&old);
        fs::remove_dir(place.cache()).unwrap();
        if ordinary {
            place.of_ordinary_user();
        }
        let read = |mount: &Mount, length: usize| {
            let mut head = place.program("head");
            let output = head.args(["-c", &length.to_string()]).arg(mount.file(NAME)).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        let mount = place.mount();
        assert_same("fetched", &read(&mount, 700_000), &old);
        place.wait_until_cached(NAME);
        mount.unmount();
        let mount = place.mount();
        // Some pages of the old one are in the kernel's memory then.
        assert_same("a part", &read(&mount, 100_000), &old[..100_000]);
        let other = place.cache().join("other");
        fs::write(&other, &new).unwrap();
        fs::rename(&other, cached(&place)).unwrap();
        for _ in 0..2 {
            assert_same("the remote's", &read(&mount, 700_000), &old);
            let quarantine = place.cache().join(".aztec-cache/quarantine");
            let [moved] = names_in(&quarantine).try_into().expect("the copy is kept");
            assert_same("the copy", &fs::read(quarantine.join(moved)).unwrap(), &new);
        }
    }
}

#[test]
fn without_the_server_what_a_person_puts_there_is_served() {
    needs_fuse!();
    let body = random_bytes(6, 700_000);
    let (server, place) = place_of(&body);
    let mount = place.mount();
    fetch(&place, &mount, &body);
    server.stop();
    let mut before = body;
    for size in [10_000, 20_000] {
        let mine = random_bytes(size as u64, size);
        fs::write(cached(&place), &mine).unwrap();
        // The kernel looks the name up again after a second at the latest.
        wait_for("the file put there", || match mount.read(NAME) {
            Ok(read) => {
                assert!(read == mine || read == before, "neither the one nor the other");
                read == mine
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EHOSTUNREACH));
                false
            }
        });
        before = mine;
    }
    fs::remove_file(cached(&place)).unwrap();
    wait_for("it to be out of reach", || {
        mount.read(NAME).is_err_and(|e| e.raw_os_error() == Some(libc::EHOSTUNREACH))
    });
}

#[test]
fn symbolic_links_are_not_followed() {
    needs_fuse!();
    let body = random_bytes(8, 300_000);
    let (server, place) = place_of(&body);
    let outside = place.dir.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    let targets = [Path::new("/etc/passwd"), &outside, Path::new("../outside"), Path::new("/no/such/file")];
    let name = |i: usize| format!("link-{i}.tar.gz");
    for (i, target) in targets.iter().enumerate() {
        server.put(&key(&name(i)), body.clone());
        symlink(target, place.cache().join(name(i))).unwrap();
    }
    // A directory outside, in the way of a nested key, with a file in it that could be taken for the artifact.
    let elsewhere = place.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let secret = random_bytes(24, body.len());
    fs::write(elsewhere.join("x.zst"), &secret).unwrap();
    symlink("../elsewhere", place.cache().join("nested")).unwrap();
    server.put(&key("nested/x.zst"), body.clone());
    symlink(&outside, place.cache().join("local-only.zst")).unwrap();
    let mount = place.mount();
    for (i, target) in targets.iter().enumerate() {
        assert_same(&name(i), &mount.read(&name(i)).unwrap(), &body);
        assert_eq!(fs::read_link(place.cache().join(name(i))).unwrap(), *target);
    }
    assert_same("nested", &mount.read("nested/x.zst").unwrap(), &body);
    assert_eq!(errno(mount.read("local-only.zst")), libc::ENOENT);
    assert!(!mount.list("").unwrap().contains(&"local-only.zst".to_owned()));
    mount.unmount();
    assert_eq!(fs::read(&outside).unwrap(), b"secret");
    assert_eq!(names_in(&elsewhere), ["x.zst"]);
    assert_same("a file outside", &fs::read(elsewhere.join("x.zst")).unwrap(), &secret);
    assert!(place.partials().is_empty());
}

#[test]
fn directories_and_fifos_in_the_way_are_left_alone() {
    needs_fuse!();
    let body = random_bytes(9, 300_000);
    let (server, place) = place_of(&body);
    let (dir, fifo) = ("a-directory.tar.gz", "a-fifo.tar.gz");
    [dir, fifo].iter().for_each(|name| drop(server.put(&key(name), body.clone())));
    fs::create_dir(place.cache().join(dir)).unwrap();
    fs::write(place.cache().join(dir).join("mine"), "mine").unwrap();
    let path = std::ffi::CString::new(place.cache().join(fifo).as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let mount = place.mount();
    for name in [dir, fifo] {
        let path = mount.file(name);
        let read = within(PATIENCE, name, move || fs::read(path).unwrap());
        assert_same(name, &read, &body);
    }
    mount.unmount();
    assert_eq!(names_in(&place.cache().join(dir)), ["mine"]);
    assert!(fs::symlink_metadata(place.cache().join(fifo)).unwrap().file_type().is_fifo());
    assert!(place.partials().is_empty());
}

#[test]
fn other_programs_entries_are_neither_shown_nor_touched() {
    needs_fuse!();
    let body = random_bytes(10, 300_000);
    let (_server, place) = place_of(&body);
    let theirs = ["extracted/noir/file", ".lock.x", ".tmp.y", ".hidden/z"];
    for name in theirs {
        let path = place.cache().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let mount = place.mount();
    fetch(&place, &mount, &body);
    assert_eq!(mount.list("").unwrap(), [NAME]);
    for name in ["extracted", "extracted/noir/file", ".lock.x", ".tmp.y"] {
        assert_eq!(errno(fs::metadata(mount.file(name))), libc::ENOENT, "{name}");
    }
    mount.unmount();
    place.mount().unmount();
    for name in theirs {
        let path = place.cache().join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), name);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
    }
    assert_eq!(names_in(place.cache()).len(), 6, "{:?}", names_in(place.cache()));
}

#[test]
fn kept_files_have_the_object_s_time_and_metadata_of_our_own() {
    needs_fuse!();
    let (server, place) = place_of(b"");
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let options = ObjectOptions { last_modified: Some(modified), ..ObjectOptions::default() };
    let body = random_bytes(11, 300_000);
    let etag = server.put_with(&key(NAME), body.clone(), options.clone());
    server.put_with(&key("a/b.zst"), "nested", options);
    let mount = place.mount();
    fetch(&place, &mount, &body);
    assert_same("nested", &mount.read("a/b.zst").unwrap(), b"nested");
    place.wait_until_cached("a/b.zst");
    let meta = fs::metadata(cached(&place)).unwrap();
    assert_eq!(meta.modified().unwrap(), modified);
    assert_eq!(meta.permissions().mode() & 0o111, 0);
    let state = place.cache().join(".aztec-cache");
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o7777, 0o700);
    let record = fs::read_to_string(state.join("meta").join(NAME)).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!((record["etag"].as_str(), record["size"].as_u64()), (Some(etag.as_str()), Some(300_000)));
    assert!(state.join("meta/a/b.zst").is_file());
    assert_eq!(names_in(place.cache()), [".aztec-cache", "a", NAME]);
}

#[test]
fn a_file_with_damaged_metadata_counts_as_adopted() {
    needs_fuse!();
    let body = random_bytes(12, 300_000);
    let (server, place) = place_of(&body);
    let mount = place.mount();
    fetch(&place, &mount, &body);
    mount.unmount();
    let record = place.cache().join(".aztec-cache/meta").join(NAME);
    for damaged in [&b"\x00\xffgarbage"[..], b"", b"{\"etag\": 7}", b"[]"] {
        fs::write(&record, damaged).unwrap();
        let mount = place.mount();
        server.reset_counts();
        assert_same("with damaged metadata", &mount.read(NAME).unwrap(), &body);
        let counts = server.counts();
        assert_eq!((counts.get, counts.requests()), (0, 1), "{:?}", server.log());
        assert_eq!(source(&mount).as_deref(), Some("adopted"));
    }
    fs::write(&record, "{").unwrap();
    server.stop();
    let mount = place.mount();
    assert_same("without the server", &mount.read(NAME).unwrap(), &body);
}

#[test]
fn what_passes_a_limit_streams_through() {
    needs_fuse!();
    let body = random_bytes(13, 3 << 20);
    for limit in [["--max-cache-size", "2MiB"], ["--min-free", "99%"]] {
        let (server, mut place) = place_of(&body);
        place.arg(limit[0]).arg(limit[1]);
        let mount = place.mount();
        for _ in 0..2 {
            assert_same(limit[0], &mount.read(NAME).unwrap(), &body);
        }
        mount.unmount();
        assert!(!cached(&place).exists() && place.partials().is_empty(), "{}: something was kept", limit[0]);
        assert!(server.counts().bytes_of(&key(NAME)) >= body.len() as u64);
    }
}

#[test]
fn the_least_recently_used_file_makes_room() {
    needs_fuse!();
    let (server, mut place) = place_of(&random_bytes(14, 600_000));
    server.put(&key("second.zst"), random_bytes(15, 600_000));
    place.arg("--max-cache-size").arg("1MiB");
    let mount = place.mount();
    fetch(&place, &mount, &random_bytes(14, 600_000));
    assert_same("the second", &mount.read("second.zst").unwrap(), &random_bytes(15, 600_000));
    place.wait_until_cached("second.zst");
    assert_eq!(names_in(place.cache()), [".aztec-cache", "second.zst"]);
    assert_same("the first again", &mount.read(NAME).unwrap(), &random_bytes(14, 600_000));
}

#[test]
fn revalidate_asks_again_after_its_age() {
    needs_fuse!();
    let (old, new) = (random_bytes(16, 500_000), random_bytes(17, 400_000));
    let (server, mut place) = place_of(&old);
    place.arg("--revalidate").arg("1s");
    let mount = place.mount();
    fetch(&place, &mount, &old);
    server.put(&key(NAME), new.clone());
    wait_for("the new version", || {
        let read = mount.read(NAME).unwrap();
        assert!(read == old || read == new, "mixed");
        read == new
    });
    wait_for("the new version on disk", || fs::read(cached(&place)).unwrap() == new);
    server.stop();
    let start = Instant::now();
    // Past its age, nobody can say that it is wrong.
    while start.elapsed() < Duration::from_secs(2) {
        assert_same("with the server gone", &mount.read(NAME).unwrap(), &new);
    }
}

#[test]
fn a_known_file_is_served_without_asking_by_default() {
    needs_fuse!();
    let (old, new) = (random_bytes(18, 500_000), random_bytes(19, 400_000));
    for explicit in [false, true] {
        let (server, mut place) = place_of(&old);
        if explicit {
            place.env("AZTEC_CACHE_REVALIDATE", "never");
        }
        let mount = place.mount();
        fetch(&place, &mount, &old);
        mount.unmount();
        server.put(&key(NAME), new.clone());
        // As after years.
        let record = File::options().write(true).open(place.cache().join(".aztec-cache/meta").join(NAME));
        record.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let mount = place.mount();
        server.reset_counts();
        assert_same("the known version", &mount.read(NAME).unwrap(), &old);
        assert_eq!(server.counts().requests(), 0, "{:?}", server.log());
    }
}

#[test]
fn a_use_is_noted_in_the_file_s_atime() {
    needs_fuse!();
    let body = random_bytes(20, 100_000);
    let (_server, place) = place_of(&body);
    let mount = place.mount();
    fetch(&place, &mount, &body);
    let before = fs::metadata(cached(&place)).unwrap().modified().unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = File::options().write(true).open(cached(&place)).unwrap();
    file.set_times(FileTimes::new().set_accessed(long_ago)).unwrap();
    assert_same("warm", &mount.read(NAME).unwrap(), &body);
    let meta = fs::metadata(cached(&place)).unwrap();
    assert!(meta.accessed().unwrap().elapsed().unwrap() < PATIENCE, "{:?}", meta.accessed());
    assert_eq!(meta.modified().unwrap(), before);
}
