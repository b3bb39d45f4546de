//! Archives that mean harm: nothing outside of the directory is read, written or linked to, and memory is bounded.

use std::fs;

use super::archives::{end, entry, file, header, pax, seal};
use super::{Bench, snapshot};
use crate::common::names_in;

/// A bench with a file beside the directory that is unpacked into.
fn bench() -> Bench {
    let bench = Bench::new();
    fs::write(bench.dir("outside"), "mine").unwrap();
    fs::create_dir(bench.dir("elsewhere")).unwrap();
    bench
}

/// Checks that nothing beside the directory was touched.
#[track_caller]
fn assert_untouched(bench: &Bench, what: &str) {
    assert_eq!(fs::read(bench.dir("outside")).unwrap(), b"mine", "{what}");
    assert_eq!(names_in(&bench.dir("elsewhere")), [""; 0], "{what}");
    let beside = names_in(bench.place.dir.path());
    let known = ["archive", "cache", "elsewhere", "ours", "outside", "theirs"];
    assert!(beside.iter().all(|name| known.contains(&&**name)), "{what}: {beside:?}");
}

#[test]
fn names_that_lead_upwards_are_refused() {
    for name in ["..", "../x", "a/../../x", "/../x", "a/..", "./../x"] {
        for kind in [b'0', b'1', b'2', b'5', b'6'] {
            let bench = bench();
            let archive = end([file("before", b"fine"), entry(name, kind, "before", b"")].concat());
            bench.assert_refused(&archive, 3, &[super::NAME, name, "leads out of the directory"]);
            assert_untouched(&bench, name);
            assert_eq!(names_in(&bench.dir("ours")), ["before"]);
        }
    }
}

#[test]
fn names_that_lead_upwards_are_refused_wherever_they_are_told() {
    let long = format!("{}/../../x", "long".repeat(40));
    for extension in [pax("path", &long), pax("GNU.sparse.name", &long), entry("", b'L', "", long.as_bytes())]
    {
        let bench = bench();
        bench.assert_refused(&end([extension, file("harmless", b"")].concat()), 3, &["leads out"]);
        assert_untouched(&bench, &long);
    }
}

#[test]
fn a_leading_slash_is_cut_off_with_a_word_about_it() {
    let bench = bench();
    let inside = format!("/{}", bench.dir("elsewhere/x").display());
    let archive = end([
        entry("./", b'5', "", b""),
        file("/a/b", b"new"),
        file(&inside, b"harm"),
        entry("/c", b'1', "/a/b", b""),
        entry("//d/", b'5', "", b""),
    ]
    .concat());
    let output = bench.extract(&archive);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("leading '/'") && said.lines().count() == 1, "{said}");
    assert_untouched(&bench, "absolute names");
    assert!(bench.tar(&archive).status.success());
    assert_untouched(&bench, "tar itself");
    // Directories that aren't in the archive have times of their own.
    for name in ["a/b", "c"] {
        assert_eq!(fs::read(bench.dir("ours").join(name)).unwrap(), b"new");
    }
    assert!(bench.dir("ours").join(&inside[2..]).is_file() && bench.dir("ours/d").is_dir());
}

#[test]
fn links_that_lead_out_are_made_and_never_followed() {
    let bench = bench();
    let absolute = bench.dir("elsewhere");
    for target in ["..", "../elsewhere", absolute.to_str().unwrap(), ".", "x/../..", "/proc/self/cwd"] {
        let link = || entry("link", b'2', target, b"");
        let through = [
            file("link/../x", b"harm"),
            file("link/link/../../x", b"harm"),
            file("link/x", b"harm"),
            entry("link/x/", b'5', "", b""),
            entry("link/x", b'2', "y", b""),
            entry("link/x", b'6', "", b""),
            [file("own", b""), entry("link/x", b'1', "own", b"")].concat(),
            entry("x", b'1', "link/outside", b""),
            [
                entry("deep/", b'5', "", b""),
                entry("deep/link", b'2', "../link", b""),
                file("deep/link/x", b""),
            ]
            .concat(),
        ];
        for entries in through {
            bench.clear();
            let output = bench.extract(&end([link(), entries].concat()));
            assert_untouched(&bench, target);
            // "." is within.
            assert!(target == "." || !output.status.success(), "{target}");
            assert_eq!(fs::read_link(bench.dir("ours/link")).unwrap().to_str(), Some(target));
        }
    }
}

#[test]
fn a_file_replaces_the_link_of_its_name() {
    let bench = bench();
    let archive = end([entry("a", b'2', "../outside", b""), file("a", b"harm")].concat());
    assert!(bench.extract(&archive).status.success());
    assert_untouched(&bench, "a link, then a file");
    assert_eq!(fs::read(bench.dir("ours/a")).unwrap(), b"harm");
}

#[test]
fn a_hard_link_to_a_link_is_no_way_out() {
    let bench = bench();
    let link = [entry("./", b'5', "", b""), entry("a", b'2', "../outside", b"")].concat();
    let archive = end([link, entry("b", b'1', "a", b""), file("b", b"harm")].concat());
    let output = bench.extract(&archive);
    assert!(output.status.success(), "{output:?}");
    assert_untouched(&bench, "by way of a hard link");
    assert_eq!(fs::read(bench.dir("ours/b")).unwrap(), b"harm");
}

