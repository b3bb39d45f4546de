//! `prefetch`: artifacts into the local cache.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use super::{command, quiet_output, run};
use crate::common::{Place, assert_refused, assert_same, key, names_in};

#[test]
fn names_from_the_command_line_and_from_stdin() {
    let server = S3Server::start();
    let body = |i: usize| random_bytes(i as u64, 100_000 * i);
    for i in 0..40 {
        server.put(&key(&format!("vk-{i}.zst")), body(i));
    }
    let place = Place::of(&server);
    let mut child = command(&place, &["prefetch", "vk-0.zst", "-", "vk-1.zst"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let names: String = (1..40).map(|i| format!("vk-{i}.zst\n")).collect();
    child.stdin.take().expect("it is piped").write_all(names.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    // Nothing is said where there is no terminal.
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    for i in 0..40 {
        let name = format!("vk-{i}.zst");
        assert_same(&name, &fs::read(place.cache().join(&name)).unwrap(), &body(i));
    }
    server.reset_counts();
    quiet_output(&place, &["prefetch", "vk-7.zst", "vk-8.zst"]);
    assert_eq!(server.counts().requests(), 0, "they are here");
}

#[test]
fn one_that_fails_is_said_and_stops_no_other() {
    let server = S3Server::start();
    for name in ["a.zst", "b.zst"] {
        server.put(&key(name), "bytes");
    }
    let place = Place::of(&server);
    let names = ["prefetch", "a.zst", "missing.zst", "noir-disabled-cache.zst", "b.zst"];
    let output = run(&place, &names);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.lines().count() == 2 && said.lines().all(|line| line.starts_with("aztec-cache: ")),
        "{said}"
    );
    assert!(said.contains("missing.zst") && said.contains("noir-disabled-cache.zst"), "{said}");
    let kept = names_in(place.cache());
    assert_eq!(kept, [".aztec-cache", "a.zst", "b.zst"]);
    server.stop();
    assert_eq!(run(&place, &["prefetch", "a.zst", "other.zst"]).status.code(), Some(3));
}

#[test]
fn it_needs_somewhere_to_keep_them() {
    let server = S3Server::start();
    server.put(&key("a.zst"), random_bytes(1, 100_000));
    let mut place = Place::of(&server);
    let too_small = run(&place, &["prefetch", "a.zst", "--max-cache-size", "1KB"]);
    assert_refused(&too_small, 5, &["a.zst", "--max-cache-size"]);
    place.cache = None;
    assert_refused(&run(&place, &["prefetch", "a.zst"]), 2, &["CACHE_LOCAL_DIR", "--cache-dir"]);
}

#[test]
fn a_terminal_shows_how_far_it_is() {
    let server = S3Server::start();
    for name in ["a.zst", "b.zst"] {
        server.put(&key(name), random_bytes(1, 100_000));
    }
    let place = Place::of(&server);
    let words = command(&place, &["prefetch", "a.zst", "missing.zst", "b.zst"]);
    let words: Vec<_> = [words.get_program()]
        .into_iter()
        .chain(words.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    // util-linux's `script` runs it on a terminal of its own.
    let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let output =
        place.program("script").args(["-qec", &line, "/dev/null"]).envs(envs(&place)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("3 of 3") && said.contains("1 failed") && said.contains("missing.zst"), "{said:?}");
}

/// The environment that the place's commands have.
fn envs(place: &Place) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let command = place.command(&[]);
    command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}
