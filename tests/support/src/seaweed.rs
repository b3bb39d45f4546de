//! SeaweedFS: an S3 server that others wrote, from PyPI.
//!
//! It differs from AWS where AWS is asked about it: its LIST has `x/…` before `x-y`, it collapses `//` in keys, and a
//! missing key answers 404 to a caller who may not list.

mod install;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::{Client, object_path};
use crate::loopback::free_ports;

/// The bucket that every server has.
pub const BUCKET: &str = "aztec-ci-artifacts";
/// The access key of the only identity, which may do everything. Callers without a signature may read objects.
pub const ACCESS_KEY: &str = "test";
/// Its secret.
pub const SECRET_KEY: &str = "test-secret";

/// How long a start may take.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to start: a port found free may be taken by another process before SeaweedFS has it.
const ATTEMPTS: u32 = 3;
/// How often the start is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Lines of the server's log in an error text.
const LOG_LINES: usize = 10;

const IDENTITIES: &str = r#"{"identities": [
    {"name": "admin", "credentials": [{"accessKey": "test", "secretKey": "test-secret"}],
     "actions": ["Admin", "Read", "List", "Tagging", "Write"]},
    {"name": "anonymous", "actions": ["Read"]}
]}"#;

/// A running server with an empty [`BUCKET`]. Its data is removed on drop.
pub struct Seaweed {
    addr: SocketAddr,
    child: Mutex<Option<Child>>,
    sockets: Vec<PathBuf>,
    dir: TempDir,
}

impl Seaweed {
    /// Installs SeaweedFS on first use, starts a server on free loopback ports and waits until it takes objects.
    ///
    /// # Errors
    /// A text that says what is missing or what the server's log has.
    pub fn start() -> Result<Seaweed, String> {
        let weed = install::weed()?;
        let mut error = String::new();
        for _ in 0..ATTEMPTS {
            match Seaweed::launch(&weed) {
                Ok(server) => return Ok(server),
                Err(text) => error = text,
            }
        }
        Err(error)
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The address of the S3 port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A client whose requests are signed with [`ACCESS_KEY`].
    pub fn client(&self) -> Client {
        Client::signed(self.addr, ACCESS_KEY, SECRET_KEY)
    }

    /// Puts an object and returns its ETag, in quotes.
    ///
    /// # Errors
    /// A text with what the server answered.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<String, String> {
        let response = self.client().send("PUT", &object_path(BUCKET, key), &[], bytes);
        let response = response.map_err(|error| format!("PUT {key}: {error}"))?;
        if response.status != 200 {
            return Err(format!("PUT {key}: {} {}", response.status, response.text()));
        }
        Ok(response.header("etag").unwrap_or_default().to_owned())
    }

    /// Kills the server.
    pub fn stop(&self) {
        let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        // Fails only when it is dead already.
        let _ = child.kill();
        let _ = child.wait();
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
    }

    fn launch(weed: &Path) -> Result<Seaweed, String> {
        let dir = tempfile::Builder::new().prefix("seaweed-").tempdir().map_err(|error| error.to_string())?;
        let ports = free_ports().map_err(|error| error.to_string())?;
        let child =
            command(weed, dir.path(), ports).map_err(|error| format!("{}: {error}", weed.display()))?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[6]));
        let server = Seaweed { addr, child: Mutex::new(Some(child)), sockets: sockets(ports), dir };
        server.wait_until_ready().map_err(|error| format!("{error}\n{}", server.log_end()))?;
        Ok(server)
    }

    /// Waits until the bucket exists and an object can be put and read back.
    fn wait_until_ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let error = match self.probe() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if let Some(status) = self.exit_status() {
                return Err(format!("SeaweedFS ended with {status}"));
            }
            if Instant::now() > deadline {
                return Err(format!("SeaweedFS isn't ready after {START_TIMEOUT:?}: {error}"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn probe(&self) -> Result<(), String> {
        const KEY: &str = "ready-probe";
        let client = self.client();
        let bucket =
            client.send("PUT", &format!("/{BUCKET}"), &[], &[]).map_err(|error| error.to_string())?;
        if !matches!(bucket.status, 200 | 409) {
            return Err(format!("PUT of the bucket: {} {}", bucket.status, bucket.text()));
        }
        self.put(KEY, b"ready")?;
        let path = object_path(BUCKET, KEY);
        let read = Client::new(self.addr).get(&path).map_err(|error| error.to_string())?;
        if read.body != b"ready" {
            return Err(format!("GET: {} {}", read.status, read.text()));
        }
        client.send("DELETE", &path, &[], &[]).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn exit_status(&self) -> Option<String> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.as_mut()?.try_wait().ok()??;
        Some(status.to_string())
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The sockets that SeaweedFS makes beside its gRPC ports, at a fixed place, and leaves behind.
fn sockets(ports: [u16; 8]) -> Vec<PathBuf> {
    let grpc = ports.iter().skip(1).step_by(2);
    let parts = ["master", "volume", "filer", "s3"].into_iter().zip(grpc);
    parts.map(|(part, port)| format!("/tmp/seaweedfs-{part}-grpc-{port}.sock").into()).collect()
}

/// Starts all of SeaweedFS's parts in one process: HTTP and gRPC ports of master, volume server, filer and S3.
fn command(weed: &Path, dir: &Path, ports: [u16; 8]) -> std::io::Result<Child> {
    let data = dir.join("data");
    fs::create_dir(&data)?;
    let identities = dir.join("identities.json");
    fs::write(&identities, IDENTITIES)?;
    let log = File::create(dir.join("log"))?;
    let names = [
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port",
        "s3.port.grpc",
    ];
    let mut command = Command::new(weed);
    command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-master.telemetry=false"]);
    command.args([
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=100",
    ]);
    command.args(names.iter().zip(ports).map(|(name, port)| format!("-{name}={port}")));
    for (name, path) in [
        ("dir", &data),
        ("s3.config", &identities),
        ("filer.localSocket", &dir.join("filer.sock")),
        ("s3.localSocket", &dir.join("s3.sock")),
    ] {
        command.arg(format!("-{name}={}", path.display()));
    }
    // SeaweedFS reads settings from the working directory and writes logs to the one for temporary files.
    command
        .current_dir(dir)
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}
