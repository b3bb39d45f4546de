//! Puts and deletes, remote by remote: the first writer wins, all bytes or none, and nothing is left behind.

mod dialects;
mod directory;
mod faults;
mod memory;
mod routes;
mod s3;
mod web;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aztec_cache::checksum::{Checksum, extend_crc64nvme};
use aztec_cache::config::{Credentials, Patience, Remote, S3Options};
use aztec_cache::error::{Kind, Result};
use aztec_cache::object::{Key, ObjectVersion};
use aztec_cache::store::{self, Existing, Multipart, ObjectStore, Payload, Put};
use aztec_cache_test_support::s3::{Access, Options, S3Server};
use tokio::runtime::Runtime;

use crate::common::{assert_same, key, wait_for};

const NAME: &str = "noir-b786c534d2b9261d.tar.gz";
const BUCKET: &str = "s3://aztec-ci-artifacts/build-cache/";
const MIB: usize = 1 << 20;

/// A store, and the threads that its requests run on.
struct Remotes {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
}

impl Remotes {
    fn new(remotes: &[Remote], options: &S3Options) -> Remotes {
        let store = store::open(remotes, options).expect("no certificates are needed");
        Remotes { runtime: aztec_cache::engine::runtime(2).expect("threads"), store }
    }

    /// The test server's bucket, asked without a signature.
    fn s3(url: &str) -> Remotes {
        Remotes::patient(url, Patience::default())
    }

    fn patient(url: &str, patience: Patience) -> Remotes {
        let endpoint_url = Some(url.to_owned());
        let options = S3Options { endpoint_url, no_sign_request: true, patience, ..S3Options::default() };
        Remotes::new(&[remote(BUCKET)], &options)
    }

    fn directory(dir: &Path) -> Remotes {
        Remotes::new(&[Remote::File(dir.to_owned())], &S3Options::default())
    }

    /// A web server that takes uploads, from the user `me`.
    fn web(url: String, patience: Patience) -> Remotes {
        let credentials = Some(Credentials { user: "me".to_owned(), password: "s3cret".to_owned() });
        let remote = Remote::Http { url, credentials, writable: true };
        Remotes::new(&[remote], &S3Options { patience, ..S3Options::default() })
    }

    fn put(&self, name: &str, payload: &Payload, existing: Existing) -> Result<Put> {
        self.runtime.block_on(self.store.put(&key_of(name), payload, existing))
    }

    /// A put that must have stored its bytes, all of which count as sent.
    #[track_caller]
    fn store(&self, name: &str, body: &[u8]) -> ObjectVersion {
        let payload = payload(body);
        let put = self.put(name, &payload, Existing::Keep).unwrap_or_else(|e| panic!("{name}: {e}"));
        wait_until_sent(&payload, payload.size);
        let Put::Stored(version) = put else { panic!("{name}: kept what was there") };
        assert_eq!((version.key.as_str(), version.size), (name, payload.size));
        version
    }

    /// What a put fails with; none of its bytes count as sent.
    #[track_caller]
    fn fail(&self, name: &str, body: &[u8]) -> (Kind, String) {
        let payload = payload(body);
        let error = self.put(name, &payload, Existing::Keep).expect_err("a failure");
        let said = error.to_string();
        assert!(said.contains(name) && said.lines().count() == 1, "{said}");
        wait_until_sent(&payload, 0);
        (error.kind(), said)
    }

    fn head(&self, name: &str) -> Result<ObjectVersion> {
        self.runtime.block_on(self.store.head(&key_of(name)))
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.runtime.block_on(self.store.delete(&key_of(name)))
    }

    fn accepts_uploads(&self) -> bool {
        self.runtime.block_on(self.store.accepts_uploads())
    }
}

fn key_of(name: &str) -> Key {
    Key::new(name).expect("a key")
}

fn remote(url: &str) -> Remote {
    Remote::parse("test", url).expect("a remote")
}

fn payload(body: &[u8]) -> Payload {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(body).expect("room for it");
    let checksum = Checksum::crc64nvme(extend_crc64nvme(0, body));
    Payload {
        file: Arc::new(file),
        size: body.len() as u64,
        checksum,
        sent: Arc::default(),
        multipart: Multipart::default(),
    }
}

/// Connections let go of what is left of a failed attempt a moment later.
fn wait_until_sent(payload: &Payload, bytes: u64) {
    wait_for("the bytes that count as sent", || payload.sent.load(Ordering::Relaxed) == bytes);
}

/// A server that lets everyone write.
fn open_server() -> S3Server {
    server_with(Options::default())
}

fn server_with(options: Options) -> S3Server {
    S3Server::start_with(Options { anonymous: Access::ALL, ..options })
}

/// Short ones, for what comes to nothing in the end.
fn impatience() -> Patience {
    let moment = Duration::from_millis(300);
    Patience { connect: moment, first_byte: moment, stall: moment, attempts: 2 }
}

#[track_caller]
fn assert_holds(server: &S3Server, name: &str, body: &[u8]) {
    let found = server.object(&key(name)).unwrap_or_else(|| panic!("{name} isn't there"));
    assert_same(name, &found, body);
    assert_eq!(server.open_uploads(), 0, "{name}: parts were left behind");
}
