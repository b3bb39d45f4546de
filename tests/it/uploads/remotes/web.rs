//! Web servers that take uploads by PUT, as a CI server does: redirects, refusals, lost answers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aztec_cache::config::Patience;
use aztec_cache::error::Kind;
use aztec_cache::store::{Existing, Put};
use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::nginx::Nginx;
use aztec_cache_test_support::web::{Reply, Request, WebServer};

use super::{MIB, NAME, Remotes, impatience, payload};
use crate::common::assert_same;

/// What a server of one object holds.
type Object = Arc<Mutex<Option<Vec<u8>>>>;

fn held(object: &Object) -> Option<Vec<u8>> {
    object.lock().unwrap().clone()
}

/// A server that keeps what is put, once `decide` has let it through.
fn server(decide: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> (WebServer, Object) {
    let object = Object::default();
    let kept = object.clone();
    let server = WebServer::start(move |request| match (decide(request), &*request.method) {
        (Some(reply), _) => reply,
        (None, "PUT") => match &request.body {
            Some(body) => {
                *kept.lock().unwrap() = Some(body.clone());
                Reply::new(201)
            }
            None => Reply::new(100),
        },
        (None, _) => match held(&kept) {
            Some(body) => Reply::part(request, &body).header("ETag", &format!("\"v{}\"", body.len())),
            None => Reply::new(404),
        },
    });
    (server, object)
}

fn to(server: &WebServer) -> Remotes {
    Remotes::web(server.url(), Patience::default())
}

fn puts(server: &WebServer) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.method == "PUT").collect()
}

#[test]
fn nginx_takes_files_of_all_sizes_and_what_is_there_stays() {
    let server = Nginx::start().unwrap_or_else(|error| panic!("{error}"));
    let remotes = Remotes::web(format!("{}uploads/", server.url()), Patience::default());
    assert!(remotes.accepts_uploads());
    for size in [0, 1, 300_001, 20 * MIB] {
        let (name, body) = (format!("sub dir/size-{size}.zst"), random_bytes(size as u64, size));
        let version = remotes.store(&name, &body);
        assert_same(&name, &std::fs::read(server.file(&format!("uploads/{name}"))).unwrap(), &body);
        assert!(remotes.head(&name).unwrap().is(&version));
        // It would replace it.
        assert_eq!(remotes.put(&name, &payload(b"other"), Existing::Keep).unwrap(), Put::Kept);
        assert_same(&name, &std::fs::read(server.file(&format!("uploads/{name}"))).unwrap(), &body);
    }
    let replaced = remotes.put("sub dir/size-1.zst", &payload(b"other"), Existing::Replace).unwrap();
    assert!(matches!(replaced, Put::Stored(version) if version.size == 5));
    // More than it is set up to take.
    let (kind, said) = remotes.fail(NAME, &random_bytes(1, 65 * MIB));
    assert!(kind == Kind::Refused && said.contains("too large"), "{said}");
    let nowhere = Remotes::web(server.url(), Patience::default());
    assert_eq!(nowhere.fail(NAME, b"bytes").0, Kind::Refused);
}

#[test]
fn redirects_are_followed_with_all_bytes_and_without_our_credentials() {
    for status in [307, 308] {
        for size in [1000, 3 * MIB] {
            let body = random_bytes(1, size);
            let (elsewhere, object) = server(|_| None);
            let target = format!("{}somewhere?signature=x%2Fy", elsewhere.url());
            let kept = object.clone();
            let (first, none) = server(move |request| match &*request.method {
                "PUT" => Some(Reply::new(status).header("Location", &target)),
                _ => held(&kept).map(|body| Reply::whole(&body).header("ETag", "\"v1\"")),
            });
            let version = to(&first).store(NAME, &body);
            assert_eq!(version.source.as_ref(), first.url());
            assert_same("elsewhere", &held(&object).unwrap(), &body);
            assert_eq!(held(&none), None);
            let (asked, sent) = (puts(&first), puts(&elsewhere).pop().unwrap());
            assert!(asked.iter().all(|put| put.header("authorization").is_some()));
            assert_eq!(sent.header("authorization"), None, "{sent:?}");
            assert_eq!(
                (&*sent.target, sent.header("if-none-match")),
                ("/somewhere?signature=x%2Fy", Some("*"))
            );
            assert_eq!(sent.header("content-length"), Some(&*size.to_string()));
            if size >= MIB {
                assert!(
                    asked.iter().all(|put| put.body.is_none()),
                    "it was asked whether it wants the bytes"
                );
            }
        }
    }
}

