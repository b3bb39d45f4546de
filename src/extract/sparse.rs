//! Files with holes: maps of where their data lies, in the four ways in which GNU tar has written them.

use crate::extract::header::{Header, number};
use crate::extract::pax::decimal;
use crate::extract::stream::{BLOCK, Stream};
use crate::extract::{Failure, Result};

/// More extents than any file is worth: they are kept in memory.
const EXTENTS_MAX: usize = 1 << 20;

/// Where a GNU header says how the file is spread: extents, whether more of them follow, its length with holes.
const OLD_EXTENTS: std::ops::Range<usize> = 386..482;
const OLD_MORE: usize = 482;
const OLD_SIZE: std::ops::Range<usize> = 483..495;
/// The same in the blocks that follow.
const MORE_EXTENTS: std::ops::Range<usize> = 0..504;
const MORE_MORE: usize = 504;
/// Two numbers of 12 bytes.
const OLD_EXTENT: usize = 24;

/// Bytes of a file that aren't a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file they begin.
    pub offset: u64,
    /// How many they are.
    pub length: u64,
}

/// How a file's data is spread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// In order, none beyond the file's end.
    pub extents: Vec<Extent>,
    /// The file's length in bytes, holes included.
    pub size: u64,
}

impl Map {
    /// A map of `numbers`: offset, length, offset, length ….
    fn new(numbers: &[u64], size: u64) -> Result<Map> {
        let (pairs, []) = numbers.as_chunks::<2>() else { return Err(malformed()) };
        let mut end = 0;
        let mut extents = Vec::with_capacity(pairs.len());
        for &[offset, length] in pairs {
            let next = offset.checked_add(length).filter(|next| offset >= end && *next <= size);
            end = next.ok_or_else(malformed)?;
            extents.push(Extent { offset, length });
        }
        Ok(Map { extents, size })
    }

    /// How many bytes of data there are.
    pub fn data(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// The map that a GNU header begins, and the blocks behind it go on with.
    ///
    /// # Errors
    /// It is malformed, or too long.
    pub fn of_gnu(header: &Header, stream: &mut Stream) -> Result<Map> {
        let size = length(&header.block()[OLD_SIZE])?;
        let mut numbers = Vec::new();
        read_extents(&header.block()[OLD_EXTENTS], &mut numbers)?;
        let mut more = header.block()[OLD_MORE] != 0;
        while more {
            let block = stream.expect_block()?;
            read_extents(&block[MORE_EXTENTS], &mut numbers)?;
            more = block[MORE_MORE] != 0;
        }
        Map::new(&numbers, size)
    }
}

/// What pax records say of a sparse file, in the versions 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// The file's true name: its entry has another, for programs that know nothing of holes.
    pub name: Option<Vec<u8>>,
    version: (Option<u64>, Option<u64>),
    size: Option<u64>,
    /// Offset, length, offset, length ….
    numbers: Vec<u64>,
}

impl Records {
    /// Takes over the record `GNU.sparse.KEY`.
    ///
    /// # Errors
    /// It is malformed, or one too many.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = || decimal(value).ok_or_else(malformed);
        match key {
            b"major" => self.version.0 = Some(number()?),
            b"minor" => self.version.1 = Some(number()?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" | b"numbytes" => push(&mut self.numbers, number()?)?,
            b"map" => {
                self.numbers.clear();
                for part in value.split(|byte| *byte == b',').filter(|part| !part.is_empty()) {
                    push(&mut self.numbers, decimal(part).ok_or_else(malformed)?)?;
                }
            }
            // "numblocks" counts what follows it.
            _ => {}
        }
        Ok(())
    }

    /// The map, which version 1.0 has at the begin of the file's data, `left` bytes of which are still in `stream`. None
    /// when the file has no holes.
    ///
    /// # Errors
    /// It is malformed, or of a version that isn't known.
    pub fn map(&self, stream: &mut Stream, left: &mut u64) -> Result<Option<Map>> {
        match (self.version, self.size) {
            ((None, None), None) => Ok(None),
            ((None, None) | (Some(0), Some(0 | 1)), Some(size)) => Map::new(&self.numbers, size).map(Some),
            ((Some(1), Some(0)), Some(size)) => {
                let mut lines = Lines { stream, left, block: Vec::new(), at: 0 };
                let count = lines.next()?;
                let mut numbers = Vec::new();
                for _ in 0..count.checked_mul(2).ok_or_else(malformed)? {
                    push(&mut numbers, lines.next()?)?;
                }
                Map::new(&numbers, size).map(Some)
            }
            _ => Err(Failure::Archive("a sparse file of an unknown version".to_owned())),
        }
    }
}

/// Numbers on lines of their own, padded to whole blocks.
struct Lines<'a> {
    stream: &'a mut Stream,
    left: &'a mut u64,
    block: Vec<u8>,
    at: usize,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return decimal(&digits).ok_or_else(malformed),
                _ if digits.len() == 20 => return Err(malformed()),
                digit => digits.push(digit),
            }
        }
    }

    fn byte(&mut self) -> Result<u8> {
        if self.at == self.block.len() {
            *self.left = self.left.checked_sub(BLOCK as u64).ok_or_else(malformed)?;
            self.block = self.stream.expect_block()?.to_vec();
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

/// Reads pairs of numbers up to the first that isn't filled in.
fn read_extents(fields: &[u8], numbers: &mut Vec<u64>) -> Result<()> {
    let (extents, _) = fields.as_chunks::<OLD_EXTENT>();
    for extent in extents.iter().take_while(|extent| extent[12] != 0) {
        push(numbers, length(&extent[..12])?)?;
        push(numbers, length(&extent[12..])?)?;
    }
    Ok(())
}

fn length(field: &[u8]) -> Result<u64> {
    u64::try_from(number(field)?).map_err(|_| malformed())
}

fn push(numbers: &mut Vec<u64>, number: u64) -> Result<()> {
    if numbers.len() >= 2 * EXTENTS_MAX {
        return Err(Failure::Archive("a sparse file of too many pieces".to_owned()));
    }
    numbers.push(number);
    Ok(())
}

fn malformed() -> Failure {
    Failure::Archive("damaged: the map of a sparse file is malformed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_in_order_and_within_the_file() {
        let map = Map::new(&[0, 10, 100, 5, 200, 0], 200).unwrap();
        assert_eq!((map.extents.len(), map.data()), (3, 15));
        for numbers in [&[0][..], &[10, 5, 0, 5], &[0, 11, 10, 1], &[190, 11], &[u64::MAX, 1]] {
            assert!(Map::new(numbers, 200).is_err(), "{numbers:?}");
        }
    }
}
