//! The S3 server's answers, seen through raw HTTP.

use aztec_cache_test_support::client::{Client, Response, object_path, percent_encode};
use aztec_cache_test_support::pattern::{random_bytes, sparse_byte_range};
use aztec_cache_test_support::s3::{Access, ObjectOptions, Options, S3Server};

const BUCKET: &str = "aztec-ci-artifacts";

fn signed(server: &S3Server) -> Client {
    Client::signed(server.addr(), "test", "test-secret")
}

fn get(client: &Client, key: &str, headers: &[(&str, &str)]) -> Response {
    client.send("GET", &object_path(BUCKET, key), headers, &[]).expect("an answer")
}

fn head(client: &Client, key: &str, headers: &[(&str, &str)]) -> Response {
    client.send("HEAD", &object_path(BUCKET, key), headers, &[]).expect("an answer")
}

fn put(client: &Client, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    client.send("PUT", &object_path(BUCKET, key), headers, body).expect("an answer")
}

fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&open).skip(1).filter_map(|rest| Some(rest.split_once(&close)?.0.to_owned())).collect()
}

#[test]
fn ranges_and_their_headers() {
    let server = S3Server::start();
    let body = random_bytes(1, 1000);
    let etag = server.put("k", body.clone());
    let client = Client::new(server.addr());

    let whole = get(&client, "k", &[]);
    assert_eq!((whole.status, &whole.body), (200, &body));
    assert_eq!(whole.header("etag"), Some(etag.as_str()));
    assert_eq!(whole.header("content-length"), Some("1000"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert!(whole.header("last-modified").is_some_and(|time| time.ends_with(" GMT")));

    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=990-", 990, 1000),
        ("bytes=900-5000", 900, 1000),
        ("bytes=-5", 995, 1000),
        ("bytes=-5000", 0, 1000),
    ] {
        let part = get(&client, "k", &[("Range", range)]);
        assert_eq!((part.status, &part.body[..]), (206, &body[from..to]), "{range}");
        let expected = format!("bytes {from}-{}/1000", to - 1);
        assert_eq!(part.header("content-range"), Some(expected.as_str()));
        assert_eq!(part.header("etag"), Some(etag.as_str()));
    }
    let beyond = get(&client, "k", &[("Range", "bytes=1000-")]);
    assert_eq!((beyond.status, beyond.code().as_deref()), (416, Some("InvalidRange")));
    server.put("empty", "");
    assert_eq!(get(&client, "empty", &[("Range", "bytes=0-")]).status, 416);
    let empty = get(&client, "empty", &[]);
    assert_eq!((empty.status, empty.body.len(), empty.cut), (200, 0, false));
}

#[test]
fn conditions() {
    let server = S3Server::start();
    let etag = server.put("k", "one");
    let client = Client::new(server.addr());
    let other = "\"d41d8cd98f00b204e9800998ecf8427e\"";

    assert_eq!(get(&client, "k", &[("If-Match", &etag)]).status, 200);
    let failed = get(&client, "k", &[("If-Match", other), ("Range", "bytes=0-0")]);
    assert_eq!((failed.status, failed.code().as_deref()), (412, Some("PreconditionFailed")));
    assert_eq!(head(&client, "k", &[("If-Match", other)]).status, 412);

    let same = get(&client, "k", &[("If-None-Match", &etag)]);
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, Some(etag.as_str())));
    assert_eq!(head(&client, "k", &[("If-None-Match", &etag)]).status, 304);
    assert_eq!(get(&client, "k", &[("If-None-Match", other)]).status, 200);
    let modified = get(&client, "k", &[]);
    let time = modified.header("last-modified").expect("a time");
    assert_eq!(get(&client, "k", &[("If-Modified-Since", time)]).status, 304);
    assert_eq!(get(&client, "k", &[("If-Unmodified-Since", time)]).status, 200);
    let part = head(&client, "k", &[("Range", "bytes=0-0")]);
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 0-0/3")));
}

