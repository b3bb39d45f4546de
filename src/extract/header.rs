//! A tar header: one block of fields at fixed places, in the dialects of v7, POSIX and GNU.

use std::ops::Range;

use bytes::Bytes;

use crate::extract::stream::BLOCK;
use crate::extract::{Failure, Result};

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const USER: Range<usize> = 265..297;
const GROUP: Range<usize> = 297..329;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

/// The magic of POSIX archives; those of GNU have a space for the NUL, and other things where the prefix is.
const POSIX: &[u8] = b"ustar\0";
const GNU: &[u8] = b"ustar ";

/// A header whose checksum fits.
#[derive(Debug)]
pub struct Header(Bytes);

impl Header {
    /// Reads a block; None when it is all zero, which marks the end.
    ///
    /// # Errors
    /// It is no header.
    pub fn new(block: Bytes) -> Result<Option<Header>> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header(block);
        if !header.is_sound() {
            return Err(Failure::Archive(
                "damaged, or no tar archive: a header's checksum is wrong".to_owned(),
            ));
        }
        Ok(Some(header))
    }

    /// Whether the checksum fits, of bytes with or without a sign: old programs differ in that.
    fn is_sound(&self) -> bool {
        if self.0.len() != BLOCK {
            return false;
        }
        let Ok(told) = self.number(CHECKSUM) else { return false };
        // The checksum's own field counts as spaces.
        let bytes =
            || self.0.iter().enumerate().map(|(at, byte)| if CHECKSUM.contains(&at) { b' ' } else { *byte });
        told == bytes().map(i64::from).sum::<i64>()
            || told == bytes().map(|byte| i64::from(byte as i8)).sum::<i64>()
    }

    /// The type flag.
    pub fn kind(&self) -> u8 {
        self.0[KIND]
    }

    /// The name, with POSIX's prefix.
    pub fn name(&self) -> Vec<u8> {
        let name = text(&self.0[NAME]);
        let prefix = if &self.0[MAGIC] == POSIX { text(&self.0[PREFIX]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// What a link leads to.
    pub fn link(&self) -> Vec<u8> {
        text(&self.0[LINK]).to_vec()
    }

    /// The permission bits, up to 07777.
    pub fn mode(&self) -> Result<u32> {
        Ok((self.number(MODE)? & 0o7777) as u32)
    }

    /// The owner's number.
    pub fn uid(&self) -> Result<i64> {
        self.number(UID)
    }

    /// The group's number.
    pub fn gid(&self) -> Result<i64> {
        self.number(GID)
    }

    /// The owner's name; empty when none is told.
    pub fn user(&self) -> Vec<u8> {
        if self.is_v7() { Vec::new() } else { text(&self.0[USER]).to_vec() }
    }

    /// The group's name; empty when none is told.
    pub fn group(&self) -> Vec<u8> {
        if self.is_v7() { Vec::new() } else { text(&self.0[GROUP]).to_vec() }
    }

    /// Bytes of data that follow, without padding.
    pub fn size(&self) -> Result<u64> {
        u64::try_from(self.number(SIZE)?).map_err(|_| bad_number())
    }

    /// The time of the last change, in seconds since 1970.
    pub fn mtime(&self) -> Result<i64> {
        self.number(MTIME)
    }

    /// A device's major and minor number.
    pub fn device(&self) -> Result<(u32, u32)> {
        let number = |field| u32::try_from(self.number(field)?).map_err(|_| bad_number());
        Ok((number(MAJOR)?, number(MINOR)?))
    }

    /// The whole block.
    pub fn block(&self) -> &[u8] {
        &self.0
    }

    fn is_v7(&self) -> bool {
        let magic = &self.0[MAGIC];
        magic != POSIX && magic != GNU
    }

    fn number(&self, field: Range<usize>) -> Result<i64> {
        number(&self.0[field])
    }
}

/// A number as headers spell it: octal digits between spaces and NULs (none stand for 0), or big-endian binary
/// behind a set bit.
///
/// # Errors
/// It is neither, or too large.
pub fn number(field: &[u8]) -> Result<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return binary(field);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let octal = |value: i64, byte: &u8| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    };
    digits[..end].iter().try_fold(0, octal).ok_or_else(bad_number)
}

/// The first byte is 0x80, or 0xff for a negative number in two's complement.
fn binary(field: &[u8]) -> Result<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value = i64::from(first as i8);
    for byte in &field[1..] {
        value = value.checked_mul(256).ok_or_else(bad_number)? | i64::from(*byte);
    }
    Ok(value)
}

/// A field's bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn bad_number() -> Failure {
    Failure::Archive("damaged: a header holds no number where one belongs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_the_dialects_spell_them() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"77777777", 0o77_777_777),
            (b"\x80\0\0\0\0\0\0\0\x01\0\0\0", 1 << 24),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(number(field).unwrap(), value, "{field:?}");
        }
        for field in [&b"00x0644\0"[..], b"8", b"-1\0", b"\x80\xff\0\0\0\0\0\0\0\0\0\0"] {
            assert!(number(field).is_err(), "{field:?}");
        }
    }
}
