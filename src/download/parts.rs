//! Which bytes of an object are here, which are on their way, and who waits for which.

use std::collections::BTreeMap;
use std::ops::Range;

use tokio::sync::oneshot;

use crate::checksum::combine_crc64nvme;
use crate::error::{Error, Result};

/// How an object is cut into parts; all in bytes.
#[derive(Clone, Copy, Debug)]
pub struct PartSizes {
    /// The first part, small: a reader gets its first bytes after one short request.
    pub first: u64,
    /// Every other part.
    pub other: u64,
    /// A reader far ahead gets a part of its own that begins at a multiple of this.
    pub split: u64,
}

impl PartSizes {
    /// The object in one part, which is never split.
    pub const WHOLE: PartSizes = PartSizes { first: u64::MAX, other: u64::MAX, split: u64::MAX };

    /// The sizes for an object of `size` bytes. Parts of 8 MiB: a request's round trip is small beside them at the 50 to 100
    /// MB/s that S3 gives a connection. Smaller ones for what would else be spread over few connections; what one connection
    /// brings in about a round trip is one part.
    pub fn of(size: u64) -> PartSizes {
        const MIB: u64 = 1 << 20;
        let first = if size <= 2 * MIB { 2 * MIB } else { MIB };
        let other = (size / 16).next_multiple_of(MIB).clamp(2 * MIB, 8 * MIB);
        PartSizes { first, other, split: MIB }
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
    /// The bytes that are here turned out to be wrong.
    condemned: bool,
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
    /// The CRC64NVME of its bytes up to `from`.
    pub crc: u64,
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
        let (waiters, position) = (Vec::new(), 0);
        PartMap { parts, sizes, waiters, missing: size, position, failed: None, condemned: false }
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

    /// How many bytes are not here yet.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether every byte of `range` is here, and right as far as that is known. Notes that a reader is there.
    pub fn contains(&mut self, range: &Range<u64>) -> bool {
        self.position = range.end;
        !self.condemned && self.first_missing(range).is_none()
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

    /// Whether a reader waits for the next bytes of the part that starts at `start`, and needs none of it beyond `end`.
    pub fn is_awaited(&self, start: u64, end: u64) -> bool {
        let Some(part) = self.parts.get(&start) else { return false };
        self.waiters.iter().any(|w| {
            !w.wake.is_closed()
                && w.range.end.min(part.end) <= end
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
        self.lease_wanted().or_else(|| {
            let free =
                |(start, part): (&u64, &Part)| (!part.leased && part.filled < part.end).then_some(*start);
            let ahead = self.part_at(self.position).map_or(0, |(start, _)| start);
            let next = self.parts.range(ahead..).find_map(free);
            self.lease_part(next.or_else(|| self.parts.range(..ahead).find_map(free))?)
        })
    }

    /// Gives out the first bytes that a reader waits for and nobody is fetching. None when there are none.
    pub fn lease_wanted(&mut self) -> Option<Lease> {
        let wanted = self.wanted()?;
        let start = self.split_before(wanted);
        self.lease_part(start)
    }

    fn lease_part(&mut self, start: u64) -> Option<Lease> {
        if self.failed.is_some() {
            return None;
        }
        let part = self.parts.get_mut(&start)?;
        part.leased = true;
        Some(Lease { part: start, from: part.filled, end: part.end, crc: part.crc })
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

    /// Notes that the leased part that starts at `start` is in the file up to `filled`, with the CRC64NVME of that much of it,
    /// and wakes whoever waited for it.
    pub fn advance(&mut self, start: u64, filled: u64, crc: u64) {
        let Some(part) = self.parts.get_mut(&start) else { return };
        debug_assert!((part.filled..=part.end).contains(&filled));
        self.missing -= filled - part.filled;
        (part.filled, part.crc) = (filled, crc);
        self.wake();
    }

    /// Notes that the bytes `start..filled`, with this CRC64NVME, are in the file by the work of another process, which may
    /// have cut the object into parts in its own way. What overlaps a part that has bytes already, other than at their
    /// common start, is ignored.
    pub fn insert(&mut self, start: u64, filled: u64, crc: u64) {
        if self.parts.get(&start).is_some_and(|part| filled <= part.end) {
            if self.parts.get(&start).is_some_and(|part| part.filled < filled) {
                self.advance(start, filled, crc);
            }
            return;
        }
        let Some((before, part)) = self.part_at(start) else { return };
        let last = self.parts.range(before..filled).next_back().map_or(0, |(_, part)| part.end);
        let free = |(at, part): (&u64, &Part)| {
            // The first may have bytes before `start`, or fewer than this from it on.
            !part.leased
                && if *at < start { part.filled <= start } else { part.filled == *at || *at == start }
        };
        if filled > last || (part.leased && before != start) || !self.parts.range(before..filled).all(free) {
            return;
        }
        let known = self.parts.get(&start).map_or(0, |part| part.filled - start);
        let covered: Vec<u64> = self.parts.range(start..filled).map(|(at, _)| *at).collect();
        for at in covered {
            self.parts.remove(&at);
        }
        if before < start
            && let Some(part) = self.parts.get_mut(&before)
        {
            part.end = start;
        }
        self.parts.insert(start, Part { end: last, filled, leased: false, crc });
        self.missing -= filled - start - known;
        self.wake();
    }

    fn wake(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if self.first_missing(&waiter.range).is_none() {
                let _ = waiter.wake.send(Ok(()));
            } else if !waiter.wake.is_closed() {
                self.waiters.push(waiter);
            }
        }
    }

    /// Ends the download since the bytes that are here are wrong: nobody gets any more of them.
    pub fn condemn(&mut self, error: Error) {
        self.condemned = true;
        self.fail(error);
    }

    /// Ends the download early: who waits, or comes to wait, gets `error`. Bytes that are here stay readable. False when it
    /// had ended already.
    pub fn fail(&mut self, error: Error) -> bool {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.wake.send(Err(error.clone()));
        }
        let first = self.failed.is_none();
        self.failed.get_or_insert(error);
        first
    }

    /// The CRC64NVME of the whole object, once complete.
    pub fn checksum(&self) -> Option<u64> {
        let parts = self.parts.iter().map(|(start, part)| (part.crc, part.end - start));
        // The first one needs no combining, which takes some 100 µs.
        let whole = |parts: (u64, u64), part: (u64, u64)| {
            (combine_crc64nvme(parts.0, part.0, part.1), parts.1 + part.1)
        };
        self.is_complete().then(|| parts.reduce(whole).map_or(0, |(crc, _)| crc))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::extend_crc64nvme;
    use crate::error::Kind;

    fn crc(data: &[u8]) -> u64 {
        extend_crc64nvme(0, data)
    }

    #[test]
    fn the_first_part_is_small_and_readers_ahead_get_their_own() {
        let mut map = PartMap::new(200 << 20, PartSizes::of(200 << 20));
        assert_eq!(map.lease(), Some(Lease { part: 0, from: 0, end: 1 << 20, crc: 0 }));
        let _woken = map.wait((50 << 20) + 5..(50 << 20) + 10);
        assert!(map.has_unleased_wanted());
        let lease = map.lease().unwrap();
        assert_eq!((lease.from, lease.end), (50 << 20, 57 << 20));
        assert!(!map.has_unleased_wanted());
        assert_eq!(map.lease_wanted(), None, "nobody waits for what is not on its way");
        assert_eq!(map.lease().unwrap().from, 1 << 20);
    }

    #[test]
    fn a_reader_is_in_a_hurry_once_all_it_waits_for_has_come() {
        let mut map = PartMap::new(20 << 20, PartSizes::of(20 << 20));
        let lease = map.lease().unwrap();
        assert!(!map.is_awaited(lease.part, 100), "nobody waits");
        let woken = map.wait(1000..(1 << 20) + 1000);
        assert!(!map.is_awaited(lease.part, 2000), "more of this part is missing");
        assert!(map.is_awaited(lease.part, 1 << 20), "what is left comes with another part");
        assert!(!map.is_awaited(1 << 20, 2 << 20), "the other part's bytes alone are of no use");
        map.advance(lease.part, 1 << 20, 0);
        assert!(map.is_awaited(1 << 20, (1 << 20) + 1000) && !map.is_awaited(1 << 20, (1 << 20) + 999));
        drop(woken);
        assert!(!map.is_awaited(1 << 20, 2 << 20), "it has gone");
    }

    #[test]
    fn what_is_small_is_one_part() {
        for (size, first) in [(2 << 20, 2 << 20), ((2 << 20) + 1, 1 << 20)] {
            let lease = PartMap::new(size, PartSizes::of(size)).lease();
            assert_eq!(lease, Some(Lease { part: 0, from: 0, end: first, crc: 0 }), "of {size} bytes");
        }
    }

    #[test]
    fn what_follows_the_reader_comes_next() {
        let mut map = PartMap::new(200 << 20, PartSizes::of(200 << 20));
        assert!(!map.contains(&(30 << 20..31 << 20)));
        assert_eq!(map.lease().unwrap().from, 25 << 20);
    }

    #[test]
    fn an_empty_object_is_complete() {
        let mut map = PartMap::new(0, PartSizes::of(0));
        assert!(map.is_complete() && map.contains(&(0..0)));
        assert_eq!((map.lease(), map.checksum()), (None, Some(0)));
    }

    #[test]
    fn failure_reaches_those_who_wait_and_those_who_come() {
        let mut map = PartMap::new(10, PartSizes::of(10));
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
        fn any_order_of_events(size in 1u64..2_000, steps in prop::collection::vec((0u8..5, any::<u32>()), 1..200)) {
            let mut map = PartMap::new(size, PartSizes { first: 10, other: 80, split: 10 });
            let mut here: Vec<Range<u64>> = Vec::new();
            let mut leases: Vec<Lease> = Vec::new();
            let mut waiting: Vec<(Range<u64>, oneshot::Receiver<Result<()>>)> = Vec::new();
            let byte = |offset: u64| (offset.wrapping_mul(31) % 251) as u8;
            let has = |here: &[Range<u64>], at: u64| here.iter().any(|r| r.contains(&at));
            for (what, n) in steps {
                match what {
                    0 => leases.extend(map.lease()),
                    4 => leases.extend(map.lease_wanted()),
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
                        lease.crc = extend_crc64nvme(lease.crc, &data);
                        lease.from += length;
                        map.advance(lease.part, lease.from, lease.crc);
                        here.push(range);
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
                map.advance(lease.part, lease.end, extend_crc64nvme(lease.crc, &data));
            }
            prop_assert!(map.is_complete());
            let whole: Vec<u8> = (0..size).map(byte).collect();
            prop_assert_eq!(map.checksum(), Some(crc(&whole)));
            prop_assert!(waiting.iter_mut().all(|(_, woken)| woken.try_recv().is_ok()));
        }

        /// Whatever another process has put into the file, in parts of any size: what it has is here, the rest is fetched,
        /// and the checksum is the object's.
        #[test]
        fn what_another_process_brought_is_not_fetched_again(
            size in 1u64..2_000,
            cuts in prop::collection::btree_set(0u64..2_000, 0..20),
            fill in prop::collection::vec(0u64..200, 20),
            in_order in any::<bool>(),
        ) {
            let mut map = PartMap::new(size, PartSizes { first: 10, other: 80, split: 10 });
            let byte = |offset: u64| (offset.wrapping_mul(31) % 251) as u8;
            let data = |range: Range<u64>| range.map(byte).collect::<Vec<u8>>();
            let cuts: Vec<u64> = cuts.into_iter().filter(|cut| *cut < size).chain([size]).collect();
            let mut records: Vec<Range<u64>> =
                cuts.windows(2).zip(&fill).map(|(w, n)| w[0]..w[1].min(w[0] + n)).filter(|r| !r.is_empty()).collect();
            if !in_order {
                records.reverse();
            }
            for record in &records {
                // As it came: first half of it, then all.
                let half = record.start..record.start.midpoint(record.end).max(record.start + 1);
                map.insert(half.start, half.end, crc(&data(half.clone())));
                map.insert(record.start, record.end, crc(&data(record.clone())));
                prop_assert!(map.contains(record), "{record:?}");
            }
            let mut fetched = 0;
            while let Some(lease) = map.lease() {
                prop_assert!(records.iter().all(|r| r.end <= lease.from || lease.end <= r.start));
                fetched += lease.end - lease.from;
                map.advance(lease.part, lease.end, extend_crc64nvme(lease.crc, &data(lease.from..lease.end)));
            }
            prop_assert_eq!(fetched, size - records.iter().map(|r| r.end - r.start).sum::<u64>());
            prop_assert_eq!(map.checksum(), Some(crc(&data(0..size))));
        }
    }
}
