//! Archives that GNU tar makes, in all formats that it knows.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use aztec_cache_test_support::artifacts::random_bytes;

use super::Bench;
use super::archives::{gzip, zstd};
use crate::common::needs_root;

/// A source tree with a bit of everything.
struct Source {
    dir: tempfile::TempDir,
}

impl Source {
    fn new() -> Source {
        let dir = tempfile::Builder::new().prefix("aztec-cache-it-source-").tempdir().unwrap();
        let source = Source { dir };
        source.file("plain.txt", b"text\n", 0o644);
        source.file("empty", b"", 0o600);
        source.file("bin/run", &random_bytes(1, 70_000), 0o755);
        source.file("bin/set-id", b"x", 0o6755);
        source.file("group-writable", b"x", 0o664);
        source.file("closed/inner/file", b"x", 0o444);
        source.file("with space\nand line", b"x", 0o640);
        source.file("large.bin", &random_bytes(2, 3_000_001), 0o644);
        for size in [511, 512, 513, 262_143, 262_144, 262_145] {
            source.file(&format!("sizes/{size}"), &random_bytes(size, size as usize), 0o644);
        }
        source.links();
        for (dir, mode) in [("closed/inner", 0o555), ("closed", 0o500), ("sizes", 0o2775), ("bin", 0o1777)] {
            fs::set_permissions(source.path(dir), Permissions::from_mode(mode)).unwrap();
        }
        source.age("closed/inner", 1_600_000_000, 0);
        source.age("plain.txt", 1_500_000_000, 123_456_789);
        source
    }

    fn links(&self) {
        symlink("plain.txt", self.path("link")).unwrap();
        symlink("/nonexistent/absolute", self.path("dangling")).unwrap();
        symlink("../../up", self.path("bin/upwards")).unwrap();
        symlink("sizes", self.path("to-directory")).unwrap();
        fs::hard_link(self.path("bin/run"), self.path("run-too")).unwrap();
        fs::hard_link(self.path("run-too"), self.path("z-run-three")).unwrap();
        fs::hard_link(self.path("dangling"), self.path("dangling-too")).unwrap();
        let fifo = Command::new("mkfifo").arg("-m").arg("620").arg(self.path("fifo")).status().unwrap();
        assert!(fifo.success());
    }

    /// What only some formats can hold.
    fn add_long_names(&self) {
        let long = |letter: &str| letter.repeat(200);
        self.file(&format!("{}/{}/{}", long("a"), long("b"), long("c")), b"deep", 0o644);
        symlink(long("t").repeat(3), self.path("long-link")).unwrap();
        fs::hard_link(
            self.path(&format!("{}/{}/{}", long("a"), long("b"), long("c"))),
            self.path(&long("h")),
        )
        .unwrap();
        let name = OsStr::from_bytes(b"not-utf-8-\xff\xfe");
        fs::write(self.dir.path().join(name), "bytes").unwrap();
        self.age("empty", -2, 500_000_000);
    }

    fn add_holes(&self) {
        let sparse = |name: &str, size: u64, extents: &[(u64, usize)]| {
            let file = File::create(self.path(name)).unwrap();
            file.set_len(size).unwrap();
            for (at, length) in extents {
                file.write_all_at(&random_bytes(*at, *length), *at).unwrap();
            }
        };
        const MIB: u64 = 1 << 20;
        sparse("holes/only", 3 * MIB, &[]);
        // Longer than octal digits can say.
        sparse("holes/end", 9000 * MIB, &[(9000 * MIB - 5, 5)]);
        sparse("holes/begin", 2 * MIB + 7, &[(0, 10_000)]);
        let many: Vec<(u64, usize)> = (0..300).map(|n| (n * 16384, 4096 + (n as usize % 3) * 700)).collect();
        sparse("holes/many", 300 * 16384, &many);
    }

    fn add_for_root(&self) {
        for (kind, name, numbers) in [("c", "null", ["1", "3"]), ("b", "disk", ["259", "70000"])] {
            let made = Command::new("mknod").arg(self.path(name)).arg(kind).args(numbers).status().unwrap();
            assert!(made.success());
        }
        self.own("plain.txt", 12_345, 54_321);
        self.own("bin/set-id", 1, 2);
        self.own("bin", 1, 2);
        std::os::unix::fs::lchown(self.path("link"), Some(7), Some(8)).unwrap();
    }

    fn own(&self, name: &str, uid: u32, gid: u32) {
        let mode = fs::metadata(self.path(name)).unwrap().mode();
        chown(self.path(name), Some(uid), Some(gid)).unwrap();
        // It takes set-id bits away.
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap();
        }
        path
    }

    fn file(&self, name: &str, bytes: &[u8], mode: u32) {
        fs::write(self.path(name), bytes).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn age(&self, name: &str, seconds: i64, nanoseconds: u32) {
        let time = match u64::try_from(seconds) {
            Ok(seconds) => UNIX_EPOCH + Duration::new(seconds, nanoseconds),
            Err(_) => {
                UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + Duration::new(0, nanoseconds)
            }
        };
        File::open(self.path(name)).unwrap().set_modified(time).unwrap();
    }

    /// The tree as tar packs it with `args`.
    fn pack(&self, args: &[&str]) -> Vec<u8> {
        let mut tar = Command::new("tar");
        tar.args(["-cf", "-", "-C"]).arg(self.dir.path()).args(args).arg(".");
        let output = tar.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(self.dir.path()).output();
    }
}

/// Those that can't hold long names and times before 1970.
const POOR: &[&[&str]] =
    &[&["--format=ustar"], &["--format=v7", "--exclude=./fifo", "--exclude=./null", "--exclude=./disk"]];

const RICH: &[&[&str]] = &[
    &["--format=gnu"],
    &["--format=oldgnu", "--numeric-owner"],
    &["--format=pax"],
    &["--format=pax", "--pax-option=globexthdr.name=g,comment:=hello,mtime=1234567890"],
    &["--format=pax", "--xattrs", "--acls"],
    &["--format=gnu", "--label=a volume"],
];

/// Those that know holes.
const SPARSE: &[&[&str]] = &[
    &["--sparse", "--format=gnu"],
    &["--sparse", "--format=oldgnu"],
    &["--sparse", "--format=pax", "--sparse-version=0.0"],
    &["--sparse", "--format=pax", "--sparse-version=0.1"],
    &["--sparse", "--format=pax", "--sparse-version=1.0"],
];

/// Packs the source in every way.
fn archives(source: &Source) -> Vec<(String, Vec<u8>)> {
    let pack = |ways: &[&[&str]]| -> Vec<_> {
        ways.iter().map(|args| (args.join(" "), source.pack(args))).collect()
    };
    let poor = pack(POOR);
    source.add_long_names();
    let rich = pack(RICH);
    source.add_holes();
    [poor, rich, pack(SPARSE)].concat()
}

fn compare_all(bench: &Bench, source: &Source) {
    for (index, (what, archive)) in archives(source).into_iter().enumerate() {
        let archive = match index % 3 {
            0 => gzip(&archive),
            1 => zstd(&archive),
            _ => archive,
        };
        bench.assert_as_tar(&what, &archive);
        bench.clear();
    }
}

#[test]
fn an_ordinary_user_gets_what_tar_gives() {
    for umask in ["022", "077"] {
        compare_all(&Bench { umask, ..Bench::of_ordinary_user() }, &Source::new());
    }
}

#[test]
fn root_gets_what_tar_gives() {
    needs_root!("owners and devices");
    for umask in ["000", "077"] {
        let source = Source::new();
        source.add_for_root();
        compare_all(&Bench { umask, ..Bench::new() }, &source);
    }
}
