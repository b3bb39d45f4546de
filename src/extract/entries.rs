//! The entries of a tar stream: each header with what extended headers before it say.

use bytes::Bytes;
use nix::sys::time::TimeSpec;

use crate::extract::header::Header;
use crate::extract::pax::Pax;
use crate::extract::sparse::Map;
use crate::extract::stream::{BLOCK, Stream};
use crate::extract::{Failure, Result};

/// The longest extended header that is read into memory, in bytes.
const EXTENSION_MAX: u64 = 1 << 20;

/// What an entry makes.
#[derive(Debug)]
pub enum What {
    /// A file; its data follows, spread by the map if it has holes.
    File(Option<Map>),
    /// Another name for a file that was unpacked before.
    HardLink(Vec<u8>),
    /// A link that leads anywhere.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A device, by major and minor number.
    CharDevice(u32, u32),
    /// A device, by major and minor number.
    BlockDevice(u32, u32),
}

/// Whom it belongs to.
#[derive(Clone, Debug)]
pub struct Owner {
    /// By number.
    pub uid: i64,
    /// By number.
    pub gid: i64,
    /// By name, if that isn't empty.
    pub user: Vec<u8>,
    /// By name, if that isn't empty.
    pub group: Vec<u8>,
}

/// An entry, but for its data.
#[derive(Debug)]
pub struct Entry {
    /// As the archive has it.
    pub name: Vec<u8>,
    /// What is to be made.
    pub what: What,
    /// The permission bits, up to 07777.
    pub mode: u32,
    /// Whom it belongs to.
    pub owner: Owner,
    /// The time of the last change.
    pub mtime: TimeSpec,
}

/// Reads entries from a stream.
pub struct Entries {
    stream: Stream,
    /// What global headers said so far.
    global: Pax,
    /// Bytes of the current entry's data that are still in the stream.
    left: u64,
    /// Bytes of padding behind them.
    padding: u64,
}

/// What belongs to the next entry.
struct Extensions {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Entries {
    /// The entries of `stream`.
    pub fn new(stream: Stream) -> Entries {
        Entries { stream, global: Pax::default(), left: 0, padding: 0 }
    }

