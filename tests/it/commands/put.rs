//! `put`: a file becomes an artifact, here and there, whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Access, Fault, Op, Options, S3Server};
use aztec_cache_test_support::web::{Reply, WebServer};
use serde_json::Value;

use super::{command, offline, run};
use crate::common::{Place, assert_refused, assert_same, key, names_in};

const NAME: &str = "noir-b786c534d2b9261d.bin";

/// A file with these bytes in the place.
fn file(place: &Place, body: &[u8]) -> PathBuf {
    let path = place.dir.path().join("made");
    fs::write(&path, body).unwrap();
    path
}

fn put(place: &Place, name: &str, body: &[u8]) -> Output {
    run(place, &["put", name, file(place, body).to_str().unwrap()])
}

/// What it said; it must have succeeded.
#[track_caller]
fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && output.stdout.is_empty(), "{:?}: {said}", output.status);
    said
}

/// The state of a local artifact, as `ls` has it.
fn state(place: &Place, name: &str) -> Option<String> {
    let listed = place.command(&["ls", "--cached", "--json"]).output().unwrap();
    let entries: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    let entry = entries.iter().find(|entry| entry["name"] == name)?;
    Some(entry["state"].as_str().unwrap().to_owned())
}

fn journal(place: &Place) -> Vec<String> {
    names_in(&place.cache().join(".aztec-cache/journal"))
}

#[test]
fn a_file_goes_into_the_cache_and_into_the_remote() {
    let server = S3Server::start();
    for size in [0, 1, 700_001, 20 << 20] {
        let (name, body) = (format!("size-{size}.bin"), random_bytes(size as u64, size));
        let place = Place::of(&server);
        assert_eq!(said(&put(&place, &name, &body)), "");
        assert_same("there", &server.object(&key(&name)).unwrap(), &body);
        assert_same("here", &fs::read(place.cache().join(&name)).unwrap(), &body);
        assert_eq!(state(&place, &name).as_deref(), Some("cached"));
        assert_eq!(journal(&place), Vec::<String>::new());
        server.reset_counts();
        assert_same("served", &run(&place, &["get", &name]).stdout, &body);
        assert_eq!(server.counts().requests(), 0, "what was uploaded is known to be there");
        let revalidated = run(&place, &["get", &name, "--revalidate", "1ms"]);
        assert_same("confirmed", &revalidated.stdout, &body);
        assert_eq!((server.counts().head, server.counts().get), (1, 0), "it is the remote's version");
        let verified = run(&place, &["verify", &name]);
        assert!(
            String::from_utf8_lossy(&verified.stderr).contains("0 damaged, 0 with nothing"),
            "{verified:?}"
        );
    }
}

