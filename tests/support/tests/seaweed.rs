//! SeaweedFS starts, takes objects and hands them out.

use aztec_cache_test_support::client::{Client, object_path};
use aztec_cache_test_support::pattern::random_bytes;
use aztec_cache_test_support::seaweed::{BUCKET, Seaweed};

#[test]
fn a_round_trip() {
    let server = Seaweed::start().expect("SeaweedFS");
    let body = random_bytes(1, 1_000_000);
    let etag = server.put("build-cache/noir.tar.gz", &body).expect("an ETag");
    assert!(etag.starts_with('"') && etag.ends_with('"'));

    let path = object_path(BUCKET, "build-cache/noir.tar.gz");
    let public = Client::new(server.addr());
    assert_eq!(public.get(&path).expect("an answer").body, body);
    let part = public.send("GET", &path, &[("Range", "bytes=10-19"), ("If-Match", &etag)], &[]);
    let part = part.expect("an answer");
    assert_eq!((part.status, &part.body[..]), (206, &body[10..20]));
    assert_eq!(public.send("PUT", &path, &[], b"x").expect("an answer").status, 403);

    let list = server.client().get(&format!("/{BUCKET}?list-type=2")).expect("an answer");
    assert_eq!((list.status, list.text().matches("<Key>").count()), (200, 1), "{}", list.text());
    server.stop();
    assert!(public.get(&path).is_err());
}
