//! The body of an answer on its way out: counted, held, throttled or cut as the faults have it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};

use super::counts::Ongoing;
use super::faults::Plan;
use super::gate::Latch;
use super::listener::Connection;

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Pieces of a throttled body last about this long.
const TICK: Duration = Duration::from_millis(10);

/// What the HTTP layer sends.
pub(super) struct OutgoingBody {
    inner: s3s::Body,
    chunk: Bytes,
    sent: u64,
    hold: Option<(u64, Latch)>,
    cut: Option<u64>,
    corrupt: Option<u64>,
    throttle: Option<u64>,
    wait: Option<Wait>,
    connection: Arc<Connection>,
    ongoing: Ongoing,
    counted: bool,
}

impl OutgoingBody {
    /// The body of a good answer, as `plan` has it.
    pub fn new(inner: s3s::Body, plan: Plan, connection: Arc<Connection>, ongoing: Ongoing) -> Self {
        OutgoingBody {
            inner,
            chunk: Bytes::new(),
            sent: 0,
            hold: plan.hold,
            cut: plan.truncate,
            corrupt: plan.corrupt,
            throttle: plan.throttle,
            wait: None,
            connection,
            ongoing,
            counted: true,
        }
    }

    /// The body of an error answer: sent as it is, and its bytes aren't counted.
    pub fn of_error(inner: s3s::Body, connection: Arc<Connection>, ongoing: Ongoing) -> Self {
        OutgoingBody { counted: false, ..OutgoingBody::new(inner, Plan::default(), connection, ongoing) }
    }

    /// Bytes that may go before something has to happen.
    fn allowance(&self) -> u64 {
        let stops = [self.hold.as_ref().map(|(at, _)| *at), self.cut];
        let until_stop = stops.into_iter().flatten().map(|at| at - self.sent).min();
        let tick = self.throttle.map(|rate| (rate * TICK.as_millis() as u64 / 1000).max(1));
        until_stop.into_iter().chain(tick).min().unwrap_or(u64::MAX)
    }

    /// Takes the next piece off the chunk at hand.
    fn piece(&mut self) -> Bytes {
        let len = self.allowance().min(self.chunk.len() as u64);
        let mut piece = self.chunk.split_to(len as usize);
        if let Some(at) = self.corrupt.filter(|at| (self.sent..self.sent + len).contains(at)) {
            let mut bytes = piece.to_vec();
            bytes[(at - self.sent) as usize] ^= 1;
            piece = bytes.into();
        }
        self.sent += len;
        if self.counted {
            self.ongoing.sent(len);
        }
        if let Some(rate) = self.throttle {
            let time = Duration::from_secs_f64(len as f64 / rate as f64);
            let due = self.connection.book(time);
            self.wait = Some(Box::pin(tokio::time::sleep_until(due)));
        }
        piece
    }
}

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            if let Some(wait) = &mut this.wait {
                ready!(wait.as_mut().poll(cx));
                this.wait = None;
            }
            if let Some((_, latch)) = this.hold.take_if(|(at, _)| *at == this.sent) {
                this.wait = Some(Box::pin(latch.wait()));
                continue;
            }
            if this.chunk.is_empty() {
                match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => this.chunk = frame.into_data().unwrap_or_default(),
                    end => return Poll::Ready(end),
                }
                continue;
            }
            if this.cut == Some(this.sent) {
                ready!(this.connection.poll_flushed(cx));
                return Poll::Ready(Some(Err("the connection is to be cut here".into())));
            }
            return Poll::Ready(Some(Ok(Frame::data(this.piece()))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.chunk.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.inner.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + self.chunk.remaining() as u64),
            None => SizeHint::default(),
        }
    }
}
