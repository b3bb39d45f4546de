//! The body of a request on its way in: damaged or cut as the faults have it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// What the S3 layer reads.
pub(super) struct IncomingBody {
    inner: Incoming,
    seen: u64,
    corrupt: Option<u64>,
}

impl IncomingBody {
    /// The body with a bit of the byte `corrupt` flipped.
    pub fn new(inner: Incoming, corrupt: Option<u64>) -> Self {
        IncomingBody { inner, seen: 0, corrupt }
    }

    fn damage(&mut self, chunk: Bytes) -> Bytes {
        let at = self.corrupt.and_then(|at| at.checked_sub(self.seen));
        self.seen += chunk.len() as u64;
        match at.filter(|at| *at < chunk.len() as u64) {
            Some(at) => {
                let mut bytes = chunk.to_vec();
                bytes[at as usize] ^= 1;
                bytes.into()
            }
            None => chunk,
        }
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| Ok(frame?.map_data(|chunk| self.damage(chunk)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Reads `bytes` of a body, or all of one that is shorter.
pub(super) async fn read(body: &mut Incoming, bytes: u64) {
    let mut seen = 0;
    while seen < bytes {
        match std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            Some(Ok(frame)) => seen += frame.data_ref().map_or(0, |chunk| chunk.len() as u64),
            _ => return,
        }
    }
}
