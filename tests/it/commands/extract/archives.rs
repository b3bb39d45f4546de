//! Archives made by hand: what no honest program writes.

use aztec_cache_test_support::artifacts::random_bytes;

/// An archive of the directory itself and `files` files.
pub fn simple(files: usize) -> Vec<u8> {
    let mut archive = entry("./", b'5', "", b"");
    for index in 0..files {
        archive.extend(file(&format!("file-{index}"), &random_bytes(index as u64, 1000 * index)));
    }
    gzip(&end(archive))
}

/// A file's entry.
pub fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(name, b'0', "", data)
}

/// Any entry: a header and its data, padded.
pub fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut entry = header(name, kind, link, data.len() as u64);
    entry.extend_from_slice(data);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

/// A POSIX header that promises `size` bytes.
pub fn header(name: &str, kind: u8, link: &str, size: u64) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\x000000000\0");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"14524770400\0");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    seal(&mut header);
    header
}

/// Writes the header's checksum.
pub fn seal(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// A POSIX extended header with one record.
pub fn pax(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let length = |digits: usize| (rest.len() + digits).to_string();
    let digits = (1..10).find(|digits| length(*digits).len() == *digits).unwrap();
    entry("pax", b'x', "", format!("{}{rest}", length(digits)).as_bytes())
}

/// The archive with the blocks that mark its end.
pub fn end(mut archive: Vec<u8>) -> Vec<u8> {
    archive.extend([0; 1024]);
    archive
}

/// Compressed.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Compressed, with a checksum, as the command line tool does.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}
