//! What a failed request to S3 means.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Error, Kind, causes, chain, one_line};
use crate::store::connector::{Trouble, trouble};

/// What an error answer means, by its status and S3's own code and message.
type Reading = fn(u16, Option<&str>, Option<&str>) -> (Kind, String);

/// A failed request, with S3's own error code when it sent one (a HEAD's answer has no body to hold it).
pub struct Failure {
    pub error: Error,
    code: Option<String>,
    status: Option<u16>,
    /// It was tried as often as it may be.
    spent: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, code: None, status: None, spent: false }
    }
}

impl Failure {
    /// Classifies `error`; `what` names the object or listing.
    pub fn new<E>(error: &SdkError<E, HttpResponse>, what: &str) -> Failure
    where
        E: StdError + ProvideErrorMetadata + 'static,
    {
        Failure::classify(error, what, answered)
    }

    /// Classifies the `error` of a request that was to change the object `what`.
    pub fn of_write<E>(error: &SdkError<E, HttpResponse>, what: &str) -> Failure
    where
        E: StdError + ProvideErrorMetadata + 'static,
    {
        Failure::classify(error, what, write_answered)
    }

    fn classify<E>(error: &SdkError<E, HttpResponse>, what: &str, answered: Reading) -> Failure
    where
        E: StdError + ProvideErrorMetadata + 'static,
    {
        let code = error.code().map(str::to_owned);
        let status = error.raw_response().map(|response| response.status().as_u16());
        let (kind, text) = match (error, status) {
            (SdkError::ServiceError(_) | SdkError::ResponseError(_), Some(status)) => {
                answered(status, code.as_deref(), error.message())
            }
            _ => unanswered(error),
        };
        Failure { error: Error::new(kind, one_line(&format!("{what}: {text}"))), code, status, spent: false }
    }

    /// Whether another attempt may do better.
    pub fn may_pass(&self) -> bool {
        !self.spent && (self.error.is_transient() || self.is_no_upload())
    }

    /// The same, as the last of all attempts.
    pub fn spent(self) -> Failure {
        Failure { spent: true, ..self }
    }

    /// The object `what` exists, as a failed precondition would say.
    pub fn taken(what: &str) -> Failure {
        let error = Error::new(Kind::Exists, format!("{what}: there is one already"));
        Failure { status: Some(412), ..error.into() }
    }

    /// Whether there is no such object, bucket aside.
    pub fn is_no_object(&self) -> bool {
        self.status == Some(404) && self.code.as_deref() != Some("NoSuchBucket")
    }

    /// Whether the precondition of a write failed: the key holds an object.
    pub fn is_taken(&self) -> bool {
        self.status == Some(412)
    }

    /// Whether the multipart upload isn't known, or not any more.
    pub fn is_no_upload(&self) -> bool {
        self.code.as_deref() == Some("NoSuchUpload")
    }

    /// Whether something in the request isn't implemented.
    pub fn is_not_implemented(&self) -> bool {
        self.status == Some(501) || self.code.as_deref() == Some("NotImplemented")
    }

    /// Whether the server calls the request itself wrong, as one may that doesn't know a header of it.
    pub fn is_bad_request(&self) -> bool {
        let code = self.code.as_deref().unwrap_or("InvalidRequest");
        self.status == Some(400) && matches!(code, "InvalidRequest" | "InvalidArgument" | "BadRequest")
    }

    /// Whether this refusal of a listing is about the right to list alone, not about the credentials.
    pub fn is_list_denial(&self) -> bool {
        // Without an answer it was the credentials' own source that failed.
        if self.status.is_none() {
            return false;
        }
        let code = self.code.as_deref().unwrap_or("AccessDenied");
        match self.error.kind() {
            Kind::AccessDenied => matches!(code, "AccessDenied" | "AllAccessDisabled" | "Forbidden"),
            _ => matches!(code, "NotImplemented" | "MethodNotAllowed"),
        }
    }

    /// Whether this is a 400 that doesn't say what was bad.
    pub fn is_unexplained_bad_request(&self) -> bool {
        self.status == Some(400) && self.code.is_none()
    }
}

/// What the server said, as far as it did.
fn said(status: u16, code: Option<&str>, message: Option<&str>) -> String {
    match (code, message) {
        (Some(code), Some(message)) => format!("{code} ({message})"),
        (Some(code), None) => code.to_owned(),
        _ => format!("HTTP status {status}"),
    }
}

