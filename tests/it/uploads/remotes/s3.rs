//! `s3://`: what is sent, and who wins.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use aztec_cache::checksum::{Checksum, extend_crc64nvme};
use aztec_cache::error::Kind;
use aztec_cache::store::{Existing, Payload, Put};
use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Access, Fault, Op, Options, S3Server};

use super::{MIB, NAME, Remotes, assert_holds, key_of, open_server, payload};
use crate::common::{PATIENCE, key, wait_for};

#[test]
fn objects_of_all_sizes_arrive_whole_with_their_checksums() {
    let server = open_server();
    let remotes = Remotes::s3(&server.url());
    for (size, parts) in [(0, 0), (1, 0), (300_001, 0), (8 * MIB, 0), (8 * MIB + 1, 2), (40_000_001, 8)] {
        let name = format!("size-{size}.zst");
        let body = random_bytes(size as u64, size);
        server.reset_counts();
        let version = remotes.store(&name, &body);
        assert_holds(&server, &name, &body);
        assert_eq!(Some(version.etag.as_str()), server.etag(&key(&name)).as_deref());
        assert!(remotes.head(&name).unwrap().is(&version), "{name}");
        let log = server.log();
        let bodies = |op| log.iter().filter(|r| r.op == op).collect::<Vec<_>>();
        let (whole, in_parts) = (bodies(Op::Put), bodies(Op::Part));
        assert_eq!((whole.len(), in_parts.len()), (usize::from(parts == 0), parts), "{name}");
        assert!(whole.iter().chain(&in_parts).all(|r| r.checksum.is_some()), "{name}: {log:?}");
        let last = whole.into_iter().chain(bodies(Op::Complete)).next_back().expect("one of them");
        let crc = Checksum::crc64nvme(extend_crc64nvme(0, &body)).to_header();
        assert_eq!(
            (last.if_none_match.as_deref(), last.checksum.as_ref()),
            (Some("*"), Some(&crc)),
            "{name}"
        );
    }
}

#[test]
fn so_many_parts_go_at_a_time_and_no_more() {
    let server = open_server();
    let remotes = Remotes::s3(&server.url());
    let gate = server.hold(Op::Part, None);
    thread::scope(|scope| {
        let uploads = ["one.zst", "two.zst"].map(|name| {
            let body = random_bytes(1, 100 * MIB);
            let remotes = &remotes;
            scope.spawn(move || remotes.store(name, &body))
        });
        assert!(gate.wait_until_waiting(16, PATIENCE));
        assert!(!gate.wait_until_waiting(17, Duration::from_millis(200)), "two uploads share them");
        gate.release();
        uploads.into_iter().for_each(|upload| drop(upload.join().unwrap()));
    });
    assert_eq!(server.open_uploads(), 0);
}

#[test]
fn the_first_writer_wins() {
    let server = open_server();
    let remotes = Remotes::s3(&server.url());
    for size in [1000, 20 * MIB] {
        let (first, second) = (random_bytes(1, size), random_bytes(2, size));
        let name = format!("size-{size}.zst");
        remotes.store(&name, &first);
        server.reset_counts();
        let payload = payload(&second);
        assert_eq!(remotes.put(&name, &payload, Existing::Keep).unwrap(), Put::Kept);
        assert_holds(&server, &name, &first);
        assert_eq!((server.counts().put, payload.sent.load(Ordering::Relaxed)), (0, 0), "sent in vain");
        let replaced = remotes.put(&name, &payload, Existing::Replace).unwrap();
        assert!(matches!(replaced, Put::Stored(version) if version.is(&remotes.head(&name).unwrap())));
        assert_holds(&server, &name, &second);
    }
}

/// Both have found nothing there when they begin to send.
#[test]
fn of_two_writers_at_the_same_moment_one_wins_and_the_other_keeps() {
    for (size, last) in [(1000, Op::Put), (20 * MIB, Op::Complete)] {
        let server = open_server();
        let bodies = [random_bytes(1, size), random_bytes(2, size)];
        let gate = server.hold(last, Some(&key(NAME)));
        let writers = bodies.clone().map(|body| {
            let url = server.url();
            thread::spawn(move || Remotes::s3(&url).put(NAME, &payload(&body), Existing::Keep).unwrap())
        });
        assert!(gate.wait_until_waiting(2, PATIENCE), "both are on their way");
        gate.release();
        let ends = writers.map(|writer| writer.join().unwrap());
        let winner = ends.iter().position(|end| matches!(end, Put::Stored(_))).expect("a winner");
        assert_eq!(ends[1 - winner], Put::Kept);
        assert_holds(&server, NAME, &bodies[winner]);
    }
}

