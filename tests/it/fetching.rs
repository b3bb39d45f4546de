//! The fetch: what readers see of a download under way, and what is left of one that goes wrong.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::{Fault, Gate, Op, S3Server};

use crate::common::{
    Mount, PATIENCE, Place, assert_same, errno, key, needs_fuse, read_range, wait_for, within, xattr,
};

const NAME: &str = "barretenberg-clang20-4143489f79f3d92e.zst";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// "At once", for what doesn't wait for the network; generous, since the machine is busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A server with `NAME`, and a mount of it.
fn serving(body: &[u8]) -> (S3Server, Place, Mount) {
    let server = S3Server::start();
    server.put(&key(NAME), body.to_vec());
    let place = Place::of(&server);
    let mount = place.mount();
    (server, place, mount)
}

/// Reads a whole file on a thread of its own.
fn reading(path: PathBuf) -> JoinHandle<std::io::Result<Vec<u8>>> {
    thread::spawn(move || fs::read(path))
}

/// A read that must be answered while others are held at the server.
fn read_now(path: &Path, from: u64, length: u64) -> Vec<u8> {
    let path = path.to_owned();
    let what = format!("{length} bytes from {from} on");
    within(PATIENCE, &what, move || read_range(&path, from..from + length)).expect(&what)
}

fn wait_until_held(gate: &Gate, n: usize) {
    assert!(gate.wait_until_waiting(n, PATIENCE), "{} of {n} requests at the gate", gate.waiting());
}

/// Starts `cat` on a file and returns once it sleeps in its read.
fn blocked_cat(path: &Path) -> Child {
    let child = Command::new("cat").arg(path).stdout(Stdio::null()).spawn().expect("cat runs");
    let stat = format!("/proc/{}/stat", child.id());
    wait_for("cat asleep in its read", || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        stat.contains("(cat) S") || stat.contains("(cat) D")
    });
    child
}

