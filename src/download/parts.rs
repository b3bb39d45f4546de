//! Which bytes of an object are here, which are on their way, and who waits for which.

use std::collections::BTreeMap;
use std::ops::Range;

use crc_fast::{CrcAlgorithm, checksum_combine};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// How an object is cut into parts; all in bytes.
#[derive(Clone, Copy, Debug)]
pub struct PartSizes {
    /// The first part, small: a reader gets its first bytes after one short request.
    pub first: u64,
    /// Every other part, large: a request's round trip is small beside it at 50 to 100 MB/s.
    pub other: u64,
    /// A reader far ahead gets a part of its own that begins at a multiple of this.
    pub split: u64,
}

impl PartSizes {
    /// The object in one part, which is never split.
    pub const WHOLE: PartSizes = PartSizes { first: u64::MAX, other: u64::MAX, split: u64::MAX };
}

impl Default for PartSizes {
    fn default() -> PartSizes {
        PartSizes { first: 1 << 20, other: 8 << 20, split: 1 << 20 }
    }
}

/// The state of one object's download. Parts are filled from their start to their end, in any order among them.
#[derive(Debug)]
pub struct PartMap {
    /// By where they start; together they cover the object.
    parts: BTreeMap<u64, Part>,
    sizes: PartSizes,
    waiters: Vec<Waiter>,
    missing: u64,
    /// Where the last reader was: what follows is wanted next.
    position: u64,
    failed: Option<Error>,
}

#[derive(Debug)]
struct Part {
    end: u64,
    /// The bytes up to here are in the file.
    filled: u64,
    leased: bool,
    /// The CRC64NVME of the bytes up to `filled`.
    crc: u64,
}

#[derive(Debug)]
struct Waiter {
    range: Range<u64>,
    wake: oneshot::Sender<Result<()>>,
}

/// The bytes `from..end` to be fetched by one worker, of the part that starts at `part`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Where the part starts.
    pub part: u64,
    /// Its first missing byte.
    pub from: u64,
    /// Where it ends.
    pub end: u64,
}

impl PartMap {
    /// An object of `size` bytes, none of which is here.
    pub fn new(size: u64, sizes: PartSizes) -> PartMap {
        let mut parts = BTreeMap::new();
        let mut start = 0;
        while start < size {
            let length = if start == 0 { sizes.first } else { sizes.other };
            let end = (start + length).min(size);
            parts.insert(start, Part { end, filled: start, leased: false, crc: 0 });
            start = end;
        }
        PartMap { parts, sizes, waiters: Vec::new(), missing: size, position: 0, failed: None }
    }

