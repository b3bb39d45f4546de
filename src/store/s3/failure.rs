//! What a failed request to S3 means.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Error, Kind, causes, chain, one_line};

/// A failed request, with S3's own error code when it sent one (a HEAD's answer has no body to hold it).
pub struct Failure {
    pub error: Error,
    code: Option<String>,
    status: Option<u16>,
}

impl Failure {
    /// Classifies `error`; `what` names the object or listing.
    pub fn new<E>(error: &SdkError<E, HttpResponse>, what: &str) -> Failure
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
        Failure { error: Error::new(kind, one_line(&format!("{what}: {text}"))), code, status }
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

/// The server answered with an error
/// (codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>).
fn answered(status: u16, code: Option<&str>, message: Option<&str>) -> (Kind, String) {
    let said = match (code, message) {
        (Some(code), Some(message)) => format!("{code} ({message})"),
        (Some(code), None) => code.to_owned(),
        _ => format!("HTTP status {status}"),
    };
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
    let no_http = causes(error).any(|e| e.downcast_ref::<hyper::Error>().is_some_and(|e| e.is_parse()));
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
