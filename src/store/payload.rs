//! A payload on its way: streamed from its file, counted, and given up when it stalls.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::answer::blocking;
use crate::checksum::{Algorithm, Checksum};
use crate::config::Patience;
use crate::error::{Error, Kind, Result};
use crate::object::ObjectVersion;
use crate::store::Payload;

/// Bytes read and sent at a time: what an upload takes of memory, a few times over, for each of its connections. No more than
/// what a slow line takes well before it counts as stalled.
const CHUNK: u64 = 64 << 10;
/// What the system may have taken from us and not sent yet, in bytes: Linux gives a socket no more by itself.
const IN_SOCKET: u64 = 4 << 20;
/// The slowest pace that is waited for, in bytes per second.
const SLOWEST: f64 = 128.0 * 1024.0;

impl Payload {
    /// The checksum of the bytes in `range`.
    ///
    /// # Errors
    /// `Local`: the file can't be read, or is shorter than it was.
    pub async fn checksum_of(&self, algorithm: Algorithm, range: Range<u64>) -> Result<Checksum> {
        let file = self.file.clone();
        let computed =
            blocking(move || Checksum::of(algorithm, Section { file: &file, rest: range })).await?;
        computed.map_err(|e| self.unreadable(&e))
    }

    /// Whether `found` is known to have these bytes, by a checksum, or by an ETag that is one. If it is one of parts, they were
    /// `part_size` bytes long.
    ///
    /// # Errors
    /// `Local`: the file can't be read, or is shorter than it was.
    pub async fn is(&self, found: &ObjectVersion, part_size: u64) -> Result<bool> {
        let told = found.checksum.as_deref().cloned().or_else(|| Checksum::of_etag(found.etag.as_str()));
        let Some(told) = told.filter(|_| found.size == self.size) else { return Ok(false) };
        if told.as_crc64nvme().is_some() && self.checksum.as_crc64nvme().is_some() {
            return Ok(told == self.checksum);
        }
        let (file, range) = (self.file.clone(), 0..self.size);
        let fits = blocking(move || told.fits(Section { file: &file, rest: range }, part_size)).await?;
        fits.map_err(|e| self.unreadable(&e))
    }

    /// Checks by `found`, their checksum, that the bytes are those that were to be uploaded to `what`.
    ///
    /// # Errors
    /// `Local`: they are others.
    pub fn check(&self, found: &Checksum, what: &str) -> Result<()> {
        match (found.as_crc64nvme(), self.checksum.as_crc64nvme()) {
            (Some(found), Some(wanted)) if found != wanted => Err(Error::new(
                Kind::Local,
                format!("{what}: what was to be uploaded has changed since it was written; write it again"),
            )),
            _ => Ok(()),
        }
    }

    fn unreadable(&self, error: &io::Error) -> Error {
        Error::local("reading what is to be uploaded", error)
    }
}

/// A section of a shared file, read from its start to its end. That the file ends before is an error.
struct Section<'a> {
    file: &'a File,
    rest: Range<u64>,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted =
            usize::try_from(self.rest.end - self.rest.start).map_or(buffer.len(), |n| n.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..wanted], self.rest.start)?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest.start += read as u64;
        Ok(read)
    }
}

/// One attempt to send a range of a payload. What of it counts as sent doesn't any more when it is dropped, unless it has
/// arrived.
pub struct Transfer {
    way: Arc<Way>,
    arrived: AtomicBool,
}

/// What the attempt shares with the body that a connection holds, which may outlive it.
struct Way {
    payload: Payload,
    range: Range<u64>,
    /// Guards only the values; never held while anything is read or sent.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many bytes the connection has taken.
    taken: u64,
    /// Nobody waits for the answer any more, or it has come: the rest isn't sent.
    over: bool,
    /// Why the file can't be read.
    failure: Option<Error>,
}