fn send(signal: i32, child: &Child) {
    // SAFETY: kill(2) takes no pointers; the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[test]
fn a_read_is_answered_as_soon_as_its_range_is_there() {
    needs_fuse!();
    let body = random_bytes(1, 20 << 20);
    let (server, place, mount) = serving(&body);
    let gate = server.hold_gets(&key(NAME), 512 * KIB);
    assert_same("the first bytes", &read_now(&mount.file(NAME), 0, 300_000), &body[..300_000]);
    wait_until_held(&gate, 1);
    let whole = reading(mount.file(NAME));
    assert_eq!(xattr(&mount.file(NAME), "user.aztec_cache.state").as_deref(), Some("partial"));
    assert!(!place.cache().join(NAME).exists(), "half a file under the artifact's name");
    assert!(!whole.is_finished() && gate.waiting() > 0);
    gate.release();
    assert_same("the whole", &whole.join().unwrap().unwrap(), &body);
    place.wait_until_cached(NAME);
    assert_eq!(server.counts().bytes_of(&key(NAME)), body.len() as u64);
}

#[test]
fn reads_ahead_of_the_download_are_fetched_first() {
    needs_fuse!();
    let server = S3Server::start();
    // More than what is fetched at once.
    let size = 300 * MIB;
    let etag = server.put_sparse(&key(NAME), size, 7);
    let expected = |from: u64, length: u64| S3Server::sparse_byte_range(7, from..from + length);
    let place = Place::of(&server);
    let mount = place.mount();
    let file = mount.file(NAME);
    // Whatever is fetched in order comes to a halt here; what a reader ahead asks for is shorter.
    let gate = server.hold_gets(&key(NAME), 2 * MIB);
    assert_same("the start", &read_now(&file, 0, 64 * KIB), &expected(0, 64 * KIB));
    wait_until_held(&gate, 16);
    let held = {
        let file = file.clone();
        thread::spawn(move || read_range(&file, 5 * MIB..6 * MIB))
    };
    let tail = size - 100_000;
    assert_same("the end", &read_now(&file, tail, 100_000), &expected(tail, 100_000));
    let middle = 200 * MIB + 123;
    assert_same("the middle", &read_now(&file, middle, 200_000), &expected(middle, 200_000));
    assert!(!held.is_finished() && gate.waiting() >= 16, "{} are held", gate.waiting());
    gate.release();
    assert_same("held bytes", &held.join().unwrap().unwrap(), &expected(5 * MIB, MIB));
    place.wait_until_cached(NAME);
    assert_same("the whole", &fs::read(place.cache().join(NAME)).unwrap(), &expected(0, size));
    assert_eq!(server.counts().bytes_of(&key(NAME)), size, "some bytes were fetched twice");
    let gets: Vec<_> = server.log().into_iter().filter(|request| request.op == Op::Get).collect();
    assert!(gets.len() > 38 && gets.iter().all(|get| get.if_match.as_ref() == Some(&etag)), "{gets:?}");
}

#[test]
fn two_hundred_readers_of_fifty_cold_files_make_fifty_downloads() {
    needs_fuse!();
    let server = S3Server::start();
    let name = |i: usize| format!("contract-{i:04}.tar.gz");
    let bodies: Vec<Vec<u8>> =
        (0..50).map(|i| random_bytes(i as u64, 1 + i * 7_919 + (i % 5) * 700_000)).collect();
    for (i, body) in bodies.iter().enumerate() {
        server.put(&key(&name(i)), body.clone());
    }
    let place = Place::of(&server);
    let mount = place.mount();
    let gate = server.hold(Op::Get, None);
    let all_open = Arc::new(Barrier::new(201));
    let readers: Vec<_> = (0..200)
        .map(|i| (mount.file(&name(i % 50)), all_open.clone()))
        .map(|(path, all_open)| {
            thread::spawn(move || {
                let mut file = File::open(path).unwrap();
                all_open.wait();
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map(|_| bytes)
            })
        })
        .collect();
    all_open.wait();
    wait_until_held(&gate, 50);
    gate.release();
    for (i, reader) in readers.into_iter().enumerate() {
        assert_same(&name(i % 50), &reader.join().unwrap().unwrap(), &bodies[i % 50]);
    }
    let counts = server.counts();
    for (i, body) in bodies.iter().enumerate() {
        let key = key(&name(i));
        assert_eq!(counts.bytes_of(&key), body.len() as u64, "{key} was not downloaded exactly once");
        assert!(counts.heads_of(&key) <= 1, "{key}: {} HEADs", counts.heads_of(&key));
        place.wait_until_cached(&name(i));
        assert_same(&name(i), &fs::read(place.cache().join(name(i))).unwrap(), body);
    }
}

#[test]
fn the_fetch_goes_on_when_its_reader_has_closed_the_file() {
    needs_fuse!();
    let body = random_bytes(2, 6 << 20);
    let (server, place, mount) = serving(&body);
    let gate = server.hold_gets(&key(NAME), 512 * KIB);
    assert_same("the first bytes", &read_now(&mount.file(NAME), 0, 1000), &body[..1000]);
    wait_until_held(&gate, 1);
    assert!(!place.cache().join(NAME).exists());
    gate.release();
    place.wait_until_cached(NAME);
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), &body);
    assert_eq!(server.counts().bytes_of(&key(NAME)), body.len() as u64);
}

#[test]
fn a_waiting_reader_can_be_killed_at_once_and_the_fetch_goes_on() {
    needs_fuse!();
    let body = random_bytes(3, 6 << 20);
    let (server, place, mount) = serving(&body);
    let gate = server.hold(Op::Get, Some(&key(NAME)));
    let mut cat = blocked_cat(&mount.file(NAME));
    wait_until_held(&gate, 1);
    let start = Instant::now();
    send(libc::SIGKILL, &cat);
    let status = within(PATIENCE, "the end of a killed reader", move || cat.wait()).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    assert!(gate.waiting() > 0, "the server still holds what it waited for");
    gate.release();
    place.wait_until_cached(NAME);
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), &body);
    assert_eq!(server.counts().bytes_of(&key(NAME)), body.len() as u64);
}

