//! Web servers that are not as one would wish: redirects, no parts, no HEAD, no tags, broken bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::web::{Reply, Request, WebServer};

use crate::common::{Place, assert_same, errno, needs_fuse};
use crate::remotes::https::TlsFront;

const NAME: &str = "noir-1.tar.gz";
const ETAG: &str = "\"v1\"";
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
const NEXT_DATE: &str = "Tue, 14 Nov 2023 22:13:21 GMT";

/// The object of most tests: more than one part.
fn object() -> Vec<u8> {
    random_bytes(1, 3_000_001)
}

/// A server of one object, which answers `reply` for it and 404 for any other.
fn server(reply: impl Fn(&Request, &[u8]) -> Reply + Send + Sync + 'static) -> WebServer {
    let body = object();
    WebServer::start(move |request| match request.target.ends_with(NAME) {
        true => reply(request, &body),
        false => Reply::new(404),
    })
}

/// Checks that the object reads right through a mount, cold and then from the cache directory.
#[track_caller]
fn assert_reads(server: &WebServer, body: &[u8]) {
    let place = Place::reading(&[&server.url()]);
    let mount = place.mount();
    let read = mount.read(NAME).unwrap_or_else(|e| panic!("{e}\n{}", mount.said()));
    assert_same("cold", &read, body);
    place.wait_until_cached(NAME);
    assert_same("warm", &mount.read(NAME).unwrap(), body);
    assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
    mount.unmount();
}

/// What reading the object fails with.
fn failure(remote: &str) -> (i32, String) {
    let place = Place::reading(&[remote]);
    let mount = place.mount();
    let errno = errno(mount.read(NAME));
    let said = mount.said();
    mount.unmount();
    (errno, said)
}

#[test]
fn a_server_without_parts_sends_an_object_once() {
    needs_fuse!();
    let body = random_bytes(2, 30_000_000);
    let sent = body.clone();
    let server = WebServer::start(move |request| match request.target.ends_with(NAME) {
        true => Reply::whole(&sent).header("ETag", ETAG),
        false => Reply::new(404),
    });
    assert_reads(&server, &body);
    assert_eq!(server.count("GET"), 1);
}

#[test]
fn a_server_that_says_it_has_parts_and_has_not_is_believed_once() {
    needs_fuse!();
    let server = server(|_, body| Reply::whole(body).header("ETag", ETAG).header("Accept-Ranges", "bytes"));
    let place = Place::reading(&[&server.url()]);
    let mount = place.mount();
    assert_same("first", &mount.read(NAME).unwrap(), &object());
    let lied_to = server.count("GET");
    place.wait_until_cached(NAME);
    std::fs::remove_file(place.cache().join(NAME)).unwrap();
    mount.unmount();
    let mount = place.mount();
    assert_same("second", &mount.read(NAME).unwrap(), &object());
    assert!(lied_to <= 2, "{lied_to} GETs");
}

#[test]
fn a_server_without_head_is_asked_for_the_first_byte() {
    needs_fuse!();
    let server = server(|request, body| match &*request.method {
        "HEAD" => Reply::new(405),
        _ => Reply::part(request, body).header("ETag", ETAG),
    });
    let body = object();
    let place = Place::reading(&[&server.url()]);
    let mount = place.mount();
    assert_same("cold", &mount.read(NAME).unwrap(), &body);
    assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
    assert_eq!(errno(mount.read("missing-too.tar.gz")), libc::ENOENT);
    // Of a missing name its 404 is believed.
    let first: Vec<_> = server.requests().into_iter().filter(|r| r.target.ends_with(NAME)).take(2).collect();
    assert_eq!((&*first[0].method, &*first[1].method), ("HEAD", "GET"));
    assert_eq!(first[1].header("range"), Some("bytes=0-0"));
    let heads = server.requests().into_iter().filter(|r| r.method == "HEAD" && r.target != "/");
    assert_eq!(heads.count(), 1, "it is remembered");
}

#[test]
fn objects_are_never_unpacked() {
    needs_fuse!();
    let server = server(|request, body| {
        let packed = Reply::part(request, body).header("ETag", ETAG).header("Content-Encoding", "gzip");
        packed.header("Content-Type", "application/x-tar")
    });
    assert_reads(&server, &object());
    assert!(server.requests().iter().all(|request| request.header("accept-encoding") == Some("identity")));
}

