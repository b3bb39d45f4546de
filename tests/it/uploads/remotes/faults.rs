//! `s3://` with a server or a network that goes wrong at each step.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use aztec_cache::config::Patience;
use aztec_cache::error::Kind;
use aztec_cache::store::{Existing, Put};
use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::{Fault, Op};

use super::{MIB, NAME, Remotes, assert_holds, impatience, open_server, payload};
use crate::common::{PATIENCE, key, wait_for};

/// Three parts.
const LARGE: usize = 12 * MIB;

/// What passes, with what it is called.
fn passing() -> Vec<(&'static str, Fault)> {
    vec![
        ("an internal error", Fault::status(500, "InternalError")),
        ("throttling", Fault::status(503, "SlowDown")),
        ("a server that got no more bytes", Fault::status(400, "RequestTimeout")),
        ("another write at the same moment", Fault::status(409, "ConditionalRequestConflict")),
        ("a cut before the first byte", Fault::cut_upload(0)),
        ("a lost answer", Fault::lose_answer()),
    ]
}

#[test]
fn what_passes_is_tried_again_at_each_request_of_a_small_object() {
    let body = random_bytes(1, 400_000);
    let cut = ("a cut in the middle", Fault::cut_upload(200_000));
    let damage = ("damage on the way", Fault::corrupt_upload(300_000));
    for (what, fault) in passing().into_iter().chain([cut, damage]) {
        println!("{what}");
        let server = open_server();
        server.set_faults([fault.on(Op::Put).times(1)]);
        Remotes::s3(&server.url()).store(NAME, &body);
        assert_holds(&server, NAME, &body);
    }
}

#[test]
fn what_passes_is_tried_again_at_each_part() {
    let body = random_bytes(1, LARGE);
    let cut = ("a cut in the middle", Fault::cut_upload(1 << 20));
    let damage = ("damage on the way", Fault::corrupt_upload(300_000));
    for (what, fault) in passing().into_iter().chain([cut, damage]) {
        for part in 0..3 {
            println!("{what}, part {part}");
            let server = open_server();
            server.set_faults([fault.clone().on(Op::Part).skip(part).times(1)]);
            Remotes::s3(&server.url()).store(NAME, &body);
            assert_holds(&server, NAME, &body);
            assert_eq!(server.counts().puts_of(&key(NAME)), 4, "no part but that one was sent again");
        }
    }
}

#[test]
fn what_passes_is_tried_again_when_parts_are_begun_and_put_together() {
    let body = random_bytes(1, LARGE);
    for (what, fault) in passing() {
        for op in [Op::Create, Op::Complete] {
            println!("{what}, {op:?}");
            let server = open_server();
            server.set_faults([fault.clone().on(op).times(1)]);
            Remotes::s3(&server.url()).store(NAME, &body);
            // An upload whose name nobody heard can't be ended by anyone.
            let unheard = usize::from(op == Op::Create && what == "a lost answer");
            assert_eq!(server.open_uploads(), unheard);
            assert_eq!(server.object(&key(NAME)).as_deref(), Some(&body[..]));
            assert_eq!(server.counts().puts_of(&key(NAME)), 3, "no part was sent again");
        }
    }
}

#[test]
fn an_upload_that_the_server_has_forgotten_is_begun_anew() {
    let body = random_bytes(1, LARGE);
    for op in [Op::Part, Op::Complete] {
        let server = open_server();
        server.set_faults([Fault::status(404, "NoSuchUpload").on(op).times(1)]);
        Remotes::s3(&server.url()).store(NAME, &body);
        assert_holds(&server, NAME, &body);
    }
}

