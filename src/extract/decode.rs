//! The decoder's thread: the archive's bytes in, chunks of the tar stream out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::mem::take;
use std::path::Path;
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

/// Bytes of a file that are read at a time.
const READ: usize = 256 << 10;

/// The archive's bytes.
pub trait Input: BufRead {
    /// Why there are no more of them: no fault of the archive's.
    fn failure(&mut self) -> Option<Error>;
}

/// Decodes `input`. Ends when nobody takes chunks any more, too.
pub fn run(mut input: impl Input, chunks: &SyncSender<super::Result<Bytes>>) {
    let decoded = decode(&mut input, chunks);
    let failure = match (input.failure(), decoded) {
        (Some(error), _) => Failure::Other(error),
        (None, Err(e)) => Failure::Archive(format!("damaged or truncated ({e})")),
        (None, Ok(())) => return,
    };
    let _ = chunks.send(Err(failure));
}

fn decode(input: &mut impl Input, chunks: &SyncSender<super::Result<Bytes>>) -> io::Result<()> {
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

/// Pieces as one stream.
pub struct Pieces {
    pieces: Receiver<Piece>,
    current: Bytes,
    failure: Option<Error>,
}

impl Pieces {
    /// Those that come.
    pub fn new(pieces: Receiver<Piece>) -> Pieces {
        Pieces { pieces, current: Bytes::new(), failure: None }
    }
}

impl Input for Pieces {
    fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.pieces.recv() {
                Ok(Ok(piece)) => self.current = piece,
                Ok(Err(error)) => {
                    self.failure = Some(error);
                    return Err(unreadable());
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

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// A file or pipe from where it stands, read in large pieces.
pub type Opened<'a> = BufReader<Watched<'a>>;

/// A file that remembers why it couldn't be read.
pub struct Watched<'a> {
    file: &'a File,
    shown: &'a Path,
    failure: Option<Error>,
}

/// What can be read of `file`, called `shown`.
pub fn opened<'a>(file: &'a File, shown: &'a Path) -> Opened<'a> {
    BufReader::with_capacity(READ, Watched { file, shown, failure: None })
}

impl Input for Opened<'_> {
    fn failure(&mut self) -> Option<Error> {
        self.get_mut().failure.take()
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failure = Some(Error::local(format!("can't read {}", self.shown.display()), &e));
                    return Err(unreadable());
                }
                done => return done,
            }
        }
    }
}

fn unreadable() -> io::Error {
    io::Error::other("the archive can't be read")
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
