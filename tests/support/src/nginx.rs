//! nginx: a web server that others wrote, from Debian's `nginx-light`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::loopback::free_ports;

/// How long a start may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts to start: a port found free may be taken by another process before nginx has it.
const ATTEMPTS: u32 = 3;
const POLL: Duration = Duration::from_millis(10);

/// A running server of the files put into it. Below `/private/` it wants the user `me` with the password `s3cret`; below
/// `/hidden/` it says 403 of what isn't there, as a bucket behind a public name does; below `/uploads/` the same user may
/// put files, whatever is there already.
pub struct Nginx {
    addr: SocketAddr,
    child: Child,
    dir: TempDir,
}

/// A line of the server's log.
#[derive(Clone, Debug)]
pub struct Logged {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path, decoded.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// The number of the connection.
    pub connection: u64,
    /// The body's bytes that were sent.
    pub sent: u64,
}

impl Nginx {
    /// Starts a server on a free loopback port and waits until it accepts connections.
    ///
    /// # Errors
    /// A text that says what is missing or what nginx said.
    pub fn start() -> Result<Nginx, String> {
        let mut error = String::new();
        for _ in 0..ATTEMPTS {
            match Nginx::launch() {
                Ok(server) => return Ok(server),
                Err(text) => error = text,
            }
        }
        Err(error)
    }

    /// `http://127.0.0.1:PORT/`
    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Puts a file in place, whole, by rename.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let target = self.file(path);
        fs::create_dir_all(target.parent().expect("it lies below")).expect("a directory of ours");
        let temporary = self.dir.path().join("new");
        fs::write(&temporary, bytes).expect("a file of ours");
        fs::rename(&temporary, &target).expect("a file of ours");
    }

    /// Where the file of a path lies.
    pub fn file(&self, path: &str) -> PathBuf {
        self.dir.path().join("www").join(path)
    }

    /// The requests that were answered so far.
    pub fn log(&self) -> Vec<Logged> {
        let text = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
        let parse = |line: &str| {
            let mut words = line.split(' ');
            Some(Logged {
                method: words.next()?.to_owned(),
                path: words.next()?.to_owned(),
                status: words.next()?.parse().ok()?,
                connection: words.next()?.parse().ok()?,
                sent: words.next()?.parse().ok()?,
            })
        };
        text.lines().filter_map(parse).collect()
    }

    /// Ends the server.
    pub fn stop(&mut self) {
        // Fails only when it is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn launch() -> Result<Nginx, String> {
        let dir = tempfile::Builder::new().prefix("nginx-").tempdir().map_err(|e| e.to_string())?;
        let [port] = free_ports().map_err(|e| e.to_string())?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        fs::create_dir(dir.path().join("www")).map_err(|e| e.to_string())?;
        fs::write(dir.path().join("users"), "me:{PLAIN}s3cret\n").map_err(|e| e.to_string())?;
        let config = dir.path().join("nginx.conf");
        fs::write(&config, configuration(&dir.path().display().to_string(), port))
            .map_err(|e| e.to_string())?;
        let child = Command::new("nginx")
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&config)
            .env("PATH", "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("nginx: {e}; install it with 'apt-get install nginx-light'"))?;
        let mut server = Nginx { addr, child, dir };
        let start = Instant::now();
        while TcpStream::connect(addr).is_err() {
            let ended = server.child.try_wait().ok().flatten();
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                let said = fs::read_to_string(server.dir.path().join("error.log")).unwrap_or_default();
                return Err(format!("nginx doesn't start: {said}"));
            }
            std::thread::sleep(POLL);
        }
        Ok(server)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One process, which writes below `dir` alone.
fn configuration(dir: &str, port: u16) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {dir}/{name};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n{temporary}\
         \x20 log_format brief '$request_method $uri $status $connection $body_bytes_sent';\n\
         \x20 access_log {dir}/access.log brief;\n\
         \x20 keepalive_requests 100000;\n\
         \x20 server {{\n    listen 127.0.0.1:{port};\n    root {dir}/www;\n\
         \x20   location /private/ {{ auth_basic private; auth_basic_user_file {dir}/users; }}\n\
         \x20   location /hidden/ {{ try_files $uri =403; }}\n\
         \x20   location /uploads/ {{\n      auth_basic private; auth_basic_user_file {dir}/users;\n\
         \x20     dav_methods PUT; create_full_put_path on; client_max_body_size 64m;\n    }}\n  }}\n}}\n"
    )
}
