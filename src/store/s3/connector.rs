//! The connection pool as the SDK wants it: its stock connector can't leave certificates unchecked and panics on a bad
//! bundle.

use aws_smithy_runtime_api::client::http::{HttpConnector as SdkConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use hyper::header::HeaderMap;
use hyper_util::client::legacy::Error as ClientError;

use crate::config::S3Options;
use crate::error::Result;
use crate::metrics::RETRIES;
use crate::store::connector::{Pool, Trouble, count, pool, trouble};

/// A pool of connections. Clones share it.
#[derive(Clone, Debug)]
pub struct Connector {
    pool: Pool<SdkBody>,
    counted: bool,
}

impl Connector {
    /// # Errors
    /// A CA bundle that can't be read or holds no certificate.
    pub fn new(options: &S3Options) -> Result<Connector> {
        Ok(Connector { pool: pool(options)?, counted: true })
    }

    /// The same for requests that don't go to the remote: for credentials.
    pub fn uncounted(&self) -> Connector {
        Connector { counted: false, ..self.clone() }
    }
}

impl SdkConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, counted) = (self.pool.clone(), self.counted);
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
            if counted {
                count(request.method(), request.uri());
                if is_retry(request.headers()) {
                    RETRIES.count();
                }
            }
            let response = client.request(request).await.map_err(connector_error)?;
            let response = response.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

/// Whether the SDK sends it again by itself. It numbers its attempts, for the server to see.
fn is_retry(headers: &HeaderMap) -> bool {
    let attempts = headers.get("amz-sdk-request").and_then(|value| value.to_str().ok());
    attempts.is_some_and(|text| !text.split("; ").any(|part| part == "attempt=1"))
}

/// Tells the SDK what kind of trouble it was: it retries time-outs and I/O, not answers that aren't HTTP.
fn connector_error(error: ClientError) -> ConnectorError {
    match trouble(&error) {
        Trouble::TimedOut => ConnectorError::timeout(error.into()),
        Trouble::NotHttp => ConnectorError::other(error.into(), None),
        Trouble::Unasked | Trouble::Io => ConnectorError::io(error.into()),
    }
}
