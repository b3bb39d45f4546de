//! The decoder's thread: the archive's bytes in, chunks of the tar stream out.

use std::io::{self, BufRead, Read};
use std::mem::take;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use bytes::{Buf, Bytes};

use crate::archive::{Format, decoder};
use crate::error::{Error, Result};
use crate::extract::Failure;

/// The length of each chunk but the last, in bytes: a multiple of tar's blocks, and half of a processor's cache.
pub const CHUNK: usize = 256 << 10;
/// Chunks at a time, over all threads that hold one.
const CHUNKS: usize = 32;

/// Bytes of the archive, or why there are no more.
pub type Piece = Result<Bytes>;

/// Decodes `pieces`. Ends when nobody takes chunks any more, too.
pub fn run(pieces: Receiver<Piece>, chunks: &SyncSender<super::Result<Bytes>>) {
    let mut input = Input { pieces, current: Bytes::new(), failure: None };
    let decoded = decode(&mut input, chunks);
    let failure = match (input.failure, decoded) {
        (Some(error), _) => Failure::Other(error),
        (None, Err(e)) => Failure::Archive(format!("damaged or truncated ({e})")),
        (None, Ok(())) => return,
    };
    let _ = chunks.send(Err(failure));
}

fn decode(input: &mut Input, chunks: &SyncSender<super::Result<Bytes>>) -> io::Result<()> {
    let mut reader: Box<dyn Read + '_> = match Format::of_content(input.fill_buf()?) {
        Some(format) => decoder(format, input)?,
        None => Box::new(input),
    };
    let mut pool = Pool::new();
    loop {
        let mut chunk = pool.take();
        chunk.length = fill(&mut reader, &mut chunk.buffer)?;
        let last = chunk.length < CHUNK;
        if chunks.send(Ok(Bytes::from_owner(chunk))).is_err() || last {
            return Ok(());
        }
    }
}

/// Reads until `buffer` is full or nothing is left.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

/// The pieces as one stream.
struct Input {
    pieces: Receiver<Piece>,
    current: Bytes,
    /// Why there is nothing more to read: no fault of the archive's.
    failure: Option<Error>,
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.pieces.recv() {
                Ok(Ok(piece)) => self.current = piece,
                Ok(Err(error)) => {
                    self.failure = Some(error);
                    return Err(io::Error::other("the archive can't be read"));
                }
                Err(_) => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// Buffers that come back when nobody holds bytes of theirs any more, so that there are never more than [`CHUNKS`].
struct Pool {
    made: usize,
    home: Sender<Vec<u8>>,
    back: Receiver<Vec<u8>>,
}

impl Pool {
    fn new() -> Pool {
        let (home, back) = channel();
        Pool { made: 0, home, back }
    }

    /// An empty chunk; waits for one to come back when all are out.
    fn take(&mut self) -> Chunk {
        let buffer = match self.back.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if self.made < CHUNKS => {
                self.made += 1;
                vec![0; CHUNK]
            }
            // Never disconnected: we hold a sender ourselves.
            Err(_) => self.back.recv().unwrap_or_else(|_| vec![0; CHUNK]),
        };
        Chunk { buffer, length: 0, home: self.home.clone() }
    }
}

/// A buffer of the pool's and how much of it is filled.
struct Chunk {
    buffer: Vec<u8>,
    length: usize,
    home: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // The pool may be gone.
        let _ = self.home.send(take(&mut self.buffer));
    }
}