#[test]
fn servers_that_do_not_know_expectations_get_the_bytes_a_moment_later() {
    let body = random_bytes(1, 3 * MIB);
    // Reads the body without a word, as one does that never heard of it.
    let (server, object) = server(|_| None);
    server.ignore_expectations();
    to(&server).store(NAME, &body);
    assert_same("there", &held(&object).unwrap(), &body);
    assert_eq!(puts(&server).len(), 1);
}

#[test]
fn a_server_that_knows_conditions_has_the_last_word() {
    let (server, object) = server(|request| {
        let conditional = request.method == "PUT" && request.header("if-none-match") == Some("*");
        conditional.then(|| Reply::new(412))
    });
    let remotes = to(&server);
    assert_eq!(remotes.put(NAME, &payload(b"ours"), Existing::Keep).unwrap(), Put::Kept);
    assert_eq!(held(&object), None);
    remotes.put(NAME, &payload(b"ours"), Existing::Replace).unwrap();
    assert_eq!(held(&object).unwrap(), b"ours");
}

#[test]
fn refusals_are_final() {
    for (status, kind) in [
        (301, Kind::Refused),
        (303, Kind::Refused),
        (400, Kind::Refused),
        (401, Kind::AccessDenied),
        (403, Kind::AccessDenied),
        (405, Kind::Refused),
        (409, Kind::Refused),
        (413, Kind::Refused),
        (501, Kind::Refused),
    ] {
        for size in [1000, 3 * MIB] {
            let (server, object) = server(move |request| {
                (request.method == "PUT").then(|| Reply::new(status).header("Location", "/elsewhere"))
            });
            let (found, said) = to(&server).fail(NAME, &random_bytes(1, size));
            assert_eq!(found, kind, "{status}: {said}");
            assert!(said.contains(&status.to_string()) && !said.contains("s3cret"), "{said}");
            assert_eq!((puts(&server).len(), held(&object)), (1, None), "{status}");
        }
    }
}

#[test]
fn what_passes_is_tried_again() {
    for status in [408, 429, 500, 503] {
        let puts = AtomicUsize::new(0);
        let (server, object) = server(move |request| {
            let first = request.method == "PUT" && puts.fetch_add(1, Ordering::SeqCst) == 0;
            first.then(|| Reply::new(status))
        });
        to(&server).store(NAME, b"bytes");
        assert_eq!(held(&object).unwrap(), b"bytes", "{status}");
    }
    let (server, _) = server(|request| (request.method == "PUT").then(|| Reply::new(503)));
    let (kind, _) = Remotes::web(server.url(), impatience()).fail(NAME, b"bytes");
    assert_eq!((kind, puts(&server).len()), (Kind::Remote, 2));
}

/// The MD5 of `bytes` as `printf bytes | md5sum` has it: what S3 behind such a server gives as ETag.
const MD5: &str = "\"4b3a6218bb3e3a7303e8a171a60fcf92\"";

#[test]
fn after_a_lost_answer_our_own_object_is_told_from_another_s() {
    for (etag, stored) in [(MD5, true), ("\"another\"", false)] {
        let object = Object::default();
        let kept = object.clone();
        let server = WebServer::start(move |request| match (&*request.method, held(&kept)) {
            ("PUT", _) => {
                *kept.lock().unwrap() = request.body.clone();
                Reply::hang_up()
            }
            (_, Some(body)) => Reply::whole(&body).header("ETag", etag),
            (_, None) => Reply::new(404),
        });
        let put = to(&server).put(NAME, &payload(b"bytes"), Existing::Keep).unwrap();
        assert_eq!(matches!(put, Put::Stored(_)), stored, "{etag}");
        assert_eq!(puts(&server).len(), 1);
    }
}

#[test]
fn a_server_that_says_yes_and_keeps_something_else_is_not_believed() {
    let kept = Reply::whole(b"shorter").header("ETag", "\"v1\"");
    let put = AtomicUsize::new(0);
    let server = WebServer::start(move |request| match &*request.method {
        "PUT" => {
            put.fetch_add(1, Ordering::SeqCst);
            Reply::new(200)
        }
        _ if put.load(Ordering::SeqCst) == 0 => Reply::new(404),
        _ => kept.clone(),
    });
    let remotes = Remotes::web(server.url(), impatience());
    // It may have been another's, which came first.
    assert_eq!(remotes.put(NAME, &payload(b"bytes of ours"), Existing::Keep).unwrap(), Put::Kept);
    let error = remotes.put(NAME, &payload(b"bytes of ours"), Existing::Replace).unwrap_err();
    assert!(error.kind() == Kind::Damaged && error.to_string().contains("7 are there"), "{error}");
}
