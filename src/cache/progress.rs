//! What a partial file holds: a header, then a record after each write, so that other processes can read along and a later
//! one can go on where this one was interrupted.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::checksum::extend_crc64nvme;
use crate::object::ObjectVersion;

/// The length of a record on disk: four numbers of 8 bytes, little-endian; the last is the CRC64NVME of the first three.
const RECORD: usize = 32;
/// No header is longer: a key has 1 KiB at most, an ETag's length is bounded by that of a header line.
const HEADER_MAX: u64 = 64 << 10;

/// "The bytes `start..filled` are in the file."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The first byte; records that start at the same one follow each other.
    pub start: u64,
    /// The byte after the last.
    pub filled: u64,
    /// Their CRC64NVME.
    pub crc: u64,
}

impl Record {
    fn encode(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        for (slot, number) in bytes.chunks_exact_mut(8).zip([self.start, self.filled, self.crc]) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        let check = extend_crc64nvme(0, &bytes[..RECORD - 8]);
        bytes[RECORD - 8..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// None when it is damaged, as a record may be that was not on disk yet when the power failed.
    fn decode(bytes: &[u8]) -> Option<Record> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let record = Record { start: number(0)?, filled: number(8)?, crc: number(16)? };
        (number(24)? == extend_crc64nvme(0, &bytes[..RECORD - 8]) && record.start < record.filled)
            .then_some(record)
    }
}

/// The version that a partial file is to hold.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    key: String,
    etag: String,
    size: u64,
    source: String,
}

impl Header {
    fn of(object: &ObjectVersion) -> Header {
        Header {
            key: object.key.as_str().to_owned(),
            etag: object.etag.as_str().to_owned(),
            size: object.size,
            source: object.source.to_string(),
        }
    }
}

/// Begins `file` anew, for `object`.
pub fn begin(file: &mut File, object: &ObjectVersion) -> io::Result<()> {
    file.set_len(0)?;
    let mut header = serde_json::to_vec(&Header::of(object)).map_err(io::Error::other)?;
    header.push(b'\n');
    file.write_all(&header)
}

/// Adds a record. `file` is open for appending.
pub fn append(mut file: &File, record: Record) -> io::Result<()> {
    file.write_all(&record.encode())
}

/// Reads a file's records, also while it grows.
#[derive(Debug)]
pub struct Reader {
    file: File,
    /// Where the first record begins.
    first: u64,
    /// Where the next record begins.
    at: u64,
    /// Whether some record was damaged.
    damaged: bool,
}

impl Reader {
    /// Reads the header. None when it isn't whole (yet), or not `object`'s.
    pub fn open(file: File, object: &ObjectVersion) -> io::Result<Option<Reader>> {
        let mut start = Vec::new();
        (&file).take(HEADER_MAX).read_to_end(&mut start)?;
        let Some(end) = start.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let header: Option<Header> = serde_json::from_slice(&start[..end]).ok();
        let first = end as u64 + 1;
        Ok((header == Some(Header::of(object))).then_some(Reader { file, first, at: first, damaged: false }))
    }

    /// The records that were added since the last call.
    pub fn read_new(&mut self) -> io::Result<Vec<Record>> {
        let length = self.file.metadata()?.len();
        if length < self.at {
            // It was begun anew.
            self.at = self.first;
        }
        let whole = length.saturating_sub(self.at) as usize / RECORD * RECORD;
        let mut bytes = vec![0; whole];
        self.file.read_exact_at(&mut bytes, self.at)?;
        self.at += whole as u64;
        let records: Vec<Record> = bytes.chunks_exact(RECORD).filter_map(Record::decode).collect();
        self.damaged |= records.len() < whole / RECORD;
        Ok(records)
    }

    /// Whether all that is in the file was read, and none of it was damaged.
    pub fn is_sound(&self) -> io::Result<bool> {
        Ok(!self.damaged && self.file.metadata()?.len() == self.at)
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::object::{ETag, Key};

    /// The format on disk. If this fails, either the change was not meant, or bump the format version.
    #[test]
    fn golden() {
        let (key, etag) = (Key::new("a/b.zst").unwrap(), ETag::new("abc"));
        let (modified, source) = (SystemTime::now(), "s3://b/".into());
        let object = ObjectVersion { key, etag, size: 7, modified, checksum: None, source };
        let mut file = tempfile::tempfile().unwrap();
        begin(&mut file, &object).unwrap();
        append(&file, Record { start: 0, filled: 4, crc: 5 }).unwrap();
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let (header, record) = bytes.split_at(bytes.len() - RECORD);
        assert_eq!(
            header,
            br#"{"key":"a/b.zst","etag":"\"abc\"","size":7,"source":"s3://b/"}
"#
        );
        assert_eq!(record[..24], [0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        io::Seek::rewind(&mut file).unwrap();
        let mut reader = Reader::open(file.try_clone().unwrap(), &object).unwrap().unwrap();
        assert_eq!(reader.read_new().unwrap(), [Record { start: 0, filled: 4, crc: 5 }]);
        assert_eq!(reader.read_new().unwrap(), []);
        append(&file, Record { start: 4, filled: 7, crc: 1 }).unwrap();
        file.write_all(&[0; RECORD + 5]).unwrap();
        assert_eq!(
            reader.read_new().unwrap(),
            [Record { start: 4, filled: 7, crc: 1 }],
            "a damaged one is left out"
        );
        let other = ObjectVersion { etag: ETag::new("other"), ..object };
        io::Seek::rewind(&mut file).unwrap();
        assert!(Reader::open(file, &other).unwrap().is_none());
    }
}
