//! Signature Version 4 for S3, as far as a test's client needs it: headers, an unsigned payload, no session.
//!
//! After "Authenticating Requests (AWS Signature Version 4)" in the API reference of Amazon S3.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

const REGION: &str = "us-east-1";
const PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// The headers that sign a request with this `Host`, and those of `headers` that S3 wants signed. `target` must be
/// percent-encoded already.
pub(super) fn headers(
    host: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    (access_key, secret_key): (&str, &str),
) -> [(&'static str, String); 3] {
    let now = OffsetDateTime::now_utc()
        .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .expect("a time of this age has this form");
    let mut signed = vec![("host", host), ("x-amz-content-sha256", PAYLOAD), ("x-amz-date", &now)];
    signed.extend(headers.iter().filter(|(name, _)| name.starts_with("x-amz-")));
    signed.sort_unstable();
    let authorization = authorization(method, target, &signed, access_key, secret_key, &now);
    [("x-amz-content-sha256", PAYLOAD.to_owned()), ("x-amz-date", now), ("authorization", authorization)]
}

fn authorization(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    access_key: &str,
    secret_key: &str,
    now: &str,
) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let signed = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let canonical = format!("{method}\n{path}\n{}\n{lines}\n{signed}\n{PAYLOAD}", sorted(query));
    let day = &now[..8];
    let scope = format!("{day}/{REGION}/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{now}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let mut key = format!("AWS4{secret_key}").into_bytes();
    for part in [day, REGION, "s3", "aws4_request"] {
        key = hmac(&key, part);
    }
    let signature = hex(&hmac(&key, &text));
    format!("AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={signed}, Signature={signature}")
}

fn sorted(query: &str) -> String {
    let mut pairs: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
        .collect();
    pairs.sort();
    pairs.join("&")
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    hmac.update(text.as_bytes());
    hmac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
