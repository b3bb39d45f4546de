//! Conditional requests.
//!
//! The rules are those of RFC 9110 with S3's own addition (GetObject, "If-Match ... If-Unmodified-Since": the ETag's
//! verdict wins over the date's).

use hyper::header::{ETAG, HeaderMap, HeaderValue};
use s3s::dto::{ETag, ETagCondition, Timestamp};
use s3s::{S3Error, S3Result, s3_error};
use time::OffsetDateTime;

use super::store::Stored;

/// The conditions of a GET or HEAD.
#[derive(Default)]
pub(super) struct ReadConditions {
    pub if_match: Option<ETagCondition>,
    pub if_none_match: Option<ETagCondition>,
    pub if_modified_since: Option<Timestamp>,
    pub if_unmodified_since: Option<Timestamp>,
}

impl ReadConditions {
    /// Returns if the object is to be sent.
    ///
    /// # Errors
    /// 412 PreconditionFailed or 304 Not Modified.
    pub fn check(&self, stored: &Stored) -> S3Result<()> {
        let modified = seconds(&stored.last_modified.into());
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) if !holds(condition, stored) => return Err(failed()),
            (None, Some(time)) if modified > seconds(time) => return Err(failed()),
            _ => (),
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) if holds(condition, stored) => Err(not_modified(stored)),
            (None, Some(time)) if modified <= seconds(time) => Err(not_modified(stored)),
            _ => Ok(()),
        }
    }
}

/// Checks the conditions of a PUT against what has the key now.
///
/// # Errors
/// 412 PreconditionFailed, or 404 for `If-Match` on a key that doesn't exist, as on AWS.
pub(super) fn check_write(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    now: Option<&Stored>,
) -> S3Result<()> {
    match (if_match, now) {
        (Some(_), None) => return Err(s3_error!(NoSuchKey)),
        (Some(condition), Some(stored)) if !holds(condition, stored) => return Err(failed()),
        _ => (),
    }
    match (if_none_match, now) {
        (Some(condition), Some(stored)) if holds(condition, stored) => Err(failed()),
        _ => Ok(()),
    }
}

fn holds(condition: &ETagCondition, stored: &Stored) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(ETag::Strong(etag) | ETag::Weak(etag)) => *etag == stored.etag,
    }
}

fn failed() -> S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

/// As an error, since `s3s` ignores the status of a good answer to a GET.
fn not_modified(stored: &Stored) -> S3Error {
    let mut error = s3_error!(NotModified);
    if let Ok(etag) = HeaderValue::try_from(format!("\"{}\"", stored.etag)) {
        error.set_headers(HeaderMap::from_iter([(ETAG, etag)]));
    }
    error
}

fn seconds(time: &Timestamp) -> i64 {
    OffsetDateTime::from(time.clone()).unix_timestamp()
}
