//! Where uploads go in a chain of remotes, and which remotes take none.

use std::fs;

use aztec_cache::config::{Remote, S3Options};
use aztec_cache::error::Kind;
use aztec_cache::store::{Existing, Put};

use super::{BUCKET, NAME, Remotes, open_server, payload, remote};
use crate::common::key;

#[test]
fn a_chain_puts_and_deletes_in_its_first_remote_that_takes_uploads() {
    let server = open_server();
    let place = tempfile::tempdir().unwrap();
    let (first, second) = (place.path().join("first"), place.path().join("second"));
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    let options =
        S3Options { endpoint_url: Some(server.url()), no_sign_request: true, ..S3Options::default() };
    let chain = [
        remote("http://127.0.0.1:1/"),
        remote(BUCKET),
        Remote::File(first.clone()),
        Remote::File(second.clone()),
    ];
    let remotes = Remotes::new(&chain[1..], &options);
    assert!(remotes.accepts_uploads());
    let version = remotes.store(NAME, b"bytes");
    assert_eq!(&*version.source, format!("file://{}", first.display()));
    assert_eq!(fs::read(first.join(NAME)).unwrap(), b"bytes");
    assert!(remotes.head(NAME).unwrap().is(&version));
    assert_eq!((server.object(&key(NAME)), second.join(NAME).exists()), (None, false));
    fs::write(second.join(NAME), "others'").unwrap();
    remotes.delete(NAME).unwrap();
    assert!(!first.join(NAME).exists() && second.join(NAME).exists());

    let readers = Remotes::new(&chain[..2], &options);
    assert!(!readers.accepts_uploads());
    let error = readers.put(NAME, &payload(b"bytes"), Existing::Keep).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert_eq!(readers.delete(NAME).unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(server.counts().put, 0);
}

#[test]
fn a_plain_web_server_takes_no_uploads() {
    let web = Remotes::new(&[remote("http://me:s3cret@127.0.0.1:1/")], &S3Options::default());
    assert!(!web.accepts_uploads());
    for existing in [Existing::Keep, Existing::Replace] {
        let error = web.put(NAME, &payload(b"bytes"), existing).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("s3://") && !error.to_string().contains("s3cret"), "{error}");
    }
    assert_eq!(web.delete(NAME).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn an_artifact_that_another_remote_of_the_chain_has_is_put_all_the_same() {
    let place = tempfile::tempdir().unwrap();
    let (near, far) = (place.path().join("near"), place.path().join("far"));
    fs::create_dir(&near).unwrap();
    fs::create_dir(&far).unwrap();
    fs::write(far.join(NAME), "bytes").unwrap();
    let remotes = Remotes::new(&[Remote::File(near.clone()), Remote::File(far)], &S3Options::default());
    let put = remotes.put(NAME, &payload(b"bytes"), Existing::Keep).unwrap();
    assert!(matches!(put, Put::Stored(_)), "as --fill wants it");
    assert!(near.join(NAME).exists());
}
