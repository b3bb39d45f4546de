//! The proxy, in front of the S3 server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use aztec_cache_test_support::client::{Client, Response, object_path};
use aztec_cache_test_support::pattern::random_bytes;
use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::S3Server;

const LIMIT: Duration = Duration::from_secs(10);

fn start(profile: Profile) -> (S3Server, Proxy, Vec<u8>) {
    let server = S3Server::start();
    let body = random_bytes(1, 300_000);
    server.put("k", body.clone());
    let proxy = Proxy::start(server.addr(), profile);
    (server, proxy, body)
}

fn get(proxy: &Proxy) -> std::io::Result<Response> {
    Client::new(proxy.addr()).get(&object_path("aztec-ci-artifacts", "k"))
}

fn wait_for(what: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !what() {
        assert!(Instant::now() < deadline, "waited too long");
        thread::yield_now();
    }
}

#[test]
fn forwards_and_counts() {
    let (server, proxy, body) = start(Profile::default());
    assert_eq!(get(&proxy).expect("an answer").body, body);
    wait_for(|| proxy.counts().open == 0);
    let counts = proxy.counts();
    assert_eq!(counts.connections, 1);
    assert!(counts.up > 50 && counts.down > 300_000);
    assert_eq!(server.counts().connections, 1);
}

#[test]
fn latency_per_request() {
    let latency = Duration::from_millis(60);
    let (_server, proxy, _) = start(Profile { latency, ..Profile::default() });
    let mut stream = TcpStream::connect(proxy.addr()).expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    for _ in 0..2 {
        let start = Instant::now();
        let request = "GET /aztec-ci-artifacts/k HTTP/1.1\r\nHost: h\r\nRange: bytes=0-0\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = [0; 4096];
        assert!(stream.read(&mut answer).expect("an answer") > 0);
        assert!(start.elapsed() >= latency);
    }
}

#[test]
fn rate() {
    let (_server, proxy, body) = start(Profile { rate: Some(1_000_000), ..Profile::default() });
    let start = Instant::now();
    assert_eq!(get(&proxy).expect("an answer").body, body);
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(250) && time < Duration::from_secs(3), "{time:?}");
}

#[test]
fn cuts() {
    let (_server, proxy, body) =
        start(Profile { cut_after: Some(100_000), times: Some(1), ..Profile::default() });
    let response = get(&proxy).expect("a head");
    assert!(response.cut && body.starts_with(&response.body));
    assert_eq!(proxy.counts().down, 100_000);
    assert_eq!(get(&proxy).expect("an answer").body, body);

    proxy.set(Profile { cut_after: Some(0), ..Profile::default() });
    assert!(get(&proxy).is_err() && get(&proxy).is_err());
    proxy.set(Profile { cut_after: Some(0), reset: true, ..Profile::default() });
    let error = get(&proxy).expect_err("no answer");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn corrupts_one_bit_of_the_body() {
    for at in [0, 77_777, 299_999] {
        let (_server, proxy, body) =
            start(Profile { corrupt: Some(at), times: Some(1), ..Profile::default() });
        let response = get(&proxy).expect("an answer");
        let differing: Vec<usize> = (0..body.len()).filter(|at| body[*at] != response.body[*at]).collect();
        assert_eq!(differing, [at as usize]);
        assert_eq!(get(&proxy).expect("an answer").body, body);
    }
}

#[test]
fn refuses() {
    let (server, proxy, body) = start(Profile { refuse: true, ..Profile::default() });
    assert!(get(&proxy).is_err());
    assert_eq!(server.counts().connections, 0);
    proxy.set(Profile::default());
    assert_eq!(get(&proxy).expect("an answer").body, body);
}

#[test]
fn a_black_hole_holds_everything_until_it_ends() {
    let (server, proxy, body) = start(Profile { black_hole: true, ..Profile::default() });
    thread::scope(|scope| {
        let answer = scope.spawn(|| get(&proxy));
        wait_for(|| server.counts().connections == 1);
        assert_eq!((server.counts().get, proxy.counts().up), (0, 0));
        proxy.set(Profile::default());
        let response = answer.join().expect("no panic").expect("an answer");
        assert_eq!(response.body, body);
    });
}

#[test]
fn cut_all_closes_what_is_open() {
    let (server, proxy, body) = start(Profile::default());
    let gate = server.hold_gets("k", 1000);
    let path = object_path("aztec-ci-artifacts", "k");
    let answer = Client::new(proxy.addr()).begin("GET", &path, &[], &[]).expect("a head");
    assert!(gate.wait_until_waiting(1, LIMIT));
    assert_eq!(proxy.counts().open, 1);
    proxy.cut_all();
    assert_eq!(proxy.counts().open, 0);
    assert!(answer.finish().expect("what came").cut);
    gate.release();
    assert_eq!(get(&proxy).expect("an answer").body, body);
}