    /// The next entry; None at the end of the archive. Data of the one before that was not read is passed over.
    ///
    /// # Errors
    /// The archive is damaged, truncated or part of a larger one, or can't be read.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions { pax: self.global.clone(), name: None, link: None };
        loop {
            self.stream.skip(std::mem::take(&mut self.left))?;
            self.stream.skip(std::mem::take(&mut self.padding))?;
            // Without the blocks that mark the end, more may have followed.
            let Some(header) = Header::new(self.stream.expect_block()?)? else {
                self.stream.drain()?;
                return Ok(None);
            };
            self.expect_data(header.size()?);
            match header.kind() {
                b'x' | b'X' => {
                    let records = self.extension()?;
                    extensions.pax.read(&records)?;
                }
                b'g' => {
                    let records = self.extension()?;
                    self.global.read(&records)?;
                    extensions.pax.read(&records)?;
                }
                b'L' => extensions.name = Some(until_nul(self.extension()?)),
                b'K' => extensions.link = Some(until_nul(self.extension()?)),
                // A volume's label.
                b'V' => {}
                b'M' | b'N' => {
                    return Err(Failure::Archive("part of an archive of several volumes".to_owned()));
                }
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// How much of the current entry's data is left, in bytes.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// More of the current entry's data, at most `limit` bytes, and never none.
    ///
    /// # Errors
    /// The archive is damaged or truncated, or can't be read.
    pub fn data(&mut self, limit: u64) -> Result<Bytes> {
        let bytes = self.stream.some(limit.min(self.left))?;
        self.left -= bytes.len() as u64;
        Ok(bytes)
    }

    fn expect_data(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// The data of an extended header.
    fn extension(&mut self) -> Result<Vec<u8>> {
        if self.left > EXTENSION_MAX {
            return Err(Failure::Archive(format!("an extended header of {} bytes: refused", self.left)));
        }
        let mut data = Vec::new();
        while self.left > 0 {
            data.extend_from_slice(&self.data(self.left)?);
        }
        Ok(data)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry> {
        let Extensions { mut pax, name, link } = extensions;
        if let Some(size) = pax.size {
            self.expect_data(size);
        } else if header.kind() == b'1' {
            // The length of what it links to.
            self.expect_data(0);
        }
        let name = pax.sparse.name.take().or(pax.path).or(name).unwrap_or_else(|| header.name());
        let link = || pax.link.or(link).unwrap_or_else(|| header.link());
        let what = match header.kind() {
            b'1' => What::HardLink(link()),
            b'2' => What::Symlink(link()),
            b'3' => header.device().map(|(major, minor)| What::CharDevice(major, minor))?,
            b'4' => header.device().map(|(major, minor)| What::BlockDevice(major, minor))?,
            b'5' | b'D' => What::Directory,
            b'6' => What::Fifo,
            b'S' => What::File(Some(Map::of_gnu(header, &mut self.stream)?)),
            // Programs older than the flag for directories wrote them so.
            _ if name.ends_with(b"/") => What::Directory,
            kind => {
                if !matches!(kind, 0 | b'0' | b'7') {
                    log::warn!("'{}' is of an unknown type: unpacked as a file", name.escape_ascii());
                }
                What::File(pax.sparse.map(&mut self.stream, &mut self.left)?)
            }
        };
        if let What::File(Some(map)) = &what
            && map.data() != self.left
        {
            return Err(Failure::Archive(
                "damaged: the map of a sparse file doesn't fit its data".to_owned(),
            ));
        }
        let owner = Owner {
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            user: pax.user.unwrap_or_else(|| header.user()),
            group: pax.group.unwrap_or_else(|| header.group()),
        };
        let mtime = pax.mtime.map_or_else(|| header.mtime().map(|seconds| TimeSpec::new(seconds, 0)), Ok)?;
        Ok(Entry { name, what, mode: header.mode()?, owner, mtime })
    }
}

/// A long name as GNU writes it: with a NUL at its end.
fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A header, as far as it matters here.
    fn header(kind: u8, size: usize) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..4].copy_from_slice(b"name");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar ");
        block
    }

    fn entry(kind: u8, data: &[u8]) -> Vec<u8> {
        let mut entry = [&header(kind, data.len()), data].concat();
        entry.resize(entry.len().next_multiple_of(BLOCK), 0);
        entry
    }

    /// An archive of one of everything that has structure, and where its headers are.
    fn archive() -> (Vec<u8>, Vec<usize>) {
        let map = b"2\n0\n512\n4096\n512\n";
        let data = [&map[..], &vec![0; BLOCK - map.len()], &[1; 1024]].concat();
        let records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n28 GNU.sparse.realsize=8192\n";
        let mut old = header(b'S', 1024);
        old[386..410].copy_from_slice(b"00000000000\x0000000000777\0");
        old[482] = 1;
        old[483..494].copy_from_slice(b"00000010000");
        let mut more = vec![0; BLOCK];
        more[..24].copy_from_slice(b"00000002000\x0000000001001\0");
        let parts = [
            entry(b'g', b"12 comment=\n"),
            entry(b'x', records),
            entry(b'0', &data),
            [old, more, vec![2; 1024]].concat(),
            entry(b'L', b"a longer name\0"),
            entry(b'0', &[3; 700]),
            entry(b'x', b"16 path=another\n22 mtime=1700000000.5\n"),
            entry(b'1', b""),
        ];
        let starts = parts.iter().scan(0, |at, part| Some(std::mem::replace(at, *at + part.len()))).collect();
        (parts.concat(), starts)
    }

    fn seal(archive: &mut [u8], starts: &[usize]) {
        for at in starts {
            let block = &mut archive[*at..at + BLOCK];
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }

    /// The names, kinds and bytes of data of all entries.
    fn read(archive: Vec<u8>) -> Result<Vec<(Vec<u8>, What, u64)>> {
        let (sender, chunks) = sync_channel(1);
        sender.send(Ok(Bytes::from(archive))).unwrap();
        drop(sender);
        let mut entries = Entries::new(Stream::new(chunks));
        let mut found = Vec::new();
        while let Some(entry) = entries.next()? {
            let mut data = 0;
            while entries.left() > 0 && data < 600 {
                data += entries.data(100)?.len() as u64;
            }
            found.push((entry.name, entry.what, data));
        }
        Ok(found)
    }

    #[test]
    fn entries_are_told_with_what_stands_before_them() {
        let (mut archive, starts) = archive();
        seal(&mut archive, &starts);
        archive.extend([0; 2 * BLOCK]);
        let found = read(archive).unwrap();
        let sizes = |what: &What| match what {
            What::File(map) => map.as_ref().map(|map| (map.extents.len(), map.size)),
            _ => None,
        };
        let told: Vec<_> = found
            .iter()
            .map(|(name, what, data)| (str::from_utf8(name).unwrap(), sizes(what), *data))
            .collect();
        let expected = [
            ("name", Some((2, 8192)), 600),
            ("name", Some((2, 4096)), 600),
            ("a longer name", None, 600),
            ("another", None, 0),
        ];
        assert_eq!(told, expected);
        assert!(matches!(found[3].1, What::HardLink(_)));
    }

    proptest! {
        /// Nothing else is asked of it: no panic, no endless loop, no memory for what isn't there.
        #[test]
        fn a_damaged_archive_is_read_or_refused(
            flips in vec((0_usize..7000, prop::sample::select(b"\0 0179=\n\x80\xffxgLKS".to_vec())), 1..12),
            sealed in any::<bool>(),
        ) {
            let (mut archive, starts) = archive();
            for (at, byte) in flips {
                let length = archive.len();
                archive[at % length] = byte;
            }
            if sealed {
                seal(&mut archive, &starts);
            }
            archive.extend([0; 2 * BLOCK]);
            drop(read(archive));
        }
    }
}