    /// Whether all bytes are here.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Why the download ended early, if it did.
    pub fn failure(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// The first missing byte of `range`, if any.
    fn first_missing(&self, range: &Range<u64>) -> Option<u64> {
        let mut position = range.start;
        while self.missing > 0 && position < range.end {
            let (_, part) = self.parts.range(..=position).next_back()?;
            if part.filled < part.end.min(range.end) {
                return Some(part.filled.max(position));
            }
            position = part.end;
        }
        None
    }

    /// Whether every byte of `range` is here. Notes that a reader is there.
    pub fn contains(&mut self, range: &Range<u64>) -> bool {
        self.position = range.end;
        self.first_missing(range).is_none()
    }

    /// Resolves when every byte of `range` is here, or the download has failed.
    pub fn wait(&mut self, range: Range<u64>) -> oneshot::Receiver<Result<()>> {
        let (wake, woken) = oneshot::channel();
        if let Some(error) = &self.failed {
            let _ = wake.send(Err(error.clone()));
        } else {
            self.waiters.push(Waiter { range, wake });
        }
        woken
    }

    /// Whether a reader waits for the next bytes of the part that starts at `start`.
    pub fn is_awaited(&self, start: u64) -> bool {
        let Some(part) = self.parts.get(&start) else { return false };
        self.waiters.iter().any(|w| {
            !w.wake.is_closed()
                && self.first_missing(&w.range).is_some_and(|at| (part.filled..part.end).contains(&at))
        })
    }

    /// Whether a reader waits for bytes that nobody is fetching.
    pub fn has_unleased_wanted(&self) -> bool {
        self.wanted().is_some()
    }

    fn wanted(&self) -> Option<u64> {
        let offsets =
            self.waiters.iter().filter(|w| !w.wake.is_closed()).filter_map(|w| self.first_missing(&w.range));
        offsets.filter(|offset| self.part_at(*offset).is_some_and(|(_, part)| !part.leased)).min()
    }

    fn part_at(&self, offset: u64) -> Option<(u64, &Part)> {
        self.parts.range(..=offset).next_back().map(|(start, part)| (*start, part))
    }

    /// Gives out the next bytes to fetch: those a reader waits for, then those after the last reader, then any. None
    /// when everything is here or on its way.
    pub fn lease(&mut self) -> Option<Lease> {
        if self.failed.is_some() {
            return None;
        }
        let start = match self.wanted() {
            Some(offset) => self.split_before(offset),
            None => {
                let free =
                    |(start, part): (&u64, &Part)| (!part.leased && part.filled < part.end).then_some(*start);
                let ahead = self.part_at(self.position).map_or(0, |(start, _)| start);
                self.parts
                    .range(ahead..)
                    .find_map(free)
                    .or_else(|| self.parts.range(..ahead).find_map(free))?
            }
        };
        let part = self.parts.get_mut(&start)?;
        part.leased = true;
        Some(Lease { part: start, from: part.filled, end: part.end })
    }

    /// Cuts the unleased part around `offset` so that one begins near it; returns where that one starts.
    fn split_before(&mut self, offset: u64) -> u64 {
        let Some((start, part)) = self.part_at(offset) else { return offset };
        let (filled, end) = (part.filled, part.end);
        let cut = offset / self.sizes.split * self.sizes.split;
        if cut <= filled {
            return start;
        }
        if let Some(part) = self.parts.get_mut(&start) {
            part.end = cut;
        }
        self.parts.insert(cut, Part { end, filled: cut, leased: false, crc: 0 });
        cut
    }

    /// Notes that the next `length` bytes of the leased part that starts at `start` are in the file, with their
    /// CRC64NVME, and wakes whoever waited for them.
    pub fn advance(&mut self, start: u64, length: u64, crc: u64) {
        let Some(part) = self.parts.get_mut(&start) else { return };
        debug_assert!(part.leased && part.filled + length <= part.end);
        part.crc = if part.filled == start {
            crc
        } else {
            checksum_combine(CrcAlgorithm::Crc64Nvme, part.crc, crc, length)
        };
        part.filled += length;
        self.missing -= length;
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if self.first_missing(&waiter.range).is_none() {
                let _ = waiter.wake.send(Ok(()));
            } else if !waiter.wake.is_closed() {
                self.waiters.push(waiter);
            }
        }
    }

