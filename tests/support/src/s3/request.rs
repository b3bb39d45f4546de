//! What a request is about, read from its line and headers alone.

use hyper::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, RANGE};
use hyper::{Method, Request, Uri};

use super::counts::Logged;

/// The kinds of request that counters and faults tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// HeadObject.
    Head,
    /// GetObject.
    Get,
    /// ListObjectsV2.
    List,
    /// PutObject.
    Put,
    /// UploadPart.
    Part,
    /// CreateMultipartUpload.
    Create,
    /// CompleteMultipartUpload.
    Complete,
    /// AbortMultipartUpload.
    Abort,
    /// DeleteObject.
    Delete,
    /// Anything else.
    Other,
}

/// Where an upload says its CRC64NVME.
const CRC64NVME: HeaderName = HeaderName::from_static("x-amz-checksum-crc64nvme");

/// Query parameters that make a GET or PUT of an object something else.
const SUBRESOURCES: [&str; 8] =
    ["acl", "attributes", "legal-hold", "retention", "tagging", "torrent", "uploads", "uploadId"];

/// Reads what `request` is about.
pub(super) fn logged<B>(request: &Request<B>) -> Logged {
    let (op, key) = classify(request.method(), request.uri());
    Logged {
        op,
        key,
        range: header(request.headers(), &RANGE),
        if_match: header(request.headers(), &IF_MATCH),
        if_none_match: header(request.headers(), &IF_NONE_MATCH),
        part: parameter(request.uri(), "partNumber").and_then(|number| number.parse().ok()),
        checksum: header(request.headers(), &CRC64NVME),
        signed: request.headers().contains_key(hyper::header::AUTHORIZATION)
            || parameter(request.uri(), "X-Amz-Signature").is_some(),
    }
}

fn classify(method: &Method, uri: &Uri) -> (Op, String) {
    let key = key_of(uri.path());
    let plain = !SUBRESOURCES.iter().any(|name| parameter(uri, name).is_some());
    let (new, upload) = (parameter(uri, "uploads").is_some(), parameter(uri, "uploadId").is_some());
    let op = match (method.as_str(), key.is_empty()) {
        ("GET", true) if parameter(uri, "list-type").is_some() => {
            return (Op::List, parameter(uri, "prefix").unwrap_or_default());
        }
        ("GET", false) if plain => Op::Get,
        ("HEAD", false) => Op::Head,
        ("PUT", false) if plain => Op::Put,
        ("PUT", false) if upload => Op::Part,
        ("POST", false) if new => Op::Create,
        ("POST", false) if upload => Op::Complete,
        ("DELETE", false) if plain => Op::Delete,
        ("DELETE", false) if upload => Op::Abort,
        _ => Op::Other,
    };
    (op, key)
}

/// The key in a path-style path; empty for the bucket itself.
fn key_of(path: &str) -> String {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split_once('/').map(|(_, key)| decode(key)).unwrap_or_default()
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(&value.replace('+', " ")))
    })
}

/// Undoes percent-encoding; what isn't UTF-8 is replaced, as it can't be a key anyway.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The first byte that a `Range` header asks for; 0 without one or for a suffix.
pub(super) fn range_start(range: Option<&str>) -> u64 {
    range
        .and_then(|range| range.strip_prefix("bytes="))
        .and_then(|range| range.split('-').next())
        .and_then(|first| first.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, uri: &str) -> (Op, String) {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        classify(&method, &uri.parse().expect("a URI"))
    }

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(of("GET", "/b/a%2Fb%0a?x-id=GetObject"), (Op::Get, "a/b\n".into()));
        assert_eq!(of("GET", "/b/k?acl"), (Op::Other, "k".into()));
        assert_eq!(of("GET", "/b?list-type=2&prefix=a+b%2F"), (Op::List, "a b/".into()));
        assert_eq!(of("HEAD", "/b/../x"), (Op::Head, "../x".into()));
        assert_eq!(of("HEAD", "/b/"), (Op::Other, String::new()));
        assert_eq!(of("PUT", "/b//k?partNumber=1&uploadId=u"), (Op::Part, "/k".into()));
        assert_eq!(of("PUT", "/b/k?x-id=PutObject"), (Op::Put, "k".into()));
        assert_eq!(of("POST", "/b/k?uploads"), (Op::Create, "k".into()));
        assert_eq!(of("POST", "/b/k?uploadId=u"), (Op::Complete, "k".into()));
        assert_eq!(of("DELETE", "/b/k?uploadId=u"), (Op::Abort, "k".into()));
    }

    #[test]
    fn starts_of_ranges() {
        assert_eq!(range_start(Some("bytes=7-9")), 7);
        assert_eq!(range_start(Some("bytes=-9")), 0);
        assert_eq!(range_start(None), 0);
    }
}
