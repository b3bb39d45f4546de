//! Checksums of whole objects: as servers offer them, as we record them, and how a file is checked against one.

use std::fmt;
use std::io::{self, Read};

use aws_smithy_types::base64;
use crc_fast::{CrcAlgorithm, Digest as CrcDigest, checksum_combine};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// How a checksum is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// CRC-64/NVME, S3's own default (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html>).
    Crc64Nvme,
    /// CRC-32, as in gzip.
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// MD5, which is what an ETag often is.
    Md5,
}

use Algorithm::{Crc32, Crc32c, Crc64Nvme, Md5 as Md5Sum, Sha1 as Sha1Sum, Sha256 as Sha256Sum};

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Crc64Nvme => "crc64nvme",
            Crc32 => "crc32",
            Crc32c => "crc32c",
            Sha1Sum => "sha1",
            Sha256Sum => "sha256",
            Md5Sum => "md5",
        }
    }

    fn length(self) -> usize {
        match self {
            Crc32 | Crc32c => 4,
            Crc64Nvme => 8,
            Md5Sum => 16,
            Sha1Sum => 20,
            Sha256Sum => 32,
        }
    }
}

/// A checksum of an object's bytes. Written as S3 spells it: `crc64nvme:` and base64, with `-N` after it when it is
/// the checksum of the checksums of N parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    algorithm: Algorithm,
    value: Box<[u8]>,
    parts: Option<u32>,
}

impl Checksum {
    /// The CRC64NVME of an object's bytes.
    pub fn crc64nvme(crc: u64) -> Checksum {
        Checksum { algorithm: Crc64Nvme, value: crc.to_be_bytes().into(), parts: None }
    }

    /// The checksum of all that `reader` gives.
    pub fn of(algorithm: Algorithm, mut reader: impl Read) -> io::Result<Checksum> {
        let (_, value) = hash(algorithm, &mut reader)?;
        Ok(Checksum { algorithm, value, parts: None })
    }

    /// Its value in base64, as a header has it.
    pub fn to_header(&self) -> String {
        base64::encode(&self.value)
    }

    /// The same if it is of this kind and over all bytes.
    pub fn header_if(&self, algorithm: Algorithm) -> Option<String> {
        (self.algorithm == algorithm && self.parts.is_none()).then(|| self.to_header())
    }

    /// Reads what a server sends for `algorithm`: base64, or base64 and `-N`. None when it is malformed.
    pub fn from_header(algorithm: Algorithm, text: &str) -> Option<Checksum> {
        let (text, parts) = match text.split_once('-') {
            Some((text, parts)) => (text, Some(parts.parse().ok()?)),
            None => (text, None),
        };
        let value = base64::decode(text).ok().filter(|value| value.len() == algorithm.length())?;
        Some(Checksum { algorithm, value: value.into(), parts })
    }

    /// Reads what [`Checksum`]'s `Display` writes. None when it is malformed or of an unknown kind.
    pub fn parse(text: &str) -> Option<Checksum> {
        let (name, value) = text.split_once(':')?;
        let known = [Crc64Nvme, Crc32, Crc32c, Sha1Sum, Sha256Sum, Md5Sum];
        Checksum::from_header(known.into_iter().find(|algorithm| algorithm.name() == name)?, value)
    }

    /// What an ETag says of the bytes if it is an MD5, as S3's are unless the object is encrypted with KMS or a customer's key
    /// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>). None when it doesn't look like one.
    pub fn of_etag(etag: &str) -> Option<Checksum> {
        let text = etag.strip_prefix('"')?.strip_suffix('"')?;
        let (digits, parts) = match text.split_once('-') {
            Some((digits, parts)) => (digits, Some(parts.parse().ok()?)),
            None => (text, None),
        };
        if digits.len() != 32 {
            return None;
        }
        let byte = |i: usize| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
        let value: Option<Box<[u8]>> = (0..32).step_by(2).map(byte).collect();
        Some(Checksum { algorithm: Md5Sum, value: value?, parts })
    }

    /// Whether it was computed over the checksums of parts.
    pub fn is_composite(&self) -> bool {
        self.parts.is_some()
    }

    /// Its value as a CRC64NVME over all bytes; None when it is of another kind.
    pub fn as_crc64nvme(&self) -> Option<u64> {
        let plain = self.algorithm == Crc64Nvme && self.parts.is_none();
        plain.then(|| self.value.iter().fold(0, |crc, byte| crc << 8 | u64::from(*byte)))
    }

    /// Whether `reader`'s bytes have this checksum. A composite one takes the size of its parts (all but the last are
    /// that long), in bytes.
    pub fn fits(&self, mut reader: impl Read, part_size: u64) -> io::Result<bool> {
        let Some(parts) = self.parts else {
            return Ok(*hash(self.algorithm, &mut reader)?.1 == *self.value);
        };
        let mut whole = Hasher::new(self.algorithm);
        let mut count = 0;
        loop {
            let (length, part) = hash(self.algorithm, &mut reader.by_ref().take(part_size))?;
            if length > 0 || count == 0 {
                whole.update(&part);
                count += 1;
            }
            if length < part_size {
                return Ok(count == parts && *whole.finish() == *self.value);
            }
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), base64::encode(&self.value))?;
        self.parts.map_or(Ok(()), |parts| write!(f, "-{parts}"))
    }
}

