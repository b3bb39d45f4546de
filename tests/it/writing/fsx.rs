//! The file system exerciser: thousands of random reads, writes, truncations, mappings and closes of one file, each compared
//! with what it should hold.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aztec_cache_test_support::s3::S3Server;

use super::{assert_published, bash, succeeded};
use crate::common::{Place, needs_fuse};

const VERSION: &str = "0.3.2";

/// All that a file has to take before it is published.
const CONFIG: &str = "flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 5
fsync = 1
fdatasync = 1
invalidate = 1
";

/// The program, built by cargo on first use.
fn fsx() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from);
    fs::create_dir_all(&target).expect("cargo's directory");
    let lock = File::create(target.join("fsx.lock")).expect("a lock file");
    lock.lock().expect("the lock");
    let root = target.join(format!("fsx-{VERSION}"));
    let program = root.join("bin/fsx");
    if !program.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["install", "--quiet", "--locked", "--debug", "fsx", "--version", VERSION, "--root"])
            .arg(&root);
        let output = cargo.stdin(Stdio::null()).output().expect("cargo runs");
        assert!(output.status.success(), "cargo install fsx: {}", String::from_utf8_lossy(&output.stderr));
    }
    program
}

#[test]
fn a_file_that_is_being_written_holds_what_was_written() {
    needs_fuse!();
    let fsx = fsx();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let config = place.dir.path().join("fsx.toml");
    fs::write(&config, CONFIG).unwrap();
    for seed in ["1", "2"] {
        let mut run = Command::new(&fsx);
        run.args(["-q", "-N", "3000", "-S", seed, "-f"]).arg(&config).arg("-P").arg(place.dir.path());
        let output = run.arg(mount.file(".exercised.bin")).output().unwrap();
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stdout));
        let name = format!("exercised-{seed}.bin");
        let held = mount.read(".exercised.bin").unwrap();
        succeeded(&bash(&place, &mount, &format!("mv $M/.exercised.bin $M/{name}")));
        assert_published(&server, &place, &mount, &name, &held);
    }
}
