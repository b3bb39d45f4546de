//! The connection pool as the SDK wants it: its stock connector can't leave certificates unchecked and panics on a bad
//! bundle.

use aws_smithy_runtime_api::client::http::{HttpConnector as SdkConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use hyper_util::client::legacy::Error as ClientError;

use crate::config::S3Options;
use crate::error::Result;
use crate::store::connector::{Pool, Trouble, pool, trouble};

/// A pool of connections. Clones share it.
#[derive(Clone, Debug)]
pub struct Connector(Pool<SdkBody>);

impl Connector {
    /// # Errors
    /// A CA bundle that can't be read or holds no certificate.
    pub fn new(options: &S3Options) -> Result<Connector> {
        pool(options).map(Connector)
    }
}

impl SdkConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
            let response = client.request(request).await.map_err(connector_error)?;
            let response = response.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

/// Tells the SDK what kind of trouble it was: it retries time-outs and I/O, not answers that aren't HTTP.
fn connector_error(error: ClientError) -> ConnectorError {
    match trouble(&error) {
        Trouble::TimedOut => ConnectorError::timeout(error.into()),
        Trouble::NotHttp => ConnectorError::other(error.into(), None),
        Trouble::Io => ConnectorError::io(error.into()),
    }
}
