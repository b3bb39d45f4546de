//! Moves the bytes of one connection.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::Shared;

/// Bytes read at a time.
const BUFFER: usize = 64 * 1024;
/// Pieces of a slowed stream last about this long.
const TICK: Duration = Duration::from_millis(10);
/// What ends the head of an HTTP answer.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Forwards both ways until both are at their end.
///
/// # Errors
/// When a peer resets the connection, or the profile has it cut.
pub(super) async fn forward(client: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let mut server = TcpStream::connect(shared.upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let turn = AtomicBool::new(false);
    let down =
        Down { shared, turn: &turn, sent: 0, pace: Pace::default(), body: Body::default(), chosen: None };
    tokio::try_join!(up(from_client, to_server, shared, &turn), down.run(from_server, to_client))?;
    Ok(())
}

async fn up(
    mut client: ReadHalf<'_>,
    mut server: WriteHalf<'_>,
    shared: &Shared,
    turn: &AtomicBool,
) -> io::Result<()> {
    let (mut buffer, mut pace) = (vec![0; BUFFER], Pace::default());
    loop {
        let len = client.read(&mut buffer).await?;
        open_road(shared).await;
        if len == 0 {
            return server.shutdown().await;
        }
        turn.store(true, Ordering::SeqCst);
        let mut bytes = &buffer[..len];
        while !bytes.is_empty() {
            let rate = shared.profile().rate;
            let (piece, rest) = bytes.split_at(Pace::piece(rate, len).min(bytes.len()));
            pace.wait(rate, piece.len()).await;
            server.write_all(piece).await?;
            shared.totals.up.fetch_add(piece.len() as u64, Ordering::SeqCst);
            bytes = rest;
        }
    }
}

/// The pace of one direction of a connection.
struct Pace {
    next_free: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { next_free: Instant::now() }
    }
}

impl Pace {
    /// How many of `len` bytes go at a time at `rate`.
    fn piece(rate: Option<u64>, len: usize) -> usize {
        rate.map_or(len, |rate| len.min((rate as f64 * TICK.as_secs_f64()) as usize).max(1))
    }

    /// Waits until `len` bytes may go at `rate`.
    async fn wait(&mut self, rate: Option<u64>, len: usize) {
        if let Some(rate) = rate {
            tokio::time::sleep_until(self.next_free).await;
            let time = Duration::from_secs_f64(len as f64 / rate.max(1) as f64);
            self.next_free = self.next_free.max(Instant::now() - TICK) + time;
        }
    }
}

/// Waits while nothing may be forwarded.
async fn open_road(shared: &Shared) {
    // The sender lives as long as `shared`.
    let _ = shared.profile.subscribe().wait_for(|profile| !profile.black_hole).await;
}

/// The way from the server to the client.
struct Down<'a> {
    shared: &'a Shared,
    /// The client has sent something since the server last did.
    turn: &'a AtomicBool,
    sent: u64,
    pace: Pace,
    body: Body,
    /// Whether this connection is one of those to be cut or corrupted, once that has been asked.
    chosen: Option<bool>,
}

impl Down<'_> {
    async fn run(mut self, mut server: ReadHalf<'_>, mut client: WriteHalf<'_>) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = server.read(&mut buffer).await?;
            open_road(self.shared).await;
            if len == 0 {
                return client.shutdown().await;
            }
            if self.turn.swap(false, Ordering::SeqCst) {
                self.shared.totals.answers.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(self.shared.profile().latency).await;
            }
            let bytes = &mut buffer[..len];
            if let Some(at) = self.corrupted(bytes) {
                bytes[at] ^= 0x10;
            }
            self.send(&mut client, bytes).await?;
        }
    }

    /// Sends bytes at the profile's rate, as far as they may go.
    async fn send(&mut self, client: &mut WriteHalf<'_>, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(self.allowance(bytes.len())?);
            self.pace.wait(self.shared.profile().rate, piece.len()).await;
            client.write_all(piece).await?;
            self.sent += piece.len() as u64;
            self.shared.totals.down.fetch_add(piece.len() as u64, Ordering::SeqCst);
            bytes = rest;
        }
        Ok(())
    }

    /// How many of `len` bytes may go now.
    ///
    /// # Errors
    /// When the connection is to be cut instead.
    fn allowance(&mut self, len: usize) -> io::Result<usize> {
        let profile = self.shared.profile();
        let mut allowed = len as u64;
        if let Some(at) = profile.cut_after.filter(|at| *at < self.sent + len as u64)
            && self.is_chosen()
        {
            if at <= self.sent {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            allowed = at - self.sent;
        }
        Ok(Pace::piece(profile.rate, allowed as usize))
    }

    /// The place in `bytes` of the byte to corrupt, if it is there.
    fn corrupted(&mut self, bytes: &[u8]) -> Option<usize> {
        let (skip, before) = self.body.advance(bytes);
        let at = self.shared.profile().corrupt?.checked_sub(before)?;
        let place = usize::try_from(at).ok()?.checked_add(skip)?;
        (place < bytes.len() && self.is_chosen()).then_some(place)
    }

    fn is_chosen(&mut self) -> bool {
        *self.chosen.get_or_insert_with(|| self.shared.take_one())
    }
}

/// Finds the end of the first head.
#[derive(Default)]
struct Body {
    /// Bytes of [`HEAD_END`] seen in a row.
    matched: usize,
    /// Bytes behind the head so far.
    seen: u64,
}

impl Body {
    /// Takes the next bytes; how many of them belong to the head, and how many bytes of the body came before.
    fn advance(&mut self, bytes: &[u8]) -> (usize, u64) {
        let mut skip = 0;
        while self.matched < HEAD_END.len() && skip < bytes.len() {
            self.matched = match bytes[skip] {
                byte if byte == HEAD_END[self.matched] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            skip += 1;
        }
        let before = self.seen;
        self.seen += (bytes.len() - skip) as u64;
        (skip, before)
    }
}