#[test]
fn stdin_is_read_to_its_end() {
    let server = S3Server::start();
    let body = random_bytes(1, 3_000_000);
    for args in [&["put", NAME][..], &["put", NAME, "-"]] {
        let place = Place::of(&server);
        let mut child = command(&place, args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        body.chunks(7_777).for_each(|chunk| stdin.write_all(chunk).unwrap());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_same("there", &server.object(&key(NAME)).unwrap(), &body);
        server.remove(&key(NAME));
    }
}

#[test]
fn an_artifact_that_is_there_stays_unless_told_otherwise() {
    let server = S3Server::start();
    let first = Place::of(&server);
    put(&first, NAME, b"first");
    assert!(said(&put(&first, NAME, b"second")).contains("Skipping S3 upload, already exists: "));
    // Another machine, which has nothing of it.
    let place = Place::of(&server);
    let kept = said(&put(&place, NAME, b"second"));
    assert!(kept.contains(&format!("Skipping S3 upload, already exists: {NAME}")), "{kept}");
    assert_eq!(server.object(&key(NAME)).unwrap(), "first");
    assert!(!place.cache().join(NAME).exists(), "everyone reads the same bytes");
    assert_eq!(run(&place, &["get", NAME]).stdout, b"first");
    // The same bytes become the remote's version.
    let same = Place::of(&server);
    said(&put(&same, NAME, b"first"));
    server.reset_counts();
    assert_eq!(run(&same, &["get", NAME]).stdout, b"first");
    assert_eq!(server.counts().requests(), 0);
    for (forced, body) in [(&["--allow-overwrite"][..], "third"), (&[], "fourth")] {
        let mut command = command(&place, &["put", NAME]);
        command.arg(file(&place, body.as_bytes())).args(forced);
        if forced.is_empty() {
            command.env("S3_FORCE_UPLOAD", "1");
        }
        assert_eq!(said(&command.output().unwrap()), "");
        assert_eq!(server.object(&key(NAME)).unwrap(), body);
        assert_eq!(run(&place, &["get", NAME]).stdout, body.as_bytes());
    }
}

#[test]
fn what_is_never_uploaded_is_said() {
    let server = S3Server::start();
    let place = Place::of(&server);
    let disabled = said(&put(&place, "noir-disabled-cache.tar.gz", b"dirty"));
    let text =
        "aztec-cache: Skipping upload of noir-disabled-cache.tar.gz due to uncommitted changes/files.\n";
    assert_eq!(disabled, text);
    let path = file(&place, b"bytes");
    let skipped = command(&place, &["put", NAME]).arg(path).env("NO_CACHE_UPLOAD", "1").output().unwrap();
    assert_eq!(said(&skipped), "aztec-cache: Skipping upload because NO_CACHE_UPLOAD=1.\n");
    assert_eq!((server.counts().requests(), names_in(place.cache())), (0, vec![]));
}

#[test]
fn an_archive_that_is_not_whole_is_refused() {
    let server = S3Server::start();
    let place = Place::of(&server);
    let archive = zstd::stream::encode_all(&*random_bytes(1, 2_000_000), 1).unwrap();
    for bad in [&archive[..archive.len() - 1], b""] {
        assert_refused(&put(&place, "noir-1.zst", bad), 1, &["noir-1.zst", "archive", "--no-check-archives"]);
    }
    assert_eq!((server.counts().put, server.object(&key("noir-1.zst"))), (0, None));
    assert!(!place.cache().join("noir-1.zst").exists());
    said(&put(&place, "noir-1.zst", &archive));
    assert_same("there", &server.object(&key("noir-1.zst")).unwrap(), &archive);
    let args = ["put", "noir-2.zst", "--no-check-archives"];
    said(&command(&place, &args).arg(file(&place, b"anything")).output().unwrap());
    assert_eq!(server.object(&key("noir-2.zst")).unwrap(), "anything");
}

#[test]
fn without_a_cache_directory_it_is_uploaded_or_an_error() {
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.cache = None;
    let body = random_bytes(1, 9_000_000);
    assert_eq!(said(&put(&place, NAME, &body)), "");
    assert_same("there", &server.object(&key(NAME)).unwrap(), &body);
    assert!(said(&put(&place, NAME, b"second")).contains("already exists"));
    place.arg("--upload").arg("never");
    assert_refused(&put(&place, NAME, b"third"), 2, &["no local cache", "CACHE_LOCAL_DIR"]);
    let mut place = offline();
    place.cache = None;
    assert_eq!(put(&place, NAME, b"bytes").status.code(), Some(3));
}

#[test]
fn offline_it_is_saved_here_and_uploaded_later() {
    let server = S3Server::start();
    let place = Place::of(&server);
    server.stop();
    let body = random_bytes(1, 700_001);
    let warned = said(&put(&place, NAME, &body));
    assert!(warned.contains(NAME) && warned.contains("uploaded later"), "{warned}");
    assert_same("here", &fs::read(place.cache().join(NAME)).unwrap(), &body);
    assert_eq!(state(&place, NAME).as_deref(), Some("pending-upload"));
    let evicted = place.command(&["evict", NAME]).output().unwrap();
    assert_refused(&evicted, 5, &[NAME, "still to be uploaded"]);
    let pruned = place.command(&["prune", "--max-size", "0"]).output().unwrap();
    assert!(pruned.status.success() && place.cache().join(NAME).exists(), "{pruned:?}");
    assert_same("served", &run(&place, &["get", NAME, "--revalidate", "1ms"]).stdout, &body);
    server.restart();
    said(&put(&place, "other.bin", b"other"));
    assert_same("there", &server.object(&key(NAME)).unwrap(), &body);
    assert_eq!(server.counts().puts_of(&key(NAME)), 1);
    assert_eq!((state(&place, NAME).as_deref(), journal(&place).len()), (Some("cached"), 0));
}

#[test]
fn a_remote_that_refuses_is_an_error_and_loses_nothing() {
    let denied = Access { put: false, ..Access::ALL };
    let server = S3Server::start_with(Options { signed: denied, ..Options::default() });
    let place = Place::of(&server);
    assert_refused(&put(&place, NAME, b"bytes"), 4, &[NAME]);
    assert_eq!(fs::read(place.cache().join(NAME)).unwrap(), b"bytes");
    assert_eq!(state(&place, NAME).as_deref(), Some("pending-upload"));
    assert_eq!(journal(&place).len(), 1);
    // The next process tries it again, once.
    server.reset_counts();
    let again = put(&place, "other.bin", b"other");
    assert_eq!(again.status.code(), Some(4));
    assert_eq!(server.counts().puts_of(&key("other.bin")), 1);
    server.add_fault(Fault::status(403, "RequestTimeTooSkewed").on(Op::Put));
    let skewed = put(&place, "third.bin", b"third");
    assert_refused(&skewed, 4, &["third.bin", "clock"]);
}

#[test]
fn credentials_decide_whether_it_is_uploaded() {
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY");
    let only_here = format!("aztec-cache: {NAME}: saved here alone: no credentials to upload it\n");
    assert_eq!(said(&put(&place, NAME, b"bytes")), only_here);
    assert_eq!((server.counts().put, journal(&place).len()), (0, 0));
    assert_eq!(fs::read(place.cache().join(NAME)).unwrap(), b"bytes");
    assert_eq!(run(&place, &["get", NAME]).stdout, b"bytes");
}

#[test]
fn a_read_only_remote_with_a_cache_of_one_s_own() {
    let denied = Access { put: false, ..Access::ALL };
    let server = S3Server::start_with(Options { signed: denied, ..Options::default() });
    server.put(&key("theirs.bin"), "theirs");
    let mut place = Place::of(&server);
    place.env("AZTEC_CACHE_UPLOAD", "never");
    assert_eq!(said(&put(&place, NAME, b"mine")), "");
    assert_eq!(run(&place, &["get", NAME]).stdout, b"mine");
    assert_eq!(run(&place, &["get", "theirs.bin"]).stdout, b"theirs");
    assert_eq!(run(&place, &["get", NAME, "--revalidate", "1ms"]).stdout, b"mine", "no remote has another");
    assert!(said(&put(&place, "theirs.bin", b"mine")).contains("already exists"));
    assert_eq!((server.counts().put, journal(&place).len()), (0, 0));
    assert_eq!(state(&place, NAME).as_deref(), Some("cached"));
}

#[test]
fn of_several_remotes_the_first_that_takes_uploads_gets_it() {
    let (server, web) = (S3Server::start(), WebServer::start(|_| Reply::new(404)));
    let mut place = Place::of(&server);
    let bucket = "s3://aztec-ci-artifacts/build-cache/";
    place.env("AZTEC_CACHE_REMOTE", format!("{} {bucket}", web.url()));
    assert_eq!(said(&put(&place, NAME, b"bytes")), "");
    assert_eq!(server.object(&key(NAME)).unwrap(), "bytes");
    server.stop();
    said(&put(&place, "other.bin", b"other"));
    let entry = place.cache().join(".aztec-cache/journal").join(&journal(&place)[0]);
    let entry: Value = serde_json::from_slice(&fs::read(entry).unwrap()).unwrap();
    assert_eq!((&entry["name"], &entry["remote"]), (&"other.bin".into(), &bucket.into()));
    server.restart();
    // With the bucket alone it is the same remote.
    place.env("AZTEC_CACHE_REMOTE", bucket);
    said(&put(&place, "third.bin", b"third"));
    assert_eq!(server.object(&key("other.bin")).unwrap(), "other");
}

#[test]
fn in_the_background_means_before_it_ends_if_it_can() {
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--upload=background");
    assert_eq!(said(&put(&place, NAME, b"bytes")), "");
    assert_eq!(server.object(&key(NAME)).unwrap(), "bytes");
    server.stop();
    said(&put(&place, "other.bin", b"other"));
    assert_eq!(state(&place, "other.bin").as_deref(), Some("pending-upload"));
}

#[test]
fn bad_input_is_refused_with_a_remedy() {
    let server = S3Server::start();
    let place = Place::of(&server);
    let path = file(&place, b"bytes");
    let path = path.to_str().unwrap();
    assert_refused(&run(&place, &["put", ".aztec-cache/x", path]), 2, &[".aztec-cache/x", "reserved"]);
    assert_refused(&run(&place, &["put", "../x", path]), 2, &["'../x'"]);
    assert_refused(&run(&place, &["put", &"n".repeat(256), path]), 2, &["too long"]);
    assert_refused(
        &run(&place, &["put", NAME, "/nonexistent/file"]),
        2,
        &["/nonexistent/file", "readable file"],
    );
    assert_refused(&run(&place, &["put", NAME, "/tmp"]), 2, &["/tmp", "directory"]);
    assert_refused(&run(&place, &["put", NAME, path, "--upload", "soon"]), 2, &["--upload", "soon"]);
    let read_only = command(&place, &["put", NAME, path]).env("AZTEC_CACHE_READ_ONLY", "1").output().unwrap();
    assert_refused(&read_only, 2, &["AZTEC_CACHE_READ_ONLY"]);
    let to_the_web = ["put", NAME, path, "--remote", "http://127.0.0.1:9/", "--upload=through"];
    assert_refused(&place.command(&to_the_web).output().unwrap(), 2, &["http://127.0.0.1:9/", "s3://"]);
    assert_eq!(server.counts().put, 0);
    assert_eq!(names_in(&place.cache().join(".aztec-cache/spool")), Vec::<String>::new());
}

#[test]
fn a_name_that_the_cache_can_t_hold_is_uploaded_all_the_same() {
    let server = S3Server::start();
    let place = Place::of(&server);
    said(&put(&place, ".hidden", b"bytes"));
    assert_eq!(server.object(&key(".hidden")).unwrap(), "bytes");
    fs::create_dir_all(place.cache().join("taken")).unwrap();
    said(&put(&place, "taken", b"bytes"));
    assert_eq!(server.object(&key("taken")).unwrap(), "bytes");
    let never =
        command(&place, &["put", ".other", "--upload=never"]).arg(file(&place, b"x")).output().unwrap();
    assert_refused(&never, 4, &[".other", "local cache"]);
}

#[test]
fn a_quota_smaller_than_the_file_is_an_error() {
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--max-cache-size").arg("1MB");
    assert_refused(&put(&place, NAME, &random_bytes(1, 2_000_000)), 5, &[NAME, "--max-cache-size"]);
    assert_eq!((server.counts().put, place.cache().join(NAME).exists()), (0, false));
    assert_eq!(names_in(&place.cache().join(".aztec-cache/spool")), Vec::<String>::new());
}

#[test]
fn a_reader_of_a_file_that_fails_saves_nothing() {
    let server = S3Server::start();
    let place = Place::of(&server);
    // Reading it is EIO at offset 0.
    let output =
        command(&place, &["put", NAME]).stdin(File::open("/proc/self/mem").unwrap()).output().unwrap();
    assert_refused(&output, 5, &["can't be read"]);
    assert_eq!(server.counts().requests(), 0);
}
