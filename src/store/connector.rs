//! HTTP/1.1 and TLS, over hyper and rustls: what every remote on the network is asked through.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::Body;
use hyper::http::uri::Scheme;
use hyper::{Method, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::config::S3Options;
use crate::error::{Result, causes};
use crate::metrics::REQUESTS;
use crate::store::tls::Tls;

/// Connections kept for reuse; S3 closes idle ones after about 20 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// What a connection reads at a time, at most. hyper's own limit is 400 KiB, kept by each of up to 80 connections.
const READ_BUFFER: usize = 128 << 10;
const IDLE_CONNECTIONS: usize = 64;
/// What hyper says of bytes that it didn't wait for: there is no question for it.
const UNASKED: &str = "received unexpected message from connection";

/// A pool of connections for requests with bodies of type `B`. Clones share it.
pub type Pool<B> = Client<Connect, B>;

/// Makes connections, to https addresses encrypted ones.
#[derive(Clone)]
pub struct Connect {
    tcp: HttpConnector,
    tls: Arc<Tls>,
}

impl Service<Uri> for Connect {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = BoxFuture<'static, std::result::Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Connect { mut tcp, tls } = self.clone();
        Box::pin(async move {
            if uri.scheme() == Some(&Scheme::HTTP) {
                return Ok(MaybeHttpsStream::Http(tcp.call(uri).await?));
            }
            HttpsConnector::from((tcp, tls.config().await?)).call(uri).await
        })
    }
}

/// Why no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It took too long.
    TimedOut,
    /// What came isn't HTTP.
    NotHttp,
    /// Something came before anything was asked: the other side speaks another protocol, or gave up an idle connection with a word.
    Unasked,
    /// No connection, or one that broke: DNS, routes, TLS, resets.
    Io,
}

/// A pool without connections yet.
///
/// # Errors
/// A CA bundle that can't be read or holds no certificate.
pub fn pool<B>(options: &S3Options) -> Result<Pool<B>>
where
    B: Body<Data = Bytes> + Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(options.patience.connect));
    // What a request that was given up left in a connection isn't offered for longer to who doesn't take it.
    tcp.set_tcp_user_timeout(Some(options.patience.first_byte + options.patience.stall));
    let connect = Connect { tcp, tls: Arc::new(Tls::new(options)?) };
    Ok(Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_max_buf_size(READ_BUFFER)
        .build(connect))
}

/// Counts a request that is about to be sent, by what S3 means by it; to other servers that is the same.
pub fn count(method: &Method, uri: &Uri) {
    let lists = || uri.query().is_some_and(|query| query.contains("list-type="));
    match *method {
        Method::HEAD => REQUESTS.head.count(),
        Method::GET if lists() => REQUESTS.list.count(),
        Method::GET => REQUESTS.get.count(),
        Method::DELETE => REQUESTS.delete.count(),
        _ => REQUESTS.put.count(),
    }
}

/// What kind of trouble `error` was.
pub fn trouble(error: &(dyn StdError + 'static)) -> Trouble {
    let timed_out = |e: &(dyn StdError + 'static)| {
        e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
            || e.downcast_ref::<hyper::Error>().is_some_and(|e| e.is_timeout())
    };
    let mut of_http = causes(error).filter_map(|e| e.downcast_ref::<hyper::Error>());
    if causes(error).any(timed_out) {
        Trouble::TimedOut
    } else if of_http.clone().any(hyper::Error::is_parse) {
        Trouble::NotHttp
    } else if of_http.any(|e| e.to_string() == UNASKED) {
        Trouble::Unasked
    } else {
        Trouble::Io
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// The text is hyper's, which may change it.
    #[tokio::test]
    async fn who_speaks_first_is_known() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
        let http = hyper::client::conn::http1::handshake::<_, String>(TokioIo::new(ours)).await;
        let (_requests, connection) = http.unwrap();
        let error = connection.await.unwrap_err();
        assert_eq!(trouble(&error), Trouble::Unasked, "{error}");
    }
}