#[test]
fn bodies_that_break_off_are_taken_up_where_they_broke() {
    needs_fuse!();
    let cuts = AtomicUsize::new(0);
    let with_parts = server(move |request, body| {
        let reply = Reply::part(request, body).header("ETag", ETAG);
        match request.method == "GET" && cuts.fetch_add(1, Ordering::SeqCst) < 3 {
            true => reply.cut_after(100_000),
            false => reply,
        }
    });
    assert_reads(&with_parts, &object());
    let cuts = AtomicUsize::new(0);
    let without_parts = server(move |request, body| {
        let reply = Reply::whole(body).header("Last-Modified", DATE).chunked();
        match request.method == "GET" && cuts.fetch_add(1, Ordering::SeqCst) < 2 {
            true => reply.cut_after(1_500_000),
            false if request.method == "HEAD" => Reply::whole(body).header("Last-Modified", DATE),
            false => reply,
        }
    });
    assert_reads(&without_parts, &object());
}

#[test]
fn dates_stand_for_missing_and_weak_tags() {
    needs_fuse!();
    for etag in [None, Some("W/\"weak\"")] {
        let server = server(move |request, body| {
            let reply = Reply::part(request, body).header("Last-Modified", DATE);
            etag.map_or(reply.clone(), |etag| reply.header("ETag", etag))
        });
        assert_reads(&server, &object());
        for request in server.requests().iter().filter(|request| request.method == "GET") {
            assert_eq!(request.header("if-unmodified-since"), Some(DATE));
            assert_eq!(request.header("if-match"), None);
        }
    }
}

#[test]
fn an_object_that_changes_is_stale_whatever_it_is_known_by() {
    needs_fuse!();
    for (name, first, second) in [("ETag", ETAG, "\"v2\""), ("Last-Modified", DATE, NEXT_DATE)] {
        // Conditions are ignored, as by the simplest servers: only the answers tell.
        let replaced = AtomicBool::new(false);
        let server = server(move |request, body| {
            let is_new = request.method == "GET" && replaced.swap(true, Ordering::SeqCst);
            let reply = Reply::part(request, body).header(name, if is_new { second } else { first });
            // The first part comes, and breaks.
            if request.method == "GET" && !is_new { reply.cut_after(1000) } else { reply }
        });
        let (errno, said) = failure(&server.url());
        assert_eq!(errno, libc::ESTALE, "{name}: {said}");
    }
}

#[test]
fn an_object_sent_in_chunks_that_is_longer_than_it_was_is_stale() {
    needs_fuse!();
    let server = server(|request, body| match &*request.method {
        "HEAD" => Reply::whole(&body[..2_000_000]).header("Last-Modified", DATE),
        _ => Reply::whole(body).header("Last-Modified", DATE).chunked(),
    });
    assert_eq!(failure(&server.url()).0, libc::ESTALE);
}

#[test]
fn an_object_with_neither_tag_nor_date_is_read_in_one_go_or_not_at_all() {
    needs_fuse!();
    let good = server(Reply::part);
    assert_reads(&good, &object());
    assert_eq!(good.count("GET"), 1);
    let broken = server(|request, body| match &*request.method {
        "GET" => Reply::part(request, body).cut_after(1_000_000),
        _ => Reply::part(request, body),
    });
    assert_eq!(failure(&broken.url()).0, libc::ESTALE);
}

#[test]
fn an_overloaded_server_is_asked_again_and_one_that_fails_is_an_error() {
    needs_fuse!();
    let calls = AtomicUsize::new(0);
    let overloaded = server(move |request, body| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503),
        1 => Reply::new(429),
        _ => Reply::part(request, body).header("ETag", ETAG),
    });
    assert_reads(&overloaded, &object());
    let failing = server(|_, _| Reply::new(500));
    assert_eq!(failure(&failing.url()).0, libc::EIO);
    let heads = failing.requests().into_iter().filter(|r| r.target.ends_with(NAME)).count();
    assert!(heads <= 3, "{heads} requests");
}

