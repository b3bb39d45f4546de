//! A TCP proxy that behaves like a bad network.
//!
//! It doesn't parse HTTP: it delays, cuts, resets or damages what a server sends, whatever the server is, and slows both ways.

mod pump;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::loopback;

/// How the network behaves. The default forwards everything at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Added before the first bytes that the server sends after the client has sent some: once per request and
    /// answer on a connection without pipelining.
    pub latency: Duration,
    /// Bytes per second from the server to the client, and as many the other way, for each connection.
    pub rate: Option<u64>,
    /// Closes a connection after so many bytes from the server, heads of answers included.
    pub cut_after: Option<u64>,
    /// Flips a bit of the n-th byte, counted from 0, behind the head of a connection's first answer.
    pub corrupt: Option<u64>,
    /// Only so many connections are cut or corrupted, counted from when the profile is set; `None`: all.
    pub times: Option<u64>,
    /// Closes by RST where it would be FIN. Bytes just forwarded may be lost then, as in a real network.
    pub reset: bool,
    /// Accepts new connections and closes them at once.
    pub refuse: bool,
    /// Forwards nothing, on open connections too, until another profile is set.
    pub black_hole: bool,
}

/// What has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted, refused ones included.
    pub connections: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Bytes from clients to the server.
    pub up: u64,
    /// Bytes from the server to clients.
    pub down: u64,
    /// Answers begun: one for each request, on connections without pipelining.
    pub answers: u64,
}

/// A running proxy.
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    commands: UnboundedSender<Command>,
    /// Present until drop.
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy for `upstream` on a free loopback port.
    pub fn start(upstream: SocketAddr, profile: Profile) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()
            .expect("the proxy's thread");
        let listener = {
            let _runtime = runtime.enter();
            loopback::bind(loopback::ANY_PORT).expect("a loopback port for the proxy")
        };
        let addr = listener.local_addr().expect("the proxy's address");
        let shared = Arc::new(Shared::new(upstream, profile));
        let (commands, inbox) = unbounded_channel();
        runtime.spawn(serve(listener, shared.clone(), inbox));
        Proxy { addr, shared, commands, runtime: Some(runtime) }
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Changes the network, for open connections too.
    pub fn set(&self, profile: Profile) {
        self.shared.left.store(profile.times.unwrap_or(u64::MAX), Ordering::SeqCst);
        self.shared.profile.send_replace(profile);
    }

    /// What has passed so far.
    pub fn counts(&self) -> Counts {
        self.shared.totals.snapshot()
    }

    /// Closes all open connections, by RST if the profile says so. Returns when that is done.
    pub fn cut_all(&self) {
        self.command(Command::Cut);
    }

    fn command(&self, make: impl FnOnce(mpsc::Sender<()>) -> Command) {
        let (done, waiting) = mpsc::channel();
        if self.commands.send(make(done)).is_ok() {
            // An error stands for the end as well.
            let _ = waiting.recv();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Each is answered when it has been carried out.
enum Command {
    Cut(mpsc::Sender<()>),
    Stop(mpsc::Sender<()>),
}

/// What all connections share.
struct Shared {
    upstream: SocketAddr,
    profile: watch::Sender<Profile>,
    /// Connections that may still be cut or corrupted.
    left: AtomicU64,
    /// Changes when all connections are to be closed.
    cut: watch::Sender<()>,
    totals: Totals,
}

impl Shared {
    fn new(upstream: SocketAddr, profile: Profile) -> Shared {
        Shared {
            upstream,
            left: AtomicU64::new(profile.times.unwrap_or(u64::MAX)),
            profile: watch::Sender::new(profile),
            cut: watch::Sender::new(()),
            totals: Totals::default(),
        }
    }

    fn profile(&self) -> Profile {
        self.profile.borrow().clone()
    }

    /// Takes one of the connections that may be cut or corrupted.
    fn take_one(&self) -> bool {
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
                u64::MAX => Some(u64::MAX),
                left => left.checked_sub(1),
            })
            .is_ok()
    }
}

#[derive(Default)]
struct Totals {
    connections: AtomicU64,
    open: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    answers: AtomicU64,
}

impl Totals {
    fn snapshot(&self) -> Counts {
        Counts {
            connections: self.connections.load(Ordering::SeqCst),
            open: self.open.load(Ordering::SeqCst),
            up: self.up.load(Ordering::SeqCst),
            down: self.down.load(Ordering::SeqCst),
            answers: self.answers.load(Ordering::SeqCst),
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, mut inbox: UnboundedReceiver<Command>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            command = inbox.recv() => {
                shared.cut.send_replace(());
                while connections.join_next().await.is_some() {}
                match command {
                    Some(Command::Cut(done)) => drop(done.send(())),
                    Some(Command::Stop(done)) => {
                        drop(listener);
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                }
            }
            Some(_) = connections.join_next() => (),
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    shared.totals.connections.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(connection(client, shared.clone(), shared.cut.subscribe()));
                }
                // Out of file descriptors, most likely: leave the others time to close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>, mut cut: watch::Receiver<()>) {
    let _open = Open::new(&shared.totals);
    if !shared.profile().refuse {
        // However it ends, the connection is closed now: by its peers, by the profile or by an order.
        tokio::select! {
            _ = cut.changed() => (),
            ended = pump::forward(&mut client, &shared) => {
                if ended.is_ok() {
                    return;
                }
            }
        }
    }
    if shared.profile().reset {
        // Fails only when the connection is closed already.
        let _ = client.set_zero_linger();
    }
}

/// Counts a connection as open for as long as it lives.
struct Open<'a>(&'a Totals);

impl Open<'_> {
    fn new(totals: &Totals) -> Open<'_> {
        totals.open.fetch_add(1, Ordering::SeqCst);
        Open(totals)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}
