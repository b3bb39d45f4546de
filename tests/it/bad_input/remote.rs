//! A remote that isn't there, isn't S3, or doesn't want us. A mount never depends on it.

use std::fs;
use std::time::{Duration, Instant};

use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::{Access, Fault, Op, Options, S3Server};

use crate::common::{Mount, Place, RawServer, errno, key, needs_fuse, wait_for, within};

/// How long a mount may take to get ready when the remote doesn't answer.
const READY: Duration = Duration::from_millis(2500);

/// Waits for a warning and returns the first.
fn first_warning(mount: &Mount) -> String {
    let find =
        || mount.said().lines().find(|line| line.starts_with("aztec-cache: warning: ")).map(str::to_owned);
    wait_for("a warning", || find().is_some());
    find().expect("there was one")
}

#[track_caller]
fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

/// Puts `cached.tar.gz` into the local cache through a mount, and `adopted.tar.gz` as a script would.
fn fill_cache(place: &Place, server: &S3Server) {
    server.put(&key("cached.tar.gz"), "cached bytes");
    let mount = place.mount();
    assert_eq!(mount.read("cached.tar.gz").unwrap(), b"cached bytes");
    let kept = place.cache().join("cached.tar.gz");
    wait_for("the cached file", || kept.exists());
    mount.unmount();
    fs::write(place.cache().join("adopted.tar.gz"), "adopted bytes").unwrap();
}

#[track_caller]
fn assert_local_files_are_served(mount: &Mount) {
    assert_eq!(mount.read("cached.tar.gz").unwrap(), b"cached bytes");
    assert_eq!(mount.read("adopted.tar.gz").unwrap(), b"adopted bytes");
}

#[test]
fn an_unknown_bucket_is_warned_about_and_holds_nothing() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--remote").arg("s3://no-such-bucket/build-cache/");
    let mount = place.mount();
    assert_names(&first_warning(&mount), &["no-such-bucket", "no such bucket", "--remote"]);
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::ENOENT);
    assert_eq!(errno(mount.read("plain-name")), libc::ENOENT);
    mount.unmount();
}

#[test]
fn wrong_credentials_are_refused_but_local_files_are_served() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    fill_cache(&place, &server);
    server.put(&key("cold.tar.gz"), "cold bytes");
    for (variable, value) in [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")] {
        place.env(variable, value);
        let mount = place.mount();
        assert_names(
            &first_warning(&mount),
            &["s3://aztec-ci-artifacts/build-cache/", "credentials", "--profile"],
        );
        assert_eq!(errno(mount.read("cold.tar.gz")), libc::EACCES, "{variable}");
        assert_eq!(errno(mount.read("missing.tar.gz")), libc::EACCES, "{variable}");
        assert_local_files_are_served(&mount);
        mount.unmount();
    }
}

#[test]
fn without_credentials_requests_are_unsigned_and_a_refusal_means_no_such_key() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    let mut place = Place::of(&server);
    place.unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY");
    let mount = place.mount();
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    assert_eq!(errno(mount.read("noir-2.tar.gz")), libc::ENOENT);
    assert!(server.counts().head > 1 && server.log().iter().all(|request| !request.signed));
    mount.unmount();
}

#[test]
fn credentials_that_cannot_be_loaded_are_access_denied() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    fill_cache(&place, &server);
    server.put(&key("cold.tar.gz"), "cold bytes");
    place.unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY");
    fs::create_dir(place.dir.path().join(".aws")).unwrap();
    fs::write(place.dir.path().join(".aws/config"), "[default]\ncredential_process = false\n").unwrap();
    let mount = place.mount();
    assert_names(&first_warning(&mount), &["credentials can't be loaded", "check --profile"]);
    assert!(mount.said().lines().all(|line| line.starts_with("aztec-cache: ")), "{}", mount.said());
    assert_eq!(errno(mount.read("cold.tar.gz")), libc::EACCES);
    assert_local_files_are_served(&mount);
    mount.unmount();
}

#[test]
fn half_of_the_credentials_is_none() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    let mut place = Place::of(&server);
    place.unset("AWS_SECRET_ACCESS_KEY");
    let mount = place.mount();
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.unmount();
}

#[test]
fn signed_without_the_right_to_list_a_refusal_means_no_such_key() {
    needs_fuse!();
    let server = S3Server::start_with(Options { signed: Access::GET, ..Options::default() });
    server.put(&key("noir-1.tar.gz"), "bytes");
    let place = Place::of(&server);
    let mount = place.mount();
    assert_eq!(errno(mount.read("noir-2.tar.gz")), libc::ENOENT);
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    assert!(server.log().iter().all(|request| request.signed));
    mount.unmount();
}

#[test]
fn signed_with_the_right_to_list_a_refusal_means_access_denied() {
    needs_fuse!();
    let no_get = Access { get: false, ..Access::ALL };
    let server = S3Server::start_with(Options { signed: no_get, ..Options::default() });
    server.put(&key("noir-1.tar.gz"), "bytes");
    let place = Place::of(&server);
    let mount = place.mount();
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EACCES, "by its name");
    assert_eq!(mount.list("").unwrap(), ["noir-1.tar.gz"]);
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EACCES, "from the listing");
    let said = mount.said();
    let line = said.lines().find(|line| line.contains("noir-1.tar.gz")).expect("a line in the log");
    assert_names(
        line,
        &["s3://aztec-ci-artifacts/build-cache/noir-1.tar.gz", "access denied", "credentials"],
    );
    mount.unmount();
}