/// The server answered with an error
/// (codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>).
fn answered(status: u16, code: Option<&str>, message: Option<&str>) -> (Kind, String) {
    let said = said(status, code, message);
    match (code.unwrap_or_default(), status) {
        ("NoSuchBucket", _) => {
            (Kind::NotFound, format!("{said}: there is no such bucket; check --remote and --endpoint-url"))
        }
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "TokenRefreshRequired", _) => (
            Kind::AccessDenied,
            format!("{said}: the remote refuses the credentials; check --profile and the AWS variables"),
        ),
        ("ExpiredToken", _) => {
            (Kind::AccessDenied, format!("{said}: the credentials have expired; log in again"))
        }
        ("RequestTimeTooSkewed", _) => (Kind::AccessDenied, format!("{said}: set this machine's clock")),
        ("AuthorizationHeaderMalformed" | "PermanentRedirect", _) | (_, 301 | 307) => {
            (Kind::Remote, format!("{said}: the bucket lies in another region; give --region"))
        }
        (_, 404) => (Kind::NotFound, format!("{said}: no such object")),
        (_, 401 | 403) => {
            (Kind::AccessDenied, format!("{said}: access denied; check the credentials and their rights"))
        }
        (_, 412 | 416) => (Kind::Changed, format!("{said}: the object was replaced; open it again")),
        (_, 408) => (Kind::TimedOut, format!("{said}: timed out; try again")),
        (_, 200..=299) => {
            (Kind::Remote, format!("{said}: not an answer of S3; is the endpoint an S3 server?"))
        }
        _ => (Kind::Remote, format!("{said}: the remote fails; try again later")),
    }
}

/// The server answered a write with an error.
fn write_answered(status: u16, code: Option<&str>, message: Option<&str>) -> (Kind, String) {
    let (kind, text) = answered(status, code, message);
    let said = said(status, code, message);
    match (code.unwrap_or_default(), status) {
        ("NoSuchBucket", _) => (Kind::Refused, text),
        ("RequestTimeout", _) => (Kind::TimedOut, format!("{said}: timed out; try again")),
        // Of bytes that have changed on the way.
        ("BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "IncompleteBody", _) => {
            (Kind::Damaged, format!("{said}: not what was sent has arrived; try again"))
        }
        ("EntityTooLarge", _) | (_, 413) => (Kind::Refused, format!("{said}: too large for this remote")),
        // It passes, once that write is over; whatever else is a conflict doesn't.
        ("ConditionalRequestConflict" | "OperationAborted", 409) => {
            (Kind::Remote, format!("{said}: another write of it is under way; try again later"))
        }
        (_, 405 | 501) => {
            (Kind::Refused, format!("{said}: the remote doesn't take uploads; check --endpoint-url"))
        }
        // Rights and credentials, time-outs, throttling, and another region have been told apart above.
        (_, 400..=499) if matches!(kind, Kind::Remote | Kind::NotFound | Kind::Changed) && status != 429 => {
            (Kind::Refused, format!("{said}: the remote refuses it; see --remote and --endpoint-url"))
        }
        _ => (kind, text),
    }
}

/// No answer came that could be read.
fn unanswered<E>(error: &SdkError<E, HttpResponse>) -> (Kind, String)
where
    E: StdError + 'static,
{
    let cause = chain(error);
    if let Some(cause) = causes(error).find_map(|e| e.downcast_ref::<CredentialsError>()) {
        let cause = chain(cause);
        return (
            Kind::AccessDenied,
            format!("no usable credentials ({cause}); check --profile and the AWS variables"),
        );
    }
    let timed_out = match error {
        SdkError::TimeoutError(_) => true,
        SdkError::DispatchFailure(failure) => failure.is_timeout(),
        _ => false,
    };
    let no_http = matches!(trouble(error), Trouble::NotHttp | Trouble::Unasked);
    if timed_out {
        (
            Kind::TimedOut,
            format!("the remote doesn't answer in time ({cause}); check the network and --endpoint-url"),
        )
    } else if no_http {
        (Kind::Remote, format!("the answer is not HTTP ({cause}); is the endpoint an S3 server?"))
    } else {
        (Kind::Unreachable, format!("can't reach the remote ({cause}); check the network and --endpoint-url"))
    }
}