impl Transfer {
    /// An attempt to send `range` of `payload`.
    pub fn new(payload: &Payload, range: Range<u64>) -> Transfer {
        let way = Way { payload: payload.clone(), range, state: Mutex::default() };
        Transfer { way: Arc::new(way), arrived: AtomicBool::new(false) }
    }

    /// The bytes, as the body of a request.
    pub fn body(&self) -> SdkBody {
        SdkBody::from_body_1_x(TransferBody {
            way: self.way.clone(),
            at: self.way.range.start,
            reading: None,
        })
    }

    /// Waits for the answer to the request that has the body, for as long as bytes go, and then for what the server may take;
    /// `what` names the object. Bytes that are not sent then never will be.
    ///
    /// # Errors
    /// `TimedOut`, or `Local` when the file can't be read.
    pub async fn watch<T>(
        &self,
        patience: Patience,
        what: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T> {
        let _end = End(&self.way);
        let mut answer = pin!(answer);
        let begun = Instant::now();
        loop {
            let (taken, length) = (self.way.taken(), self.way.length());
            let limit = if taken < length { patience.stall } else { last_wait(length, begun, patience) };
            let answer = timeout(limit, &mut answer).await;
            if let Some(error) = self.way.state().failure.take() {
                return Err(error);
            }
            match answer {
                Ok(answer) => return Ok(answer),
                Err(_) if self.way.taken() > taken => {}
                Err(_) => {
                    return Err(Error::new(
                        Kind::TimedOut,
                        format!(
                            "{what}: the upload stalled, {taken} of {length} bytes sent; check the network and --remote"
                        ),
                    ));
                }
            }
        }
    }

    /// The bytes have arrived: they stay counted as sent.
    pub fn settle(&self) {
        self.arrived.store(true, Ordering::Relaxed);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !*self.arrived.get_mut() {
            self.way.payload.sent.fetch_sub(self.way.end(), Ordering::Relaxed);
        }
    }
}

impl Way {
    fn taken(&self) -> u64 {
        self.state().taken
    }

    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Counts bytes that the connection takes; false when they aren't wanted any more.
    fn take(&self, bytes: u64) -> bool {
        let mut state = self.state();
        if !state.over {
            state.taken += bytes;
            self.payload.sent.fetch_add(bytes, Ordering::Relaxed);
        }
        !state.over
    }

    /// Lets no more bytes go; how many have gone.
    fn end(&self) -> u64 {
        let mut state = self.state();
        state.over = true;
        state.taken
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// How long the answer is waited for when the last of `length` bytes has been taken, some of which may still be on their way:
/// as long again as it took until now, and as the slowest pace would take for what the system may hold.
fn last_wait(length: u64, begun: Instant, patience: Patience) -> Duration {
    let held = length.min(IN_SOCKET) as f64 / SLOWEST;
    patience.first_byte + begun.elapsed() + Duration::from_secs_f64(held)
}

/// Ends the sending when it is dropped.
struct End<'a>(&'a Way);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Reads chunk by chunk, each when the connection has room for it.
struct TransferBody {
    way: Arc<Way>,
    at: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl TransferBody {
    fn begin_read(&self) -> JoinHandle<io::Result<Bytes>> {
        let (file, at) = (self.way.payload.file.clone(), self.at);
        let length = CHUNK.min(self.way.range.end - at) as usize;
        spawn_blocking(move || {
            let mut chunk = vec![0; length];
            file.read_exact_at(&mut chunk, at)?;
            Ok(chunk.into())
        })
    }
}

impl Body for TransferBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let mut reading = self.reading.take().unwrap_or_else(|| self.begin_read());
        let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
            self.reading = Some(reading);
            return Poll::Pending;
        };
        Poll::Ready(Some(match read.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(chunk) if self.way.take(chunk.len() as u64) => {
                self.at += chunk.len() as u64;
                Ok(Frame::data(chunk))
            }
            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(e) => {
                self.way.state().failure = Some(self.way.payload.unreadable(&e));
                Err(e)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.way.range.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.way.range.end - self.at)
    }
}