#[test]
fn redirects_are_followed_and_credentials_stay_at_home() {
    needs_fuse!();
    let signed = Arc::new(AtomicUsize::new(0));
    let seen = signed.clone();
    // An address that is signed for GET: it says 403 to a HEAD.
    let store = server_of_anything(move |request, body| {
        seen.fetch_add(usize::from(request.header("authorization").is_some()), Ordering::SeqCst);
        match &*request.method {
            "HEAD" => Reply::new(403),
            _ if !request.target.contains("sig=a%2Fb") => Reply::new(403),
            _ => Reply::part(request, body).header("ETag", ETAG),
        }
    });
    let target = format!("{}bucket/{NAME}?sig=a%2Fb", store.url());
    let front = WebServer::start(move |request| match &*request.target {
        _ if request.header("authorization") != Some("Basic bWU6cHc=") => Reply::new(401),
        "/artifacts/noir-1.tar.gz" => Reply::new(302).header("Location", "/moved/noir-1.tar.gz"),
        "/moved/noir-1.tar.gz" => Reply::new(307).header("Location", &target),
        _ => Reply::new(404),
    });
    let remote = format!("{}artifacts", front.url().replace("://", "://me:pw@"));
    let place = Place::reading(&[&remote]);
    let mount = place.mount();
    assert_same(
        "redirected",
        &mount.read(NAME).unwrap_or_else(|e| panic!("{e}\n{}", mount.said())),
        &object(),
    );
    assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
    assert_eq!(signed.load(Ordering::SeqCst), 0, "credentials went to another server");
    assert!(front.requests().iter().all(|request| request.header("authorization").is_some()));
    mount.unmount();
}

#[test]
fn credentials_are_not_taken_along_by_who_sends_us_back() {
    needs_fuse!();
    let back = Arc::new(std::sync::Mutex::new(String::new()));
    let address = back.clone();
    let other = WebServer::start(move |_| Reply::new(302).header("Location", &address.lock().unwrap()));
    let target = format!("{}{NAME}", other.url());
    let home = server_of_anything(move |request, body| match &*request.target {
        "/back" if request.header("authorization").is_some() => Reply::new(500),
        "/back" => Reply::part(request, body).header("ETag", ETAG),
        _ => Reply::new(302).header("Location", &target),
    });
    *back.lock().unwrap() = format!("{}back", home.url());
    let place = Place::reading(&[&home.url().replace("://", "://me:pw@")]);
    let mount = place.mount();
    assert_same("sent back", &mount.read(NAME).unwrap(), &object());
}

fn server_of_anything(reply: impl Fn(&Request, &[u8]) -> Reply + Send + Sync + 'static) -> WebServer {
    let body = object();
    WebServer::start(move |request| reply(request, &body))
}

#[test]
fn redirects_that_never_end_or_lead_out_of_https_are_refused() {
    needs_fuse!();
    let circle = WebServer::start(|request| Reply::new(301).header("Location", &request.target));
    let (errno, said) = failure(&circle.url());
    assert_eq!(errno, libc::EIO, "{said}");
    assert_eq!(circle.count("HEAD") % 11, 0, "ten redirects an attempt");

    let plain = server(|request, body| Reply::part(request, body).header("ETag", ETAG));
    let target = format!("{}{NAME}", plain.url());
    let inner = WebServer::start(move |_| Reply::new(302).header("Location", &target));
    let front = TlsFront::of(inner.addr());
    let mut place = Place::reading(&[&front.url()]);
    let bundle = place.dir.path().join("bundle.pem");
    std::fs::write(&bundle, &front.pem).unwrap();
    place.arg("--ca-bundle").arg(&bundle);
    let mount = place.mount();
    assert_eq!(crate::common::errno(mount.read(NAME)), libc::EIO);
    assert_eq!(plain.requests().len(), 0, "it was asked without TLS");
    mount.unmount();
}

#[test]
fn refusals_mean_missing_to_strangers_and_no_access_to_who_says_who_they_are() {
    needs_fuse!();
    for (status, stranger, known) in [
        (403, libc::ENOENT, libc::EACCES),
        (404, libc::ENOENT, libc::ENOENT),
        (401, libc::EACCES, libc::EACCES),
    ] {
        let server = WebServer::start(move |_| Reply::new(status));
        assert_eq!(failure(&server.url()).0, stranger, "{status}");
        assert_eq!(failure(&server.url().replace("://", "://me:pw@")).0, known, "{status}");
    }
}