/// A server that has refused one conditional write isn't asked beforehand any more.
#[test]
fn small_objects_cost_one_request_where_conditions_are_known_to_hold() {
    let server = open_server();
    let remotes = Remotes::s3(&server.url());
    let gate = server.hold(Op::Put, Some(&key(NAME)));
    thread::scope(|scope| {
        let late = scope.spawn(|| remotes.put(NAME, &payload(b"late"), Existing::Keep).unwrap());
        assert!(gate.wait_until_waiting(1, PATIENCE));
        server.put(&key(NAME), "early");
        gate.release();
        assert_eq!(late.join().unwrap(), Put::Kept);
    });
    server.reset_counts();
    remotes.store("next.zst", b"next");
    assert_eq!(remotes.put(NAME, &payload(b"again"), Existing::Keep).unwrap(), Put::Kept);
    assert_eq!((server.counts().requests(), server.counts().put), (2, 2));
    assert_holds(&server, NAME, b"early");
}

#[test]
fn an_upload_that_is_dropped_leaves_no_parts() {
    let server = open_server();
    let remotes = Remotes::s3(&server.url());
    let body = payload(&random_bytes(1, 40 * MIB));
    for op in [Op::Part, Op::Complete] {
        let gate = server.hold(op, None);
        let (store, body) = (remotes.store.clone(), body.clone());
        let sent = body.sent.clone();
        let put = remotes.runtime.spawn(async move {
            let key = key_of(NAME);
            store.put(&key, &body, Existing::Keep).await
        });
        assert!(gate.wait_until_waiting(1, PATIENCE));
        assert_eq!(server.open_uploads(), 1);
        put.abort();
        wait_for("its parts to be removed", || server.open_uploads() == 0);
        gate.release();
        wait_for("nothing to count as sent", || sent.load(Ordering::Relaxed) == 0 || op == Op::Complete);
        assert_eq!(server.object(&key(NAME)), None);
    }
}

#[test]
fn what_has_changed_since_it_was_written_is_not_uploaded() {
    let server = open_server();
    let remotes = Remotes::s3(&server.url());
    for size in [1000, 20 * MIB] {
        let mut changed = payload(&random_bytes(1, size));
        changed.checksum = Checksum::crc64nvme(1);
        let error = remotes.put(NAME, &changed, Existing::Keep).unwrap_err();
        assert_eq!(error.kind(), Kind::Local, "{error}");
        let mut cut = payload(&random_bytes(1, size));
        cut.size += 1;
        let error = remotes.put(NAME, &cut, Existing::Keep).unwrap_err();
        assert_eq!(error.kind(), Kind::Local, "{error}");
        let file = Arc::new(File::open("/proc/self/mem").unwrap());
        let unreadable = Payload { file, ..payload(&random_bytes(1, size)) };
        let error = remotes.put(NAME, &unreadable, Existing::Keep).unwrap_err();
        assert_eq!(error.kind(), Kind::Local, "{error}");
    }
    assert_eq!((server.object(&key(NAME)), server.open_uploads()), (None, 0));
}

#[test]
fn deletes() {
    let server = open_server();
    let remotes = Remotes::s3(&server.url());
    remotes.store(NAME, b"bytes");
    remotes.delete(NAME).unwrap();
    assert_eq!(server.object(&key(NAME)), None);
    remotes.delete(NAME).unwrap();
    server.set_faults([Fault::status(500, "InternalError").on(Op::Delete).times(1)]);
    remotes.store(NAME, b"bytes");
    remotes.delete(NAME).unwrap();
    assert_eq!(server.object(&key(NAME)), None);

    let server = S3Server::start_with(Options { anonymous: Access::GET, ..Options::default() });
    server.put(&key(NAME), "bytes");
    let remotes = Remotes::s3(&server.url());
    assert!(!remotes.accepts_uploads(), "nobody signs");
    assert_eq!(remotes.delete(NAME).unwrap_err().kind(), Kind::AccessDenied);
    assert_eq!(remotes.fail("other.zst", b"bytes").0, Kind::AccessDenied);
    assert_holds(&server, NAME, b"bytes");
}
