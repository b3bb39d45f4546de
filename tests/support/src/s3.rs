//! An S3 server in the test's own process: the protocol is `s3s`, the bucket is in memory.
//!
//! It knows one bucket, path-style addresses, GetObject, HeadObject, ListObjectsV2, PutObject, DeleteObject,
//! HeadBucket and multipart uploads, with signatures (V4) and anonymous access. It is our own reading of S3, made
//! after the API reference of Amazon S3; never let it be the only server that something was tested with.
//!
//! Keys are kept byte for byte as sent: `../x`, `a//b`, `.` and line breaks are names like others. What it can't do:
//! a key that isn't UTF-8 or is longer than 1,024 bytes (S3 refuses those too), `partNumber` on GETs (501), and a
//! `Range` that S3 would ignore, such as several ranges at once (400). A listing without `encoding-type=url` writes
//! control characters into the XML as they are, which makes it unreadable to most parsers, as with S3 itself.

mod access;
mod backend;
mod body;
mod checksums;
mod conditions;
mod content;
mod counts;
mod dialect;
mod faults;
mod gate;
mod incoming;
mod listener;
mod listing;
mod multipart;
mod request;
mod service;
mod store;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub use access::Access;
pub use counts::{Counts, Logged};
pub use dialect::Support;
pub use faults::Fault;
pub use gate::Gate;
pub use request::Op;
pub use store::{Kept, ObjectOptions};

use crate::loopback;

use access::Rules;
use backend::Backend;
use counts::Counters;
use dialect::Dialect;
use faults::Faults;
use service::Service;
use store::Store;

/// How long [`S3Server::restart`] waits for its port to be free again.
const BIND_TIMEOUT: Duration = Duration::from_secs(5);

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The only bucket.
    pub bucket: String,
    /// The only access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// What callers without a signature may do.
    pub anonymous: Access,
    /// What callers with a good signature may do.
    pub signed: Access,
    /// Entries in one answer to a LIST at most.
    pub page_size: usize,
    /// What it makes of `If-None-Match` and `If-Match` on writes; refused: 501 NotImplemented.
    pub conditional_writes: Support,
    /// What it makes of `x-amz-checksum-…` on writes; refused: 400 InvalidRequest.
    pub checksums: Support,
}

impl Default for Options {
    /// The public bucket as the world sees it: anyone gets objects by name, the key's owner may do everything.
    fn default() -> Self {
        Options {
            bucket: "aztec-ci-artifacts".into(),
            access_key: "test".into(),
            secret_key: "test-secret".into(),
            anonymous: Access::GET,
            signed: Access::ALL,
            page_size: 1000,
            conditional_writes: Support::Full,
            checksums: Support::Full,
        }
    }
}

/// A running server; see the [module's text](self).
pub struct S3Server {
    addr: SocketAddr,
    options: Options,
    service: Arc<Service>,
    /// Present while it listens.
    accepting: Mutex<Option<Accepting>>,
    /// Present until drop.
    runtime: Option<Runtime>,
}

/// The accept loop, whose end is the end of all connections.
struct Accepting {
    stop: oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

impl S3Server {
    /// Starts a server with the default [`Options`].
    pub fn start() -> S3Server {
        S3Server::start_with(Options::default())
    }

    /// Starts a server on a free loopback port.
    pub fn start_with(options: Options) -> S3Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()
            .expect("the S3 server's threads");
        let store = Arc::new(Store::default());
        let dialect =
            Dialect { conditional_writes: options.conditional_writes, checksums: options.checksums };
        let service = Arc::new(Service {
            s3: s3_service(&options, store.clone(), dialect),
            store,
            counters: Counters::default(),
            faults: Faults::default(),
            dialect,
        });
        let listener = {
            let _runtime = runtime.enter();
            loopback::bind(loopback::ANY_PORT).expect("a loopback port for the S3 server")
        };
        let server = S3Server {
            addr: listener.local_addr().expect("the S3 server's address"),
            options,
            service,
            accepting: Mutex::new(None),
            runtime: Some(runtime),
        };
        server.accept(listener);
        server
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The address, which stays the same over [`stop`](Self::stop) and [`restart`](Self::restart).
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How the server was set up.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Closes the port and all connections; later connects are refused. Returns when that is so.
    pub fn stop(&self) {
        let Some(accepting) = self.accepting().take() else { return };
        let _ = accepting.stop.send(());
        // An error stands for the end as well.
        let _ = accepting.stopped.recv();
    }

