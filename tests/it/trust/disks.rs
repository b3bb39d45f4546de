//! Disks of other kinds, and disks whose power fails: whatever was not synced is gone.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;

use crate::common::{Place, Tmpfs, assert_same, key, names_in, needs_fuse, needs_root, wait_for};

/// A file system of its own on a file, mounted by root; unmounted on drop.
struct Disk {
    image: PathBuf,
    path: PathBuf,
}

impl Disk {
    /// A disk formatted by `mkfs`. None, said aloud, where such a disk can't be made.
    fn make(dir: &Path, mkfs: &[&str]) -> Option<Disk> {
        let disk = Disk { image: dir.join("disk.img"), path: dir.join("disk") };
        fs::create_dir(&disk.path).expect("a directory");
        File::create(&disk.image).and_then(|file| file.set_len(512 << 20)).expect("an image");
        let made = run(mkfs[0], &mkfs[1..], &[&disk.image]).and_then(|()| disk.mount());
        match made {
            Ok(()) => Some(disk),
            Err(why) => {
                eprintln!("SKIPPED: no disk of its own: {why}");
                None
            }
        }
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", "loop"], &[&self.image, &self.path])
    }

    /// Drops all that is not on the disk, and fails every write from then on.
    fn cut_the_power(&self) {
        /// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` (fs/ext4/ext4.h).
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        let no_log_flush: u32 = 2;
        let dir = File::open(&self.path).expect("it is mounted");
        // SAFETY: the call reads the number behind the pointer, which outlives it.
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &raw const no_log_flush) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    fn unmount(&self) {
        wait_for("the disk to be unused", || run("umount", &[], &[&self.path]).is_ok());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l"], &[&self.path]);
    }
}

fn run(program: &str, args: &[&str], paths: &[&Path]) -> Result<(), String> {
    let output =
        Command::new(program).args(args).args(paths).output().map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {said}")) }
}

#[test]
fn nothing_wrong_is_left_when_the_power_fails() {
    needs_fuse!();
    needs_root!("a disk whose power is cut");
    let server = S3Server::start();
    let bodies: Vec<(String, Vec<u8>)> = (0..16)
        .map(|n| (format!("circuit-{n}.tar.gz"), random_bytes(n, 300_000 + 400_000 * n as usize)))
        .collect();
    bodies.iter().for_each(|(name, body)| drop(server.put(&key(name), body.clone())));
    let mut place = Place::of(&server);
    let Some(disk) = Disk::make(place.dir.path(), &["mkfs.ext4", "-q", "-F"]) else { return };
    place.cache = Some(disk.path.join("cache"));
    for complete in [2, 6, 10] {
        let mut mount = place.mount();
        let readers: Vec<_> = bodies
            .iter()
            .map(|(name, _)| mount.file(name))
            .map(|path| thread::spawn(move || fs::read(path)))
            .collect();
        let kept = || names_in(place.cache()).into_iter().filter(|name| !name.starts_with('.')).count();
        wait_for("some to be complete", || kept() >= complete);
        disk.cut_the_power();
        mount.signal(libc::SIGKILL);
        mount.wait();
        readers.into_iter().for_each(|reader| drop(reader.join().unwrap()));
        drop(mount);
        disk.unmount();
        disk.mount().unwrap();
        for (name, body) in &bodies {
            if let Ok(found) = fs::read(place.cache().join(name)) {
                assert_same(name, &found, body);
            }
        }
        let mount = place.mount();
        for (name, body) in &bodies {
            assert_same(name, &mount.read(name).unwrap(), body);
        }
        place.wait_until_cached(&bodies[15].0);
        let verified = place.command(&["verify"]).args(&place.args).output().unwrap();
        assert!(verified.status.success(), "{verified:?}");
        mount.unmount();
        bodies.iter().for_each(|(name, _)| drop(fs::remove_file(place.cache().join(name))));
    }
}

/// Fetched, read warm, evicted for another, gone on with after a kill.
fn use_as_cache(what: &str, cache: PathBuf) {
    let server = S3Server::start();
    let (small, big) = (random_bytes(1, 900_000), random_bytes(2, 20 << 20));
    server.put(&key("small.bin"), small.clone());
    server.put(&key("big.bin"), big.clone());
    let mut place = Place::of(&server);
    place.cache = Some(cache);
    let mut mount = place.mount();
    assert_same(what, &mount.read("small.bin").unwrap(), &small);
    place.wait_until_cached("small.bin");
    assert_same(what, &mount.read("small.bin").unwrap(), &small);
    let gate = server.hold_gets(&key("big.bin"), 700 << 10);
    let path = mount.file("big.bin");
    let reader = thread::spawn(move || fs::read(path));
    wait_for("all connections to be held", || gate.waiting() >= 10);
    mount.signal(libc::SIGKILL);
    mount.wait();
    drop(reader.join().unwrap());
    gate.release();
    drop(mount);
    place.arg("--max-cache-size").arg((20_u64 << 20).saturating_add(500_000).to_string());
    let mount = place.mount();
    assert_same(what, &mount.read("big.bin").unwrap(), &big);
    place.wait_until_cached("big.bin");
    assert!(!place.cache().join("small.bin").exists(), "{what}: nothing made room");
    assert_same(what, &fs::read(place.cache().join("big.bin")).unwrap(), &big);
    mount.unmount();
}

#[test]
fn any_common_file_system_will_do() {
    needs_fuse!();
    needs_root!("cache directories on other file systems");
    let dir = tempfile::tempdir().unwrap();
    for mkfs in [&["mkfs.xfs", "-q", "-f"][..], &["mkfs.btrfs", "-q", "-f"]] {
        let place = dir.path().join(mkfs[0]);
        fs::create_dir(&place).unwrap();
        if let Some(disk) = Disk::make(&place, mkfs) {
            use_as_cache(mkfs[0], disk.path.join("cache"));
        }
    }
    let tmpfs = Tmpfs::at(&dir.path().join("tmpfs"), "size=100m");
    use_as_cache("tmpfs", dir.path().join("tmpfs/cache"));
    for part in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir.path().join("tmpfs").join(part)).unwrap();
    }
    let base = dir.path().join("tmpfs").display().to_string();
    let layers = format!("lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work");
    let merged = dir.path().join("tmpfs/merged");
    match run("mount", &["-t", "overlay", "-o", &layers, "overlay"], &[&merged]) {
        Ok(()) => {
            use_as_cache("overlay", merged.join("cache"));
            run("umount", &["-l"], &[&merged]).unwrap();
        }
        Err(why) => eprintln!("SKIPPED: no overlay: {why}"),
    }
    drop(tmpfs);
}
