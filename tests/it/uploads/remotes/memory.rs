//! Signed uploads to a server that others wrote, from a process of their own, whose memory can be measured.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use aztec_cache::checksum::{Checksum, extend_crc64nvme};
use aztec_cache::config::S3Options;
use aztec_cache::error::Kind;
use aztec_cache::store::{Existing, Multipart, Payload, Put};
use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::client::object_path;
use aztec_cache_test_support::seaweed::{ACCESS_KEY, BUCKET as SEAWEED_BUCKET, SECRET_KEY, Seaweed};

use super::{BUCKET, MIB, Remotes, payload, remote};
use crate::common::{assert_same, key};

const CHILD: &str = "uploads::remotes::memory::in_a_process_of_its_own";
const URL: &str = "AZTEC_CACHE_TEST_UPLOAD_URL";
const SIZES: [usize; 4] = [0, 1, 300_001, 12 * MIB + 1];
/// Large enough that what it takes of memory would show.
const HUGE: u64 = 256 << 20;
/// What an upload may take beyond what the process had before.
const MEMORY: u64 = 64 << 20;

#[test]
fn a_server_that_others_wrote_gets_all_bytes_and_memory_stays_small() {
    let server = Seaweed::start().unwrap_or_else(|error| panic!("no independent server: {error}"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--ignored", "--nocapture"])
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env(URL, server.url())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    for size in SIZES {
        let path = object_path(SEAWEED_BUCKET, &key(&name(size)));
        let found = server.client().get(&path).unwrap();
        assert_same(&name(size), &found.body, &random_bytes(size as u64, size));
    }
    let uploads = server.client().get(&format!("/{SEAWEED_BUCKET}?uploads")).unwrap();
    assert_eq!(
        (uploads.status, uploads.text().matches("<UploadId>").count()),
        (200, 0),
        "{}",
        uploads.text()
    );
}

fn name(size: usize) -> String {
    format!("size-{size}.zst")
}

/// The other process.
#[test]
#[ignore = "run by the test before it, with credentials"]
fn in_a_process_of_its_own() {
    let Ok(url) = std::env::var(URL) else { return };
    let options = S3Options { endpoint_url: Some(url), ..S3Options::default() };
    let remotes = Remotes::new(&[remote(BUCKET)], &options);
    assert!(remotes.accepts_uploads(), "requests are signed");
    for size in SIZES {
        let version = remotes.store(&name(size), &random_bytes(size as u64, size));
        assert!(remotes.head(&name(size)).unwrap().is(&version), "{version:?}");
        let other = payload(b"others'");
        assert_eq!(remotes.put(&name(size), &other, Existing::Keep).unwrap(), Put::Kept);
    }
    let before = peak_memory();
    let put = remotes.put("huge.zst", &zeros(HUGE), Existing::Keep).unwrap();
    let grown = peak_memory() - before;
    assert!(matches!(put, Put::Stored(_)));
    println!("{} MiB more for {} MiB", grown >> 20, HUGE >> 20);
    assert!(grown <= MEMORY, "{grown} bytes more");
    remotes.delete("huge.zst").unwrap();
    assert_eq!(remotes.head("huge.zst").unwrap_err().kind(), Kind::NotFound);
}

/// So many zeros, which take no room on the disk.
fn zeros(size: u64) -> Payload {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    let block = vec![0; MIB];
    let crc = (0..size / MIB as u64).fold(0, |crc, _| extend_crc64nvme(crc, &block));
    Payload {
        file: Arc::new(file),
        size,
        checksum: Checksum::crc64nvme(crc),
        sent: Arc::default(),
        multipart: Multipart::default(),
    }
}

/// The most memory that this process had, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
