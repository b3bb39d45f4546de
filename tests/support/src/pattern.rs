//! Deterministic bytes: the same seed gives the same bytes on every machine.

use std::ops::Range;
use std::sync::OnceLock;

/// Bytes in one page of a [`sparse`](fill_page) object.
const PAGE: u64 = 4096;
/// Bytes at the start of a page that name the page itself.
const HEADER: usize = 16;
/// Random bytes that the pages are cut from.
const TABLE: usize = 64 * 1024;

/// One step of the splitmix64 generator: a good 64-bit hash of `x`.
pub fn splitmix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `len` incompressible bytes made from `seed`.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let base = splitmix(seed);
    for (index, word) in out.chunks_mut(8).enumerate() {
        let value = splitmix(base ^ index as u64).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
    out
}

/// The bytes `range` of the endless sparse object `seed`.
///
/// Every 4 KiB page begins with its own number mixed with the seed, and the rest is cut from a random table at a
/// place that depends on both: a byte served from a wrong page or a wrong seed shows, and making a page costs one
/// `memcpy`, also in a debug build.
pub fn sparse_byte_range(seed: u64, range: Range<u64>) -> Vec<u8> {
    let len = range.end.saturating_sub(range.start) as usize;
    let mut out = Vec::with_capacity(len);
    let mut page = [0; PAGE as usize];
    let mut at = range.start;
    while at < range.end {
        fill_page(seed, at / PAGE, &mut page);
        let from = (at % PAGE) as usize;
        let take = (PAGE - at % PAGE).min(range.end - at) as usize;
        out.extend_from_slice(&page[from..from + take]);
        at += take as u64;
    }
    out
}

fn fill_page(seed: u64, index: u64, page: &mut [u8; PAGE as usize]) {
    let hash = splitmix(splitmix(seed) ^ index);
    page[..8].copy_from_slice(&hash.to_le_bytes());
    page[8..HEADER].copy_from_slice(&(index ^ seed).to_le_bytes());
    let table = table();
    let body = page.len() - HEADER;
    let from = (hash as usize) % (table.len() - body);
    page[HEADER..].copy_from_slice(&table[from..from + body]);
}

fn table() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| random_bytes(0x617A_7465_6300, TABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_range_is_a_part_of_the_whole() {
        let whole = sparse_byte_range(7, 0..50_000);
        assert_eq!(sparse_byte_range(7, 4_000..9_001), whole[4_000..9_001]);
        assert_eq!(sparse_byte_range(7, 49_999..50_000), whole[49_999..]);
        assert!(sparse_byte_range(7, 5..5).is_empty());
    }

    #[test]
    fn seeds_and_pages_differ() {
        let a = sparse_byte_range(1, 0..8192);
        assert_ne!(a[..4096], a[4096..]);
        assert_ne!(a, sparse_byte_range(2, 0..8192));
        assert_eq!(random_bytes(3, 13).len(), 13);
        assert_ne!(random_bytes(3, 64), random_bytes(4, 64));
    }
}
