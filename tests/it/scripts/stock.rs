//! Stock scripts that know nothing of us, with the mount as their local directory: `tests/it/scripts/stock/`.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use aztec_cache_test_support::s3::{Fault, S3Server};

use super::{Said, Tarball, path};
use crate::common::{Mount, PATIENCE, Place, assert_same, key, names_in, needs_fuse, wait_for};

const SIZE: usize = 300_000;

/// A mount of one bucket, and stock scripts that use it as their local directory and download from another.
struct Stock {
    // Dropped first: the mountpoint lies in the place.
    mount: Mount,
    place: Place,
    ours: S3Server,
    theirs: S3Server,
}

impl Stock {
    fn new() -> Stock {
        let (ours, theirs) = (S3Server::start(), S3Server::start());
        let place = Place::of(&ours);
        Stock { mount: place.mount(), place, ours, theirs }
    }

    fn command(&self, script: &str, args: &[&str]) -> Command {
        let stock = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scripts/stock");
        let mut command = Command::new(stock.join(script));
        command.env_clear().env("PATH", path(false)).env("HOME", self.place.dir.path());
        command.env("CACHE_LOCAL_DIR", &self.mount.path);
        command.env("REMOTE", format!("{}/aztec-ci-artifacts/build-cache/", self.theirs.url()));
        command.args(args).current_dir(self.place.dir.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    fn download(&self, name: &str) -> Said {
        self.command("cache_download", &[name, "out"]).output().expect("bash runs").into()
    }

    fn assert_unpacked(&self, tarball: &Tarball) {
        let out = self.place.dir.path().join("out");
        tarball.assert_unpacked(&out);
        fs::remove_dir_all(out).expect("it is ours");
    }

    /// Checks that nothing of `name` is anywhere, now and when what is under way has ended.
    fn assert_nowhere(&self, name: &str) {
        wait_for("the spool to be empty", || {
            names_in(&self.place.cache().join(".aztec-cache/spool")).is_empty()
        });
        assert!(!self.mount.file(name).exists(), "in the mount");
        assert!(!self.place.cache().join(name).exists(), "in the cache directory");
        assert!(self.ours.object(&key(name)).is_none(), "on the server");
    }
}

fn hit(name: &str) -> Said {
    Said::new(
        0,
        &[
            &format!("Local cache hit for {name}."),
            &format!("Cache extraction of {name} from local cache complete in Ns."),
        ],
    )
}

fn failed(name: &str) -> Said {
    Said::new(
        1,
        &[
            &format!("Local cache miss for {name}, downloading from remote."),
            &format!("Cache download of {name} failed."),
        ],
    )
}

#[test]
fn what_the_mount_has_is_a_hit_cold_and_warm() {
    needs_fuse!();
    let stock = Stock::new();
    for ext in ["tar.gz", "zst"] {
        let tarball = Tarball::new(ext, SIZE);
        tarball.put_on(&stock.ours);
        for _ in 0..2 {
            assert_eq!(stock.download(&tarball.name), hit(&tarball.name));
            stock.assert_unpacked(&tarball);
            stock.place.wait_until_cached(&tarball.name);
        }
        assert_eq!(stock.ours.counts().gets_of(&key(&tarball.name)), 1);
    }
    assert_eq!(stock.theirs.counts().requests(), 0);
}

#[test]
fn what_they_download_into_the_mount_is_a_hit_afterwards() {
    needs_fuse!();
    let stock = Stock::new();
    for ext in ["tar.gz", "zst"] {
        let tarball = Tarball::new(ext, SIZE);
        tarball.put_on(&stock.theirs);
        let lines = [
            format!("Local cache miss for {}, downloading from remote.", tarball.name),
            format!("Cache download and extraction of {} complete in Ns.", tarball.name),
        ];
        assert_eq!(stock.download(&tarball.name), Said::new(0, &[&lines[0], &lines[1]]));
        stock.assert_unpacked(&tarball);
        assert_same("kept", &fs::read(stock.place.cache().join(&tarball.name)).unwrap(), &tarball.bytes);
        assert_eq!(stock.download(&tarball.name), hit(&tarball.name));
        stock.assert_unpacked(&tarball);
    }
}

#[test]
fn a_miss_leaves_nothing_and_what_appears_later_is_found() {
    needs_fuse!();
    let (stock, tarball) = (Stock::new(), Tarball::new("zst", SIZE));
    assert_eq!(stock.download(&tarball.name), failed(&tarball.name));
    stock.assert_nowhere(&tarball.name);
    tarball.put_on(&stock.ours);
    wait_for("the artifact", || stock.mount.file(&tarball.name).exists());
    assert_eq!(stock.download(&tarball.name), hit(&tarball.name));
    stock.assert_unpacked(&tarball);
}

#[test]
fn a_download_that_breaks_off_leaves_nothing() {
    needs_fuse!();
    let (stock, tarball) = (Stock::new(), Tarball::new("zst", SIZE));
    tarball.put_on(&stock.theirs);
    stock.theirs.add_fault(Fault::truncate(100_000));
    assert_eq!(stock.download(&tarball.name), failed(&tarball.name));
    stock.assert_nowhere(&tarball.name);
    stock.theirs.set_faults([]);
    assert_eq!(stock.download(&tarball.name).code, Some(0));
    stock.assert_unpacked(&tarball);
}

#[test]
fn a_script_that_is_killed_leaves_nothing_and_nobody_sees_its_half_file() {
    needs_fuse!();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let (stock, tarball) = (Stock::new(), Tarball::new("zst", 2_000_000));
        tarball.put_on(&stock.theirs);
        let gate = stock.theirs.hold_gets(&key(&tarball.name), 500_000);
        let mut child = stock.command("cache_download", &[&tarball.name, "out"]).spawn().expect("bash runs");
        assert!(gate.wait_until_waiting(1, PATIENCE));
        assert!(!stock.place.cache().join(&tarball.name).exists());
        // SAFETY: kill(2) of the process group that our child leads takes no pointers.
        assert_eq!(unsafe { libc::kill(-(child.id() as i32), signal) }, 0);
        assert!(!child.wait().expect("it is our child").success());
        stock.assert_nowhere(&tarball.name);
        gate.release();
        assert_eq!(stock.download(&tarball.name).code, Some(0));
        stock.assert_unpacked(&tarball);
    }
}

#[test]
fn what_they_save_by_cp_is_kept_and_uploaded_and_comes_back() {
    needs_fuse!();
    let stock = Stock::new();
    let dir = stock.place.dir.path();
    fs::create_dir_all(dir.join("target/deep")).unwrap();
    fs::write(dir.join("target/deep/file"), "text ".repeat(50_000)).unwrap();
    for name in ["noir-0123456789abcdef.tar.gz", "bb.js-0123456789abcdef.zst"] {
        let save = || -> Said { stock.command("cache_upload", &[name, "target"]).output().unwrap().into() };
        assert_eq!(save(), Said::new(0, &[&format!("Saved {name} to local cache.")]));
        let kept = fs::read(stock.place.cache().join(name)).unwrap();
        assert_same("uploaded", &stock.ours.object(&key(name)).expect("an object"), &kept);
        fs::remove_file(stock.place.cache().join(name)).unwrap();
        assert_eq!(stock.download(name), hit(name));
        let unpacked = fs::read(dir.join("out/target/deep/file")).unwrap();
        assert_same("unpacked", &unpacked, "text ".repeat(50_000).as_bytes());
    }
}

#[test]
fn what_is_not_to_be_cached_is_not() {
    needs_fuse!();
    let (stock, tarball) = (Stock::new(), Tarball::new("zst", SIZE));
    tarball.put_on(&stock.ours);
    let disabled = "noir-disabled-cache.zst";
    assert_eq!(stock.download(disabled).code, Some(1));
    let said: Said = stock
        .command("cache_download", &[&tarball.name, "out"])
        .env("NO_CACHE", "1")
        .output()
        .unwrap()
        .into();
    assert_eq!(said, Said::new(1, &[&format!("Not using cache for {} because NO_CACHE=1.", tarball.name)]));
    for (name, no_upload) in [(disabled, "0"), ("vk-0123456789abcdef.zst", "1")] {
        let mut command = stock.command("cache_upload", &[name, "/dev/null"]);
        assert!(command.env("NO_CACHE_UPLOAD", no_upload).status().unwrap().success());
        stock.assert_nowhere(name);
    }
}
