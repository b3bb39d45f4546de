//! Archives that break off, are damaged or aren't any; remotes that fail; disks that fill up.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use aztec_cache_test_support::artifacts::{files_of, tar_gz, tar_zst};
use aztec_cache_test_support::s3::{Fault, Kept, S3Server};
use aztec_cache_test_support::web::{Reply, WebServer};

use super::archives::{end, entry, file, gzip, simple, zstd};
use super::{Bench, NAME, command, run};
use crate::common::{Place, Tmpfs, assert_refused, key, names_in, needs_root, wait_for};

const MIB: usize = 1 << 20;
/// What `tar_gz` and `tar_zst` are told here: some MiB, in files of a fraction of one.
const SHAPE: (u64, usize, usize) = (7, 6 * MIB, 60);

/// Checks that each file in `dir` is whole, and tells how many there are.
#[track_caller]
fn whole_files(dir: &Path) -> usize {
    let mut expected: BTreeMap<_, _> = files_of(SHAPE.0, SHAPE.1, SHAPE.2).collect();
    let mut count = 0;
    for name in names_in(dir)
        .iter()
        .flat_map(|sub| names_in(&dir.join(sub)).into_iter().map(move |n| format!("{sub}/{n}")))
    {
        let bytes = expected.remove(&name).unwrap_or_else(|| panic!("{name} is not in the archive"));
        assert!(fs::read(dir.join(&name)).unwrap() == bytes, "{name} is not whole");
        count += 1;
    }
    count
}

#[test]
fn an_archive_that_is_cut_is_noticed_and_leaves_whole_files() {
    for archive in [tar_gz(SHAPE.0, SHAPE.1, SHAPE.2), tar_zst(SHAPE.0, SHAPE.1, SHAPE.2)] {
        for length in [archive.len() / 2, archive.len() - 4, archive.len() - 1] {
            let bench = Bench::new();
            bench.assert_refused(&archive[..length], 3, &[NAME, "damaged or truncated"]);
            assert!(whole_files(&bench.dir("ours")) > 0);
        }
    }
}

#[test]
fn a_tar_stream_that_is_cut_is_noticed_however_well_it_is_packed() {
    let whole = [file("first", &[1; 5000]), file("second", &[2; 5000])].concat();
    for (length, unpacked) in
        [(whole.len(), 2), (whole.len() - 1, 2), (whole.len() - 600, 1), (512, 0), (100, 0), (0, 0)]
    {
        for pack in [gzip, zstd, |bytes: &[u8]| bytes.to_vec()] {
            let bench = Bench::new();
            bench.assert_refused(&pack(&whole[..length]), 3, &[NAME, "truncated"]);
            assert_eq!(names_in(&bench.dir("ours")).len(), unpacked, "cut to {length}");
        }
    }
}

#[test]
fn what_is_damaged_followed_by_something_or_no_archive_is_noticed() {
    let plain = end([file("first", &[1; 5000]), file("second", &[2; 5000])].concat());
    for packed in [gzip(&plain), zstd(&plain)] {
        let mut flipped = packed.clone();
        // In the checksum behind the data.
        let last = flipped.len() - 5;
        flipped[last] ^= 1;
        let followed = [&packed[..], b"and more"].concat();
        let twice = packed.repeat(2);
        for (what, archive) in [("flipped", flipped), ("followed", followed)] {
            let bench = Bench::new();
            let output = bench.extract(&archive);
            assert_refused(&output, 3, &[NAME, "damaged"]);
            // Nothing is unpacked of what was decoded together with the damage.
            assert_eq!(names_in(&bench.dir("ours")), [""; 0], "{what}");
        }
        // What follows the end of the archive in its stream is none of its business, as with tar.
        let bench = Bench::new();
        assert!(bench.extract(&twice).status.success());
    }
    let mut flipped = plain.clone();
    flipped[3] ^= 1;
    for archive in [&b"no archive"[..], &[7; 2000], &flipped, &gzip(b"text"), &gzip(&[7; 2000])] {
        let bench = Bench::new();
        bench.assert_refused(archive, 3, &[NAME]);
        assert_eq!(names_in(&bench.dir("ours")), [""; 0]);
    }
    Bench::new().assert_refused(&end(entry("a", b'M', "", b"rest")), 3, &["several volumes"]);
}

