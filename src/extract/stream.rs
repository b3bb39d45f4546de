//! The tar stream: blocks of 512 bytes, cut out of the decoder's chunks without copying.

use bytes::{Buf, Bytes};

use crate::extract::{Failure, Result};

/// The length of a header, and what all data is padded to, in bytes.
pub const BLOCK: usize = 512;

/// What is still to be read.
pub struct Stream {
    chunks: Box<dyn Iterator<Item = Result<Bytes>>>,
    current: Bytes,
}

impl Stream {
    /// The stream of `chunks`, each but the last a whole number of blocks long.
    pub fn new(chunks: impl IntoIterator<Item = Result<Bytes>, IntoIter: 'static>) -> Stream {
        Stream { chunks: Box::new(chunks.into_iter()), current: Bytes::new() }
    }

    /// The next block; None at the end.
    ///
    /// # Errors
    /// The stream ends in the middle of a block, or can't be read.
    pub fn block(&mut self) -> Result<Option<Bytes>> {
        if !self.fill()? {
            return Ok(None);
        }
        if self.current.len() < BLOCK {
            return Err(truncated());
        }
        Ok(Some(self.current.split_to(BLOCK)))
    }

    /// The next block, which must be there.
    ///
    /// # Errors
    /// The stream ends, or can't be read.
    pub fn expect_block(&mut self) -> Result<Bytes> {
        self.block()?.ok_or_else(truncated)
    }

    /// The next bytes, as many as are at hand, but no more than `limit`, which isn't 0.
    ///
    /// # Errors
    /// The stream ends, or can't be read.
    pub fn some(&mut self, limit: u64) -> Result<Bytes> {
        if !self.fill()? {
            return Err(truncated());
        }
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(self.current.len());
        Ok(self.current.split_to(length))
    }

    /// Passes over `bytes`.
    ///
    /// # Errors
    /// The stream ends, or can't be read.
    pub fn skip(&mut self, mut bytes: u64) -> Result<()> {
        while bytes > 0 {
            if !self.fill()? {
                return Err(truncated());
            }
            let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.current.len());
            self.current.advance(length);
            bytes -= length as u64;
        }
        Ok(())
    }

    /// Passes over all that is left: the end of the compressed stream has its checksum.
    ///
    /// # Errors
    /// It can't be read to the end.
    pub fn drain(&mut self) -> Result<()> {
        while self.fill()? {
            self.current = Bytes::new();
        }
        Ok(())
    }

    /// Whether there are bytes at hand, waiting for them.
    fn fill(&mut self) -> Result<bool> {
        while self.current.is_empty() {
            match self.chunks.next() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// What a stream that ends too early is.
pub fn truncated() -> Failure {
    Failure::Archive("a truncated archive: it ends in the middle".to_owned())
}
