//! A payload on its way: streamed from its file, counted, and given up when it stalls.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
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
use crate::store::Payload;

/// Bytes read and sent at a time: what an upload takes of memory, a few times over, for each of its connections.
const CHUNK: u64 = 256 << 10;
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

    /// Whether `checksum`, of parts of `part_size` bytes if it is one of parts, is one of these bytes.
    ///
    /// # Errors
    /// `Local`: the file can't be read, or is shorter than it was.
    pub async fn fits(&self, checksum: Checksum, part_size: u64) -> Result<bool> {
        let (file, range) = (self.file.clone(), 0..self.size);
        let fits = blocking(move || checksum.fits(Section { file: &file, rest: range }, part_size)).await?;
        fits.map_err(|e| self.unreadable(&e))
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

/// One attempt to send a range of a payload.
pub struct Transfer {
    payload: Payload,
    range: Range<u64>,
    /// How many bytes the connection has taken.
    taken: AtomicU64,
    /// They have arrived.
    arrived: AtomicBool,
    /// Why the file can't be read. Guards only the error.
    failure: Mutex<Option<Error>>,
}

impl Transfer {
    /// An attempt to send `range` of `payload`.
    pub fn new(payload: &Payload, range: Range<u64>) -> Arc<Transfer> {
        Arc::new(Transfer {
            payload: payload.clone(),
            range,
            taken: AtomicU64::new(0),
            arrived: AtomicBool::new(false),
            failure: Mutex::default(),
        })
    }

    /// The bytes, as the body of a request.
    pub fn body(self: &Arc<Transfer>) -> SdkBody {
        SdkBody::from_body_1_x(TransferBody { transfer: self.clone(), at: self.range.start, reading: None })
    }

    /// Waits for the answer to the request that has the body, for as long as bytes go, and then for what the server may take;
    /// `what` names the object.
    ///
    /// # Errors
    /// `TimedOut`, or `Local` when the file can't be read.
    pub async fn watch<T>(
        &self,
        patience: Patience,
        what: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T> {
        let mut answer = pin!(answer);
        let begun = Instant::now();
        loop {
            let taken = self.taken.load(Ordering::Relaxed);
            let limit = if taken < self.length() { patience.stall } else { self.last_wait(begun, patience) };
            let answer = timeout(limit, &mut answer).await;
            if let Some(error) = self.failure.lock().unwrap_or_else(|e| e.into_inner()).take() {
                return Err(error);
            }
            match answer {
                Ok(answer) => return Ok(answer),
                Err(_) if self.taken.load(Ordering::Relaxed) > taken => {}
                Err(_) => {
                    let length = self.length();
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

    /// They have arrived: they stay counted as sent.
    pub fn settle(&self) {
        self.arrived.store(true, Ordering::Relaxed);
    }

    /// How long the answer is waited for when the last byte has been taken, of which a part may still be on its way: as long
    /// again as it took until now, or as the slowest pace would.
    fn last_wait(&self, begun: Instant, patience: Patience) -> Duration {
        let left = self.length().min(IN_SOCKET) as f64 / SLOWEST;
        patience.first_byte + begun.elapsed() + Duration::from_secs_f64(left)
    }

    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn take(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.payload.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !*self.arrived.get_mut() {
            self.payload.sent.fetch_sub(*self.taken.get_mut(), Ordering::Relaxed);
        }
    }
}

/// Reads chunk by chunk, each when the connection has room for it.
struct TransferBody {
    transfer: Arc<Transfer>,
    at: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl TransferBody {
    fn begin_read(&self) -> JoinHandle<io::Result<Bytes>> {
        let (file, at) = (self.transfer.payload.file.clone(), self.at);
        let length = CHUNK.min(self.transfer.range.end - at) as usize;
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
            Ok(chunk) => {
                self.at += chunk.len() as u64;
                self.transfer.take(chunk.len() as u64);
                Ok(Frame::data(chunk))
            }
            Err(e) => {
                let error = self.transfer.payload.unreadable(&e);
                *self.transfer.failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
                Err(e)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.transfer.range.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.transfer.range.end - self.at)
    }
}