#[test]
fn the_last_bytes_are_unpacked_when_all_are_there() {
    let server = S3Server::start();
    let archive = tar_gz(SHAPE.0, SHAPE.1, SHAPE.2);
    let (first, last) = (4 * MIB as u64, archive.len() as u64 - 1000);
    server.put(&key(NAME), archive);
    let place = Place::of(&server);
    let ours = place.dir.path().join("ours");
    let gate = server.hold_gets_from(&key(NAME), first, last - first);
    let mut child = command(&place, &["extract", NAME, ours.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    wait_for("the first files", || names_in(&ours).len() == 7);
    assert!(child.try_wait().unwrap().is_none());
    gate.release();
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success() && said.is_empty(), "{said}");
    assert_eq!(whole_files(&ours), SHAPE.2);
}

#[test]
fn a_download_that_breaks_off_is_an_error_and_leaves_whole_files() {
    let archive = tar_zst(SHAPE.0, SHAPE.1, SHAPE.2);
    let sent = archive.clone();
    // Nothing to go on by: a broken body can't be taken up.
    let server = WebServer::start(move |request| match &*request.method {
        "HEAD" => Reply::whole(&sent),
        _ => Reply::whole(&sent).cut_after(sent.len() - 1),
    });
    let place = Place::reading(&[&server.url()]);
    let ours = place.dir.path().join("ours");
    let output = run(&place, &["extract", NAME, ours.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let unpacked = whole_files(&ours);
    assert!(0 < unpacked && unpacked < SHAPE.2, "{unpacked} files");
    assert!(!place.cache().join(NAME).exists());
}

#[test]
fn a_connection_that_is_cut_on_the_way_is_taken_up() {
    let bench = Bench::new();
    for at in [100_000, 700_000] {
        bench.server.add_fault(Fault::truncate(at).times(2));
    }
    let output = bench.extract(&tar_gz(SHAPE.0, SHAPE.1, SHAPE.2));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(whole_files(&bench.dir("ours")), SHAPE.2);
}

#[test]
fn bytes_that_don_t_fit_the_remote_s_checksum_are_an_error() {
    let server = S3Server::start();
    let place = Place::of(&server);
    let ours = place.dir.path().join("ours");
    // One that fits in what is held back, and one that doesn't.
    for archive in [simple(20), tar_gz(SHAPE.0, SHAPE.1, SHAPE.2)] {
        let at = archive.len() as u64 - 3;
        server.put_checked(&key(NAME), archive.clone(), Kept::Crc64Nvme);
        // In gzip's length field: the files would be right.
        server.add_fault(Fault::corrupt(at.min(100)).from_byte(at & !0xff_ffff));
        let output = run(&place, &["extract", NAME, ours.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(!place.cache().join(NAME).exists());
        server.set_faults([]);
    }
    assert!(names_in(&ours).iter().all(|name| name.starts_with("dir-")), "{:?}", names_in(&ours));
}

#[test]
fn a_kept_file_that_is_damaged_is_fetched_anew() {
    let bench = Bench::new();
    let archive = tar_gz(SHAPE.0, SHAPE.1, SHAPE.2);
    bench.server.put(&key(NAME), archive.clone());
    let mut half = archive.clone();
    half[archive.len() / 2..].fill(0);
    fs::create_dir(bench.place.cache()).unwrap();
    let ours = bench.dir("ours");
    let extract = || run(&bench.place, &["extract", NAME, ours.to_str().unwrap()]);
    // Put there by a script, and of the right size; then by rot, which leaves the times alone.
    assert!(extract().status.success());
    let kept = bench.place.cache().join(NAME);
    let written = fs::metadata(&kept).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&kept).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &half, 0).unwrap();
    file.set_modified(written).unwrap();
    drop(file);
    fs::remove_dir_all(&ours).unwrap();
    let output = extract();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("quarantine"), "{said}");
    assert_eq!(whole_files(&ours), SHAPE.2);
    assert!(fs::read(&kept).unwrap() == archive);
}

#[test]
fn an_archive_that_was_uploaded_broken_is_fetched_once() {
    let bench = Bench::new();
    let archive = tar_gz(SHAPE.0, SHAPE.1, SHAPE.2);
    bench.assert_refused(&archive[..archive.len() - 1], 3, &[NAME, "truncated"]);
    bench.server.reset_counts();
    let ours = bench.dir("ours");
    assert_refused(&run(&bench.place, &["extract", NAME, ours.to_str().unwrap()]), 3, &[NAME]);
    assert_eq!(bench.server.counts().requests(), 0);
}

#[test]
fn a_disk_that_fills_up_is_an_error_and_leaves_whole_files() {
    needs_root!("full disks");
    let bench = Bench::new();
    let _small = Tmpfs::at(&bench.dir("ours"), "size=8m");
    let archive = tar_zst(SHAPE.0, SHAPE.1, SHAPE.2);
    bench.assert_refused(&archive, 5, &[bench.dir("ours").to_str().unwrap(), "No space left"]);
    let unpacked = whole_files(&bench.dir("ours"));
    assert!(0 < unpacked && unpacked < SHAPE.2, "{unpacked} files");
    // What was fetched is kept all the same.
    assert!(bench.place.cache().join(NAME).exists() || !bench.place.partials().is_empty());
}
