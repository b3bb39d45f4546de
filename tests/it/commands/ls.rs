//! `ls`: names, with or without what is known of them.

use std::fs;

use aztec_cache_test_support::s3::S3Server;
use aztec_cache_test_support::web::{Reply, WebServer};

use super::{offline, quiet_output, run};
use crate::common::{Place, key};

fn text(place: &Place, args: &[&str]) -> String {
    String::from_utf8(quiet_output(place, args)).unwrap()
}

fn filled() -> (S3Server, Place) {
    let server = S3Server::start();
    for name in ["noir-1.zst", "noir-2.zst", "vk-1.zst", "deep/er/x.zst"] {
        server.put(&key(name), name);
    }
    let place = Place::of(&server);
    quiet_output(&place, &["get", "noir-2.zst"]);
    (server, place)
}

#[test]
fn names_below_a_prefix() {
    let (server, place) = filled();
    server.reset_counts();
    assert_eq!(text(&place, &["ls"]), "deep/\nnoir-1.zst\nnoir-2.zst\nvk-1.zst\n");
    assert_eq!(text(&place, &["ls", "noir-"]), "noir-1.zst\nnoir-2.zst\n");
    assert_eq!(text(&place, &["ls", "deep"]), "deep/\n");
    assert_eq!(text(&place, &["ls", "deep/"]), "deep/er/\n");
    assert_eq!(text(&place, &["ls", "deep/er/"]), "deep/er/x.zst\n");
    assert_eq!(text(&place, &["ls", "nothing"]), "");
    assert_eq!(run(&place, &["ls", "a//b"]).status.code(), Some(2));
    assert_eq!((server.counts().get, server.counts().head), (0, 0));
}

#[test]
fn cached_asks_nobody() {
    let (server, place) = filled();
    server.reset_counts();
    assert_eq!(text(&place, &["ls", "--cached"]), "noir-2.zst\n");
    assert_eq!(server.counts().requests(), 0);
    server.stop();
    assert_eq!(text(&place, &["ls", "--cached", "noir"]), "noir-2.zst\n");
}

#[test]
fn long_and_json_tell_the_rest() {
    let (_server, place) = filled();
    let long = text(&place, &["ls", "--long"]);
    let fields: Vec<Vec<&str>> = long.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(fields[0], ["-", "-", "-", "deep/"]);
    assert_eq!((fields[1][0], fields[1][2], fields[1][3]), ("10", "remote", "noir-1.zst"));
    assert_eq!((fields[2][0], fields[2][2], fields[2][3]), ("10", "cached", "noir-2.zst"));
    let json: serde_json::Value = serde_json::from_str(&text(&place, &["ls", "--json"])).unwrap();
    let of = |name: &str| json.as_array().unwrap().iter().find(|e| e["name"] == name).unwrap().clone();
    assert_eq!(of("deep")["type"], "directory");
    let (remote, cached) = (of("noir-1.zst"), of("noir-2.zst"));
    assert_eq!((&remote["state"], &cached["state"]), (&"remote".into(), &"cached".into()));
    assert_eq!((&remote["size"], &cached["size"]), (&10.into(), &10.into()));
    assert_eq!(cached["source"], "s3://aztec-ci-artifacts/build-cache/");
    assert!(cached["etag"].is_string() && remote["modified"].is_string());
}

#[test]
fn without_a_listing_what_is_local_is_shown_with_a_word_about_it() {
    let server = WebServer::start(|_| Reply::new(404));
    let place = Place::reading(&[&server.url()]);
    fs::create_dir_all(place.cache()).unwrap();
    fs::write(place.cache().join("a.zst"), "someone's").unwrap();
    let output = run(&place, &["ls"]);
    assert!(output.status.success());
    assert_eq!(output.stdout, b"a.zst\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("directories show what is local") && said.lines().count() == 1, "{said}");
    let nothing = run(&offline(), &["ls"]);
    assert_eq!(nothing.status.code(), Some(3), "{nothing:?}");
}
