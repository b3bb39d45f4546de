//! Several remotes in order: who is asked, who wins, and what a dead one means.

use std::fs;
use std::time::{Duration, Instant};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;
use aztec_cache_test_support::web::{Reply, WebServer};

use crate::common::{Place, assert_same, errno, key, needs_fuse, wait_for, xattr};

/// The address of a server that has gone.
const DEAD: &str = "http://127.0.0.1:1/";
const S3: &str = "s3://aztec-ci-artifacts/build-cache/";

/// A web server of files with contents.
fn web(files: &'static [(&'static str, &'static str)]) -> WebServer {
    WebServer::start(|request| match files.iter().find(|(name, _)| request.target == format!("/{name}")) {
        // The same tag on every server: it says nothing about whose it is.
        Some((_, text)) => Reply::part(request, text.as_bytes()).header("ETag", "\"same\""),
        None => Reply::new(404),
    })
}

fn read(mount: &crate::common::Mount, name: &str) -> String {
    String::from_utf8(mount.read(name).unwrap_or_else(|e| panic!("{name}: {e}\n{}", mount.said()))).unwrap()
}

#[test]
fn the_first_that_has_it_gives_it_and_is_named_as_its_source() {
    needs_fuse!();
    let first = web(&[("a.zst", "first a")]);
    let second = web(&[("a.zst", "second"), ("b.zst", "second b")]);
    let place = Place::reading(&[&first.url(), &second.url()]);
    let mount = place.mount();
    assert!(
        mount.said().contains(&format!("{} {} mounted at ", first.url(), second.url())),
        "{}",
        mount.said()
    );
    assert_eq!((read(&mount, "a.zst"), read(&mount, "b.zst")), ("first a".into(), "second b".into()));
    assert_eq!(errno(mount.read("c.zst")), libc::ENOENT);
    let source =
        |mount: &crate::common::Mount, name: &str| xattr(&mount.file(name), "user.aztec_cache.source");
    for name in ["a.zst", "b.zst"] {
        place.wait_until_cached(name);
    }
    assert_eq!((source(&mount, "a.zst"), source(&mount, "b.zst")), (Some(first.url()), Some(second.url())));
    assert!(second.requests().iter().all(|request| request.target != "/a.zst"), "nobody asked it");
    mount.unmount();
    let mount = place.mount();
    assert_eq!(source(&mount, "b.zst"), Some(second.url()), "it is kept with the file");
    assert_eq!(read(&mount, "b.zst"), "second b");
}

#[test]
fn a_dead_one_is_passed_over_but_leaves_open_what_is_missing() {
    needs_fuse!();
    let live = web(&[("a.zst", "alive")]);
    let place = Place::reading(&[DEAD, &live.url()]);
    let mount = place.mount();
    assert_eq!(read(&mount, "a.zst"), "alive");
    assert_eq!(errno(mount.read("b.zst")), libc::EHOSTUNREACH, "the dead one may have it");
    let start = Instant::now();
    for i in 0..100 {
        assert_eq!(errno(fs::metadata(mount.file(&format!("vk-{i}.zst")))), libc::EHOSTUNREACH);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?} for 100 names", start.elapsed());
    wait_for("a word about it", || mount.said().contains("still served"));
    assert_eq!(mount.said().matches("still served").count(), 1, "{}", mount.said());
}

#[test]
fn every_part_comes_from_the_remote_that_vouched_for_the_version() {
    needs_fuse!();
    // Same tag, same length: only the source tells them apart.
    let (one, other) = (random_bytes(1, 20_000_000), random_bytes(2, 20_000_000));
    let serve = |body: Vec<u8>, has_it: bool| {
        WebServer::start(move |request| match has_it || request.method == "GET" {
            true => Reply::part(request, &body).header("ETag", "\"same\""),
            false => Reply::new(404),
        })
    };
    let (first, second) = (serve(one, false), serve(other.clone(), true));
    let place = Place::reading(&[&first.url(), &second.url()]);
    let mount = place.mount();
    assert_same("the second's", &mount.read("a.zst").unwrap(), &other);
    assert_eq!(first.count("GET"), 0);
}

#[test]
fn one_that_refuses_is_said_once_and_the_others_are_asked() {
    needs_fuse!();
    let refusing = WebServer::start(|_| Reply::new(403));
    let live = web(&[("a.zst", "alive"), ("b.zst", "too")]);
    let place = Place::reading(&[&refusing.url().replace("://", "://me:wrong@"), &live.url()]);
    let mount = place.mount();
    assert_eq!((read(&mount, "a.zst"), read(&mount, "b.zst")), ("alive".into(), "too".into()));
    assert_eq!(errno(mount.read("c.zst")), libc::EACCES);
    wait_for("a word about it", || mount.said().contains("the other remotes are asked"));
    assert_eq!(mount.said().matches("the other remotes are asked").count(), 1, "{}", mount.said());
}

