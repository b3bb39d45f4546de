//! A small HTTP/1.1 client without a runtime: one request per connection, nothing retried, nothing followed.
//!
//! For raw looks at a server that the code under test would hide: exact headers, cut bodies, half an answer.

mod sigv4;

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No read or write may take longer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends requests to one server, signed or not.
#[derive(Clone, Debug)]
pub struct Client {
    addr: SocketAddr,
    credentials: Option<(String, String)>,
}

impl Client {
    /// Sends unsigned requests.
    pub fn new(addr: SocketAddr) -> Client {
        Client { addr, credentials: None }
    }

    /// Sends requests signed with Signature Version 4 for the region us-east-1.
    pub fn signed(addr: SocketAddr, access_key: &str, secret_key: &str) -> Client {
        Client { addr, credentials: Some((access_key.to_owned(), secret_key.to_owned())) }
    }

    /// Sends a request and reads the whole answer. `target` is a path with query, percent-encoded.
    pub fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        self.begin(method, target, headers, body)?.finish()
    }

    /// GETs `target`.
    pub fn get(&self, target: &str) -> io::Result<Response> {
        self.send("GET", target, &[], &[])
    }

    /// Sends a request and reads no further than the head of the answer.
    pub fn begin(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        self.start(method, target, headers, body)?.head()
    }

    /// Sends a request and reads nothing at all.
    pub fn start(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Sent> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.addr);
        if !body.is_empty() || matches!(method, "PUT" | "POST") {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        let signature = self.credentials.iter().flat_map(|(access_key, secret_key)| {
            sigv4::headers(&self.addr.to_string(), method, target, headers, (access_key, secret_key))
        });
        for (name, value) in signature {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        (&stream).write_all(head.as_bytes())?;
        (&stream).write_all(body)?;
        Ok(Sent { stream, bodiless: method == "HEAD" })
    }
}

/// A request whose answer hasn't been looked at.
#[derive(Debug)]
pub struct Sent {
    stream: TcpStream,
    bodiless: bool,
}

impl Sent {
    /// Reads the head of the answer.
    pub fn head(self) -> io::Result<Answer> {
        let mut stream = BufReader::new(self.stream);
        let status_line = line(&mut stream)?;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {status_line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = line(&mut stream)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let bodiless = self.bodiless || matches!(status, 204 | 304);
        Ok(Answer { response: Response { status, headers, body: Vec::new(), cut: false }, stream, bodiless })
    }
}

/// An answer whose head has come.
#[derive(Debug)]
pub struct Answer {
    response: Response,
    stream: BufReader<TcpStream>,
    bodiless: bool,
}

impl Answer {
    /// The head, and what [`read`](Self::read) has brought of the body.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// Reads exactly `n` further body bytes, of a body that isn't chunked.
    pub fn read(&mut self, n: usize) -> io::Result<&[u8]> {
        let from = self.response.body.len();
        self.response.body.resize(from + n, 0);
        self.stream.read_exact(&mut self.response.body[from..])?;
        Ok(&self.response.body[from..])
    }

    /// Reads the rest. A body that ends too early isn't an error, but [`Response::cut`].
    pub fn finish(mut self) -> io::Result<Response> {
        if self.bodiless {
            return Ok(self.response);
        }
        if self.response.header("transfer-encoding") == Some("chunked") {
            return self.finish_chunked();
        }
        let length = self.response.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let body = &mut self.response.body;
        let left = length.map_or(u64::MAX, |length| (length - body.len().min(length)) as u64);
        let result = (&mut self.stream).take(left).read_to_end(body);
        self.response.cut = result.is_err() || length.is_some_and(|length| body.len() < length);
        Ok(self.response)
    }

    fn finish_chunked(mut self) -> io::Result<Response> {
        loop {
            let size = line(&mut self.stream)?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or(""), 16);
            let size = size.map_err(io::Error::other)?;
            self.read(size)?;
            line(&mut self.stream)?;
            if size == 0 {
                return Ok(self.response);
            }
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order sent.
    pub headers: Vec<(String, String)>,
    /// As much of the body as has come.
    pub body: Vec<u8>,
    /// The connection ended before the body did.
    pub cut: bool,
}

impl Response {
    /// The first header of this name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as text; what isn't UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `Code` of an S3 error.
    pub fn code(&self) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.split_once("<Code>")?;
        rest.split_once("</Code>").map(|(code, _)| code.to_owned())
    }
}

/// The path-style path of an object, percent-encoded as Signature Version 4 wants it.
pub fn object_path(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", percent_encode(key, true))
}

/// Percent-encodes all but the unreserved characters of RFC 3986, and all but `/` if `keep_slash`.
pub fn percent_encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b'/' if keep_slash => out.push('/'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