#[test]
fn an_expired_token_is_access_denied_for_lookups() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    fill_cache(&place, &server);
    server.put(&key("cold.tar.gz"), "cold bytes");
    // S3 answers 400; some other servers, 403.
    for status in [400, 403] {
        server.set_faults([Fault::status(status, "ExpiredToken")]);
        let mount = place.mount();
        assert_names(&first_warning(&mount), &["ExpiredToken", "expired", "log in again"]);
        assert_eq!(errno(mount.read("cold.tar.gz")), libc::EACCES, "{status}");
        assert_eq!(mount.list("").unwrap(), ["adopted.tar.gz", "cached.tar.gz"]);
        assert_local_files_are_served(&mount);
        mount.unmount();
    }
}

#[test]
fn a_token_that_expires_before_the_read_is_access_denied_for_it() {
    needs_fuse!();
    let server = S3Server::start();
    for (index, status) in [400, 403].into_iter().enumerate() {
        let name = format!("cold-{index}.tar.gz");
        server.put(&key(&name), "cold bytes");
        let place = Place::of(&server);
        let mount = place.mount();
        server.set_faults([Fault::status(status, "ExpiredToken").on(Op::Get)]);
        assert_eq!(errno(mount.read(&name)), libc::EACCES, "{status}");
        server.set_faults([]);
        assert_eq!(mount.read(&name).unwrap(), b"cold bytes", "after a new login");
        mount.unmount();
    }
}

#[test]
fn a_closed_port_keeps_nothing_local_from_being_served() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    fill_cache(&place, &server);
    server.stop();
    let start = Instant::now();
    let mount = place.mount();
    assert!(start.elapsed() < READY, "ready after {:?}", start.elapsed());
    let warning = first_warning(&mount);
    assert_names(
        &warning,
        &["s3://aztec-ci-artifacts/build-cache/", "refused", "--endpoint-url", "local cache"],
    );
    assert!(!warning.contains("DispatchFailure"), "for people to read: {warning}");
    assert_local_files_are_served(&mount);
    assert_eq!(errno(mount.read("cold.tar.gz")), libc::EHOSTUNREACH);
    assert_eq!(mount.list("").unwrap(), ["adopted.tar.gz", "cached.tar.gz"]);
    server.restart();
    server.put(&key("cold.tar.gz"), "cold bytes");
    wait_for("the remote to be asked again", || {
        mount.read("cold.tar.gz").is_ok_and(|read| read == b"cold bytes")
    });
    mount.unmount();
}

#[test]
fn a_black_hole_times_out_and_keeps_nothing_local_waiting() {
    needs_fuse!();
    let server = S3Server::start();
    let proxy = Proxy::start(server.addr(), Profile::default());
    let place = Place::new(&proxy.url());
    fill_cache(&place, &server);
    proxy.set(Profile { black_hole: true, ..Profile::default() });
    let start = Instant::now();
    let mount = place.mount();
    assert!(start.elapsed() < READY, "ready after {:?}", start.elapsed());
    let cold = mount.file("cold.tar.gz");
    let waiting = std::thread::spawn(move || errno(fs::read(cold)));
    wait_for("the lookup to wait", || proxy.counts().open >= 2);
    let cached = mount.file("cached.tar.gz");
    let read = within(Duration::from_secs(2), "a cached file", move || fs::read(cached));
    assert_eq!(read.unwrap(), b"cached bytes");
    assert!(!waiting.is_finished(), "the cached file was read in the meantime");
    let failed = within(Duration::from_secs(25), "the lookup's end", move || waiting.join());
    assert_eq!(failed.expect("no panic"), libc::ETIMEDOUT);
    assert_names(&first_warning(&mount), &["doesn't answer in time", "--endpoint-url"]);
    assert_local_files_are_served(&mount);
    mount.unmount();
}

#[test]
fn an_endpoint_that_speaks_no_http_is_an_io_error() {
    needs_fuse!();
    let servers = [
        RawServer::answering(b"220 mail.example ESMTP ready\r\n"),
        RawServer::answering(b"\x00\x01\x02\xff\xfe garbage"),
        RawServer::greeting(b"SSH-2.0-OpenSSH_9.6\r\n"),
    ];
    for server in servers {
        let place = Place::new(&server.url());
        fs::create_dir(place.cache()).unwrap();
        fs::write(place.cache().join("adopted.tar.gz"), "adopted bytes").unwrap();
        let mount = place.mount();
        assert_names(&first_warning(&mount), &["not HTTP", "is the endpoint an S3 server?"]);
        assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EIO);
        assert_eq!(mount.read("adopted.tar.gz").unwrap(), b"adopted bytes");
        mount.unmount();
    }
}

#[test]
fn an_endpoint_that_speaks_http_but_not_s3_has_no_files() {
    needs_fuse!();
    let servers = [
        RawServer::answering(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 28\r\nConnection: close\r\n\r\n\
              <html><h1>Log in</h1></html>",
        ),
        RawServer::answering(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/login\r\nContent-Length: 0\r\n\
              Connection: close\r\n\r\n",
        ),
        RawServer::answering(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    ];
    for server in servers {
        let place = Place::new(&server.url());
        let mount = place.mount();
        assert_names(&first_warning(&mount), &["s3://aztec-ci-artifacts/build-cache/"]);
        for name in ["noir-1.tar.gz", "plain-name"] {
            let error = errno(mount.read(name));
            assert!([libc::EIO, libc::ENOENT].contains(&error), "{name}: errno {error}");
        }
        assert!(errno(mount.list("")) == libc::EIO);
        mount.unmount();
    }
}