/// The retry finds an object there, which may be another's or our own.
#[test]
fn after_a_lost_answer_our_own_object_is_told_from_another_s() {
    for (size, op) in [(1000, Op::Put), (LARGE, Op::Complete)] {
        let server = open_server();
        let (ours, theirs) = (random_bytes(1, size), random_bytes(2, size));
        let remotes = Remotes::s3(&server.url());
        server.set_faults([Fault::lose_answer().on(op).times(1)]);
        let version = remotes.store(NAME, &ours);
        assert!(version.is(&remotes.head(NAME).unwrap()));
        assert_eq!(server.counts().put, if size == LARGE { 3 } else { 1 }, "nothing was sent again");

        let other = "other.zst";
        server.set_faults([Fault::cut_upload(0).on(op).times(1)]);
        let gate = server.hold(op, Some(&key(other)));
        let put = thread::scope(|scope| {
            let put = scope.spawn(|| remotes.put(other, &payload(&ours), Existing::Keep).unwrap());
            assert!(gate.wait_until_waiting(1, PATIENCE));
            server.put(&key(other), theirs.clone());
            gate.release();
            put.join().unwrap()
        });
        assert_eq!(put, Put::Kept);
        assert_holds(&server, other, &theirs);
    }
}

/// S3 tells who writes at the same moment as another to try again, also if that one gets there first.
#[test]
fn a_conflict_with_another_write_ends_with_what_that_one_stored() {
    for (size, op) in [(1000, Op::Put), (LARGE, Op::Complete)] {
        let server = open_server();
        let (ours, theirs) = (random_bytes(1, size), random_bytes(2, size));
        let remotes = Remotes::s3(&server.url());
        server.set_faults([Fault::status(409, "ConditionalRequestConflict").on(op).times(1)]);
        let gate = server.hold(op, Some(&key(NAME)));
        let put = thread::scope(|scope| {
            let put = scope.spawn(|| remotes.put(NAME, &payload(&ours), Existing::Keep).unwrap());
            assert!(gate.wait_until_waiting(1, PATIENCE));
            server.put(&key(NAME), theirs.clone());
            gate.release();
            put.join().unwrap()
        });
        assert_eq!(put, Put::Kept, "{op:?}");
        assert_holds(&server, NAME, &theirs);
        let sent = server.counts().puts_of(&key(NAME));
        assert_eq!(sent, if size == LARGE { 3 } else { 1 }, "{op:?}: nothing was sent again");
    }
}

#[test]
fn refusals_are_final_name_the_remedy_and_leave_nothing() {
    let refusals = [
        (403, "AccessDenied", Kind::AccessDenied, "rights"),
        (403, "RequestTimeTooSkewed", Kind::AccessDenied, "clock"),
        (400, "ExpiredToken", Kind::AccessDenied, "log in again"),
        (403, "InvalidAccessKeyId", Kind::AccessDenied, "--profile"),
        (400, "EntityTooLarge", Kind::Refused, "too large"),
        (404, "NoSuchBucket", Kind::Refused, "--remote"),
        (405, "MethodNotAllowed", Kind::Refused, "--endpoint-url"),
        (409, "InvalidBucketState", Kind::Refused, "--remote"),
    ];
    let small = random_bytes(1, 1000);
    let large = random_bytes(1, LARGE);
    for (status, code, kind, remedy) in refusals {
        for (body, op) in
            [(&small, Op::Put), (&large, Op::Create), (&large, Op::Part), (&large, Op::Complete)]
        {
            let server = open_server();
            server.set_faults([Fault::status(status, code).on(op)]);
            let (found, said) = Remotes::s3(&server.url()).fail(NAME, body);
            assert_eq!(found, kind, "{op:?}: {said}");
            assert!(said.contains(code) && said.contains(remedy), "{said}");
            assert_eq!((server.object(&key(NAME)), server.open_uploads()), (None, 0), "{op:?} {code}");
            let asked = server.log().iter().filter(|r| r.op == op).count();
            assert!(asked == 1 || (op == Op::Part && asked <= 3), "{op:?} {code}: {asked} times");
        }
    }
}

