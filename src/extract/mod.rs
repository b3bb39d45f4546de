//! An archive unpacked while its bytes arrive: one thread hands them over, one decodes them, one reads the tar stream and
//! makes what has a name, others write what is in the files. Little is kept in memory, whatever the archive says.

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
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;

use crate::error::{Error, Kind};

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
    unpack(dir, decode::Pieces::new(encoded), || hand_over(feed, pieces))
}

/// The same for an archive that is in `file`, from where that stands; errors call it `shown`.
///
/// # Errors
/// As for [`extract`].
pub fn extract_file(dir: &Path, file: &File, shown: &Path) -> Result<()> {
    unpack(dir, decode::opened(file, shown), || {})
}

/// Unpacks what `input` has; meanwhile `feed` runs on this thread.
fn unpack(dir: &Path, input: impl decode::Input + Send, feed: impl FnOnce()) -> Result<()> {
    let (chunks, decoded) = sync_channel(CHUNKS_AHEAD);
    let tree = tree::Tree::open(dir)?;
    thread::scope(|scope| {
        let decoder = thread::Builder::new().name("decode".into());
        decoder.spawn_scoped(scope, move || decode::run(input, &chunks)).map_err(no_thread)?;
        let unpacker = thread::Builder::new().name("unpack".into());
        let unpacker = unpacker.spawn_scoped(scope, move || unpack::run(tree, decoded)).map_err(no_thread)?;
        feed();
        // It has seen the end of the stream, or the first failure on any thread.
        unpacker.join().unwrap_or_else(|_| Err(internal("the unpacking thread panicked").into()))
    })
}

fn hand_over(feed: impl FnOnce(&mut Sink) -> crate::error::Result<()>, pieces: SyncSender<decode::Piece>) {
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
