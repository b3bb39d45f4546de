//! An object's bytes, and the response body that hands them out without copying.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::pattern::sparse_byte_range;

/// Bytes handed to the connection at a time.
const CHUNK: u64 = 256 * 1024;

/// Where an object's bytes come from.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// Bytes in memory, in pieces, as an upload in parts left them.
    Parts(Arc<[Bytes]>),
    /// Bytes made on the fly, see [`sparse_byte_range`].
    Sparse { size: u64, seed: u64 },
}

impl Content {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Parts(parts) => parts.iter().map(|part| part.len() as u64).sum(),
            Content::Sparse { size, .. } => *size,
        }
    }

    /// The bytes of `range`, which must lie inside the object.
    pub fn slice(&self, range: Range<u64>) -> Bytes {
        match self {
            Content::Bytes(bytes) => bytes.slice(range.start as usize..range.end as usize),
            Content::Parts(parts) => joined(parts, range),
            Content::Sparse { seed, .. } => sparse_byte_range(*seed, range).into(),
        }
    }
}

/// The bytes of `range`, which are copied only where they lie in several pieces.
fn joined(parts: &[Bytes], range: Range<u64>) -> Bytes {
    let (mut start, mut found) = (0, Vec::new());
    for part in parts {
        let end = start + part.len() as u64;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            found.push(part.slice((from - start) as usize..(to - start) as usize));
        }
        start = end;
    }
    match found.pop() {
        Some(only) if found.is_empty() => only,
        last => found.into_iter().chain(last).collect::<Vec<Bytes>>().concat().into(),
    }
}

/// Streams a part of a [`Content`].
pub(super) struct ContentBody {
    content: Content,
    rest: Range<u64>,
}

impl ContentBody {
    /// Streams `range`, which must lie inside the object.
    pub fn new(content: Content, range: Range<u64>) -> Self {
        ContentBody { content, rest: range }
    }
}

impl Body for ContentBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let end = self.rest.end.min(self.rest.start + CHUNK);
        let bytes = self.content.slice(self.rest.start..end);
        self.rest.start = end;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.end - self.rest.start)
    }
}
