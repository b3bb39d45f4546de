//! The main job against an S3 server that others wrote: SeaweedFS, which installs itself below `target/`.

use std::fs;
use std::process::Command;
use std::thread;

use aztec_cache_test_support::artifacts::{self, random_bytes};
use aztec_cache_test_support::seaweed::Seaweed;

use crate::common::{Place, assert_same, errno, key, needs_fuse};

/// Never skipped: without this server the program has only been tested with our own idea of S3.
fn seaweed() -> Seaweed {
    Seaweed::start().unwrap_or_else(|error| panic!("no independent server: {error}"))
}

fn put(server: &Seaweed, name: &str, body: &[u8]) {
    server.put(&key(name), body).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn objects_read_right_cold_and_warm_and_without_the_server() {
    needs_fuse!();
    let server = seaweed();
    let sizes = [0, 1, 4096, 700_001, (1 << 20) + 1, 20 << 20];
    let name = |size: usize| format!("size-{size}.tar.gz");
    let tarball = artifacts::name("barretenberg-clang20", 1, "zst");
    sizes.iter().for_each(|size| put(&server, &name(*size), &random_bytes(*size as u64, *size)));
    put(&server, &tarball, &artifacts::tar_zst(1, 2_000_000, 12));
    let place = Place::new(&server.url());
    let mount = place.mount();
    for size in sizes {
        let body = random_bytes(size as u64, size);
        assert_same(&name(size), &mount.read(&name(size)).unwrap(), &body);
        place.wait_until_cached(&name(size));
        assert_same(&name(size), &fs::read(place.cache().join(name(size))).unwrap(), &body);
    }
    let tarball = mount.file(&tarball);
    let unpack = |to: &str| {
        let to = place.dir.path().join(to);
        fs::create_dir(&to).unwrap();
        let output = Command::new("tar").arg("-xf").arg(&tarball).arg("-C").arg(&to).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (path, content) in artifacts::files_of(1, 2_000_000, 12) {
            assert_same(&path, &fs::read(to.join(&path)).unwrap(), &content);
        }
    };
    unpack("cold");
    place.wait_until_cached(tarball.file_name().unwrap().to_str().unwrap());
    assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
    server.stop();
    mount.unmount();
    let mount = place.mount();
    unpack("warm");
    for size in sizes {
        assert_same(&name(size), &mount.read(&name(size)).unwrap(), &random_bytes(size as u64, size));
    }
}

#[test]
fn listings_are_whole() {
    needs_fuse!();
    let server = seaweed();
    // This server lists `x/…` before `x-y`, unlike S3.
    let nested = ["a/b/c.zst", "a/b/d e+f%41.zst", "a/top-ü.zst", "x/inner.zst", "x-y.zst"];
    nested.iter().for_each(|name| put(&server, name, name.as_bytes()));
    thread::scope(|scope| {
        for worker in 0..8 {
            let server = &server;
            scope.spawn(move || {
                (worker..1_200).step_by(8).for_each(|i| put(server, &format!("many/vk-{i:04}.zst"), &[7; 5]));
            });
        }
    });
    let place = Place::new(&server.url());
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), ["a", "many", "x", "x-y.zst"]);
    assert_eq!(mount.list("a").unwrap(), ["b", "top-ü.zst"]);
    assert_eq!(mount.list("a/b").unwrap(), ["c.zst", "d e+f%41.zst"]);
    let many: Vec<String> = (0..1_200).map(|i| format!("vk-{i:04}.zst")).collect();
    assert_eq!(mount.list("many").unwrap(), many);
    for name in nested {
        assert_eq!(fs::metadata(mount.file(name)).unwrap().len(), name.len() as u64);
        assert_same(name, &mount.read(name).unwrap(), name.as_bytes());
    }
}

#[test]
fn callers_without_a_signature_and_with_a_wrong_one() {
    needs_fuse!();
    let server = seaweed();
    let body = random_bytes(3, 1_500_000);
    put(&server, "noir-1.tar.gz", &body);
    let mut anonymous = Place::new(&server.url());
    anonymous.arg("--no-sign-request");
    let mount = anonymous.mount();
    assert_same("unsigned", &mount.read("noir-1.tar.gz").unwrap(), &body);
    assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
    let mut wrong = Place::new(&server.url());
    wrong.env("AWS_SECRET_ACCESS_KEY", "not-the-secret");
    let mount = wrong.mount();
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EACCES);
    assert_eq!(errno(mount.list("")), libc::EACCES);
    assert!(mount.said().contains("credentials"), "{}", mount.said());
}

#[test]
fn an_object_replaced_during_its_download_is_never_mixed() {
    needs_fuse!();
    let server = seaweed();
    // More parts than are fetched at a time, and a slow way.
    let (old, new) = (random_bytes(4, 80 << 20), random_bytes(5, 30 << 20));
    put(&server, "noir-2.tar.gz", &old);
    let place = Place::new(&server.url());
    let mount = place.mount();
    let reader = thread::spawn({
        let path = mount.file("noir-2.tar.gz");
        move || fs::read(path)
    });
    put(&server, "noir-2.tar.gz", &new);
    match reader.join().unwrap() {
        Ok(read) => assert!(read == old || read == new, "mixed"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ESTALE)),
    }
    let read = mount.read("noir-2.tar.gz").unwrap();
    assert!(read == old || read == new, "mixed");
    place.wait_until_cached("noir-2.tar.gz");
    let kept = fs::read(place.cache().join("noir-2.tar.gz")).unwrap();
    assert!(kept == old || kept == new, "mixed");
}

#[test]
fn what_is_put_is_there_whole_and_the_first_one_stays() {
    let server = seaweed();
    let place = Place::new(&server.url());
    let put = |place: &Place, name: &str, body: &[u8]| {
        let path = place.dir.path().join("made");
        fs::write(&path, body).unwrap();
        let output = place.command(&["put", name]).arg(path).args(&place.args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let get = |name: &str| {
        let other = Place::new(&server.url());
        other.command(&["get", name]).args(&other.args).output().unwrap().stdout
    };
    for size in [0, 1, 700_001, 40 << 20] {
        let (name, body) = (format!("size-{size}.bin"), random_bytes(size as u64, size));
        put(&place, &name, &body);
        assert_same(&name, &get(&name), &body);
        let other = Place::new(&server.url());
        assert!(put(&other, &name, b"second").contains("already exists"), "{name}");
        assert_same("the first stays", &get(&name), &body);
        assert!(!other.cache().join(&name).exists(), "{name}");
        // The same bytes again are the remote's version.
        put(&other, &name, &body);
        assert_same("kept", &fs::read(other.cache().join(&name)).unwrap(), &body);
    }
}