/// A checksum in the making.
enum Hasher {
    Crc(CrcDigest, usize),
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Hasher {
        let crc = |of| Hasher::Crc(CrcDigest::new(of), algorithm.length());
        match algorithm {
            Crc64Nvme => crc(CrcAlgorithm::Crc64Nvme),
            Crc32 => crc(CrcAlgorithm::Crc32IsoHdlc),
            Crc32c => crc(CrcAlgorithm::Crc32Iscsi),
            Sha1Sum => Hasher::Sha1(Sha1::new()),
            Sha256Sum => Hasher::Sha256(Sha256::new()),
            Md5Sum => Hasher::Md5(Md5::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Crc(digest, _) => digest.update(bytes),
            Hasher::Md5(digest) => digest.update(bytes),
            Hasher::Sha1(digest) => digest.update(bytes),
            Hasher::Sha256(digest) => digest.update(bytes),
        }
    }

    fn finish(self) -> Box<[u8]> {
        match self {
            Hasher::Crc(digest, length) => digest.finalize().to_be_bytes()[8 - length..].into(),
            Hasher::Md5(digest) => digest.finalize().as_slice().into(),
            Hasher::Sha1(digest) => digest.finalize().as_slice().into(),
            Hasher::Sha256(digest) => digest.finalize().as_slice().into(),
        }
    }
}

/// The length and checksum of all that `reader` gives.
fn hash(algorithm: Algorithm, reader: &mut impl Read) -> io::Result<(u64, Box<[u8]>)> {
    let (mut hasher, mut length) = (Hasher::new(algorithm), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((length, hasher.finish())),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The CRC64NVME of some bytes and of `bytes` after them; `crc` is that of the former, 0 of none.
pub fn extend_crc64nvme(crc: u64, bytes: &[u8]) -> u64 {
    // The algorithm's last step inverts all bits (<https://reveng.sourceforge.io/crc-catalogue/all.htm>).
    let mut digest = CrcDigest::new_with_init_state(CrcAlgorithm::Crc64Nvme, !crc);
    digest.update(bytes);
    digest.finalize()
}

/// The CRC64NVME of some bytes, whose CRC is `first`, and of `length` more bytes after them, whose own CRC is `second`.
pub fn combine_crc64nvme(first: u64, second: u64, length: u64) -> u64 {
    checksum_combine(CrcAlgorithm::Crc64Nvme, first, second, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `123456789` from the RevEng catalogue, and of coreutils' and OpenSSL's digests.
    #[test]
    fn known_values() {
        let known = [
            "crc64nvme:rosUhgp5mIg=",
            "crc32:y/Q5Jg==",
            "crc32c:4waSgw==",
            "sha1:98O8HYCOBHMq32eZZczDTKeuNEE=",
            "sha256:FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
            "md5:JfnnlDI7RTiF9RgfG2JNCw==",
        ];
        for text in known {
            let checksum = Checksum::parse(text).unwrap();
            assert_eq!(checksum.to_string(), text);
            assert!(checksum.fits(&b"123456789"[..], 0).unwrap(), "{text}");
            assert!(!checksum.fits(&b"123456780"[..], 0).unwrap(), "{text}");
        }
        for bad in ["", "md5:", "md5:AAAA", "crc64nvme:rosUhgp5mIg=-x", "sha512:AAAA", "crc32:!"] {
            assert_eq!(Checksum::parse(bad), None, "{bad}");
        }
        assert_eq!(Checksum::crc64nvme(0xae8b14860a799888).to_string(), known[0]);
        assert_eq!(Checksum::parse(known[0]).unwrap().as_crc64nvme(), Some(0xae8b14860a799888));
    }

    #[test]
    fn etags_that_are_checksums() {
        let md5 = Checksum::of_etag("\"25f9e794323b453885f5181f1b624d0b\"").unwrap();
        assert!(md5.fits(&b"123456789"[..], 0).unwrap() && !md5.is_composite());
        for other in [
            "local:1:2:3",
            "\"abc\"",
            "W/\"25f9e794323b453885f5181f1b624d0b\"",
            "\"zzf9e794323b453885f5181f1b624d0b\"",
        ] {
            assert_eq!(Checksum::of_etag(other), None, "{other}");
        }
    }

    #[test]
    fn checksums_of_parts() {
        // printf 1234 | md5sum; printf 5678; printf 9: then the MD5 of the three digests.
        let digests: Vec<u8> = [&b"1234"[..], b"5678", b"9"].iter().flat_map(Md5::digest).collect();
        let hex: String = Md5::digest(&digests).iter().map(|byte| format!("{byte:02x}")).collect();
        let checksum = Checksum::of_etag(&format!("\"{hex}-3\"")).unwrap();
        assert!(checksum.is_composite());
        assert!(checksum.fits(&b"123456789"[..], 4).unwrap());
        assert!(!checksum.fits(&b"123456789"[..], 5).unwrap());
        assert!(!checksum.fits(&b"12345678"[..], 4).unwrap());
    }

    #[test]
    fn a_crc_grows_with_its_bytes() {
        let whole = extend_crc64nvme(0, b"123456789");
        assert_eq!(whole, 0xae8b14860a799888);
        assert_eq!(extend_crc64nvme(extend_crc64nvme(0, b"1234"), b"56789"), whole);
        assert_eq!(combine_crc64nvme(extend_crc64nvme(0, b"1234"), extend_crc64nvme(0, b"56789"), 5), whole);
    }
}
