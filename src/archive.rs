//! Whether a compressed file is whole: decoded to the end, its bytes thrown away.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes read, and decoded, at a time.
const CHUNK: usize = 128 << 10;

/// Why a file isn't what its name says.
#[derive(Debug)]
pub enum ArchiveError {
    /// Nothing in it.
    Empty,
    /// It ends in the middle, or isn't of the format.
    Damaged(String),
    /// It can't be read.
    Io(io::Error),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveError::Empty => f.write_str("an empty archive"),
            ArchiveError::Damaged(what) => write!(f, "a truncated or damaged archive ({what})"),
            ArchiveError::Io(e) => write!(f, "can't be read: {e}"),
        }
    }
}

impl std::error::Error for ArchiveError {}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Format {
    /// What a file's name says; None for those that are not checked.
    pub fn of_name(name: &str) -> Option<Format> {
        let name = name.to_ascii_lowercase();
        match name.rsplit_once('.')?.1 {
            "gz" | "tgz" => Some(Format::Gzip),
            "zst" | "tzst" => Some(Format::Zstd),
            _ => None,
        }
    }

    /// What a file's first bytes say, four or more; None when it is of another kind.
    pub fn of_content(start: &[u8]) -> Option<Format> {
        match start {
            [0x1f, 0x8b, ..] => Some(Format::Gzip),
            // Parallel compressors begin with a frame to be skipped.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Format::Zstd),
            _ => None,
        }
    }
}

/// Decodes `input`, all its members or frames, to its end. What is truncated, damaged or followed by something else is an
/// error.
///
/// # Errors
/// No memory.
pub fn decoder<'a>(format: Format, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match format {
        Format::Gzip => Box::new(MultiGzDecoder::new(input)),
        Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
    })
}

/// Whether files of this name are checked: `.gz`, `.tgz`, `.zst` and `.tzst`.
pub fn is_checked(name: &str) -> bool {
    Format::of_name(name).is_some()
}

/// Decodes all of `reader`, which holds a file called `name`; a name of another kind says nothing about its bytes.
///
/// # Errors
/// The file is empty, truncated, damaged or followed by something else, or can't be read.
pub fn check(name: &str, reader: impl Read) -> Result<(), ArchiveError> {
    let Some(format) = Format::of_name(name) else { return Ok(()) };
    let mut input = Input { inner: reader, bytes: 0, failure: None };
    let buffered = BufReader::with_capacity(CHUNK, &mut input);
    let decoded = decoder(format, buffered).and_then(drain);
    match (decoded, input.failure) {
        (_, Some(e)) => Err(ArchiveError::Io(e)),
        (_, None) if input.bytes == 0 => Err(ArchiveError::Empty),
        (Err(e), None) => Err(ArchiveError::Damaged(e.to_string())),
        (Ok(()), None) => Ok(()),
    }
}

fn drain(mut decoder: impl Read) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while decoder.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Tells a file that can't be read from one that can't be decoded.
struct Input<R> {
    inner: R,
    bytes: u64,
    failure: Option<io::Error>,
}

impl<R: Read> Read for &mut Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(length) => {
                self.bytes += length as u64;
                Ok(length)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let shown = io::Error::other("the file can't be read");
                self.failure = Some(e);
                Err(shown)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn both() -> [(&'static str, Vec<u8>); 2] {
        let bytes: Vec<u8> =
            (0..500_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        [("a.tar.gz", gzip(&bytes)), ("a.zst", zstd::stream::encode_all(&*bytes, 1).unwrap())]
    }

    #[test]
    fn whole_archives_pass_also_several_in_a_row() {
        for (name, archive) in both() {
            check(name, &*archive).unwrap();
            check(name, &*[archive.clone(), archive].concat()).unwrap();
        }
        check("notes.txt", &b"anything"[..]).unwrap();
    }

    #[test]
    fn what_is_cut_empty_or_followed_by_something_else_is_refused() {
        for (name, archive) in both() {
            for length in [1, 5, 20, archive.len() / 2, archive.len() - 1] {
                let result = check(name, &archive[..length]);
                assert!(
                    matches!(result, Err(ArchiveError::Damaged(_))),
                    "{name} cut to {length}: {result:?}"
                );
            }
            assert!(matches!(check(name, &b""[..]), Err(ArchiveError::Empty)), "{name}");
            assert!(matches!(check(name, &b"no archive"[..]), Err(ArchiveError::Damaged(_))), "{name}");
            let followed = [&archive[..], b"trailing"].concat();
            assert!(matches!(check(name, &*followed), Err(ArchiveError::Damaged(_))), "{name}");
            let mut flipped = archive.clone();
            flipped[archive.len() - 3] ^= 1;
            assert!(check(name, &*flipped).is_err() || name.ends_with("zst"), "{name}: a wrong checksum");
        }
    }

    #[test]
    fn a_disk_that_fails_is_no_damaged_archive() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
        }
        assert!(matches!(check("a.gz", Failing), Err(ArchiveError::Io(_))));
    }
}