#[test]
fn a_stopped_reader_does_not_hold_up_others() {
    needs_fuse!();
    let body = random_bytes(4, 12 << 20);
    let (server, place, mount) = serving(&body);
    let gate = server.hold_gets(&key(NAME), 512 * KIB);
    let mut stopped = blocked_cat(&mount.file(NAME));
    wait_until_held(&gate, 1);
    send(libc::SIGSTOP, &stopped);
    gate.release();
    let whole = reading(mount.file(NAME));
    let whole = within(PATIENCE, "another reader", move || whole.join().unwrap()).unwrap();
    assert_same("another reader", &whole, &body);
    place.wait_until_cached(NAME);
    assert!(stopped.try_wait().unwrap().is_none(), "it wasn't stopped");
    send(libc::SIGCONT, &stopped);
    assert!(stopped.wait().unwrap().success());
}

#[test]
fn nothing_else_waits_while_sixty_cold_reads_do() {
    needs_fuse!();
    let server = S3Server::start();
    let name = |i: usize| format!("contract-{i:02}.tar.gz");
    let body = random_bytes(5, 300_000);
    (0..60).for_each(|i| drop(server.put(&key(&name(i)), body.clone())));
    server.put(&key(NAME), body.clone());
    let place = Place::of(&server);
    let mount = place.mount();
    assert_same("a file to be cached", &mount.read(NAME).unwrap(), &body);
    place.wait_until_cached(NAME);
    let gate = server.hold(Op::Get, None);
    let readers: Vec<_> = (0..60).map(|i| reading(mount.file(&name(i)))).collect();
    wait_until_held(&gate, 60);

    let (root, cached) = (mount.path.clone(), mount.file(NAME));
    let listed = within(AT_ONCE, "ls", move || fs::read_dir(root).unwrap().count());
    assert_eq!(listed, 61);
    let cold = mount.file(&name(30));
    assert_eq!(within(AT_ONCE, "stat", move || fs::metadata(cold).unwrap().len()), body.len() as u64);
    let missing = mount.file("no-such-artifact.tar.gz");
    assert_eq!(errno(within(AT_ONCE, "stat of a missing file", move || fs::metadata(missing))), libc::ENOENT);
    let read = within(AT_ONCE, "a read of a cached file", move || fs::read(cached).unwrap());
    assert_same("a cached file", &read, &body);

    assert!(gate.waiting() >= 60 && readers.iter().all(|reader| !reader.is_finished()));
    gate.release();
    for reader in readers {
        assert_same("a cold file", &reader.join().unwrap().unwrap(), &body);
    }
}

/// Nothing is left of a failed download.
fn assert_nothing_kept(place: &Place) {
    wait_for("the partial file to go", || place.partials().is_empty());
    assert!(!place.cache().join(NAME).exists(), "something lies under the artifact's name");
}

#[test]
fn an_object_replaced_during_its_download_is_never_mixed() {
    needs_fuse!();
    let server = S3Server::start();
    // More parts than are fetched at a time: some GET begins after the first one has replaced the object.
    server.put_sparse(&key(NAME), 90 * MIB, 1);
    let new = random_bytes(6, 3 << 20);
    let place = Place::of(&server);
    let mount = place.mount();
    server.add_fault(Fault::replace(new.clone()).key(&key(NAME)));
    let old = File::open(mount.file(NAME)).unwrap();
    let mut bytes = Vec::new();
    assert_eq!(errno((&old).read_to_end(&mut bytes)), libc::ESTALE);
    assert_same("what came before", &bytes, &S3Server::sparse_byte_range(1, 0..bytes.len() as u64));
    assert_nothing_kept(&place);
    assert_same("the next open", &mount.read(NAME).unwrap(), &new);
    place.wait_until_cached(NAME);
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), &new);
    let mut last = [0; 100];
    assert_eq!(errno(old.read_exact_at(&mut last, 89 * MIB)), libc::ESTALE, "the old handle");
}

#[test]
fn an_object_removed_during_its_download_is_gone() {
    needs_fuse!();
    let body = random_bytes(14, 6 << 20);
    let (server, place, mount) = serving(&body);
    let gate = server.hold_gets_from(&key(NAME), MIB, 0);
    let whole = reading(mount.file(NAME));
    wait_until_held(&gate, 1);
    server.remove(&key(NAME));
    gate.release();
    assert_eq!(errno(whole.join().unwrap()), libc::ESTALE);
    assert_nothing_kept(&place);
    assert_eq!(errno(mount.read(NAME)), libc::ENOENT);
}

