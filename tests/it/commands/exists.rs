//! `exists`: an exit code.

use std::process::Output;

use aztec_cache_test_support::s3::{Op, S3Server};
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

/// `count` names of one directory, none of which is there.
fn absent(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("dir/vk-{i}.zst")).collect()
}

#[test]
fn one_listing_answers_many_names() {
    let server = S3Server::start();
    server.put(&key("dir/there.zst"), "x");
    let place = Place::of(&server);
    let code = |names: &[String]| {
        let output = command(&place, &["exists"]).args(names).output().unwrap();
        assert!(is_silent(&output), "{output:?}");
        (output.status.code(), server.counts().list, server.counts().head)
    };
    assert_eq!(code(&absent(300)), (Some(1), 1, 0));
    server.reset_counts();
    assert_eq!(code(&vec!["dir/there.zst".to_owned(); 300]), (Some(0), 1, 0));
    // For as many as are asked about at a time it would take longer.
    server.reset_counts();
    assert_eq!(code(&absent(16)), (Some(1), 0, 16));
    // What is here is known without.
    std::fs::create_dir_all(place.cache()).unwrap();
    run(&place, &["get", "dir/there.zst", "-o", "/dev/null"]);
    server.reset_counts();
    assert_eq!(code(&vec!["dir/there.zst".to_owned(); 300]), (Some(0), 0, 0));
}

#[test]
fn a_listing_that_is_denied_or_takes_long_leaves_a_request_for_each_name() {
    let server = S3Server::start();
    let mut place = Place::of(&server);
    let gate = server.hold(Op::List, None);
    let output = command(&place, &["exists"]).args(absent(300)).output().unwrap();
    assert_eq!((output.status.code(), server.counts().head), (Some(1), 300));
    gate.release();
    server.reset_counts();
    place.arg("--no-sign-request");
    let output = command(&place, &["exists"]).args(absent(300)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((server.counts().list, server.counts().head), (1, 300));
}

#[test]
fn many_names_cost_a_web_server_a_request_each_over_a_few_connections() {
    let server = WebServer::start(|_| Reply::new(404));
    let place = Place::reading(&[&server.url()]);
    let output = command(&place, &["exists"]).args(absent(300)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((server.requests().len(), server.count("HEAD")), (300, 300));
    assert!(server.connections() <= 40, "{} connections", server.connections());
}