#[test]
fn links_that_were_there_are_not_followed_out_either() {
    let bench = bench();
    fs::create_dir(bench.dir("ours")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", bench.dir("ours/link")).unwrap();
    bench.assert_refused(&end(file("link/x", b"harm")), 3, &["'link'", "symbolic link", "refused"]);
    assert_untouched(&bench, "an old link");
}

#[test]
fn headers_without_end_are_not_read_into_memory() {
    // Zeros that take next to nothing as sent.
    let zeros = vec![0; 40 << 20];
    for kind in [b'x', b'g', b'L', b'K'] {
        for archive in [entry("bomb", kind, "", &zeros), header("bomb", kind, "", u32::MAX.into())] {
            let bench = bench();
            bench.assert_refused(
                &super::archives::gzip(&end(archive)),
                3,
                &["extended header of", "refused"],
            );
        }
    }
    let mut huge = header("bomb", b'x', "", 0);
    // The largest number in binary.
    huge[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    seal(&mut huge);
    bench().assert_refused(&end(huge), 3, &["extended header of 9223372036854775807 bytes"]);
}

#[test]
fn maps_of_holes_that_lie_are_refused() {
    let sparse = |records: &[(&str, &str)], data: &[u8]| {
        let records = records.iter().flat_map(|(key, value)| pax(&format!("GNU.sparse.{key}"), value));
        end(records.chain(file("harm", data)).collect())
    };
    let version_1 = [("major", "1"), ("minor", "0"), ("realsize", "1000000")];
    let mut endless = b"1100000\n".to_vec();
    endless.extend(b"0\n0\n".repeat(1_100_000));
    endless.resize(endless.len().next_multiple_of(512), 0);
    for (what, archive) in [
        ("beyond the end", sparse(&[("size", "10"), ("map", "0,11")], &[1; 11])),
        ("backwards", sparse(&[("size", "100"), ("map", "50,10,0,10")], &[1; 20])),
        ("more than there is", sparse(&[("size", "100"), ("map", "0,20")], &[1; 10])),
        ("less than there is", sparse(&[("size", "100"), ("map", "0,5")], &[1; 10])),
        ("odd", sparse(&[("size", "100"), ("map", "0,5,7")], &[1; 5])),
        ("overflowing", sparse(&[("size", "100"), ("map", "18446744073709551615,5")], &[1; 5])),
        ("of an unknown version", sparse(&[("major", "2"), ("minor", "0"), ("realsize", "5")], &[1; 5])),
        ("no numbers", sparse(&version_1, &[b'x'; 512])),
        ("a long number", sparse(&version_1, &[b'1'; 1024])),
        ("cut", sparse(&version_1, b"100\n")),
        ("too many", sparse(&[&version_1[..2], &[("realsize", "9")]].concat(), &endless)),
        ("endless", sparse(&version_1, b"18446744073709551615\n")),
    ] {
        let bench = bench();
        bench.assert_refused(&archive, 3, &["sparse"]);
        assert!(!bench.dir("ours/harm").exists(), "{what}");
    }
}

#[test]
fn a_file_of_the_largest_size_is_refused_by_the_disk_and_leaves_nothing() {
    let size = i64::MAX.to_string();
    let records = [pax("GNU.sparse.size", &size), pax("GNU.sparse.map", &format!("{},0", i64::MAX))].concat();
    let bench = bench();
    bench.assert_refused(&end([records, file("harm", b"")].concat()), 5, &["harm"]);
    assert_eq!(names_in(&bench.dir("ours")), [""; 0]);
}

#[test]
fn paths_longer_than_the_system_takes_are_an_error() {
    let bench = bench();
    for path in ["d/".repeat(3000), "n".repeat(256)] {
        bench.assert_refused(
            &end([pax("path", &format!("{path}x")), file("short", b"")].concat()),
            5,
            &["too long"],
        );
    }
    let deep = "d/".repeat(1500);
    let archive = end([pax("path", &format!("{deep}x")), file("short", b"deep")].concat());
    assert!(bench.extract(&archive).status.success());
    assert_eq!(fs::read(bench.dir("ours").join(deep).join("x")).unwrap(), b"deep");
}

#[test]
fn an_ordinary_user_gets_all_but_the_devices_and_is_told() {
    let bench = Bench::of_ordinary_user();
    let mut null = header("dev/null", b'3', "", 0);
    null[329..345].copy_from_slice(b"0000001\x000000003\0");
    seal(&mut null);
    let pipe = entry("pipe", b'6', "", b"");
    let archive = end([file("a", b"1"), null.clone(), null, pipe, file("b", b"2")].concat());
    bench.assert_refused(&archive, 5, &["'dev/null', a device", "and 1 more", "all else is unpacked"]);
    assert!(!bench.tar(&archive).status.success());
    for name in ["ours", "theirs"] {
        assert_eq!(names_in(&bench.dir(name)), ["a", "b", "dev", "pipe"], "{name}");
        assert_eq!(names_in(&bench.dir(name).join("dev")), [""; 0], "{name}");
    }
    assert_eq!(fs::read(bench.dir("ours/b")).unwrap(), b"2");
}

#[test]
fn odd_headers_are_taken_as_tar_takes_them() {
    let bench = bench();
    let mut signed = file("signed-\u{e4}", b"sum");
    // Old programs summed up signed bytes.
    signed[148..156].copy_from_slice(b"        ");
    let sum: i64 = signed[..512].iter().map(|byte| i64::from(*byte as i8)).sum();
    signed[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut padded = file("padded", b"12345");
    padded[100..108].copy_from_slice(b"  644 \0\0");
    seal(&mut padded[..512]);
    let archive = [
        entry("./", b'5', "", b""),
        signed,
        padded,
        entry("no-flag-directory/", 0, "", b""),
        entry("contiguous", b'7', "", b"abc"),
        pax("comment", "nothing"),
        pax("path", "renamed"),
        file("original", b"x"),
        [pax("size", "3"), entry("sized", b'0', "", b"abc")].concat(),
        entry("with-data", b'1', "padded", b""),
    ]
    .concat();
    bench.assert_as_tar("odd ones", &end(archive));
    snapshot::assert_same("both", &bench.dir("ours"), &bench.dir("theirs"));
}
