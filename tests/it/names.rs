//! Names: keys as paths, hostile keys, listings, attributes.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Access, ObjectOptions, Op, Options, S3Server};

use crate::common::{
    Mount, PATIENCE, Place, assert_same, errno, key, names_in, needs_fuse, wait_for, within, xattr,
};

const NAME: &str = "noir-b786c534d2b9261d.tar.gz";

/// A server with an object for each name, whose body is its key, and a mount of it.
fn serving(names: &[&str]) -> (S3Server, Place, Mount) {
    let server = S3Server::start();
    names.iter().for_each(|name| drop(server.put(&key(name), name.to_string())));
    let place = Place::of(&server);
    let mount = place.mount();
    (server, place, mount)
}

/// What a command prints; it must succeed.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

#[test]
fn slashes_make_directories() {
    needs_fuse!();
    let names = ["a/b/c.zst", "a/b/d.tar.gz", "a/top.zst", "flat.tar.gz", "deep/1/2/3/4/5/6/7/8/9/x.zst"];
    let (_server, place, mount) = serving(&names);
    assert_same("looked up before any listing", &mount.read("a/b/c.zst").unwrap(), b"a/b/c.zst");
    let mut found: Vec<String> =
        output(Command::new("find").args([".", "-type", "f"]).current_dir(&mount.path))
            .lines()
            .map(|line| line.trim_start_matches("./").to_owned())
            .collect();
    found.sort();
    let mut expected = names.map(str::to_owned);
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(mount.list("").unwrap(), ["a", "deep", "flat.tar.gz"]);
    assert_eq!(mount.list("a").unwrap(), ["b", "top.zst"]);
    for name in names {
        assert_same(name, &mount.read(name).unwrap(), name.as_bytes());
        place.wait_until_cached(name);
        assert_same(name, &fs::read(place.cache().join(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(errno(mount.read("a")), libc::EISDIR);
    assert_eq!(errno(mount.read("flat.tar.gz/x")), libc::ENOTDIR);
    assert_eq!(errno(mount.read("a/missing/x.zst")), libc::ENOENT);
    assert_eq!(errno(mount.list("no-such-directory")), libc::ENOENT);
}

#[test]
fn hostile_keys_are_left_out_and_the_others_work() {
    needs_fuse!();
    let long = "n".repeat(300);
    let longest = "m".repeat(255);
    let bad = ["../x", "a//b", ".", "..", "./y", "a/../b", &long, "/absolute", "//", "a/./c"];
    let good = [
        "line\nbreak.tar.gz",
        "ünïcode-日本語.zst",
        "control-\x01\x7f.zst",
        "%41.zst",
        "plus+plus.zst",
        "with spaces .zst",
        "quote\"'`$(x)&;<>*?[\\].zst",
        "-rf",
        &longest,
    ];
    let (server, place, mount) = serving(&[&bad[..], &good[..]].concat());
    server.put(&key("a/fine.zst"), "a/fine.zst");
    let mut expected = good.map(str::to_owned).to_vec();
    expected.push("a".to_owned());
    expected.sort();
    assert_eq!(mount.list("").unwrap(), expected);
    assert_eq!(mount.list("a").unwrap(), ["fine.zst"]);
    for name in good.into_iter().chain(["a/fine.zst"]) {
        assert_same(name, &mount.read(name).unwrap(), name.as_bytes());
        place.wait_until_cached(name);
        assert_same(name, &fs::read(place.cache().join(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(errno(mount.read(&long)), libc::ENAMETOOLONG);
    // Nothing got out of the cache directory.
    assert_eq!(names_in(place.dir.path()), ["cache", "mnt"]);
    let said = mount.said();
    assert_eq!(count(&said, "can't be a file name"), 1, "one warning:\n{said}");
    mount.unmount();
    server.stop();
    let mount = place.mount();
    for name in good {
        assert_same(name, &mount.read(name).unwrap(), name.as_bytes());
    }
}

#[test]
fn names_that_are_no_keys() {
    needs_fuse!();
    let (server, _place, mount) = serving(&[NAME]);
    server.reset_counts();
    let look_up = |name: &[u8]| fs::metadata(mount.path.join(OsStr::from_bytes(name)));
    assert_eq!(errno(look_up(&[b'x'; 256])), libc::ENAMETOOLONG);
    assert_eq!(errno(look_up(b"latin-1-\xe9.zst")), libc::ENOENT);
    assert_eq!(errno(look_up(b"\xff\xfe")), libc::ENOENT);
    assert_eq!(server.counts().requests(), 0, "no server has such keys");
    // Every component fits, the key doesn't.
    let deep = vec!["d".repeat(200); 6].join("/");
    assert!([libc::ENAMETOOLONG, libc::ENOENT].contains(&errno(mount.read(&deep))));
    assert_same("the daemon lives", &mount.read(NAME).unwrap(), NAME.as_bytes());
}

#[test]
fn a_directory_hides_an_object_of_its_name() {
    needs_fuse!();
    let names = ["both", "both/inner.zst", "dotted.d", "dotted.d/inner.zst"];
    let is_shown = |mount: &Mount, name: &str| {
        let inner = format!("{name}/inner.zst");
        assert_same(&inner, &mount.read(&inner).unwrap(), inner.as_bytes());
        assert!(fs::metadata(mount.file(name)).unwrap().is_dir(), "{name}");
        assert_eq!(mount.list(name).unwrap(), ["inner.zst"]);
    };
    let (_server, _place, mount) = serving(&names);
    is_shown(&mount, "both");
    // A name with a dot is asked for by HEAD alone, which can't tell; a listing can.
    let (_server, _place, mount) = serving(&names);
    assert_eq!(mount.list("").unwrap(), ["both", "dotted.d"]);
    ["both", "dotted.d"].iter().for_each(|name| is_shown(&mount, name));
}

#[test]
fn a_key_that_ends_in_a_slash_is_a_directory() {
    needs_fuse!();
    let (_server, _place, mount) = serving(&["", "empty/", "full/", "full/x.zst"]);
    assert_eq!(mount.list("").unwrap(), ["empty", "full"]);
    assert!(mount.list("empty").unwrap().is_empty());
    assert_eq!(mount.list("full").unwrap(), ["x.zst"]);
}

#[test]
fn nothing_shadows_the_mountpoint_or_our_own_directory() {
    needs_fuse!();
    let server = S3Server::start();
    for name in ["mnt", ".aztec-cache/format", ".aztec-cache", NAME] {
        server.put(&key(name), name);
    }
    let mut place = Place::of(&server);
    place.cache = Some(place.dir.path().to_owned());
    for _ in 0..2 {
        let mut mount = place.mount();
        assert_eq!(mount.list("").unwrap(), ["mnt", NAME]);
        assert_eq!(errno(mount.read(".aztec-cache")), libc::EPERM);
        assert_eq!(errno(mount.read(".aztec-cache/format")), libc::ENOENT);
        assert_same("an artifact", &mount.read(NAME).unwrap(), NAME.as_bytes());
        place.wait_until_cached(NAME);
        assert_same("the key named like the mountpoint", &mount.read("mnt").unwrap(), b"mnt");
        assert_eq!(fs::read_to_string(place.cache().join(".aztec-cache/format")).unwrap(), "1\n");
        // The second mount is one after a crash.
        mount.signal(libc::SIGKILL);
        mount.wait();
    }
}

#[test]
fn artifacts_of_dirty_work_trees_are_never_there() {
    needs_fuse!();
    let names = ["noir-disabled-cache.tar.gz", "disabled-cache/x.zst", NAME];
    let (server, place, mount) = serving(&names);
    assert_eq!(mount.list("").unwrap(), [NAME]);
    server.reset_counts();
    assert_eq!(errno(mount.read(names[0])), libc::ENOENT);
    assert_eq!(errno(mount.read(names[1])), libc::ENOENT);
    fs::write(place.cache().join(names[0]), "local").unwrap();
    assert_eq!(errno(mount.read(names[0])), libc::ENOENT);
    assert_eq!(server.counts().requests(), 0, "{:?}", server.log());
}

#[test]
fn ten_thousand_keys_take_ten_requests() {
    needs_fuse!();
    let server = S3Server::start();
    for i in 0..10_000 {
        server.put(&key(&format!("contract-{i:05}.tar.gz")), vec![0; i % 997]);
    }
    let place = Place::of(&server);
    let mount = place.mount();
    server.reset_counts();
    let start = Instant::now();
    let listing = output(Command::new("ls").arg("-l").arg(&mount.path).env("LC_ALL", "C"));
    assert_eq!(server.counts().list, 10);
    let lines: Vec<&str> = listing.lines().filter(|line| line.starts_with("-rw-r--r--")).collect();
    assert_eq!(lines.len(), 10_000);
    for (i, line) in lines.iter().enumerate() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (size, name) = ((i % 997).to_string(), format!("contract-{i:05}.tar.gz"));
        assert_eq!((fields[4], fields[8]), (size.as_str(), name.as_str()));
    }
    let again = output(Command::new("ls").arg("-l").arg(&mount.path).env("LC_ALL", "C"));
    assert_eq!(again, listing);
    let counts = server.counts();
    if start.elapsed() < Duration::from_secs(10) {
        assert_eq!(counts.list, 10, "listed anew within the listing's life");
    }
    assert_eq!((counts.head, counts.get), (0, 0));
}

#[test]
fn thirty_concurrent_listings_are_one_walk() {
    needs_fuse!();
    let server = S3Server::start_with(Options { page_size: 100, ..Options::default() });
    for i in 0..1_000 {
        server.put(&key(&format!("vk-{i:04}.zst")), "x");
    }
    let place = Place::of(&server);
    let mount = place.mount();
    server.reset_counts();
    let gate = server.hold(Op::List, None);
    let start = Arc::new(Barrier::new(31));
    let listers: Vec<_> = (0..30)
        .map(|_| (mount.path.clone(), start.clone()))
        .map(|(path, start)| {
            thread::spawn(move || {
                start.wait();
                names_in(&path).len()
            })
        })
        .collect();
    start.wait();
    assert!(gate.wait_until_waiting(1, PATIENCE));
    gate.release();
    listers.into_iter().for_each(|lister| assert_eq!(lister.join().unwrap(), 1_000));
    assert_eq!(server.counts().list, 10);
}

#[test]
fn a_miss_is_remembered_for_a_second() {
    needs_fuse!();
    let (server, _place, mount) = serving(&[]);
    server.reset_counts();
    let start = Instant::now();
    for _ in 0..300 {
        assert_eq!(errno(fs::metadata(mount.file(NAME))), libc::ENOENT);
    }
    let heads = server.counts().heads_of(&key(NAME));
    assert!(heads <= 1 + start.elapsed().as_secs(), "{heads} HEADs in {:?}", start.elapsed());
    server.put(&key(NAME), "now");
    wait_for("the new object", || mount.file(NAME).exists());
    assert_same("the new object", &mount.read(NAME).unwrap(), b"now");
}

#[test]
fn the_right_to_get_objects_is_enough() {
    needs_fuse!();
    for signed in [false, true] {
        let options = Options { signed: Access::GET, anonymous: Access::GET, ..Options::default() };
        let server = S3Server::start_with(options);
        server.put(&key(NAME), "flat");
        let mut place = Place::of(&server);
        if !signed {
            place.arg("--no-sign-request");
        }
        let mount = place.mount();
        assert_same("flat", &mount.read(NAME).unwrap(), b"flat");
        assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
        assert_eq!(errno(mount.read("missing")), libc::ENOENT);
        place.wait_until_cached(NAME);
        fs::write(place.cache().join("adopted.tar.gz"), "adopted").unwrap();
        assert_eq!(mount.list("").unwrap(), ["adopted.tar.gz", NAME]);
        assert_eq!(errno(mount.list("not-local")), libc::ENOENT);
        let said = || count(&mount.said(), "directories show what is local");
        wait_for("a word of the log", || said() > 0);
        assert_eq!(said(), 1, "signed: {signed}\n{}", mount.said());
        assert!(server.log().iter().all(|request| request.signed == signed));
    }
}

#[test]
fn local_files_are_listed_with_and_without_the_server() {
    needs_fuse!();
    let (server, place, mount) = serving(&["a/nested.zst", "remote-only.zst", NAME]);
    fs::write(place.cache().join("adopted.tar.gz"), "adopted").unwrap();
    assert_same("flat", &mount.read(NAME).unwrap(), NAME.as_bytes());
    assert_same("nested", &mount.read("a/nested.zst").unwrap(), b"a/nested.zst");
    place.wait_until_cached(NAME);
    place.wait_until_cached("a/nested.zst");
    assert_eq!(mount.list("").unwrap(), ["a", "adopted.tar.gz", NAME, "remote-only.zst"]);
    server.stop();
    mount.unmount();
    let mount = place.mount();
    // What the remote had when it was last seen is still shown.
    assert_eq!(mount.list("").unwrap(), ["a", "adopted.tar.gz", NAME, "remote-only.zst"]);
    assert_eq!(mount.list("a").unwrap(), ["nested.zst"]);
    let unknown = mount.file("unknown.tar.gz");
    let answer = within(PATIENCE, "an answer without the server", move || fs::metadata(unknown));
    assert_eq!(errno(answer), libc::EHOSTUNREACH);
}

/// The names of a file's extended attributes.
fn xattr_names(path: &Path) -> Vec<String> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in the path");
    let mut list = vec![0u8; 4096];
    // SAFETY: the path ends in NUL and the buffer is as long as is said.
    let length = unsafe { libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    let list = &list[..usize::try_from(length).expect("a list")];
    let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[test]
fn extended_attributes_tell_the_state_and_never_download() {
    needs_fuse!();
    let server = S3Server::start();
    let body = random_bytes(1, 3 << 20);
    let etag = server.put(&key(NAME), body.clone());
    let place = Place::of(&server);
    let mount = place.mount();
    let path = mount.file(NAME);
    let attribute = |name: &str| xattr(&path, &format!("user.aztec_cache.{name}"));
    let url = Some("s3://aztec-ci-artifacts/build-cache/".to_owned());
    assert_eq!(attribute("state").as_deref(), Some("remote"));
    assert_eq!((attribute("etag"), attribute("source")), (Some(etag.clone()), url.clone()));
    assert_eq!((attribute("checksum"), attribute("nonsense")), (None, None));
    let always = ["state", "etag", "source"].map(|name| format!("user.aztec_cache.{name}"));
    assert_eq!(xattr_names(&path), always);
    assert_eq!(server.counts().get, 0, "an attribute was paid for with a download");

    let gate = server.hold_gets(&key(NAME), 512 << 10);
    let reader = thread::spawn({
        let path = path.clone();
        move || fs::read(path)
    });
    assert!(gate.wait_until_waiting(1, PATIENCE));
    assert_eq!(attribute("state").as_deref(), Some("partial"));
    gate.release();
    assert_same("the whole", &reader.join().unwrap().unwrap(), &body);
    place.wait_until_cached(NAME);
    assert_eq!(attribute("state").as_deref(), Some("cached"));
    assert_eq!((attribute("etag"), attribute("source")), (Some(etag), url));
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &body).to_be_bytes();
    let crc = format!("crc64nvme:{}", aws_smithy_types::base64::encode(crc));
    assert_eq!(attribute("checksum"), Some(crc));
    assert_eq!(xattr_names(&path).len(), 4);
    assert!(xattr_names(&mount.path).iter().all(|name| !name.starts_with("user.aztec_cache")));
}

#[test]
fn what_a_listing_asks_of_each_file_is_refused_for_all_of_them() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key(NAME), "content");
    let place = Place::of(&server);
    let mount = place.mount();
    let missing = |path: &Path, name: &str| {
        let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
        // SAFETY: both strings end in NUL, and no value is asked for.
        let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
        assert_eq!(length, -1);
        std::io::Error::last_os_error().raw_os_error()
    };
    for path in [&mount.path, &mount.file(NAME)] {
        // At this errno, and at no other, `ls -l` stops asking.
        assert_eq!(missing(path, "security.selinux"), Some(libc::ENOTSUP));
        assert_eq!(missing(path, "system.posix_acl_access"), Some(libc::ENOTSUP));
        assert_eq!(missing(path, "user.other"), Some(libc::ENODATA));
    }
}

#[test]
fn looking_never_starts_a_download() {
    needs_fuse!();
    let (server, place, mount) = serving(&["a/b.zst", "c.tar.gz", NAME]);
    let dir = &mount.path;
    output(Command::new("ls").arg("-laR").arg(dir));
    output(Command::new("stat").arg(mount.file(NAME)).arg(mount.file("a/b.zst")));
    output(Command::new("find").arg(dir).args(["-size", "+0", "-newer", "/etc/hostname"]));
    output(Command::new("du").arg("-a").arg(dir));
    output(
        Command::new("sh").args(["-c", "echo */* && test -r c.tar.gz && test -f a/b.zst"]).current_dir(dir),
    );
    assert_eq!(server.counts().get, 0, "{:?}", server.log());
    assert!(place.partials().is_empty());
}

#[test]
fn attributes_are_the_object_s_and_the_mounter_s() {
    needs_fuse!();
    let server = S3Server::start();
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let options = ObjectOptions { last_modified: Some(modified), ..ObjectOptions::default() };
    server.put_with(&key("a/x.zst"), vec![1; 4321], options.clone());
    server.put_with(&key(NAME), vec![2; 1234], options);
    let place = Place::of(&server);
    let mount = place.mount();
    // By lookup, then by listing.
    for _ in 0..2 {
        for (name, size) in [("a/x.zst", 4321), (NAME, 1234)] {
            let meta = fs::metadata(mount.file(name)).unwrap();
            assert!(meta.is_file());
            assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (size, 0o644));
            assert_eq!(meta.modified().unwrap(), modified);
            let own = fs::metadata(place.dir.path()).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (own.uid(), own.gid()));
        }
        let dir = fs::metadata(mount.file("a")).unwrap();
        assert_eq!((dir.is_dir(), dir.permissions().mode() & 0o7777), (true, 0o755));
        mount.list("").unwrap();
    }
    let umasked = Place::of(&server);
    let mut command = umasked.mount_command();
    command.args(["-o", "umask=027"]);
    let mount = Mount::start(command, umasked.mountpoint()).unwrap();
    assert_eq!(fs::metadata(mount.file(NAME)).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(mount.file("a")).unwrap().permissions().mode() & 0o7777, 0o750);
}

fn access(path: &Path, mode: i32) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in the path");
    // SAFETY: the path ends in NUL.
    match unsafe { libc::access(path.as_ptr(), mode) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn the_file_system_says_what_may_be_done_and_how_full_the_disk_is() {
    needs_fuse!();
    let (server, place, mount) = serving(&[NAME]);
    let file = mount.file(NAME);
    access(&file, libc::R_OK | libc::W_OK).unwrap();
    access(&mount.path, libc::W_OK | libc::X_OK).unwrap();
    assert_eq!(errno(access(&file, libc::X_OK)), libc::EACCES);
    let df = |path: &Path| {
        output(Command::new("df").args(["-B1", "--output=size"]).arg(path)).lines().nth(1).map(str::to_owned)
    };
    assert_eq!(df(&mount.path), df(place.cache()));
    assert_eq!(server.counts().get, 0);
}
