//! The layer around `s3s` that counts requests and makes them go wrong.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue};
use hyper::{Request, Response, StatusCode};
use s3s::Body;
use s3s::service::S3Service;

use super::body::OutgoingBody;
use super::counts::{Counters, Logged};
use super::dialect::Dialect;
use super::faults::{Faults, Plan};
use super::incoming::{self, IncomingBody};
use super::listener::Connection;
use super::request::logged;
use super::store::{ObjectOptions, Store};

/// Tells the backend to answer a range with the whole object.
#[derive(Clone, Copy)]
pub(super) struct IgnoreRange;

/// What all requests share.
pub(super) struct Service {
    pub s3: S3Service,
    pub store: Arc<Store>,
    pub counters: Counters,
    pub faults: Faults,
    pub dialect: Dialect,
}

impl Service {
    /// Answers one request.
    pub async fn answer(
        &self,
        mut request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response<OutgoingBody>, s3s::HttpError> {
        let about = logged(&request);
        let ongoing = self.counters.begin(about.clone());
        let mut plan = self.faults.plan(&about);
        if !plan.delay.is_zero() {
            tokio::time::sleep(plan.delay).await;
        }
        if let Some((_, latch)) = plan.hold.take_if(|(after, _)| *after == 0) {
            latch.wait().await;
        }
        if let Some(after) = plan.cut_upload {
            incoming::read(request.body_mut(), after).await;
            return Err(hang_up());
        }
        let status = plan.status.take().or_else(|| self.dialect.refusal(&request));
        let response = match status {
            Some((status, code)) => {
                // Answered before its end, an upload's sender may see a reset connection instead of the answer.
                incoming::read(request.body_mut(), u64::MAX).await;
                error(status, &code)
            }
            None => self.serve(request, &about, &plan).await?,
        };
        if plan.lose_answer {
            return Err(hang_up());
        }
        let good = response.status().is_success();
        Ok(response.map(|body| match good {
            true => OutgoingBody::new(body, plan, connection, ongoing),
            false => OutgoingBody::of_error(body, connection, ongoing),
        }))
    }

    async fn serve(
        &self,
        request: Request<Incoming>,
        about: &Logged,
        plan: &Plan,
    ) -> Result<Response<Body>, s3s::HttpError> {
        let mut request = request.map(|body| Body::http_body(IncomingBody::new(body, plan.corrupt_upload)));
        if plan.ignore_range {
            request.extensions_mut().insert(IgnoreRange);
        }
        let mut response = self.s3.call(request).await?;
        if let Some(bytes) = &plan.replace {
            self.store.put(&about.key, bytes.clone(), ObjectOptions::default());
        }
        if plan.wrong_etag && response.status() == StatusCode::PARTIAL_CONTENT {
            let etag = HeaderValue::from_static("\"ffffffffffffffffffffffffffffffff\"");
            response.headers_mut().insert(ETAG, etag);
        }
        complete(&mut response);
        Ok(response)
    }
}

/// Has the connection closed without an answer.
fn hang_up() -> s3s::HttpError {
    s3s::HttpError::new("no answer, as the test wants it".into())
}

/// Makes up for what `s3s` can't say: a ranged answer to a HEAD, and a 304 without a body.
fn complete(response: &mut Response<Body>) {
    if response.headers().contains_key(CONTENT_RANGE) && response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    if response.status() == StatusCode::NOT_MODIFIED {
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(CONTENT_LENGTH);
        response.headers_mut().remove(CONTENT_TYPE);
    }
}

/// An S3 error answer.
fn error(status: u16, code: &str) -> Response<Body> {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>Injected by the test.</Message><RequestId>0000000000000000</RequestId></Error>"
    );
    let mut response = Response::new(Body::from(xml));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}
