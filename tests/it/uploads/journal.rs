//! What can't be uploaded now: kept, tried again, by this process or another, exactly once.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use aztec_cache::error::Kind;
use aztec_cache::upload::Published;
use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Fault, Op, S3Server};

use super::{BACKGROUND, Engine, NEVER, THROUGH, key, s3, s3_asked, server};
use crate::common::{PATIENCE, Place, assert_same, key as remote_key, names_in, needs_fuse, wait_for, xattr};

const NAME: &str = "noir-b786c534d2b9261d.bin";

/// An engine with a pending upload: it was written while the server was down.
async fn offline(server: &S3Server, body: &[u8]) -> Engine {
    server.stop();
    let engine = Engine::over(s3(server), THROUGH, None);
    assert_eq!(engine.publish(NAME, body).await.unwrap(), Published::Stored);
    engine
}

async fn wait_until_done(engine: &Engine) {
    tokio::time::timeout(PATIENCE, async {
        while !engine.uploads.pending().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the journal to be empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_offline_is_uploaded_once_the_remote_is_back() {
    let server = server();
    let body = random_bytes(1, 700_001);
    let engine = offline(&server, &body).await;
    let pending = engine.uploads.pending();
    let entry = &pending[0];
    assert_eq!((pending.len(), &*entry.name, entry.size, entry.refused), (1, NAME, 700_001, false));
    assert!(entry.attempts >= 1 && entry.error.as_deref().unwrap().contains(NAME), "{entry:?}");
    assert!(engine.uploads.is_local_only(&key(NAME)));
    server.restart();
    engine.uploads.wait_uploaded(&key(NAME)).await.unwrap();
    assert_same("there", &server.object(&remote_key(NAME)).unwrap(), &body);
    assert_eq!((server.counts().puts_of(&remote_key(NAME)), engine.uploads.pending().len()), (1, 0));
    assert!(!engine.uploads.is_local_only(&key(NAME)));
    let found = engine.cache.lookup(&key(NAME)).unwrap();
    assert_eq!(found.version.etag.as_str(), server.etag(&remote_key(NAME)).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_remote_is_tried_again_after_a_pause() {
    let server = server();
    let engine = Engine::over(s3(&server), THROUGH, None);
    server.add_fault(Fault::status(503, "SlowDown").on(Op::Put).times(2));
    assert_eq!(engine.publish(NAME, b"bytes").await.unwrap(), Published::Stored);
    assert_eq!(engine.uploads.pending()[0].attempts, 1);
    wait_until_done(&engine).await;
    assert_eq!(server.object(&remote_key(NAME)).unwrap(), "bytes");
    assert_eq!(server.counts().puts_of(&remote_key(NAME)), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_kept_and_tried_again_by_the_next_process_alone() {
    let server = server();
    let engine = Engine::over(s3(&server), THROUGH, None);
    server.set_faults([Fault::status(403, "AccessDenied").on(Op::Put)]);
    assert_eq!(engine.publish(NAME, b"bytes").await.unwrap_err().kind(), Kind::AccessDenied);
    let entry = engine.uploads.pending().remove(0);
    assert!(entry.refused && entry.error.unwrap().contains("AccessDenied"));
    assert_eq!(engine.uploads.wait_uploaded(&key(NAME)).await.unwrap_err().kind(), Kind::Refused);
    assert_eq!(fs::read(engine.path(NAME)).unwrap(), b"bytes");
    let engine = engine.with(s3(&server), THROUGH);
    engine.uploads.drain(PATIENCE).await;
    assert_eq!(server.counts().puts_of(&remote_key(NAME)), 2);
    engine.uploads.drain(PATIENCE).await;
    assert_eq!(server.counts().puts_of(&remote_key(NAME)), 2, "once");
    server.set_faults([]);
    let engine = engine.with(s3(&server), THROUGH);
    engine.uploads.drain(PATIENCE).await;
    assert_eq!(server.object(&remote_key(NAME)).unwrap(), "bytes");
    assert_eq!(engine.uploads.pending(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_background_it_is_here_at_once_and_there_soon() {
    let server = server();
    let gate = server.hold(Op::Put, None);
    let engine = Engine::over(s3(&server), BACKGROUND, None);
    let body = random_bytes(2, 20 << 20);
    assert_eq!(engine.publish(NAME, &body).await.unwrap(), Published::Stored);
    assert_same("here", &fs::read(engine.path(NAME)).unwrap(), &body);
    assert_eq!((engine.uploads.pending().len(), server.object(&remote_key(NAME))), (1, None));
    engine.uploads.wait_uploaded(&key(NAME)).await.expect("nobody waits for it in the background");
    engine.publish("moved.tmp", b"moved").await.unwrap();
    engine.uploads.rename(&key("moved.tmp"), &key("moved.bin")).await.unwrap();
    gate.release();
    engine.uploads.drain(PATIENCE).await;
    assert_same("there", &server.object(&remote_key(NAME)).unwrap(), &body);
    assert_eq!(server.object(&remote_key("moved.bin")).unwrap(), "moved");
    assert_eq!(server.object(&remote_key("moved.tmp")), None, "renamed before it was uploaded");
    let error = engine.uploads.rename(&key(NAME), &key("other.bin")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotPermitted, "the remote has it");
    assert_eq!(engine.uploads.remove(&key(NAME)).await.unwrap_err().kind(), Kind::NotPermitted);
}

/// In the middle, that is, once some bytes have been sent: whoever waited for the end would find that the remote has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_under_way_is_broken_off_for_who_renames_or_removes_its_file() {
    let server = server();
    let engine = Engine::over(s3_asked(&server, 1000), BACKGROUND, None);
    let body = random_bytes(8, 40 << 20);
    for renames in [true, false] {
        server.set_faults([Fault::status(503, "SlowDown").on(Op::Part).skip(3)]);
        engine.publish(NAME, &body).await.unwrap();
        wait_for("parts to be refused", || server.counts().puts_of(&remote_key(NAME)) > 8);
        if renames {
            engine.uploads.rename(&key(NAME), &key("other.bin")).await.unwrap();
        } else {
            engine.uploads.remove(&key(NAME)).await.unwrap();
        }
        wait_for("its parts to be removed", || server.open_uploads() == 0);
        server.set_faults([]);
        engine.uploads.drain(PATIENCE).await;
        assert_eq!((engine.uploads.pending(), server.keys()), (vec![], vec![remote_key("other.bin")]));
        server.reset_counts();
    }
    assert_same("there", &server.object(&remote_key("other.bin")).unwrap(), &body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_file_stays_when_room_is_made() {
    let server = server();
    server.stop();
    let engine = Engine::over(s3(&server), THROUGH, Some(5_000_000));
    let body = random_bytes(3, 2_000_000);
    engine.publish(NAME, &body).await.unwrap();
    let engine = engine.with(s3(&server), NEVER);
    for n in 0..5 {
        engine.publish(&format!("other-{n}.bin"), &random_bytes(n, 2_000_000)).await.unwrap();
    }
    let kept = names_in(&engine.path(""));
    assert!(kept.contains(&NAME.to_owned()) && !kept.contains(&"other-0.bin".to_owned()), "{kept:?}");
    engine.cache.space().prune(Some(0), None, false, &mut |_| {}).unwrap();
    assert_same("pinned", &fs::read(engine.path(NAME)).unwrap(), &body);
    assert!(engine.cache.remove(&key(NAME)).unwrap_err().to_string().contains("still to be uploaded"));
    // Who can't be evicted for counts all the same.
    let file = engine.uploads.create(&key("big.bin")).unwrap();
    assert_eq!(file.write_at(&vec![1; 4_000_000], 0).unwrap_err().kind(), Kind::NoSpace);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_someone_removes_or_changes_meanwhile_is_not_uploaded() {
    let server = server();
    let body = random_bytes(4, 100_000);
    type Meddling = fn(&Engine);
    let remove: Meddling = |engine| fs::remove_file(engine.path(NAME)).unwrap();
    let rewrite: Meddling = |engine| fs::write(engine.path(NAME), random_bytes(5, 100_000)).unwrap();
    let corrupt: Meddling = |engine| {
        let file = File::options().write(true).open(engine.path(NAME)).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"wrong", 5000).unwrap();
        file.set_modified(before).unwrap();
    };
    for meddle in [remove, rewrite, corrupt] {
        let engine = offline(&server, &body).await;
        meddle(&engine);
        server.restart();
        wait_until_done(&engine).await;
        assert_eq!(server.object(&remote_key(NAME)), None);
    }
    // Only touched, it is.
    let engine = offline(&server, &body).await;
    File::options()
        .write(true)
        .open(engine.path(NAME))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    server.restart();
    wait_until_done(&engine).await;
    assert_same("there", &server.object(&remote_key(NAME)).unwrap(), &body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_file_can_be_removed_and_an_uploaded_one_where_that_is_allowed() {
    let server = server();
    let engine = offline(&server, b"bytes").await;
    engine.uploads.remove(&key(NAME)).await.unwrap();
    assert!(!engine.path(NAME).exists());
    assert_eq!((engine.uploads.pending(), engine.journal()), (vec![], vec![]));
    server.restart();
    let engine =
        engine.with(s3(&server), aztec_cache::config::WriteOptions { allow_delete: true, ..THROUGH });
    engine.publish(NAME, b"bytes").await.unwrap();
    assert_eq!(server.object(&remote_key(NAME)).unwrap(), "bytes");
    server.set_faults([Fault::status(403, "AccessDenied").on(Op::Delete)]);
    assert_eq!(engine.uploads.remove(&key(NAME)).await.unwrap_err().kind(), Kind::AccessDenied);
    assert!(engine.path(NAME).exists(), "the remote first");
    server.set_faults([]);
    engine.uploads.remove(&key(NAME)).await.unwrap();
    assert_eq!((server.object(&remote_key(NAME)), engine.path(NAME).exists()), (None, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_for_another_remote_is_left_alone() {
    let server = server();
    let engine = offline(&server, b"bytes").await;
    server.restart();
    let elsewhere = aztec_cache::config::Remote::S3 { bucket: "other".to_owned(), prefix: String::new() };
    let options = aztec_cache::config::S3Options { no_sign_request: true, ..Default::default() };
    let store = aztec_cache::store::open(&[elsewhere], &options).unwrap();
    let engine = engine.with(store, THROUGH);
    engine.uploads.drain(PATIENCE).await;
    assert_eq!(engine.uploads.pending().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_entries_and_what_dead_processes_left_are_swept() {
    let server = server();
    let engine = offline(&server, b"bytes").await;
    let journal = engine.path(".aztec-cache/journal");
    fs::write(journal.join("0000"), "").unwrap();
    fs::write(journal.join("1111"), "{\"name\":").unwrap();
    let spooled = engine.path(".aztec-cache/spool/1-1");
    fs::write(&spooled, "left behind").unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(300);
    File::options().write(true).open(&spooled).unwrap().set_modified(long_ago).unwrap();
    let written = engine.write("other.bin", b"being written");
    engine.cache.sweep();
    assert_eq!((engine.journal().len(), engine.spooled().len()), (1, 1));
    engine.with(s3(&server), NEVER).uploads.publish(written, &key("other.bin")).await.unwrap();
}

/// `put` of a file in the place.
fn put(place: &Place, name: &str, body: &[u8]) -> Command {
    let path = place.dir.path().join(format!("made-{name}"));
    fs::write(&path, body).unwrap();
    let mut command = place.command(&["put", name]);
    command.arg(path).args(&place.args).stderr(Stdio::piped());
    command
}

#[test]
fn a_process_that_is_killed_in_mid_upload_leaves_it_to_the_next_which_does_it_once() {
    let server = S3Server::start();
    let place = Place::of(&server);
    let journal = place.cache().join(".aztec-cache/journal");
    for (size, op) in [(700_001, Op::Put), (40 << 20, Op::Part)] {
        let (name, body) = (format!("size-{size}.bin"), random_bytes(6, size));
        let gate = server.hold(op, Some(&remote_key(&name)));
        let mut killed = put(&place, &name, &body).spawn().unwrap();
        let in_parts = op == Op::Part;
        let is_noted = || {
            names_in(&journal).iter().any(|name| {
                fs::read_to_string(journal.join(name)).is_ok_and(|entry| entry.contains("upload_id"))
            })
        };
        wait_for("the upload to begin", || gate.waiting() > 0 && (!in_parts || is_noted()));
        killed.kill().unwrap();
        killed.wait().unwrap();
        // What it had sent goes with its connections.
        server.stop();
        drop(gate);
        server.restart();
        assert_eq!(server.object(&remote_key(&name)), None);
        assert_same("here", &fs::read(place.cache().join(&name)).unwrap(), &body);
        server.reset_counts();
        let next = put(&place, "other.bin", b"other").output().unwrap();
        assert!(next.status.success(), "{next:?}");
        assert_same("there", &server.object(&remote_key(&name)).unwrap(), &body);
        assert_eq!(server.open_uploads(), 0, "what the killed one had sent");
        let parts = if size > 8 << 20 { 3..=8 } else { 1..=1 };
        let puts = server.counts().puts_of(&remote_key(&name));
        assert!(parts.contains(&puts), "{puts} requests for {size} bytes");
        assert_eq!(names_in(&journal), Vec::<String>::new());
    }
}

#[test]
fn a_pending_file_shows_as_such_in_a_mount() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    server.stop();
    let body = random_bytes(7, 300_000);
    assert!(put(&place, NAME, &body).output().unwrap().status.success());
    let mount = place.mount();
    assert_same("served", &mount.read(NAME).unwrap(), &body);
    let attribute = |name: &str| xattr(&mount.file(NAME), &format!("user.aztec_cache.{name}"));
    assert_eq!(attribute("state").as_deref(), Some("pending-upload"));
    assert_eq!((attribute("source").as_deref(), attribute("etag")), (Some("upload"), None));
    assert!(attribute("checksum").unwrap().starts_with("crc64nvme:"));
}

#[test]
fn processes_that_share_a_journal_upload_each_file_once() {
    let server = S3Server::start();
    let place = Place::of(&server);
    server.stop();
    for n in 0..6 {
        let output = put(&place, &format!("pending-{n}.bin"), &random_bytes(n, 300_000)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    server.restart();
    let others: Vec<_> =
        (0..4).map(|n| put(&place, &format!("other-{n}.bin"), b"other").spawn().unwrap()).collect();
    for other in others {
        let output = other.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    for n in 0..6 {
        let name = remote_key(&format!("pending-{n}.bin"));
        assert_same(&name, &server.object(&name).unwrap(), &random_bytes(n, 300_000));
        assert_eq!(server.counts().puts_of(&name), 1, "{name}");
    }
}

#[test]
fn of_writers_at_the_same_moment_one_wins_everywhere() {
    let server = S3Server::start();
    let shared = Place::of(&server);
    let places: Vec<Place> = (0..4)
        .map(|n| {
            let mut place = Place::of(&server);
            if n % 2 == 0 {
                place.cache = shared.cache.clone();
            }
            place
        })
        .collect();
    let bodies: Vec<Vec<u8>> = (0..4).map(|n| random_bytes(n, 200_000)).collect();
    let writers: Vec<_> =
        places.iter().zip(&bodies).map(|(place, body)| put(place, NAME, body).spawn().unwrap()).collect();
    for writer in writers {
        let output = writer.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let stored = server.object(&remote_key(NAME)).unwrap();
    assert!(bodies.iter().any(|body| body == &stored));
    for place in &places {
        let read = place.command(&["get", NAME]).args(&place.args).output().unwrap();
        assert_same("everyone reads", &read.stdout, &stored);
    }
}
