//! What of S3 a server may lack, as others than Amazon's do.

use bytes::Bytes;
use hyper::header::{HeaderMap, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request};
use s3s::S3Result;
use s3s::dto::{Checksum, ETagCondition};

use super::store::Stored;
use super::{checksums, conditions};

/// How a server takes something that it may lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Support {
    /// As S3 does.
    #[default]
    Full,
    /// As if it weren't in the request.
    Ignored,
    /// By refusing the request.
    Refused,
}

/// What it lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dialect {
    pub conditional_writes: Support,
    pub checksums: Support,
}

impl Dialect {
    /// The status and the code that a write is refused with for what is in it.
    pub fn refusal<B>(self, request: &Request<B>) -> Option<(u16, String)> {
        if !matches!(*request.method(), Method::PUT | Method::POST) {
            return None;
        }
        let headers = request.headers();
        let conditional = headers.contains_key(IF_NONE_MATCH) || headers.contains_key(IF_MATCH);
        if self.conditional_writes == Support::Refused && conditional {
            return Some((501, "NotImplemented".to_owned()));
        }
        (self.checksums == Support::Refused && has_checksum(headers))
            .then(|| (400, "InvalidRequest".to_owned()))
    }

    /// [`conditions::check_write`], where conditions are known.
    pub fn check_write(
        self,
        if_match: Option<&ETagCondition>,
        if_none_match: Option<&ETagCondition>,
        now: Option<&Stored>,
    ) -> S3Result<()> {
        match self.conditional_writes {
            Support::Full => conditions::check_write(if_match, if_none_match, now),
            _ => Ok(()),
        }
    }

    /// [`checksums::verify`], where checksums are known; the one to keep and to tell.
    pub fn verify(self, bytes: &[Bytes], claimed: &Checksum) -> S3Result<Option<Checksum>> {
        match self.checksums {
            Support::Full => checksums::verify(bytes, claimed).map(Some),
            _ => Ok(None),
        }
    }
}

fn has_checksum(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        name.as_str().starts_with("x-amz-checksum-") || name.as_str() == "x-amz-sdk-checksum-algorithm"
    })
}
