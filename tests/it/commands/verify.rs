//! `verify`: cached files against what is recorded of them.

use std::fs::{self, File};
use std::path::Path;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::{quiet_output, run};
use crate::common::{Place, assert_refused, assert_same, key, names_in};

const GOOD: &str = "bb.js-1.bin";
const BAD: &str = "noir-2.bin";

/// Two fetched files, of which one has a bit flipped since, as a disk does it: nothing else tells.
fn with_damage() -> (S3Server, Place) {
    let server = S3Server::start();
    let place = Place::of(&server);
    for name in [GOOD, BAD] {
        server.put(&key(name), random_bytes(1, 3_000_000));
    }
    quiet_output(&place, &["prefetch", GOOD, BAD]);
    flip(&place.cache().join(BAD), 2_345_678);
    (server, place)
}

fn flip(path: &Path, at: usize) {
    let written = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(written).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn damage_is_found_and_repaired() {
    let (server, place) = with_damage();
    let found = run(&place, &["verify"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let said = text(&found.stdout);
    assert!(said.starts_with("noir-2.bin: damaged: ") && said.lines().count() == 1, "{said}");
    assert!(
        text(&found.stderr).contains("2 verified, 5.7 MiB: 1 damaged, 0 with"),
        "{}",
        text(&found.stderr)
    );
    assert!(place.cache().join(BAD).exists(), "without --repair nothing is changed");
    assert_eq!(run(&place, &["verify", GOOD]).status.code(), Some(0));

    let repaired = run(&place, &["verify", "--repair"]);
    assert_eq!(repaired.status.code(), Some(1), "there was damage");
    assert!(text(&repaired.stdout).contains("fetched again"), "{repaired:?}");
    assert_same("repaired", &fs::read(place.cache().join(BAD)).unwrap(), &random_bytes(1, 3_000_000));
    let [moved] = names_in(&place.cache().join(".aztec-cache/quarantine")).try_into().expect("one file");
    assert!(moved.ends_with(BAD), "{moved}");
    let clean = run(&place, &["verify"]);
    assert!(clean.status.success() && clean.stdout.is_empty(), "{clean:?}");
    server.stop();
}

#[test]
fn without_the_remote_damage_is_moved_away_and_said() {
    let (server, place) = with_damage();
    server.stop();
    let repaired = run(&place, &["verify", "--repair", BAD]);
    assert_eq!(repaired.status.code(), Some(3), "{repaired:?}");
    assert!(text(&repaired.stdout).contains("not fetched again"), "{repaired:?}");
    assert!(!place.cache().join(BAD).exists());
    assert_eq!(names_in(&place.cache().join(".aztec-cache/quarantine")).len(), 1);
}

#[test]
fn archives_that_others_put_there_are_decoded_to_the_end() {
    let server = S3Server::start();
    let place = Place::of(&server);
    fs::create_dir_all(place.cache()).unwrap();
    let bytes = random_bytes(5, 400_000);
    let script = r#"cd "$1" && gzip < raw > a.tar.gz && zstd -q < raw > b.zst
        head -c 200000 a.tar.gz > cut.tar.gz && head -c 200000 b.zst > cut.zst && : > empty.zst && mv raw c.bin"#;
    fs::write(place.cache().join("raw"), &bytes).unwrap();
    let made = place.program("sh").args(["-c", script, "sh"]).arg(place.cache()).status().unwrap();
    assert!(made.success());
    let found = run(&place, &["verify"]);
    assert_eq!(found.status.code(), Some(1));
    let said = text(&found.stdout);
    let names: Vec<&str> = said.lines().filter_map(|line| line.split(": damaged").next()).collect();
    assert_eq!(names, ["cut.tar.gz", "cut.zst", "empty.zst"], "{said}");
    assert!(text(&found.stderr).contains("3 damaged, 1 with nothing"), "{}", text(&found.stderr));
}

#[test]
fn what_was_only_touched_is_known_again() {
    let (server, place) = with_damage();
    let path = place.cache().join(GOOD);
    // Another inode, another time, the same bytes.
    fs::copy(&path, place.cache().join("copy")).unwrap();
    fs::rename(place.cache().join("copy"), &path).unwrap();
    assert_eq!(run(&place, &["verify", GOOD]).status.code(), Some(0));
    server.reset_counts();
    assert_same("as it was", &quiet_output(&place, &["get", GOOD]), &random_bytes(1, 3_000_000));
    assert_eq!(server.counts().requests(), 0, "nobody had to be asked");
}

#[test]
fn what_cant_be_verified_is_said() {
    let (_server, mut place) = with_damage();
    let missing = run(&place, &["verify", "no-such.zst"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no-such.zst: not in the local cache"), "{missing:?}");
    assert_refused(&run(&place, &["verify", "../x"]), 2, &["../x"]);
    place.cache = None;
    assert_refused(&run(&place, &["verify"]), 2, &["CACHE_LOCAL_DIR", "--cache-dir"]);
}
