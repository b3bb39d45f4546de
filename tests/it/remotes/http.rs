//! A plain web server that others wrote, nginx: parts, passwords, missing names, replaced files.

use std::collections::HashSet;
use std::fs;
use std::thread;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::nginx::Nginx;

use crate::common::{Place, assert_same, errno, mounted, needs_fuse, wait_for, xattr};

/// Never skipped: without this server the program has only been tested with our own idea of HTTP.
fn nginx() -> Nginx {
    Nginx::start().unwrap_or_else(|error| panic!("no independent server: {error}"))
}

#[test]
fn files_read_right_cold_and_warm_and_without_the_server() {
    needs_fuse!();
    let mut server = nginx();
    let sizes = [0, 1, 700_001, (1 << 20) + 1, 20 << 20];
    let name = |size: usize| format!("size-{size}.tar.gz");
    sizes.iter().for_each(|size| server.put(&name(*size), &random_bytes(*size as u64, *size)));
    server.put("dir/with space+%41.zst", b"deep");
    let place = Place::reading(&[&server.url()]);
    let mount = place.mount();
    assert!(mount.said().contains(&format!("{} mounted at ", server.url())), "{}", mount.said());
    for size in sizes {
        assert_same(&name(size), &mount.read(&name(size)).unwrap(), &random_bytes(size as u64, size));
        place.wait_until_cached(&name(size));
    }
    assert_eq!(mount.read("dir/with space+%41.zst").map_err(|e| e.raw_os_error()), Err(Some(libc::ENOENT)));
    let source = xattr(&mount.file(&name(1)), "user.aztec_cache.source");
    assert_eq!(source.as_deref(), Some(&*server.url()));
    let parts = server.log().into_iter().filter(|r| r.path.ends_with(&name(20 << 20)) && r.status == 206);
    assert!(parts.count() >= 3, "a large file comes in parts");
    server.stop();
    mount.unmount();
    let mount = place.mount();
    for size in sizes {
        assert_same(&name(size), &mount.read(&name(size)).unwrap(), &random_bytes(size as u64, size));
    }
    assert_eq!(errno(mount.read("another.tar.gz")), libc::EHOSTUNREACH);
}

#[test]
fn directories_show_what_is_local_and_say_so_once() {
    needs_fuse!();
    let server = nginx();
    server.put("noir-1.tar.gz", b"bytes");
    server.put("noir-2.tar.gz", b"bytes");
    let place = Place::reading(&[&server.url()]);
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), Vec::<String>::new());
    mount.read("noir-1.tar.gz").unwrap();
    place.wait_until_cached("noir-1.tar.gz");
    wait_for("the name in the listing", || mount.list("").unwrap() == ["noir-1.tar.gz"]);
    wait_for("a word about it", || mount.said().contains("directories show what is local"));
    assert_eq!(mount.said().matches("directories show what is local").count(), 1, "{}", mount.said());
}

#[test]
fn a_file_replaced_while_it_is_read_is_never_mixed() {
    needs_fuse!();
    let server = nginx();
    let (old, new) = (random_bytes(1, 60 << 20), random_bytes(2, 50 << 20));
    server.put("noir-1.tar.gz", &old);
    let place = Place::reading(&[&server.url()]);
    let mount = place.mount();
    let path = mount.file("noir-1.tar.gz");
    let reader = thread::spawn(move || fs::read(path));
    wait_for("the first part", || server.log().iter().any(|r| r.status == 206));
    server.put("noir-1.tar.gz", &new);
    match reader.join().unwrap() {
        Ok(read) => assert!(read == old || read == new, "mixed"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ESTALE)),
    }
    wait_for("a whole version", || mount.read("noir-1.tar.gz").is_ok());
    let read = mount.read("noir-1.tar.gz").unwrap();
    assert!(read == old || read == new, "mixed");
}

#[test]
fn three_hundred_missing_names_cost_a_request_each_over_a_few_connections() {
    needs_fuse!();
    let server = nginx();
    let place = Place::reading(&[&format!("{}hidden/", server.url())]);
    let mount = place.mount();
    for round in 0..2 {
        for i in 0..300 {
            let name = format!("vk-{i:04}.zst");
            assert_eq!(errno(fs::metadata(mount.file(&name))), libc::ENOENT, "{name} in round {round}");
        }
        if round == 0 {
            // One more asks how the server is.
            let log: Vec<_> = server.log().into_iter().filter(|r| r.path != "/hidden/").collect();
            assert_eq!(log.len(), 300);
            assert!(log.iter().all(|r| r.method == "HEAD" && r.status == 403));
            let connections: HashSet<u64> = log.iter().map(|r| r.connection).collect();
            assert!(connections.len() <= 4, "{} connections", connections.len());
        }
    }
}

#[test]
fn users_and_passwords_open_what_is_private_and_are_shown_nowhere() {
    needs_fuse!();
    let server = nginx();
    server.put("private/noir-1.tar.gz", b"bytes");
    let url = format!("{}private/", server.url());
    let with_user = |pair: &str| url.replace("://", &format!("://{pair}@"));

    let mut by_variables = Place::reading(&[&url]);
    by_variables.env("AZTEC_CACHE_HTTP_USER", "me").env("AZTEC_CACHE_HTTP_PASSWORD", "s3cret");
    for mut place in [Place::reading(&[&with_user("me:s3cret")]), by_variables] {
        place.arg("-vvv");
        let mount = place.mount();
        assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes", "{}", mount.said());
        assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
        place.wait_until_cached("noir-1.tar.gz");
        let source = xattr(&mount.file("noir-1.tar.gz"), "user.aztec_cache.source");
        assert_eq!(source.as_deref(), Some(&*url));
        assert_eq!(mounted(&mount.path).unwrap().0, url);
        let meta = fs::read_to_string(place.cache().join(".aztec-cache/meta/noir-1.tar.gz")).unwrap();
        assert!(meta.contains(&url) && !meta.contains("s3cret"), "{meta}");
        let said = mount.said();
        // The password, and what it looks like on the wire.
        assert!(!said.contains("s3cret") && !said.contains("bWU6czNjcmV0"), "{said}");
        mount.unmount();
    }
    for place in [Place::reading(&[&with_user("me:wrong")]), Place::reading(&[&url])] {
        let mount = place.mount();
        assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EACCES, "{}", mount.said());
    }
}

#[test]
fn a_mount_says_what_is_wrong_with_a_server_unasked() {
    needs_fuse!();
    let mut server = nginx();
    let url = format!("{}private/", server.url());
    let place = Place::reading(&[&url.replace("://", "://me:wrong@")]);
    let mount = place.mount();
    wait_for("a word about the password", || mount.said().contains("check the user and the password"));
    mount.unmount();
    server.stop();
    for remotes in [vec![url.as_str()], vec!["http://127.0.0.1:1/", &url]] {
        let place = Place::reading(&remotes);
        let mount = place.mount();
        wait_for("a word about each", || {
            mount.said().matches("can't reach the remote").count() == remotes.len()
        });
        mount.unmount();
    }
}
