//! Remotes that are down, slow or gone, and what is served all the same.

use std::fs;
use std::time::{Duration, Instant};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::S3Server;

use crate::common::{Mount, PATIENCE, Place, assert_same, errno, key, needs_fuse, wait_for, within, xattr};

const CACHED: &str = "noir-b786c534d2b9261d.tar.gz";
const COLD: &str = "barretenberg-4143489f79f3d92e.zst";

fn black_hole() -> Profile {
    Profile { black_hole: true, ..Profile::default() }
}

/// A server behind a proxy, with one artifact in the local cache and one that isn't.
fn behind_a_proxy(flags: &[&str]) -> (S3Server, Proxy, Place, Vec<u8>) {
    let body = random_bytes(31, 300_000);
    let server = S3Server::start();
    server.put(&key(CACHED), body.clone());
    server.put(&key(COLD), body.clone());
    let proxy = Proxy::start(server.addr(), Profile::default());
    let mut place = Place::new(&proxy.url());
    for flag in flags {
        place.arg(*flag);
    }
    let mount = place.mount();
    assert_same("fetched", &mount.read(CACHED).unwrap(), &body);
    place.wait_until_cached(CACHED);
    mount.unmount();
    (server, proxy, place, body)
}

/// The errno of a look at a name that the remote would have to be asked about.
fn miss(mount: &Mount, name: &str) -> i32 {
    let path = mount.file(name);
    errno(within(PATIENCE, "an answer", move || fs::metadata(path)))
}

#[test]
fn a_remote_that_swallows_everything_is_noticed_once_and_found_again() {
    needs_fuse!();
    // Long: whoever waits for the remote shows it.
    let flags = ["--first-byte-timeout", "4s", "--attempts", "1"];
    let (_server, proxy, place, body) = behind_a_proxy(&flags);
    proxy.set(black_hole());
    let mount = place.mount();
    assert!(matches!(miss(&mount, "first.zst"), libc::ETIMEDOUT | libc::EHOSTUNREACH));
    let begun = Instant::now();
    for n in 0..20 {
        assert_eq!(miss(&mount, &format!("later-{n}.zst")), libc::EHOSTUNREACH);
        assert_same("what is here", &mount.read(CACHED).unwrap(), &body);
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "somebody waited for it: {:?}", begun.elapsed());
    proxy.set(Profile::default());
    wait_for("the remote to be found again", || miss(&mount, "no-such.zst") == libc::ENOENT);
    assert_same("fetched again", &mount.read(COLD).unwrap(), &body);
    assert_eq!(mount.said().matches("still served").count(), 1, "{}", mount.said());
}

#[test]
fn nobody_opens_what_is_known_to_be_out_of_reach() {
    needs_fuse!();
    let flags = ["--first-byte-timeout", "4s", "--connect-timeout", "4s", "--attempts", "5"];
    let (_server, proxy, place, _body) = behind_a_proxy(&flags);
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), [COLD, CACHED]);
    proxy.set(Profile { refuse: true, ..Profile::default() });
    proxy.cut_all();
    wait_for("the listing to be no answer any more", || miss(&mount, "first.zst") == libc::EHOSTUNREACH);
    let begun = Instant::now();
    // Known from the listing, so it is found, but its bytes can't be had.
    let path = mount.file(COLD);
    assert_eq!(errno(within(PATIENCE, "an answer", move || fs::read(path))), libc::EHOSTUNREACH);
    assert!(begun.elapsed() < Duration::from_secs(1), "it was tried in vain: {:?}", begun.elapsed());
}

#[test]
fn what_the_remote_had_is_shown_while_it_is_out_of_reach() {
    needs_fuse!();
    let (server, _proxy, place, body) = behind_a_proxy(&["--attempts", "1"]);
    server.put(&key("deep/er.zst"), body.clone());
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), [COLD, "deep", CACHED]);
    assert_eq!(mount.list("deep").unwrap(), ["er.zst"]);
    let seen = fs::metadata(mount.file(COLD)).unwrap();
    mount.unmount();
    server.stop();
    let mount = place.mount();
    for _ in 0..2 {
        assert_eq!(mount.list("").unwrap(), [COLD, "deep", CACHED]);
        assert_eq!(mount.list("deep").unwrap(), ["er.zst"]);
    }
    let shown = fs::metadata(mount.file(COLD)).unwrap();
    assert_eq!((shown.len(), shown.modified().unwrap()), (seen.len(), seen.modified().unwrap()));
    assert_eq!(xattr(&mount.file(COLD), "user.aztec_cache.state").as_deref(), Some("remote"));
    assert_eq!(xattr(&mount.file(CACHED), "user.aztec_cache.state").as_deref(), Some("cached"));
    assert_same("what is here", &mount.read(CACHED).unwrap(), &body);
    assert_eq!(errno(mount.read(COLD)), libc::EHOSTUNREACH);
}

#[test]
fn slow_is_down_as_soon_as_the_options_say() {
    needs_fuse!();
    let flags = ["--first-byte-timeout", "200ms", "--stall-timeout", "300ms", "--attempts", "1"];
    let (_server, proxy, place, _body) = behind_a_proxy(&flags);
    let mount = place.mount();
    assert_eq!(mount.list("").unwrap(), [COLD, CACHED]);
    proxy.set(black_hole());
    let path = mount.file(COLD);
    let begun = Instant::now();
    assert_eq!(errno(within(PATIENCE, "an answer", move || fs::read(path))), libc::ETIMEDOUT);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    proxy.set(Profile::default());
    wait_for("the remote to be found again", || miss(&mount, "no-such.zst") == libc::ENOENT);
    proxy.set(Profile { latency: Duration::from_secs(2), ..Profile::default() });
    proxy.cut_all();
    let begun = Instant::now();
    wait_for("a late answer to be none", || {
        matches!(miss(&mount, "first.zst"), libc::ETIMEDOUT | libc::EHOSTUNREACH)
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn revalidation_is_no_reason_to_withhold_what_is_here() {
    needs_fuse!();
    let (server, _proxy, mut place, body) = behind_a_proxy(&["--attempts", "1"]);
    place.arg("--revalidate").arg("0s");
    server.stop();
    let mount = place.mount();
    for _ in 0..3 {
        assert_same("what is here", &mount.read(CACHED).unwrap(), &body);
    }
}

#[test]
fn scrubbing_finds_what_nobody_could_see() {
    needs_fuse!();
    let (_server, _proxy, mut place, body) = behind_a_proxy(&[]);
    let file = place.cache().join(CACHED);
    let written = fs::metadata(&file).unwrap().modified().unwrap();
    let mut damaged = body.clone();
    damaged[123_456] ^= 1;
    fs::write(&file, &damaged).unwrap();
    // As the disk would have it: nothing tells that it was written to.
    fs::File::options().write(true).open(&file).unwrap().set_modified(written).unwrap();
    place.arg("--scrub").arg("100ms");
    let mount = place.mount();
    wait_for("it to be moved out of the way", || !file.exists());
    wait_for("the log to say so", || mount.said().contains("the local file was damaged"));
    assert_same("fetched again", &mount.read(CACHED).unwrap(), &body);
    let quarantine = place.cache().join(".aztec-cache/quarantine");
    let moved = fs::read_dir(quarantine).unwrap().next().unwrap().unwrap().path();
    assert_same("kept to be looked at", &fs::read(moved).unwrap(), &damaged);
}
