//! The S3 server, the ways to it, and what is put there.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use aztec_cache::checksum::{Checksum, extend_crc64nvme};
use aztec_cache_test_support::client::{Client, object_path};
pub use aztec_cache_test_support::seaweed::{ACCESS_KEY, BUCKET, SECRET_KEY};

use crate::args::{Link, Server};
use crate::helper::Helper;
use crate::{Result, interrupt};

/// What the proxy adds to each request.
const LATENCY_MS: &str = "30";
/// What it gives each connection, in bytes per second.
const RATE: &str = "50000000";
/// Uploads at a time.
const UPLOADS: usize = 4;

/// A server with an empty bucket, and the proxy before it.
pub struct Stage {
    // Dropped in this order.
    slow: Helper,
    server: Helper,
    present: BTreeSet<String>,
}

/// Counts of the proxy.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// Bytes that came to clients, heads of answers included.
    pub bytes: u64,
    /// Requests that were answered.
    pub requests: u64,
}

impl Stage {
    /// Starts both; their files go below `dir`.
    pub fn start(server: Server, dir: &Path) -> Result<Stage> {
        let name = match server {
            Server::Seaweed => "seaweed",
            Server::Memory => "memory",
        };
        let server = Helper::start(&[name], dir)?;
        let slow = proxy(&server, dir)?;
        Ok(Stage { slow, server, present: BTreeSet::new() })
    }

    /// Where a link leads in.
    pub fn addr(&self, link: Link) -> SocketAddr {
        match link {
            Link::Raw => self.server.addr(),
            Link::S3Like => self.slow.addr(),
        }
    }

    /// The endpoint URL of a link.
    pub fn url(&self, link: Link) -> String {
        format!("http://{}", self.addr(link))
    }

    /// The server itself, for what only our own one can do.
    pub fn server(&mut self) -> &mut Helper {
        &mut self.server
    }

    /// What has come through the proxy so far.
    pub fn passed(&mut self) -> Result<Passed> {
        let counts = self.slow.ask("counts")?;
        let number = |name: &str| counts[name].as_u64().ok_or_else(|| format!("no {name} in {counts}"));
        Ok(Passed { bytes: number("bytes")?, requests: number("requests")? })
    }

    /// Puts an object unless it is there.
    pub fn put(&mut self, key: &str, make: impl FnOnce() -> Vec<u8>) -> Result<()> {
        if self.present.insert(key.to_owned()) {
            upload(self.server.addr(), key, &make())?;
        }
        Ok(())
    }

    /// Puts `keys`, each with the same few bytes, unless they are there.
    pub fn put_small(&mut self, keys: &[String], bytes: &[u8]) -> Result<()> {
        let missing: Vec<&String> = keys.iter().filter(|key| self.present.insert((*key).clone())).collect();
        let (addr, next) = (self.server.addr(), AtomicUsize::new(0));
        let work = || -> Result<()> {
            while let Some(key) = missing.get(next.fetch_add(1, Ordering::SeqCst)) {
                upload(addr, key, bytes)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..UPLOADS).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("uploads don't panic"))
        })
    }

    /// Removes an object, which must be there with `size` bytes.
    pub fn remove(&self, key: &str, size: u64) -> Result<()> {
        let client = Client::signed(self.server.addr(), ACCESS_KEY, SECRET_KEY);
        let path = object_path(BUCKET, key);
        let send =
            |method| client.send(method, &path, &[], &[]).map_err(|error| format!("{method} {key}: {error}"));
        let found = send("HEAD")?.header("content-length").and_then(|length| length.parse::<u64>().ok());
        if found != Some(size) {
            return Err(format!("{key}: {found:?} bytes where {size} should be"));
        }
        send("DELETE").map(drop)
    }

    /// Has the server read an object, so that its own disk isn't what is measured.
    pub fn warm(&self, key: &str) -> Result<()> {
        let addr = self.server.addr();
        let fetch = || {
            let mut stream = TcpStream::connect(addr)?;
            let path = object_path(BUCKET, key);
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
            let mut buffer = vec![0; 1 << 20];
            while stream.read(&mut buffer)? > 0 {}
            Ok(())
        };
        fetch().map_err(|error: std::io::Error| format!("warming {key}: {error}"))
    }

    /// Seconds for a HEAD, and seconds until the first byte of a GET's body, each on a connection of its own.
    pub fn round_trips(&self, link: Link, key: &str) -> Result<(f64, f64)> {
        let client = Client::new(self.addr(link));
        let path = object_path(BUCKET, key);
        let error = |error: std::io::Error| format!("asking for {key}: {error}");
        let start = Instant::now();
        client.send("HEAD", &path, &[], &[]).map_err(error)?;
        let head = start.elapsed().as_secs_f64();
        let start = Instant::now();
        client.begin("GET", &path, &[], &[]).map_err(error)?.read(1).map_err(error)?;
        Ok((head, start.elapsed().as_secs_f64()))
    }
}

/// nginx, which everybody may read from, and the proxy before it.
pub struct WebStage {
    // Dropped in this order.
    slow: Helper,
    server: Helper,
}

impl WebStage {
    /// Starts both; their files go below `dir`.
    pub fn start(dir: &Path) -> Result<WebStage> {
        let server = Helper::start(&["nginx"], dir)?;
        let slow = proxy(&server, dir)?;
        Ok(WebStage { slow, server })
    }

    /// The S3-like link's URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.slow.addr())
    }

    /// Puts a copy of `file` where an object `key` is at an S3 server.
    pub fn put(&mut self, key: &str, file: &Path) -> Result<()> {
        self.server.ask(&format!("put {BUCKET}/{key} {}", file.display())).map(drop)
    }
}

/// The S3-like link to `server`.
fn proxy(server: &Helper, dir: &Path) -> Result<Helper> {
    Helper::start(&["proxy", &server.addr().to_string(), LATENCY_MS, RATE], dir)
}

/// With the checksum that S3 itself adds where its client sends none
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html>): what readers do with it is
/// a part of what is measured.
fn upload(addr: SocketAddr, key: &str, bytes: &[u8]) -> Result<()> {
    interrupt::check()?;
    let client = Client::signed(addr, ACCESS_KEY, SECRET_KEY);
    let checksum = Checksum::crc64nvme(extend_crc64nvme(0, bytes)).to_string();
    let header = checksum.split_once(':').map(|(_, value)| ("x-amz-checksum-crc64nvme", value));
    let response = client.send("PUT", &object_path(BUCKET, key), header.as_slice(), bytes);
    let response = response.map_err(|error| format!("PUT {key}: {error}"))?;
    if response.status != 200 {
        return Err(format!("PUT {key}: {} {}", response.status, response.text()));
    }
    Ok(())
}
