//! The decoder: the archive's bytes in, chunks of the tar stream out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::mem::take;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::{Buf, Bytes};

use crate::archive::{Format, decoder};
use crate::error::{Error, Result};
use crate::extract::Failure;

/// Chunks at a time, over all threads that hold one.
const CHUNKS: usize = 32;

/// Bytes of the archive, or why there are no more.
pub type Piece = Result<Bytes>;

/// Bytes of a file that are read at a time.
const READ: usize = 64 << 10;

/// The tar stream in an archive, decoded as it is asked for. Ends at the first failure.
pub struct Chunks {
    state: State,
    pool: Pool,
}

#[derive(Default)]
enum State {
    /// Nothing has been read yet.
    Encoded(Box<dyn BufRead>),
    Decoding(Box<dyn Read>),
    #[default]
    Ended,
}

impl Chunks {
    /// What `input` has, in chunks of `length` bytes, but for the last. An error of it that holds one of ours says why there are
    /// no more bytes: no fault of the archive's.
    pub fn new(input: impl BufRead + 'static, length: usize) -> Chunks {
        Chunks { state: State::Encoded(Box::new(input)), pool: Pool::new(length) }
    }

    fn decode(&mut self) -> io::Result<Option<Bytes>> {
        let mut reader = match take(&mut self.state) {
            State::Encoded(mut input) => match Format::of_content(input.fill_buf()?) {
                Some(format) => decoder(format, input)?,
                None => Box::new(input),
            },
            State::Decoding(reader) => reader,
            State::Ended => return Ok(None),
        };
        let mut chunk = self.pool.take();
        chunk.length = fill(&mut reader, &mut chunk.buffer)?;
        if chunk.length == chunk.buffer.len() {
            self.state = State::Decoding(reader);
        }
        Ok(Some(Bytes::from_owner(chunk)))
    }
}

impl Iterator for Chunks {
    type Item = super::Result<Bytes>;

    fn next(&mut self) -> Option<super::Result<Bytes>> {
        let failure = |e: io::Error| match e.downcast::<Error>() {
            Ok(error) => Failure::Other(error),
            Err(e) => Failure::Archive(format!("damaged or truncated ({e})")),
        };
        self.decode().map_err(failure).transpose()
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
pub struct Pieces<I> {
    pieces: I,
    current: Bytes,
}

impl<I: Iterator<Item = Piece>> Pieces<I> {
    /// Those that come.
    pub fn new(pieces: impl IntoIterator<IntoIter = I>) -> Pieces<I> {
        Pieces { pieces: pieces.into_iter(), current: Bytes::new() }
    }
}

impl<I: Iterator<Item = Piece>> BufRead for Pieces<I> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.pieces.next() {
                Some(piece) => self.current = piece.map_err(io::Error::other)?,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl<I: Iterator<Item = Piece>> Read for Pieces<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// A file that says, as an error of ours, why it can't be read.
pub struct Opened {
    file: File,
    shown: String,
}

/// What can be read of `file`, called `shown`, from where it stands.
pub fn opened(file: File, shown: &str) -> BufReader<Opened> {
    BufReader::with_capacity(READ, Opened { file, shown: shown.to_owned() })
}

impl Read for Opened {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                Err(io::Error::other(Error::local(format!("can't read {}", self.shown), &e)))
            }
            done => done,
        }
    }
}

/// Buffers that come back when nobody holds bytes of theirs any more, so that there are never more than [`CHUNKS`].
struct Pool {
    /// Of each, in bytes.
    length: usize,
    made: usize,
    home: Sender<Vec<u8>>,
    back: Receiver<Vec<u8>>,
}

impl Pool {
    fn new(length: usize) -> Pool {
        let (home, back) = channel();
        Pool { length, made: 0, home, back }
    }

    /// An empty chunk; waits for one to come back when all are out.
    fn take(&mut self) -> Chunk {
        let buffer = match self.back.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if self.made < CHUNKS => {
                self.made += 1;
                vec![0; self.length]
            }
            // Never disconnected: we hold a sender ourselves.
            Err(_) => self.back.recv().unwrap_or_else(|_| vec![0; self.length]),
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
