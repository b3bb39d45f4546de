//! A web server that answers as a test tells it to: redirects, refusals, broken bodies, odd headers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::loopback::ANY_PORT;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path and the query, as they were sent.
    pub target: String,
    headers: Vec<(String, String)>,
    /// What was sent with it. Nothing while a client waits to be told that it may (`Expect: 100-continue`): an answer
    /// of 100 has it sent, and the request seen again with it, any other is the last.
    pub body: Option<Vec<u8>>,
}

impl Request {
    /// A header's value; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The bytes asked for of an object of `size` bytes.
    pub fn range(&self, size: u64) -> Option<Range<u64>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse().ok()?..(last.parse::<u64>().ok()? + 1).min(size))
    }
}

/// An answer. The body isn't sent to a HEAD, its length is.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
    cut_after: Option<usize>,
    hang_up: bool,
}

impl Reply {
    /// An answer without a body.
    pub fn new(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    /// A whole object (200).
    pub fn whole(body: &[u8]) -> Reply {
        Reply { body: body.to_vec(), ..Reply::new(200) }
    }

    /// What a server that serves parts sends of an object: the part that `request` asks for (206), or all of it.
    pub fn part(request: &Request, body: &[u8]) -> Reply {
        let size = body.len() as u64;
        match request.range(size) {
            Some(range) if request.method == "GET" && !range.is_empty() => {
                let part = &body[range.start as usize..range.end as usize];
                let range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                Reply { status: 206, ..Reply::whole(part) }.header("Content-Range", &range)
            }
            _ => Reply::whole(body).header("Accept-Ranges", "bytes"),
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends the body in chunks, its length unsaid.
    pub fn chunked(mut self) -> Reply {
        self.chunked = true;
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub fn cut_after(mut self, bytes: usize) -> Reply {
        self.cut_after = Some(bytes);
        self
    }

    /// Closes the connection instead of answering.
    pub fn hang_up() -> Reply {
        Reply { hang_up: true, ..Reply::default() }
    }

    fn send(&self, stream: &mut TcpStream, to_head: bool) -> std::io::Result<bool> {
        if self.hang_up {
            return Ok(false);
        }
        let mut head = format!("HTTP/1.1 {} Reply\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&match self.chunked {
            true => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            false => format!("Content-Length: {}\r\n\r\n", self.body.len()),
        });
        stream.write_all(head.as_bytes())?;
        if to_head {
            return Ok(true);
        }
        let body = &self.body[..self.cut_after.unwrap_or(usize::MAX).min(self.body.len())];
        if self.chunked && !body.is_empty() {
            stream.write_all(format!("{:x}\r\n", self.body.len()).as_bytes())?;
        }
        stream.write_all(body)?;
        if self.cut_after.is_some() {
            return Ok(false);
        }
        if self.chunked {
            stream.write_all(if body.is_empty() { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" })?;
        }
        Ok(true)
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server, with a thread for each connection.
pub struct WebServer {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    handler: Box<Handler>,
    /// Guards only the list.
    requests: Mutex<Vec<Request>>,
    connections: AtomicU64,
    ignores_expectations: AtomicBool,
    stopped: AtomicBool,
}

impl WebServer {
    /// Answers each request with what `handler` makes of it, until it is dropped.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> WebServer {
        let listener = TcpListener::bind(ANY_PORT).expect("a loopback port");
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            connections: AtomicU64::new(0),
            ignores_expectations: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let shared = accepting.clone();
                // Clients may go before they have the whole answer.
                std::thread::spawn(move || drop(shared.converse(stream)));
            }
        });
        WebServer { addr, shared }
    }

    /// `127.0.0.1:PORT`
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:PORT/`
    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// From now on waits for bodies as if nobody had asked whether they are wanted.
    pub fn ignore_expectations(&self) {
        self.shared.ignores_expectations.store(true, Ordering::SeqCst);
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests of `method` came so far.
    pub fn count(&self, method: &str) -> usize {
        self.requests().iter().filter(|request| request.method == method).count()
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(mut request) = read_head(&mut reader)? {
            let waits = request.header("expect") == Some("100-continue")
                && !self.ignores_expectations.load(Ordering::SeqCst);
            let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let asked =
                if waits { Some(self.answer(&request)).filter(|reply| reply.status != 100) } else { None };
            if let Some(refusal) = asked {
                refusal.send(&mut stream, false)?;
                break;
            }
            if waits {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            request.body = Some(body);
            let reply = self.answer(&request);
            if self.stopped.load(Ordering::SeqCst) || !reply.send(&mut stream, request.method == "HEAD")? {
                break;
            }
        }
        stream.shutdown(std::net::Shutdown::Both)
    }

    fn answer(&self, request: &Request) -> Reply {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        (self.handler)(request)
    }
}

/// The head of the next request, if there is one.
fn read_head(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut lines = reader.lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    Ok(Some(Request { method, target, headers, body: None }))
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then lets go of the port.
        let _ = TcpStream::connect(self.addr);
    }
}