#[test]
fn a_part_of_another_version_is_never_used() {
    needs_fuse!();
    let body = random_bytes(7, 20 << 20);
    let (server, place, mount) = serving(&body);
    server.add_fault(Fault::wrong_etag().key(&key(NAME)).skip(1).times(1));
    assert_eq!(errno(mount.read(NAME)), libc::ESTALE);
    assert_nothing_kept(&place);
    assert_same("the next open", &mount.read(NAME).unwrap(), &body);
}

#[test]
fn a_cut_body_goes_on_where_it_broke() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    for after in [0, 1, 4095, 100_000, MIB - 1] {
        let name = format!("cut-after-{after}.tar.gz");
        let body = random_bytes(after, (3 << 20) + 5);
        server.put(&key(&name), body.clone());
        server.add_fault(Fault::truncate(after).key(&key(&name)).times(3));
        assert_same(&name, &mount.read(&name).unwrap(), &body);
        let fetched = server.counts().bytes_of(&key(&name));
        assert!(fetched <= body.len() as u64 + 64 * KIB, "{name}: {fetched} bytes were fetched");
    }
}

#[test]
fn cut_and_reset_connections_cost_little_more_than_the_object() {
    needs_fuse!();
    let server = S3Server::start();
    const CUT: u64 = 700_000;
    let proxy = Proxy::start(server.addr(), Profile::default());
    let place = Place::new(&proxy.url());
    let mount = place.mount();
    for (i, reset) in [false, true].into_iter().enumerate() {
        let name = format!("reset-{reset}.tar.gz");
        let body = random_bytes(i as u64, 10 << 20);
        server.put(&key(&name), body.clone());
        proxy.cut_all();
        let before = proxy.counts();
        proxy.set(Profile { cut_after: Some(CUT), times: Some(6), reset, ..Profile::default() });
        assert_same(&name, &mount.read(&name).unwrap(), &body);
        let after = proxy.counts();
        assert!(after.connections - before.connections > 6, "no connection was cut");
        // A reset may lose what a connection carried; the rest is the object and the answers' heads.
        let passed = after.down - before.down;
        assert!(passed < body.len() as u64 + 6 * CUT + 64 * KIB, "{name}: {passed} bytes passed");
    }
}

#[test]
fn all_connections_reset_in_mid_download() {
    needs_fuse!();
    let server = S3Server::start();
    let body = random_bytes(8, 20 << 20);
    server.put(&key(NAME), body.clone());
    let proxy = Proxy::start(server.addr(), Profile { reset: true, ..Profile::default() });
    let place = Place::new(&proxy.url());
    let mount = place.mount();
    let gate = server.hold_gets(&key(NAME), 512 * KIB);
    let whole = reading(mount.file(NAME));
    wait_until_held(&gate, 3);
    proxy.cut_all();
    gate.release();
    assert_same("the whole", &whole.join().unwrap().unwrap(), &body);
}

#[test]
fn a_server_that_is_busy_for_a_while_is_asked_again() {
    needs_fuse!();
    let body = random_bytes(9, 3 << 20);
    let (server, _place, mount) = serving(&body);
    server.add_fault(Fault::status(503, "SlowDown").on(Op::Head).times(2));
    server.add_fault(Fault::status(503, "SlowDown").on(Op::Get).times(3));
    server.add_fault(Fault::status(500, "InternalError").on(Op::Get).skip(1).times(3));
    assert_same("the whole", &mount.read(NAME).unwrap(), &body);
    assert!(server.counts().head >= 3 && server.counts().get >= 5, "the faults weren't met");
}

#[test]
fn a_server_that_fails_for_ever_is_eio_in_bounded_time() {
    needs_fuse!();
    let body = random_bytes(10, 3 << 20);
    let (server, place, mount) = serving(&body);
    server.add_fault(Fault::status(500, "InternalError").on(Op::Get));
    let read = reading(mount.file(NAME));
    assert_eq!(errno(within(PATIENCE, "an answer", move || read.join().unwrap())), libc::EIO);
    assert_nothing_kept(&place);
    server.set_faults([Fault::status(500, "InternalError").on(Op::Head)]);
    let unknown = mount.file("unknown.tar.gz");
    assert_eq!(errno(within(PATIENCE, "an answer", move || fs::metadata(unknown))), libc::EIO);
    server.set_faults([]);
    assert_same("when it is well again", &mount.read(NAME).unwrap(), &body);
}

