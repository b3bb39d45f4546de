//! The additional checksums of S3: kept with an object, and compared with what an upload claims.

use bytes::Bytes;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::{Checksum, ChecksumType};
use s3s::{S3Result, TrailingHeaders, s3_error};

use super::store::Kept;

/// The CRC64NVME of a whole object, which AWS keeps when an upload names no other checksum.
pub(super) fn crc64nvme(bytes: &[u8]) -> Checksum {
    let mut hasher = ChecksumHasher { crc64nvme: Some(Crc64Nvme::new()), ..ChecksumHasher::default() };
    hasher.update(bytes);
    full_object(hasher)
}

/// The checksum of `bytes` that `kept` names.
pub(super) fn of(bytes: &[u8], kept: Kept) -> Checksum {
    let full = |mut hasher: ChecksumHasher, bytes: &[u8]| {
        hasher.update(bytes);
        full_object(hasher)
    };
    let sha256 = || ChecksumHasher { sha256: Some(Sha256::new()), ..ChecksumHasher::default() };
    match kept {
        Kept::Crc64Nvme => crc64nvme(bytes),
        Kept::Crc32c => {
            full(ChecksumHasher { crc32c: Some(Crc32c::new()), ..ChecksumHasher::default() }, bytes)
        }
        Kept::Sha256 => full(sha256(), bytes),
        Kept::Sha256OfParts(part_size) => {
            let parts: Vec<u8> = bytes.chunks(part_size as usize).flat_map(Sha256::checksum).collect();
            let whole = full(sha256(), &parts).checksum_sha256.unwrap_or_default();
            Checksum {
                checksum_sha256: Some(format!("{whole}-{}", bytes.len().div_ceil(part_size as usize))),
                checksum_type: Some(ChecksumType::from_static(ChecksumType::COMPOSITE)),
                ..Checksum::default()
            }
        }
    }
}

/// What an upload claims in its headers and in its trailer, which is known once the body has been read.
pub(super) fn claimed(mut headers: Checksum, trailer: Option<&TrailingHeaders>) -> Checksum {
    if let Some(trailer) = trailer.and_then(TrailingHeaders::take) {
        let get = |name: &str| trailer.get(name)?.to_str().ok().map(str::to_owned);
        let fields = [
            (&mut headers.checksum_crc32, "x-amz-checksum-crc32"),
            (&mut headers.checksum_crc32c, "x-amz-checksum-crc32c"),
            (&mut headers.checksum_crc64nvme, "x-amz-checksum-crc64nvme"),
            (&mut headers.checksum_sha1, "x-amz-checksum-sha1"),
            (&mut headers.checksum_sha256, "x-amz-checksum-sha256"),
        ];
        for (field, name) in fields {
            *field = field.take().or_else(|| get(name));
        }
    }
    headers
}

/// Compares the bytes of all `pieces` with the checksum that their upload claims, and returns the one to keep.
///
/// # Errors
/// BadDigest when they differ, as on AWS.
pub(super) fn verify(pieces: &[Bytes], claimed: &Checksum) -> S3Result<Checksum> {
    let mut hasher = ChecksumHasher {
        crc32: claimed.checksum_crc32.as_ref().map(|_| Crc32::new()),
        crc32c: claimed.checksum_crc32c.as_ref().map(|_| Crc32c::new()),
        crc64nvme: (claimed.checksum_crc64nvme.is_some() || claims_nothing(claimed)).then(Crc64Nvme::new),
        sha1: claimed.checksum_sha1.as_ref().map(|_| Sha1::new()),
        sha256: claimed.checksum_sha256.as_ref().map(|_| Sha256::new()),
    };
    pieces.iter().for_each(|piece| hasher.update(piece));
    let found = full_object(hasher);
    if claims_nothing(claimed) {
        return Ok(found);
    }
    let same = found.checksum_crc32 == claimed.checksum_crc32
        && found.checksum_crc32c == claimed.checksum_crc32c
        && found.checksum_crc64nvme == claimed.checksum_crc64nvme
        && found.checksum_sha1 == claimed.checksum_sha1
        && found.checksum_sha256 == claimed.checksum_sha256;
    if !same {
        return Err(s3_error!(BadDigest, "The checksum did not match the received bytes."));
    }
    Ok(found)
}

/// Compares the MD5 of an upload's `bytes` with what its `Content-MD5` has.
///
/// # Errors
/// BadDigest when they differ, as on AWS.
pub(super) fn verify_md5(bytes: &[u8], claimed: Option<&str>) -> S3Result<()> {
    let found = base64_simd::STANDARD.encode_to_string(Md5::checksum(bytes));
    match claimed.is_none_or(|claimed| claimed == found) {
        true => Ok(()),
        false => Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received.")),
    }
}

fn claims_nothing(claimed: &Checksum) -> bool {
    claimed.checksum_crc32.is_none()
        && claimed.checksum_crc32c.is_none()
        && claimed.checksum_crc64nvme.is_none()
        && claimed.checksum_sha1.is_none()
        && claimed.checksum_sha256.is_none()
}

fn full_object(hasher: ChecksumHasher) -> Checksum {
    let mut checksum = hasher.finalize();
    checksum.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
    checksum
}
