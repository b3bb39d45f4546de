//! The TCP side: accepts connections, serves HTTP/1.1 on them, and can stop at once.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::service::Service;

/// Serves until `stop` is sent or dropped; then closes the port and all connections.
pub(super) async fn serve(listener: TcpListener, service: Arc<Service>, mut stop: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => (),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    service.counters.connected();
                    connections.spawn(serve_connection(stream, service.clone()));
                }
                // Out of file descriptors, most likely: leave the others time to close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve_connection(stream: TcpStream, service: Arc<Service>) {
    // A socket whose peer has gone already can't be set up; then there is nobody to answer.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let connection = Arc::new(Connection::default());
    let io = TokioIo::new(Watched { stream, connection: connection.clone() });
    let handler = service_fn(move |request| {
        let (service, connection) = (service.clone(), connection.clone());
        async move { service.answer(request, connection).await }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).half_close(false);
    // An error here is a cut connection, by the client or by a fault.
    let _ = http.serve_connection(io, handler).await;
}

/// What the bodies of one connection share.
#[derive(Default)]
pub(super) struct Connection {
    flush: Mutex<Flush>,
    flusher: AtomicWaker,
    next_free: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Flush {
    #[default]
    Unwatched,
    Awaited,
    Done,
}

impl Connection {
    /// Books `time` of the connection's sending time, and says when it is over.
    pub fn book(&self, time: Duration) -> Instant {
        let mut next_free = self.next_free.lock().unwrap_or_else(PoisonError::into_inner);
        let start = next_free.map_or_else(Instant::now, |next| next.max(Instant::now()));
        *next_free.insert(start + time)
    }

    /// Ready once everything handed to the HTTP layer so far has been written to the socket.
    ///
    /// Without it the bytes before a cut would depend on what the HTTP layer had in its buffer: hyper drops that
    /// when a body fails, but flushes the socket, once its buffer is empty, when a body isn't ready.
    pub fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.flusher.register(cx.waker());
        let mut flush = self.flush.lock().unwrap_or_else(PoisonError::into_inner);
        if *flush == Flush::Done {
            *flush = Flush::Unwatched;
            return Poll::Ready(());
        }
        *flush = Flush::Awaited;
        Poll::Pending
    }

    fn flushed(&self) {
        let mut flush = self.flush.lock().unwrap_or_else(PoisonError::into_inner);
        if *flush == Flush::Awaited {
            *flush = Flush::Done;
            drop(flush);
            self.flusher.wake();
        }
    }
}

/// A socket that reports when it was flushed.
struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.connection.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
