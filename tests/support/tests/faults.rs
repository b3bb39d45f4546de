//! The S3 server's faults and gates.

use std::thread;
use std::time::{Duration, Instant};

use aztec_cache_test_support::client::{Client, Response, object_path};
use aztec_cache_test_support::pattern::random_bytes;
use aztec_cache_test_support::s3::{Fault, Op, S3Server};

const LIMIT: Duration = Duration::from_secs(10);

fn path(key: &str) -> String {
    object_path("aztec-ci-artifacts", key)
}

fn get(server: &S3Server, key: &str, headers: &[(&str, &str)]) -> Response {
    Client::new(server.addr()).send("GET", &path(key), headers, &[]).expect("an answer")
}

#[test]
fn status_n_times_for_one_key() {
    let server = S3Server::start();
    server.put("a", "1");
    server.put("b", "2");
    server.set_faults([Fault::status(503, "SlowDown").key("a").skip(1).times(2)]);
    let status = |key| get(&server, key, &[]).status;
    assert_eq!([status("a"), status("b"), status("a"), status("a"), status("a")], [200, 200, 503, 503, 200]);
    server.set_faults([Fault::status(403, "RequestTimeTooSkewed").on(Op::Get)]);
    assert_eq!(get(&server, "a", &[]).code().as_deref(), Some("RequestTimeTooSkewed"));
    server.set_faults([]);
    assert_eq!(status("a"), 200);
    assert_eq!((server.counts().gets_of("a"), server.counts().bytes_of("a")), (6, 3));
    server.set_faults([Fault::status(500, "InternalError").on(Op::Put).times(1)]);
    let owner = Client::signed(server.addr(), "test", "test-secret");
    let refused = owner.send("PUT", &path("big"), &[], &random_bytes(1, 5_000_000)).expect("an answer");
    assert_eq!((refused.status, server.object("big")), (500, None));
}

#[test]
fn a_gate_before_the_head() {
    let server = S3Server::start();
    server.put("k", "old");
    let gate = server.hold_gets("k", 0);
    thread::scope(|scope| {
        let held: Vec<_> = (0..3).map(|_| scope.spawn(|| get(&server, "k", &[]))).collect();
        assert!(gate.wait_until_waiting(3, LIMIT));
        assert!(!gate.wait_until_waiting(4, Duration::from_millis(10)));
        server.put("k", "new");
        gate.release();
        for answer in held {
            assert_eq!(answer.join().expect("an answer").body, b"new");
        }
    });
    assert_eq!((gate.waiting(), gate.arrived(), server.counts().peak_gets), (0, 3, 3));
    assert_eq!(get(&server, "k", &[]).status, 200);
}

#[test]
fn a_gate_inside_the_body() {
    let server = S3Server::start();
    let body = random_bytes(1, 3_000_000);
    server.put("k", body.clone());
    let client = Client::new(server.addr());
    for after in [1, 100_000, 2_999_999] {
        let gate = server.hold_gets("k", after as u64);
        let mut answer = client.begin("GET", &path("k"), &[], &[]).expect("a head");
        assert_eq!(answer.read(after).expect("the bytes before the gate"), &body[..after]);
        assert!(gate.wait_until_waiting(1, LIMIT));
        gate.release();
        let response = answer.finish().expect("the rest");
        assert!(response.body == body && !response.cut);
    }
    let gate = server.hold_gets_from("k", 1000, 0);
    assert_eq!(get(&server, "k", &[("Range", "bytes=0-9")]).status, 206);
    let sent = client.start("GET", &path("k"), &[("Range", "bytes=1000-1009")], &[]).expect("a connection");
    assert!(gate.wait_until_waiting(1, LIMIT));
    drop(gate);
    assert_eq!(sent.head().expect("a head").response().status, 206);
}

#[test]
fn a_client_that_goes_away_is_not_waiting() {
    let server = S3Server::start();
    server.put("k", "v");
    let gate = server.hold_gets("k", 0);
    let sent = Client::new(server.addr()).start("GET", &path("k"), &[], &[]).expect("a connection");
    assert!(gate.wait_until_waiting(1, LIMIT));
    drop(sent);
    let deadline = Instant::now() + LIMIT;
    while gate.waiting() > 0 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

#[test]
fn a_cut_body_has_exactly_the_bytes_before_the_cut() {
    let server = S3Server::start();
    let body = random_bytes(1, 5_000_000);
    server.put("k", body.clone());
    for after in [0, 1, 65_536, 4_999_999] {
        server.set_faults([Fault::truncate(after).times(1)]);
        let response = get(&server, "k", &[]);
        assert_eq!((response.status, response.cut, response.body.len() as u64), (200, true, after));
        assert_eq!(response.body, body[..after as usize]);
        assert_eq!(response.header("content-length"), Some("5000000"));
        assert_eq!(get(&server, "k", &[]).body, body);
    }
}

#[test]
fn ranges_that_go_wrong() {
    let server = S3Server::start();
    let etag = server.put("k", "0123456789");
    let range = [("Range", "bytes=2-3")];
    server.set_faults([Fault::ignore_range().times(1)]);
    let whole = get(&server, "k", &range);
    assert_eq!((whole.status, whole.text().as_str()), (200, "0123456789"));
    server.set_faults([Fault::wrong_etag()]);
    let part = get(&server, "k", &range);
    assert_eq!((part.status, part.text().as_str()), (206, "23"));
    assert_ne!(part.header("etag"), Some(etag.as_str()));
    assert_eq!(get(&server, "k", &[]).header("etag"), Some(etag.as_str()));
}

#[test]
fn an_object_is_replaced_when_its_second_get_has_begun() {
    let server = S3Server::start();
    let etag = server.put("k", "old bytes");
    server.set_faults([Fault::replace("new").key("k").skip(1)]);
    let texts: Vec<String> = (0..3).map(|_| get(&server, "k", &[]).text()).collect();
    assert_eq!(texts, ["old bytes", "old bytes", "new"]);
    assert_eq!(get(&server, "k", &[("If-Match", &etag)]).status, 412);
}

#[test]
fn delays_and_rates() {
    let server = S3Server::start();
    server.put("k", random_bytes(1, 100_000));
    let timed = || {
        let start = Instant::now();
        assert_eq!(get(&server, "k", &[]).body.len(), 100_000);
        start.elapsed()
    };
    server.set_faults([Fault::delay(Duration::from_millis(80)).on(Op::Get)]);
    assert!(timed() >= Duration::from_millis(80));
    server.set_faults([Fault::throttle(500_000)]);
    let time = timed();
    assert!(time >= Duration::from_millis(150) && time < Duration::from_secs(2), "{time:?}");
}

#[test]
fn the_log_tells_what_was_asked() {
    let server = S3Server::start();
    let etag = server.put("k", "0123456789");
    get(&server, "k", &[("Range", "bytes=2-3"), ("If-Match", &etag)]);
    let log = server.log();
    let entry = &log[0];
    assert_eq!((entry.op, entry.key.as_str(), entry.signed), (Op::Get, "k", false));
    assert_eq!((entry.range.as_deref(), entry.if_match.as_deref()), (Some("bytes=2-3"), Some(etag.as_str())));
    server.reset_counts();
    assert_eq!((server.log().len(), server.counts().requests()), (0, 0));
}
