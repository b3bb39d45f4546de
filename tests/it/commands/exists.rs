//! `exists`: an exit code.

use std::process::Output;

use aztec_cache_test_support::s3::S3Server;
use aztec_cache_test_support::web::{Reply, WebServer};

use super::{command, offline, run};
use crate::common::{Place, key};

fn is_silent(output: &Output) -> bool {
    output.stdout.is_empty() && output.stderr.is_empty()
}

#[test]
fn yes_no_and_unknown_are_told_apart() {
    let server = S3Server::start();
    for name in ["a.zst", "b.zst"] {
        server.put(&key(name), "x");
    }
    let place = Place::of(&server);
    let code = |names: &[&str]| {
        let output = run(&place, &[&["exists"], names].concat());
        assert!(is_silent(&output), "{output:?}");
        output.status.code()
    };
    assert_eq!(code(&["a.zst"]), Some(0));
    assert_eq!(code(&["a.zst", "b.zst"]), Some(0));
    assert_eq!(code(&["a.zst", "missing.zst", "b.zst"]), Some(1));
    assert_eq!(code(&["noir-disabled-cache.zst"]), Some(1));
    assert_eq!(server.counts().get, 0, "nothing is fetched");
    let no_cache = command(&place, &["exists", "a.zst"]).env("NO_CACHE", "1").output().unwrap();
    assert!(no_cache.status.code() == Some(1) && is_silent(&no_cache));
    assert_eq!(run(&place, &["exists"]).status.code(), Some(2));
    assert_eq!(run(&place, &["exists", "a//b"]).status.code(), Some(2));
}

#[test]
fn what_is_local_exists_without_the_remote_and_what_isn_t_is_unknown() {
    let place = offline();
    std::fs::create_dir_all(place.cache()).unwrap();
    std::fs::write(place.cache().join("a.zst"), "someone's").unwrap();
    assert_eq!(run(&place, &["exists", "a.zst"]).status.code(), Some(0));
    let unknown = run(&place, &["exists", "a.zst", "b.zst"]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("b.zst"));
}

#[test]
fn many_names_cost_a_request_each_over_a_few_connections() {
    let names: Vec<String> = (0..300).map(|i| format!("vk-{i}.zst")).collect();
    let bucket = S3Server::start();
    let place = Place::of(&bucket);
    assert_eq!(command(&place, &["exists"]).args(&names).output().unwrap().status.code(), Some(1));
    assert_eq!((bucket.counts().requests(), bucket.counts().head), (300, 300));

    let server = WebServer::start(|_| Reply::new(404));
    let place = Place::reading(&[&server.url()]);
    let output = command(&place, &["exists"]).args(&names).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((server.requests().len(), server.count("HEAD")), (300, 300));
    assert!(server.connections() <= 20, "{} connections", server.connections());
}
