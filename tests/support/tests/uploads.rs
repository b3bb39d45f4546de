//! What the test servers do to uploads.

use std::io;
use std::time::{Duration, Instant};

use aztec_cache_test_support::client::{Client, Response, object_path};
use aztec_cache_test_support::pattern::random_bytes;
use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::{Access, Fault, Op, Options, S3Server, Support};
use aztec_cache_test_support::web::{Reply, WebServer};

/// The CRC64NVME of `123456789`, and another.
const CRC: (&str, &str) = ("x-amz-checksum-crc64nvme", "rosUhgp5mIg=");
const WRONG_CRC: (&str, &str) = ("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=");
const FIRST: (&str, &str) = ("If-None-Match", "*");

fn server(options: Options) -> (S3Server, Client) {
    let server = S3Server::start_with(Options { anonymous: Access::ALL, ..options });
    let client = Client::new(server.addr());
    (server, client)
}

fn send(
    client: &Client,
    method: &str,
    query: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    client.send(method, &format!("{}{query}", object_path("aztec-ci-artifacts", "k")), headers, body)
}

fn put(client: &Client, headers: &[(&str, &str)], body: &[u8]) -> u16 {
    send(client, "PUT", "", headers, body).expect("an answer").status
}

/// Begins a multipart upload with the part `123456789`, which `headers` are sent with; what completes it.
fn begin(client: &Client, headers: &[(&str, &str)]) -> (String, String) {
    let created = send(client, "POST", "?uploads", &[], &[]).expect("an answer").text();
    let (_, id) = created.split_once("<UploadId>").expect("an id");
    let id = id.split_once('<').expect("an end").0.to_owned();
    let part = send(client, "PUT", &format!("?partNumber=1&uploadId={id}"), headers, b"123456789");
    let etag = part.expect("an answer").header("etag").expect("an ETag").to_owned();
    let part = format!("<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>");
    (format!("?uploadId={id}"), format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>"))
}

#[test]
fn checksums_are_compared_with_what_arrived_and_told() {
    let (server, client) = server(Options::default());
    let told = send(&client, "PUT", "", &[CRC], b"123456789").expect("an answer");
    assert_eq!(told.header("x-amz-checksum-crc64nvme"), Some(CRC.1));
    assert_eq!(put(&client, &[WRONG_CRC], b"123456789"), 400);
    assert_eq!(put(&client, &[("Content-MD5", "JfnnlDI7RTiF9RgfG2JNCw==")], b"123456789"), 200);
    assert_eq!(put(&client, &[("Content-MD5", "JfnnlDI7RTiF9RgfG2JNCw==")], b"123456780"), 400);
    let (query, parts) = begin(&client, &[CRC]);
    let wrong = send(&client, "POST", &query, &[WRONG_CRC], parts.as_bytes()).expect("an answer");
    assert_eq!((wrong.status, wrong.code().as_deref()), (400, Some("BadDigest")));
    let right = send(&client, "POST", &query, &[CRC], parts.as_bytes()).expect("an answer");
    assert!(right.text().contains(CRC.1), "{}", right.text());
    let log = server.log();
    let part = log.iter().find(|request| request.op == Op::Part).expect("a part");
    assert_eq!((part.part, part.checksum.as_deref()), (Some(1), Some(CRC.1)));
}

#[test]
fn multipart_uploads_are_open_until_they_are_completed_or_aborted() {
    let (server, client) = server(Options::default());
    let uploads = [begin(&client, &[]), begin(&client, &[])];
    assert_eq!(server.open_uploads(), 2);
    let (query, parts) = &uploads[0];
    assert_eq!(send(&client, "POST", query, &[FIRST], parts.as_bytes()).expect("an answer").status, 200);
    let (query, parts) = &uploads[1];
    assert_eq!(send(&client, "POST", query, &[FIRST], parts.as_bytes()).expect("an answer").status, 412);
    assert_eq!(server.open_uploads(), 1);
    assert_eq!(send(&client, "DELETE", query, &[], &[]).expect("an answer").status, 204);
    assert_eq!(server.open_uploads(), 0);
    let log = server.log();
    let completions: Vec<_> = log.iter().filter(|request| request.op == Op::Complete).collect();
    assert!(completions.len() == 2 && completions.iter().all(|r| r.if_none_match.as_deref() == Some("*")));
    assert_eq!(log.last().map(|request| request.op), Some(Op::Abort));
}

#[test]
fn what_a_server_lacks_is_ignored_or_refused() {
    let of = |conditional_writes, checksums| {
        let (_server, client) = server(Options { conditional_writes, checksums, ..Options::default() });
        assert_eq!(put(&client, &[], b"old"), 200);
        let told = send(&client, "HEAD", "", &[("x-amz-checksum-mode", "ENABLED")], &[]).expect("an answer");
        let tells = told.header("x-amz-checksum-crc64nvme").is_some();
        (put(&client, &[FIRST], b"new"), put(&client, &[WRONG_CRC], b"new"), tells)
    };
    assert_eq!(of(Support::Full, Support::Full), (412, 400, true));
    assert_eq!(of(Support::Ignored, Support::Ignored), (200, 200, false));
    assert_eq!(of(Support::Refused, Support::Refused), (501, 400, false));
}

#[test]
fn bodies_that_are_cut_or_damaged_on_their_way_in() {
    let (server, client) = server(Options::default());
    let body = random_bytes(1, 300_000);
    for after in [0, 100_000] {
        server.set_faults([Fault::cut_upload(after).on(Op::Put).times(1)]);
        assert!(send(&client, "PUT", "", &[], &body).is_err());
        assert_eq!(server.object("k"), None);
    }
    server.set_faults([Fault::corrupt_upload(200_000).times(1)]);
    assert_eq!(put(&client, &[], &body), 200);
    let stored = server.object("k").expect("an object");
    let differing: Vec<usize> = (0..body.len()).filter(|at| stored[*at] != body[*at]).collect();
    assert_eq!(differing, [200_000]);
}

#[test]
fn an_answer_is_lost_after_everything_was_done() {
    let (server, client) = server(Options::default());
    server.set_faults([Fault::lose_answer().on(Op::Put).times(1)]);
    assert!(send(&client, "PUT", "", &[], b"bytes").is_err());
    assert_eq!(server.object("k").as_deref(), Some(&b"bytes"[..]));
    let (query, parts) = begin(&client, &[]);
    server.set_faults([Fault::lose_answer().on(Op::Complete)]);
    assert!(send(&client, "POST", &query, &[], parts.as_bytes()).is_err());
    assert_eq!((server.object("k").as_deref(), server.open_uploads()), (Some(&b"123456789"[..]), 0));
}

#[test]
fn the_proxy_slows_both_ways() {
    let (server, _) = server(Options::default());
    let proxy = Proxy::start(server.addr(), Profile { rate: Some(1_000_000), ..Profile::default() });
    let client = Client::new(proxy.addr());
    let body = random_bytes(1, 300_000);
    let timed = |send: &dyn Fn() -> u16| {
        let start = Instant::now();
        assert_eq!(send(), 200);
        start.elapsed()
    };
    let up = timed(&|| put(&client, &[], &body));
    let down = timed(&|| send(&client, "GET", "", &[], &[]).expect("an answer").status);
    let range = Duration::from_millis(250)..Duration::from_secs(3);
    assert!(range.contains(&up) && range.contains(&down), "{up:?} {down:?}");
    assert_eq!(server.object("k").as_deref(), Some(&body[..]));
}

#[test]
fn a_web_server_sees_bodies_and_who_waits_to_send_one() {
    let server = WebServer::start(|request| match (&request.body, &*request.target) {
        (None, "/unwanted") => Reply::new(417),
        (None, _) => Reply::new(100),
        (Some(body), _) => Reply::whole(body),
    });
    let client = Client::new(server.addr());
    assert_eq!(client.send("PUT", "/k", &[], b"bytes").expect("an answer").body, b"bytes");
    let waits = [("Expect", "100-continue")];
    assert_eq!(client.send("PUT", "/unwanted", &waits, b"bytes").expect("an answer").status, 417);
    let told = client.begin("PUT", "/k", &waits, b"bytes").expect("a head");
    assert_eq!(told.response().status, 100);
    let bodies: Vec<_> = server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies[..3], [Some(b"bytes".to_vec()), None, None]);
    server.ignore_expectations();
    assert_eq!(client.send("PUT", "/unwanted", &waits, b"bytes").expect("an answer").body, b"bytes");
}