    /// Ends the download early: who waits, or comes to wait, gets `error`. Bytes that are here stay readable.
    pub fn fail(&mut self, error: Error) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.wake.send(Err(error.clone()));
        }
        self.failed.get_or_insert(error);
    }

    /// The CRC64NVME of the whole object, once complete.
    pub fn checksum(&self) -> Option<u64> {
        let combine = |crc, (start, part): (&u64, &Part)| {
            checksum_combine(CrcAlgorithm::Crc64Nvme, crc, part.crc, part.end - start)
        };
        self.is_complete().then(|| self.parts.iter().fold(0, combine))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    fn crc(data: &[u8]) -> u64 {
        crc_fast::checksum(CrcAlgorithm::Crc64Nvme, data)
    }

    #[test]
    fn the_first_part_is_small_and_readers_ahead_get_their_own() {
        let mut map = PartMap::new(100 << 20, PartSizes::default());
        assert_eq!(map.lease(), Some(Lease { part: 0, from: 0, end: 1 << 20 }));
        let _woken = map.wait((50 << 20) + 5..(50 << 20) + 10);
        assert!(map.has_unleased_wanted());
        let lease = map.lease().unwrap();
        assert_eq!((lease.from, lease.end), (50 << 20, 57 << 20));
        assert!(!map.has_unleased_wanted());
        assert_eq!(map.lease().unwrap().from, 1 << 20);
    }

    #[test]
    fn what_follows_the_reader_comes_next() {
        let mut map = PartMap::new(100 << 20, PartSizes::default());
        assert!(!map.contains(&(30 << 20..31 << 20)));
        assert_eq!(map.lease().unwrap().from, 25 << 20);
    }

    #[test]
    fn an_empty_object_is_complete() {
        let mut map = PartMap::new(0, PartSizes::default());
        assert!(map.is_complete() && map.contains(&(0..0)));
        assert_eq!((map.lease(), map.checksum()), (None, Some(0)));
    }

    #[test]
    fn failure_reaches_those_who_wait_and_those_who_come() {
        let mut map = PartMap::new(10, PartSizes::default());
        let mut before = map.wait(0..5);
        map.fail(Error::new(Kind::Remote, "x"));
        let mut after = map.wait(0..5);
        assert!(before.try_recv().unwrap().is_err() && after.try_recv().unwrap().is_err());
        assert_eq!(map.lease(), None);
    }

    proptest! {
        /// Whatever the order of leases, progress, give-ups and readers: a reader is woken exactly when its bytes are
        /// there, no byte is fetched twice, and the checksum is the object's.
        #[test]
        fn any_order_of_events(size in 1u64..2_000, steps in prop::collection::vec((0u8..4, any::<u32>()), 1..200)) {
            let mut map = PartMap::new(size, PartSizes { first: 10, other: 80, split: 10 });
            let mut here: Vec<Range<u64>> = Vec::new();
            let mut leases: Vec<Lease> = Vec::new();
            let mut waiting: Vec<(Range<u64>, oneshot::Receiver<Result<()>>)> = Vec::new();
            let byte = |offset: u64| (offset.wrapping_mul(31) % 251) as u8;
            let has = |here: &[Range<u64>], at: u64| here.iter().any(|r| r.contains(&at));
            for (what, n) in steps {
                match what {
                    0 => leases.extend(map.lease()),
                    1 => {
                        let start = u64::from(n) % size;
                        let range = start..(start + 1 + u64::from(n % 50)).min(size);
                        let contained = map.contains(&range);
                        prop_assert_eq!(contained, range.clone().all(|at| has(&here, at)));
                        if !contained {
                            let woken = map.wait(range.clone());
                            waiting.push((range, woken));
                        }
                    }
                    _ if !leases.is_empty() => {
                        let index = n as usize % leases.len();
                        let lease = &mut leases[index];
                        let length = (u64::from(n) % 30 + 1).min(lease.end - lease.from);
                        let range = lease.from..lease.from + length;
                        prop_assert!(!has(&here, range.start) && !has(&here, range.end - 1));
                        let data: Vec<u8> = range.clone().map(byte).collect();
                        map.advance(lease.part, length, crc(&data));
                        here.push(range);
                        lease.from += length;
                        if lease.from == lease.end {
                            leases.swap_remove(index);
                        }
                    }
                    _ => {}
                }
                waiting.retain_mut(|(range, woken)| {
                    let there = map.first_missing(range).is_none();
                    assert_eq!(there, woken.try_recv().is_ok());
                    !there
                });
            }
            while let Some(lease) = leases.pop().or_else(|| map.lease()) {
                let data: Vec<u8> = (lease.from..lease.end).map(byte).collect();
                map.advance(lease.part, data.len() as u64, crc(&data));
            }
            prop_assert!(map.is_complete());
            let whole: Vec<u8> = (0..size).map(byte).collect();
            prop_assert_eq!(map.checksum(), Some(crc(&whole)));
            prop_assert!(waiting.iter_mut().all(|(_, woken)| woken.try_recv().is_ok()));
        }
    }
}
