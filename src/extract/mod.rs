//! An archive unpacked while its bytes arrive: one thread hands them over, one decodes them, one reads the tar stream and
//! makes what has a name, others write what is in the files; a small one is unpacked by one thread. Little is kept in memory,
//! whatever the archive says.

mod attributes;
mod decode;
mod entries;
mod header;
mod name;
mod pax;
mod sparse;
mod stream;
mod tree;
mod unpack;
mod writers;

use std::fs::File;
use std::io::BufRead;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;

use crate::error::{Error, Kind};
use crate::extract::decode::{Chunks, Piece, Pieces};
use crate::extract::stream::Stream;
use crate::extract::tree::Tree;
use crate::extract::writers::Writers;

/// Archives of so many bytes at most are unpacked by one thread: others take longer to start than they save.
const SMALL: u64 = 1 << 20;
/// The length of a decoded chunk, in bytes: a multiple of tar's blocks, and half of a processor's cache.
const CHUNK: usize = 256 << 10;
/// That of one of a small archive: new memory costs as much as what is done in it.
const SMALL_CHUNK: usize = 64 << 10;
/// Pieces of the archive that wait to be decoded.
const PIECES_AHEAD: usize = 4;
/// Decoded chunks that wait to be unpacked.
const CHUNKS_AHEAD: usize = 8;

/// Why an archive isn't unpacked.
#[derive(Debug)]
pub enum Failure {
    /// It is no archive, damaged, or holds what leads out of the directory.
    Archive(String),
    /// Its bytes can't be had, or the directory can't be written.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Other(error)
    }
}

/// This module's result.
pub type Result<T> = std::result::Result<T, Failure>;

/// Takes the archive's bytes in order; false when no more are wanted.
pub type Sink<'a> = dyn FnMut(Bytes) -> bool + 'a;

/// Unpacks into `dir`, which is made when missing, the archive that `feed` hands over: a tar stream, in gzip, zstd or plain.
///
/// # Errors
/// Those of `feed` and [`Failure`]'s. What was unpacked before stays, but no file that is incomplete.
pub fn extract(dir: &Path, feed: impl FnOnce(&mut Sink) -> crate::error::Result<()>) -> Result<()> {
    let (pieces, encoded) = sync_channel(PIECES_AHEAD);
    unpack(dir, || Pieces::new(encoded), || hand_over(feed, pieces))
}

/// The same for an archive that is in `file`, from where that stands; errors call it `shown`.
///
/// # Errors
/// As for [`extract`].
pub fn extract_file(dir: &Path, file: File, shown: &str) -> Result<()> {
    if file.metadata().is_ok_and(|meta| meta.is_file() && is_small(meta.len())) {
        return unpack_here(dir, decode::opened(file, shown));
    }
    unpack(dir, || decode::opened(file, shown), || {})
}

/// Whether an archive of `size` bytes is unpacked by one thread.
pub fn is_small(size: u64) -> bool {
    size <= SMALL
}

/// Unpacks what `input` has on this thread.
fn unpack_here(dir: &Path, input: impl BufRead + 'static) -> Result<()> {
    let tree = Tree::open(dir)?;
    let writers = Writers::here(tree.notes());
    unpack::run(tree, Stream::new(Chunks::new(input, SMALL_CHUNK)), writers)
}

/// Unpacks what `input` has on other threads; meanwhile `feed` runs on this one.
fn unpack<I: BufRead + 'static>(
    dir: &Path,
    input: impl FnOnce() -> I + Send,
    feed: impl FnOnce(),
) -> Result<()> {
    let (chunks, decoded) = sync_channel(CHUNKS_AHEAD);
    let tree = Tree::open(dir)?;
    let writers = Writers::start(tree.notes())?;
    thread::scope(|scope| {
        let decoder = thread::Builder::new().name("decode".into());
        // Ends when nobody takes chunks any more, too.
        let decode = move || Chunks::new(input(), CHUNK).all(|chunk| chunks.send(chunk).is_ok());
        decoder.spawn_scoped(scope, decode).map_err(no_thread)?;
        let unpacker = thread::Builder::new().name("unpack".into());
        let unpack = move || unpack::run(tree, Stream::new(decoded), writers);
        let unpacker = unpacker.spawn_scoped(scope, unpack).map_err(no_thread)?;
        feed();
        // It has seen the end of the stream, or the first failure on any thread.
        unpacker.join().unwrap_or_else(|_| Err(internal("the unpacking thread panicked").into()))
    })
}

fn hand_over(feed: impl FnOnce(&mut Sink) -> crate::error::Result<()>, pieces: SyncSender<Piece>) {
    if let Err(error) = feed(&mut |piece| pieces.send(Ok(piece)).is_ok()) {
        // Nobody listens when unpacking has failed already.
        let _ = pieces.send(Err(error));
    }
}

fn no_thread(error: std::io::Error) -> Failure {
    internal(format!("can't start threads: {error}")).into()
}

fn internal(what: impl Into<String>) -> Error {
    Error::new(Kind::Internal, what)
}