#[test]
fn metadata_of_ones_own_choice() {
    let server = S3Server::start();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(784_111_777_500);
    let options = ObjectOptions { last_modified: Some(time), etag: Some("e-2".into()), checksum: true };
    assert_eq!(server.put_with("k", "123456789", options), "\"e-2\"");
    let client = Client::new(server.addr());

    let mode = ("x-amz-checksum-mode", "ENABLED");
    for response in [get(&client, "k", &[mode]), head(&client, "k", &[mode])] {
        assert_eq!(response.header("etag"), Some("\"e-2\""));
        assert_eq!(response.header("last-modified"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        // The check value of CRC-64/NVME for "123456789", 0xae8b14860a799888, in base64.
        assert_eq!(response.header("x-amz-checksum-crc64nvme"), Some("rosUhgp5mIg="));
        assert_eq!(response.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
    }
    assert_eq!(get(&client, "k", &[]).header("x-amz-checksum-crc64nvme"), None);
    let part = get(&client, "k", &[mode, ("Range", "bytes=0-3")]);
    assert_eq!((part.status, part.header("x-amz-checksum-crc64nvme")), (206, None));
}

#[test]
fn who_may_do_what() {
    let server = S3Server::start();
    server.put("k", "v");
    let (public, owner) = (Client::new(server.addr()), signed(&server));

    assert_eq!(get(&public, "k", &[]).status, 200);
    let missing = get(&public, "none", &[]);
    assert_eq!((missing.status, missing.code().as_deref()), (403, Some("AccessDenied")));
    assert_eq!(head(&public, "none", &[]).status, 403);
    assert_eq!(put(&public, "k", &[], b"x").status, 403);
    assert_eq!(public.get("/aztec-ci-artifacts?list-type=2").expect("an answer").status, 403);

    let missing = get(&owner, "none", &[]);
    assert_eq!((missing.status, missing.code().as_deref()), (404, Some("NoSuchKey")));
    let missing = head(&owner, "none", &[]);
    assert_eq!((missing.status, missing.body.len()), (404, 0));
    let bucket = |name: &str| owner.send("HEAD", name, &[], &[]).expect("an answer").status;
    assert_eq!((bucket("/aztec-ci-artifacts"), bucket("/another-bucket")), (200, 404));
    let other = owner.get("/another-bucket/k").expect("an answer");
    assert_eq!((other.status, other.code().as_deref()), (404, Some("NoSuchBucket")));

    let wrong = get(&Client::signed(server.addr(), "test", "wrong"), "k", &[]);
    assert_eq!((wrong.status, wrong.code().as_deref()), (403, Some("SignatureDoesNotMatch")));
    let unknown = get(&Client::signed(server.addr(), "who", "wrong"), "k", &[]);
    assert_eq!((unknown.status, unknown.code().as_deref()), (403, Some("InvalidAccessKeyId")));

    let options = Options { anonymous: Access::NONE, signed: Access::GET, ..Options::default() };
    let closed = S3Server::start_with(options);
    closed.put("k", "v");
    assert_eq!(get(&Client::new(closed.addr()), "k", &[]).status, 403);
    assert_eq!(get(&signed(&closed), "k", &[]).status, 200);
    assert_eq!(get(&signed(&closed), "none", &[]).status, 403);
}

#[test]
fn uploads() {
    let server = S3Server::start();
    let owner = signed(&server);
    let first = put(&owner, "k", &[("If-None-Match", "*")], b"hello");
    assert_eq!((first.status, first.header("etag")), (200, Some("\"5d41402abc4b2a76b9719d911017c592\"")));
    assert_eq!(put(&owner, "k", &[("If-None-Match", "*")], b"again").status, 412);
    assert_eq!(server.object("k").as_deref(), Some(&b"hello"[..]));
    assert_eq!(put(&owner, "k", &[], b"again").status, 200);
    assert_eq!(server.object("k").as_deref(), Some(&b"again"[..]));
    let bad = put(&owner, "k", &[("x-amz-checksum-crc32", "AAAAAA==")], b"x");
    assert_eq!((bad.status, bad.code().as_deref()), (400, Some("BadDigest")));

    let deleted = owner.send("DELETE", &object_path(BUCKET, "k"), &[], &[]).expect("an answer");
    assert_eq!((deleted.status, server.object("k")), (204, None));
    let counts = server.counts();
    assert_eq!((counts.put, counts.delete, counts.puts_of("k")), (4, 1, 4));
}

#[test]
fn multipart_uploads() {
    let server = S3Server::start();
    let owner = signed(&server);
    let path = object_path(BUCKET, "big");
    let send = |method: &str, query: &str, body: &[u8]| {
        owner.send(method, &format!("{path}?{query}"), &[], body).expect("an answer")
    };
    let created = send("POST", "uploads", b"");
    let id = elements(&created.text(), "UploadId").remove(0);
    let mut parts = String::new();
    for (number, body) in [(1, "one"), (2, "two")] {
        let part = send("PUT", &format!("partNumber={number}&uploadId={id}"), body.as_bytes());
        let etag = part.header("etag").expect("an ETag");
        parts += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    let xml = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    let completed = send("POST", &format!("uploadId={id}"), xml.as_bytes());
    assert_eq!(completed.status, 200, "{}", completed.text());
    assert_eq!(server.object("big").as_deref(), Some(&b"onetwo"[..]));
    assert!(server.etag("big").is_some_and(|etag| etag.ends_with("-2\"")));

    let again = send("POST", &format!("uploadId={id}"), xml.as_bytes());
    assert_eq!((again.status, again.code().as_deref()), (404, Some("NoSuchUpload")));
    let created = send("POST", "uploads", b"");
    let id = elements(&created.text(), "UploadId").remove(0);
    assert_eq!(send("DELETE", &format!("uploadId={id}"), b"").status, 204);
}

#[test]
fn listings_in_pages() {
    let server = S3Server::start_with(Options { page_size: 3, ..Options::default() });
    for key in ["x/1", "x/2", "x-y", "x0", "é", "~", "a&b<c"] {
        server.put(key, key.as_bytes().to_vec());
    }
    let owner = signed(&server);
    let list = |query: &str| {
        let target = format!("/{BUCKET}?list-type=2&{query}");
        owner.get(&target).expect("an answer").text()
    };
    let mut keys = Vec::new();
    let mut query = String::new();
    loop {
        let xml = list(&query);
        keys.extend(elements(&xml, "Key"));
        let Some(token) = elements(&xml, "NextContinuationToken").pop() else {
            assert_eq!(elements(&xml, "IsTruncated"), ["false"]);
            break;
        };
        assert_eq!(elements(&xml, "KeyCount"), ["3"]);
        query = format!("continuation-token={token}");
    }
    assert_eq!(keys, ["a&amp;b&lt;c", "x-y", "x/1", "x/2", "x0", "~", "é"]);

    let xml = list("delimiter=%2F&prefix=x&max-keys=2");
    assert_eq!(
        (elements(&xml, "Key"), elements(&xml, "Prefix")),
        (vec!["x-y".into()], vec!["x".into(), "x/".into()])
    );
    assert_eq!(elements(&xml, "IsTruncated"), ["true"]);
    let xml = list("start-after=x0");
    assert_eq!(elements(&xml, "Key"), ["~", "é"]);
    assert_eq!(elements(&xml, "Size"), ["1", "2"]);
    assert_eq!(elements(&xml, "ETag")[0].trim_matches('"').len(), 32);
    assert_eq!(server.counts().list, 5);
}

#[test]
fn hostile_keys() {
    let long = "n".repeat(300);
    let keys = [
        "../x",
        "../../etc/passwd",
        "a//b",
        "/a",
        "a/",
        ".",
        "..",
        "a/./b",
        "a/../b",
        "line\nbreak",
        "tab\tkey",
        "%2e",
        "a+b c",
        "a?b#c",
        "\u{1}\u{7f}",
        "back\\slash",
        "é/日本",
        "-rf",
        "*",
        "a\rb",
        &long,
    ];
    let server = S3Server::start();
    let owner = signed(&server);
    for (index, key) in keys.iter().enumerate() {
        let body = format!("body {index}");
        assert_eq!(put(&owner, key, &[], body.as_bytes()).status, 200, "{key:?}");
        assert_eq!(server.object(key).as_deref(), Some(body.as_bytes()), "{key:?}");
        assert_eq!(get(&owner, key, &[]).text(), body, "{key:?}");
        assert_eq!(head(&Client::new(server.addr()), key, &[]).status, 200, "{key:?}");
        assert_eq!((server.counts().gets_of(key), server.counts().heads_of(key)), (1, 1), "{key:?}");
        let prefix = percent_encode(key, false);
        let target = format!("/{BUCKET}?list-type=2&encoding-type=url&prefix={prefix}");
        let xml = owner.get(&target).expect("an answer").text();
        assert!(!elements(&xml, "Key").is_empty(), "{key:?}: {xml}");
        assert!(xml.bytes().all(|byte| byte == b'\n' || (b' '..0x7f).contains(&byte)), "{key:?}: {xml}");
    }
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    assert_eq!(server.keys(), sorted);
    let xml = owner.get(&format!("/{BUCKET}?list-type=2&encoding-type=url")).expect("an answer").text();
    let listed = elements(&xml, "Key");
    assert_eq!(listed.len(), keys.len());
    assert!(listed.contains(&"line%0Abreak".to_owned()) && listed.contains(&"../x".to_owned()));
}

#[test]
fn sparse_objects() {
    let server = S3Server::start();
    let etag = server.put_sparse("big", 1 << 40, 7);
    assert!(etag.contains('-'));
    let client = Client::new(server.addr());
    assert_eq!(head(&client, "big", &[]).header("content-length"), Some("1099511627776"));
    let part = get(&client, "big", &[("Range", "bytes=1099511000000-1099511300000")]);
    assert_eq!(part.body, sparse_byte_range(7, 1_099_511_000_000..1_099_511_300_001));
    assert_eq!(server.counts().bytes_of("big"), 300_001);
}

#[test]
fn stop_and_restart() {
    let server = S3Server::start();
    server.put("k", "v");
    let client = Client::new(server.addr());
    assert_eq!(get(&client, "k", &[]).status, 200);
    let gate = server.hold_gets("k", 0);
    let held = client.start("GET", &object_path(BUCKET, "k"), &[], &[]).expect("a connection");
    assert!(gate.wait_until_waiting(1, std::time::Duration::from_secs(10)));
    server.stop();
    assert_eq!(server.counts().gets_in_flight, 0);
    server.stop();
    assert!(held.head().is_err());
    let refused = client.get("/").expect_err("no answer");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    server.restart();
    server.restart();
    assert_eq!(gate.waiting(), 0);
    gate.release();
    assert_eq!(get(&client, "k", &[]).status, 200);
}