#[test]
fn listings_are_put_together_and_the_first_of_a_name_wins() {
    needs_fuse!();
    let server = S3Server::start();
    for (name, text) in [("a.zst", "s3's a"), ("b.zst", "s3's b"), ("dir/c.zst", "c")] {
        server.put(&key(name), text);
    }
    let mut place = Place::of(&server);
    let dir = place.dir.path().join("share");
    fs::create_dir_all(dir.join("dir")).unwrap();
    for (name, text) in [("b.zst", "the share's"), ("d.zst", "d"), ("dir/e.zst", "e")] {
        fs::write(dir.join(name), text).unwrap();
    }
    let file = format!("file://{}", dir.display());
    place.env("AZTEC_CACHE_REMOTE", format!("{file} {S3}"));
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), ["a.zst", "b.zst", "d.zst", "dir"]);
    assert_eq!(mount.list("dir").unwrap(), ["c.zst", "e.zst"]);
    assert_eq!((read(&mount, "b.zst"), read(&mount, "a.zst")), ("the share's".into(), "s3's a".into()));
    assert_eq!(read(&mount, "dir/c.zst"), "c");
    assert_eq!(fs::metadata(mount.file("b.zst")).unwrap().len(), 11);
    mount.unmount();

    // One that is down or doesn't list: what the others list is shown, and no name is taken for missing.
    let web = web(&[("w.zst", "web")]);
    place.env("AZTEC_CACHE_REMOTE", format!("{} {file} {S3}", web.url()));
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), ["a.zst", "b.zst", "d.zst", "dir"]);
    assert_eq!(read(&mount, "w.zst"), "web");
    mount.unmount();
    server.stop();
    // What was last known of it stands for what can't be asked.
    place.env("AZTEC_CACHE_REMOTE", format!("{file} {S3}"));
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), ["a.zst", "b.zst", "d.zst", "dir", "w.zst"]);
    assert_eq!(read(&mount, "d.zst"), "d");
    mount.unmount();
    place.env("AZTEC_CACHE_REMOTE", format!("{S3} {file}"));
    let mount = place.mount();
    let names = mount.list("").unwrap();
    assert!(["b.zst", "d.zst", "dir"].iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
    assert_eq!(errno(mount.read("f.zst")), libc::EHOSTUNREACH);
}

#[test]
fn a_listing_of_many_pages_goes_on_at_the_next_remote() {
    needs_fuse!();
    let server = S3Server::start();
    for i in 0..1_500 {
        server.put(&key(&format!("vk-{i:04}.zst")), "x");
    }
    let mut place = Place::of(&server);
    let dir = place.dir.path().join("share");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("noir-1.tar.gz"), "x").unwrap();
    place.env("AZTEC_CACHE_REMOTE", format!("{S3} file://{}", dir.display()));
    let mount = place.mount();
    let names = mount.list("").unwrap();
    assert_eq!(names.len(), 1_501);
    assert_eq!(names[0], "noir-1.tar.gz");
}

#[test]
fn the_ci_server_comes_before_the_defaults_with_its_password() {
    needs_fuse!();
    let bucket = S3Server::start();
    bucket.put(&key("b.zst"), "the bucket's");
    let ci = WebServer::start(|request| match (&*request.target, request.header("authorization")) {
        (_, Some("Basic YXp0ZWM6cHc=")) if request.target == "/artifacts/a.zst" => {
            Reply::part(request, b"the server's").header("ETag", "\"x\"")
        }
        (_, Some("Basic YXp0ZWM6cHc=")) => Reply::new(404),
        _ => Reply::new(401),
    });
    let mut place = Place::reading(&[]);
    place.unset("AZTEC_CACHE_REMOTE").env("CI3_SERVER", ci.url()).env("CI3_PASSWORD", "pw");
    place.env("S3_BUILD_CACHE_AWS_PARAMS", format!("--endpoint-url {}", bucket.url()));
    let mount = place.mount();
    assert!(mount.said().contains(&format!("{}artifacts/ {S3} mounted at", ci.url())), "{}", mount.said());
    assert_eq!(
        (read(&mount, "a.zst"), read(&mount, "b.zst")),
        ("the server's".into(), "the bucket's".into())
    );
    assert_eq!(errno(mount.read("c.zst")), libc::ENOENT);
    wait_for("both in the cache", || {
        place.cache().join("a.zst").exists() && place.cache().join("b.zst").exists()
    });
}