#[test]
fn a_server_that_ignores_ranges_gives_right_bytes() {
    needs_fuse!();
    let body = random_bytes(11, (20 << 20) + 77);
    let (server, place, mount) = serving(&body);
    server.add_fault(Fault::ignore_range());
    let tail = body.len() as u64 - 1000;
    assert_same(
        "the end",
        &read_range(&mount.file(NAME), tail..tail + 1000).unwrap(),
        &body[tail as usize..],
    );
    assert_same("the whole", &mount.read(NAME).unwrap(), &body);
    place.wait_until_cached(NAME);
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), &body);
}

#[test]
fn a_daemon_killed_in_mid_download_leaves_nothing_under_the_name() {
    needs_fuse!();
    let body = random_bytes(12, 6 << 20);
    let (server, place, mut mount) = serving(&body);
    let gate = server.hold_gets(&key(NAME), 512 * KIB);
    assert_same("the first bytes", &read_now(&mount.file(NAME), 0, 1000), &body[..1000]);
    wait_until_held(&gate, 1);
    mount.signal(libc::SIGKILL);
    assert_eq!(mount.wait(), None);
    assert!(!place.cache().join(NAME).exists(), "half a file under the artifact's name");
    gate.release();
    let before = server.counts().bytes_of(&key(NAME));
    let again = place.mount();
    assert_same("the next mount", &again.read(NAME).unwrap(), &body);
    place.wait_until_cached(NAME);
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), &body);
    let fetched = server.counts().bytes_of(&key(NAME)) - before;
    assert!(fetched < body.len() as u64, "the next one goes on where the dead one was: {fetched} bytes");
    assert!(place.partials().is_empty(), "{:?}", place.partials());
}

#[test]
fn two_daemons_share_a_cache_directory() {
    needs_fuse!();
    let body = random_bytes(13, 12 << 20);
    let (server, place, first) = serving(&body);
    let mut other = Place::of(&server);
    other.cache = place.cache.clone();
    let gate = server.hold_gets(&key(NAME), 512 * KIB);
    let one = reading(first.file(NAME));
    wait_until_held(&gate, 1);
    // It sweeps the directory while the first one's download is under way.
    let second = other.mount();
    let two = reading(second.file(NAME));
    assert_eq!(xattr(&second.file(NAME), "user.aztec_cache.etag"), server.etag(&key(NAME)));
    assert!(!place.cache().join(NAME).exists());
    gate.release();
    assert_same("the first", &one.join().unwrap().unwrap(), &body);
    assert_same("the second", &two.join().unwrap().unwrap(), &body);
    wait_for("both downloads to end", || place.partials().is_empty());
    assert_same("the artifact", &fs::read(place.cache().join(NAME)).unwrap(), &body);
    server.reset_counts();
    assert_same("the first, warm", &first.read(NAME).unwrap(), &body);
    assert_same("the second, warm", &second.read(NAME).unwrap(), &body);
    assert_eq!(server.counts().requests(), 0);
}

#[test]
fn tar_unpacks_while_the_download_runs() {
    needs_fuse!();
    let tarball = aztec_cache_test_support::artifacts::tar_gz(1, 6 << 20, 40);
    let (server, place, mount) = serving(&tarball);
    let gate = server.hold_gets(&key(NAME), 768 * KIB);
    let to = place.dir.path().join("unpacked");
    fs::create_dir(&to).unwrap();
    let mut tar = Command::new("tar").arg("-xzf").arg(mount.file(NAME)).arg("-C").arg(&to).spawn().unwrap();
    wait_until_held(&gate, 1);
    wait_for("the first unpacked file", || to.join("dir-0/file-0.bin").exists());
    assert!(tar.try_wait().unwrap().is_none() && gate.waiting() > 0);
    gate.release();
    assert!(tar.wait().unwrap().success());
}
