//! Who may do what.

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{Credentials, S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use super::Options;

/// What a caller may do with the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read objects and their metadata.
    pub get: bool,
    /// List the bucket. Without it a missing key answers 403 AccessDenied instead of 404 NoSuchKey, as on AWS.
    pub list: bool,
    /// Put and delete objects.
    pub put: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Access = Access { get: true, list: true, put: true };
    /// Nothing.
    pub const NONE: Access = Access { get: false, list: false, put: false };
    /// Objects by name alone: what the public has of the bucket `aztec-ci-artifacts`.
    pub const GET: Access = Access { get: true, ..Access::NONE };
}

/// The server's rules.
#[derive(Clone)]
pub(super) struct Rules(Options);

impl Rules {
    pub fn new(options: Options) -> Rules {
        Rules(options)
    }

    pub fn of(&self, credentials: Option<&Credentials>) -> Access {
        match credentials {
            Some(_) => self.0.signed,
            None => self.0.anonymous,
        }
    }
}

#[async_trait::async_trait]
impl S3Auth for Rules {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key != self.0.access_key {
            let text = "The AWS Access Key Id you provided does not exist in our records.";
            return Err(s3_error!(InvalidAccessKeyId, "{text}"));
        }
        Ok(SecretKey::from(self.0.secret_key.as_str()))
    }
}

#[async_trait::async_trait]
impl S3Access for Rules {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        match context.s3_path().get_bucket_name() {
            Some(bucket) if bucket == self.0.bucket => (),
            Some(_) => return Err(s3_error!(NoSuchBucket, "The specified bucket does not exist")),
            None => return Err(s3_error!(NotImplemented)),
        }
        let access = self.of(context.credentials());
        let allowed = match context.s3_op().name() {
            "GetObject" | "HeadObject" => access.get,
            "ListObjectsV2" | "HeadBucket" => access.list,
            "PutObject"
            | "DeleteObject"
            | "CreateMultipartUpload"
            | "UploadPart"
            | "CompleteMultipartUpload"
            | "AbortMultipartUpload" => access.put,
            _ => context.credentials().is_some(),
        };
        if allowed { Ok(()) } else { Err(s3_error!(AccessDenied, "Access Denied")) }
    }
}
