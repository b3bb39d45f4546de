//! Artifacts as a build makes them: real tarballs under real names.

use std::io::Write;

pub use crate::pattern::random_bytes;
use crate::pattern::splitmix;

/// Share of a file's bytes that are random; the rest is text, which compresses well.
const RANDOM_IN_4: u64 = 1;
/// Bytes of one run of text or noise.
const RUN: usize = 4096;

/// A gzip tarball of `files` files, about `approx_size` bytes long when compressed.
pub fn tar_gz(seed: u64, approx_size: usize, files: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    write_tar(&mut encoder, seed, approx_size, files);
    encoder.finish().expect("gzip to memory")
}

/// A zstd tarball of `files` files, about `approx_size` bytes long when compressed.
pub fn tar_zst(seed: u64, approx_size: usize, files: usize) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("a zstd encoder");
    write_tar(&mut encoder, seed, approx_size, files);
    encoder.finish().expect("zstd to memory")
}

/// A name as the build cache has them: `noir-b786c534d2b9261d.tar.gz`, `barretenberg-clang20-4143489f79f3d92e.zst`.
///
/// `ext` is given without its dot.
pub fn name(component: &str, seed: u64, ext: &str) -> String {
    let hash = component.bytes().fold(splitmix(seed), |hash, byte| splitmix(hash ^ u64::from(byte)));
    format!("{component}-{hash:016x}.{ext}")
}

/// The files that a tarball of these parameters holds: path and content.
pub fn files_of(seed: u64, approx_size: usize, files: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    let each = (approx_size as u64 * 4 / RANDOM_IN_4) as usize / files.max(1);
    (0..files).map(move |index| {
        let seed = splitmix(seed ^ index as u64);
        // Between a half and one and a half of the mean.
        let len = each / 2 + (splitmix(seed) as usize) % each.max(1);
        (format!("dir-{}/file-{index}.bin", index % 7), content(seed, len))
    })
}

fn write_tar(out: impl Write, seed: u64, approx_size: usize, files: usize) {
    let mut tar = tar::Builder::new(out);
    for (path, content) in files_of(seed, approx_size, files) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, path, content.as_slice()).expect("tar to memory");
    }
    tar.finish().expect("tar to memory");
}

/// Runs of noise and of text in turn.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + RUN);
    let mut run = 0;
    while out.len() < len {
        let seed = seed ^ run;
        if run % 4 < RANDOM_IN_4 {
            out.extend_from_slice(&random_bytes(seed, RUN));
        } else {
            let line = format!("const WITNESS_{seed:016x}: u64 = 0x0000;\n");
            out.extend_from_slice(&line.repeat(RUN / line.len()).into_bytes());
        }
        run += 1;
    }
    out.truncate(len);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn check(seed: u64, tarball: impl Read, size: usize, files: usize) {
        let mut archive = tar::Archive::new(tarball);
        let mut expected = files_of(seed, size, files);
        for entry in archive.entries().expect("a tarball") {
            let mut entry = entry.expect("an entry");
            let (path, content) = expected.next().expect("no more entries than files");
            assert_eq!(entry.path().expect("a path").to_str(), Some(path.as_str()));
            let mut found = Vec::new();
            entry.read_to_end(&mut found).expect("an entry's content");
            assert_eq!(found, content);
        }
        assert!(expected.next().is_none());
    }

    fn near(len: usize, size: usize) {
        assert!((size / 2..size * 2).contains(&len), "{len} instead of {size}");
    }

    #[test]
    fn tarballs_unpack_to_their_files_and_have_about_their_size() {
        let gz = tar_gz(1, 300_000, 9);
        near(gz.len(), 300_000);
        assert_eq!(gz, tar_gz(1, 300_000, 9));
        check(1, flate2::read::GzDecoder::new(gz.as_slice()), 300_000, 9);
        let zst = tar_zst(2, 300_000, 4);
        near(zst.len(), 300_000);
        check(2, zstd::Decoder::new(zst.as_slice()).expect("zstd"), 300_000, 4);
    }

    #[test]
    fn names_look_like_those_of_the_cache() {
        let name = name("noir", 1, "tar.gz");
        assert_eq!(name.len(), "noir-b786c534d2b9261d.tar.gz".len());
        assert!(name.starts_with("noir-") && name.ends_with(".tar.gz"));
        assert_ne!(name, super::name("noir", 2, "tar.gz"));
    }
}