    /// Listens again on the same port, with the same objects. Does nothing when it hasn't been stopped.
    pub fn restart(&self) {
        if self.accepting().is_some() {
            return;
        }
        let deadline = Instant::now() + BIND_TIMEOUT;
        let listener = loop {
            let bound = {
                let _runtime = self.runtime().enter();
                loopback::bind(self.addr)
            };
            match bound {
                Ok(listener) => break listener,
                Err(error) if Instant::now() > deadline => {
                    panic!("can't listen on {} again: {error}", self.addr)
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        self.accept(listener);
    }

    /// Puts or replaces an object and returns its ETag, in quotes.
    pub fn put(&self, key: &str, body: impl Into<Bytes>) -> String {
        self.put_with(key, body, ObjectOptions::default())
    }

    /// Puts or replaces an object with metadata of one's own choice and returns its ETag, in quotes.
    pub fn put_with(&self, key: &str, body: impl Into<Bytes>, options: ObjectOptions) -> String {
        self.service.store.put(key, body.into(), options)
    }

    /// Puts or replaces an object with a checksum, as uploads leave it, and returns its ETag, in quotes.
    pub fn put_checked(&self, key: &str, body: impl Into<Bytes>, kept: Kept) -> String {
        self.service.store.put_checked(key, body.into(), kept)
    }

    /// Puts an object of `size` bytes that takes no memory, and returns its ETag, in quotes.
    ///
    /// Its bytes depend on `seed` and their place alone, see [`sparse_byte_range`](Self::sparse_byte_range). The
    /// ETag looks like that of a multipart upload with 8 MiB parts.
    pub fn put_sparse(&self, key: &str, size: u64, seed: u64) -> String {
        self.service.store.put_sparse(key, size, seed)
    }

    /// What a sparse object holds at `range`.
    pub fn sparse_byte_range(seed: u64, range: Range<u64>) -> Vec<u8> {
        crate::pattern::sparse_byte_range(seed, range)
    }

    /// Removes an object if it exists.
    pub fn remove(&self, key: &str) {
        self.service.store.lock().objects.remove(key);
    }

    /// An object's bytes; made in memory for a sparse one.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        let stored = self.service.store.get(key)?;
        Some(stored.content.slice(0..stored.content.len()))
    }

    /// An object's ETag, in quotes.
    pub fn etag(&self, key: &str) -> Option<String> {
        self.service.store.get(key).map(|stored| format!("\"{}\"", stored.etag))
    }

    /// All keys in the order of a listing.
    pub fn keys(&self) -> Vec<String> {
        self.service.store.lock().objects.keys().cloned().collect()
    }

    /// Multipart uploads that have been neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.service.store.lock().uploads.len()
    }

    /// What the server was asked so far.
    pub fn counts(&self) -> Counts {
        self.service.counters.snapshot()
    }

    /// The requests one by one, in the order of arrival.
    pub fn log(&self) -> Vec<Logged> {
        self.service.counters.log()
    }

    /// Counts from zero again. Answers still on their way count their bytes from here.
    pub fn reset_counts(&self) {
        self.service.counters.reset();
    }

    /// Adds a fault for the requests that follow.
    pub fn add_fault(&self, fault: Fault) {
        self.service.faults.add(fault);
    }

    /// Replaces all faults by these; gates stay. `set_faults([])` ends them.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.service.faults.set(faults);
    }

    /// Holds GETs of `key` until the gate is released: with `after_bytes` 0 before the request is looked at, else
    /// after so many body bytes of each answer have been sent. An answer that isn't longer than that isn't held.
    pub fn hold_gets(&self, key: &str, after_bytes: u64) -> Gate {
        self.hold_gets_from(key, 0, after_bytes)
    }

    /// Like [`hold_gets`](Self::hold_gets), for ranges alone that begin at byte `offset` of the object or behind it.
    pub fn hold_gets_from(&self, key: &str, offset: u64, after_bytes: u64) -> Gate {
        let (gate, latch) = Gate::new();
        self.add_fault(Fault::hold(after_bytes, latch).key(key).from_byte(offset));
        gate
    }

    /// Like [`hold_gets`](Self::hold_gets) before the request is looked at, for requests of any kind and key.
    pub fn hold(&self, op: Op, key: Option<&str>) -> Gate {
        let (gate, latch) = Gate::new();
        let fault = Fault::hold(0, latch).on(op);
        self.add_fault(match key {
            Some(key) => fault.key(key),
            None => fault,
        });
        gate
    }

    fn accept(&self, listener: TcpListener) {
        let (stop, stopping) = oneshot::channel();
        let (end, stopped) = mpsc::channel();
        let service = self.service.clone();
        self.runtime().spawn(async move {
            listener::serve(listener, service, stopping).await;
            let _ = end.send(());
        });
        *self.accepting() = Some(Accepting { stop, stopped });
    }

    fn accepting(&self) -> MutexGuard<'_, Option<Accepting>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the S3 server's threads live until drop")
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn s3_service(options: &Options, store: Arc<Store>, dialect: Dialect) -> S3Service {
    let rules = Rules::new(options.clone());
    let backend = Backend { store, rules: rules.clone(), page_size: options.page_size.max(1), dialect };
    let mut builder = S3ServiceBuilder::new(backend);
    builder.set_auth(rules.clone());
    builder.set_access(rules);
    builder.build()
}
