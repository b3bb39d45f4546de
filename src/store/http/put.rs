//! Uploads to a web server that takes them: PUT, to wherever it sends us.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::ext::on_informational;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::checksum::Algorithm;
use crate::error::{Error, Kind, Result};
use crate::object::{Key, ObjectVersion};
use crate::store::attempts::Attempts;
use crate::store::http::client::Answer;
use crate::store::http::{HttpStore, USER_AGENT, refusal};
use crate::store::payload::Transfer;
use crate::store::{Existing, ObjectStore, Payload, Put};

/// From so many bytes on the server is asked whether it wants them before they are sent (RFC 9110, 10.1.1): it may send us
/// elsewhere.
const ASK_FROM: u64 = 1 << 20;
/// How long it may take to say so. Not all do.
const ASK_FOR: Duration = Duration::from_secs(1);

impl HttpStore {
    /// [`ObjectStore::put`].
    pub(super) async fn upload(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        let what = self.what(key);
        let checksum = payload.checksum_of(Algorithm::Crc64Nvme, 0..payload.size).await?;
        payload.check(&checksum, &what)?;
        let mut attempts = Attempts::new(self.patience());
        // A request of which no answer came may have stored it.
        let mut unheard = false;
        loop {
            // Few web servers know conditions.
            if (unheard || existing == Existing::Keep)
                && let Some(put) = self.look(key, payload, existing, unheard).await?
            {
                return Ok(put);
            }
            let error = match self.put_once(key, payload, existing, &what).await {
                Ok(Some(version)) => return Ok(Put::Stored(version)),
                Ok(None) if unheard => {
                    let found = self.look(key, payload, existing, unheard).await?;
                    return Ok(found.unwrap_or(Put::Kept));
                }
                Ok(None) => return Ok(Put::Kept),
                Err(error) => error,
            };
            unheard = true;
            if !error.is_transient() || !attempts.again(&error).await {
                return Err(error);
            }
        }
    }

    /// What the key holds already, as far as that settles the upload.
    async fn look(
        &self,
        key: &Key,
        payload: &Payload,
        existing: Existing,
        unheard: bool,
    ) -> Result<Option<Put>> {
        match self.head(key).await {
            // If its tag is an MD5, it is that of the whole.
            Ok(found) if unheard && payload.is(&found, u64::MAX).await? => {
                payload.sent.fetch_add(payload.size, Ordering::Relaxed);
                Ok(Some(Put::Stored(found)))
            }
            Ok(_) => Ok((existing == Existing::Keep).then_some(Put::Kept)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The version that was stored; None when one was there and is kept.
    async fn put_once(
        &self,
        key: &Key,
        payload: &Payload,
        existing: Existing,
        what: &str,
    ) -> Result<Option<ObjectVersion>> {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(payload.size));
        if existing == Existing::Keep {
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let uri = self.uri(key.as_str(), what)?;
        let send = |request| self.send_payload(request, payload, what);
        let answer = self.client.follow(&Method::PUT, &uri, &headers, what, send).await?;
        match answer.response.status() {
            status if status.is_success() => self.verify(key, payload, what).await.map(Some),
            StatusCode::PRECONDITION_FAILED => Ok(None),
            _ => Err(write_refusal(&answer, what)),
        }
    }

    async fn send_payload(
        &self,
        mut request: Request<SdkBody>,
        payload: &Payload,
        what: &str,
    ) -> Result<Response<Incoming>> {
        let transfer = Transfer::new(payload, 0..payload.size);
        let patience = self.patience();
        *request.body_mut() = transfer.body();
        if payload.size >= ASK_FROM {
            request = when_wanted(request, ASK_FOR.min(patience.stall / 2));
        }
        let response = transfer.watch(patience, what, self.client.ask(request, what)).await??;
        if response.status().is_success() {
            transfer.settle();
        }
        Ok(response)
    }

    /// Looks at what is there now, which the answer to a PUT doesn't tell.
    async fn verify(&self, key: &Key, payload: &Payload, what: &str) -> Result<ObjectVersion> {
        match self.head(key).await {
            Ok(found) if found.size == payload.size => {
                Ok(ObjectVersion { checksum: Some(Arc::new(payload.checksum.clone())), ..found })
            }
            Ok(found) => {
                let (size, got) = (payload.size, found.size);
                let text = format!("{what}: {size} bytes were sent, {got} are there; try again");
                Err(Error::new(Kind::Damaged, text))
            }
            Err(error) if error.kind() == Kind::NotFound => {
                let text = format!("{what}: the server took it and doesn't have it; try again later");
                Err(Error::new(Kind::Remote, text))
            }
            Err(error) => Err(error),
        }
    }
}

/// What an answer to a PUT means that isn't a good one.
fn write_refusal(answer: &Answer, what: &str) -> Error {
    let status = answer.response.status();
    let said = format!("{what}: HTTP status {status}");
    match status.as_u16() {
        401 | 403 => Error::new(
            Kind::AccessDenied,
            format!("{said}: the server takes no upload from us; check the user and the password"),
        ),
        413 => Error::new(Kind::Refused, format!("{said}: too large for this remote")),
        408 | 429 => refusal(answer, what),
        501 | 505 | 300..=499 => {
            Error::new(Kind::Refused, format!("{said}: the server doesn't take it; check --remote"))
        }
        _ => refusal(answer, what),
    }
}

/// `request` with a body that waits until the server says that it wants it, or for `patience`.
fn when_wanted(mut request: Request<SdkBody>, patience: Duration) -> Request<SdkBody> {
    let (wanted, mut asked) = watch::channel(());
    request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            wanted.send_replace(());
        }
    });
    request.map(|body| {
        let gate = async move { drop(timeout(patience, asked.changed()).await) };
        SdkBody::from_body_1_x(GatedBody { gate: Some(Box::pin(gate)), body })
    })
}

/// A body that is held until its gate opens.
struct GatedBody {
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    body: SdkBody,
}

impl Body for GatedBody {
    type Data = Bytes;
    type Error = <SdkBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(gate) = &mut self.gate {
            ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