#[test]
fn what_does_not_pass_fails_after_all_attempts_and_leaves_nothing() {
    let small = random_bytes(1, 1000);
    let large = random_bytes(1, LARGE);
    let lasting = [
        (Fault::status(500, "InternalError"), Kind::Remote),
        (Fault::status(503, "SlowDown"), Kind::Remote),
        (Fault::status(409, "ConditionalRequestConflict"), Kind::Remote),
        (Fault::cut_upload(0), Kind::Unreachable),
    ];
    for (fault, kind) in lasting {
        for (body, op) in
            [(&small, Op::Put), (&large, Op::Create), (&large, Op::Part), (&large, Op::Complete)]
        {
            let server = open_server();
            println!("{kind:?}, {op:?}");
            server.set_faults([fault.clone().on(op)]);
            let patience = Patience { attempts: 3, ..Patience::default() };
            let (found, said) = Remotes::patient(&server.url(), patience).fail(NAME, body);
            assert_eq!(found, kind, "{op:?}: {said}");
            let asked = server.log().iter().filter(|r| r.op == op && r.part.is_none_or(|p| p == 1)).count();
            assert!(asked == 3 || (op == Op::Part && asked <= 3), "{op:?}: {asked} times");
            wait_for("its parts to be removed", || server.open_uploads() == 0);
            assert_eq!(server.object(&key(NAME)), None);
        }
    }
}

#[test]
fn an_upload_that_stalls_is_given_up() {
    for (size, op) in [(1000, Op::Put), (LARGE, Op::Part), (LARGE, Op::Create), (LARGE, Op::Complete)] {
        let server = open_server();
        println!("{op:?}");
        let gate = server.hold(op, None);
        let begun = Instant::now();
        let (kind, said) = Remotes::patient(&server.url(), impatience()).fail(NAME, &random_bytes(1, size));
        assert_eq!(kind, Kind::TimedOut, "{op:?}: {said}");
        assert!(begun.elapsed() < PATIENCE, "{op:?}: {:?}", begun.elapsed());
        assert!(gate.arrived() >= 2, "{op:?}: tried again");
        wait_for("its connections to be closed", || !has_unsent_bytes(server.addr().port()));
        gate.release();
        wait_for("its parts to be removed", || server.open_uploads() == 0);
    }
}

/// Whether a connection to `port` has bytes that nobody takes.
fn has_unsent_bytes(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Of which the third field is the other end, and the fifth the queues of both directions.
    lines
        .into_iter()
        .any(|line| line[2].ends_with(&format!(":{port:04X}")) && !line[4].starts_with("00000000:"))
}

#[test]
fn an_upload_that_gets_on_is_not_given_up_however_long_it_takes() {
    let body = random_bytes(1, 6_000_000);
    let server = open_server();
    let slow = Profile { rate: Some(3_000_000), ..Profile::default() };
    let proxy = Proxy::start(server.addr(), slow);
    let begun = Instant::now();
    // Of what it has, the system lets us replace a third at a time.
    let patience = Patience { stall: Duration::from_secs(1), ..impatience() };
    Remotes::patient(&proxy.url(), patience).store(NAME, &body);
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_holds(&server, NAME, &body);
    assert_eq!(server.counts().put, 1);
}

#[test]
fn a_remote_that_is_down_is_not_tried_again_by_each_upload() {
    let server = open_server();
    let remotes = Remotes::patient(&server.url(), Patience { attempts: 2, ..Patience::default() });
    server.stop();
    assert_eq!(remotes.fail(NAME, b"bytes").0, Kind::Unreachable);
    let payload = payload(&random_bytes(1, LARGE));
    let begun = Instant::now();
    for _ in 0..20 {
        let error = remotes.put(NAME, &payload, Existing::Keep).unwrap_err();
        assert!(error.kind() == Kind::Unreachable && error.is_transient(), "{error}");
        assert_eq!(remotes.delete(NAME).unwrap_err().kind(), Kind::Unreachable);
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "it was asked: {:?}", begun.elapsed());
    server.restart();
    wait_for("it to be found again", || remotes.put(NAME, &payload, Existing::Keep).is_ok());
    assert_eq!(payload.sent.load(Ordering::Relaxed), payload.size);
}
