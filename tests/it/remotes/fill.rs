//! `--fill`: what one machine fetched from far away, the next one has nearby.

use std::fs;
use std::io::Read;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::{Fault, Op, S3Server};
use aztec_cache_test_support::seaweed::Seaweed;

use crate::common::{PATIENCE, Place, assert_same, key, needs_fuse, wait_for, xattr};

const S3: &str = "s3://aztec-ci-artifacts/build-cache/";
const NOTHING: &str = "--fill: does nothing";

/// The public address of a server's bucket.
fn web(url: &str) -> String {
    format!("{url}/aztec-ci-artifacts/build-cache/")
}

/// A machine that asks the S3 server at `near` first, and fills it from the web server at `far`.
fn machine(near: &str, far: &str) -> Place {
    let mut place = Place::new(near);
    place.env("AZTEC_CACHE_REMOTE", format!("{S3} {}", web(far))).env("AZTEC_CACHE_FILL", "1");
    place
}

fn run(place: &Place, args: &[&str]) -> Output {
    let output = place.command(args).args(&place.args).output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `near` has `name`, with these bytes.
fn wait_until_filled(near: &S3Server, name: &str, body: &[u8]) {
    wait_for(&format!("{name} nearby"), || near.object(&key(name)).is_some());
    assert_same(name, &near.object(&key(name)).unwrap(), body);
}

#[test]
fn what_the_first_machine_reads_the_second_has_from_nearby() {
    needs_fuse!();
    let (near, far) = (S3Server::start(), S3Server::start());
    let sizes = [0, 1, 700_001, 20 << 20];
    let artifacts = sizes.map(|size| (format!("size-{size}.bin"), random_bytes(size as u64, size)));
    for (name, body) in &artifacts {
        far.put(&key(name), body.clone());
    }
    let attribute = |mount: &crate::common::Mount, name: &str, attribute: &str| {
        xattr(&mount.file(name), &format!("user.aztec_cache.{attribute}"))
    };
    let first = machine(&near.url(), &far.url());
    let mount = first.mount();
    for (name, body) in &artifacts {
        assert_same(name, &mount.read(name).unwrap(), body);
        wait_until_filled(&near, name, body);
        assert_eq!(attribute(&mount, name, "source"), Some(web(&far.url())), "it came from there");
    }
    near.reset_counts();
    far.reset_counts();
    let second = machine(&near.url(), &far.url());
    let other = second.mount();
    for (name, body) in &artifacts {
        assert_same(name, &other.read(name).unwrap(), body);
        second.wait_until_cached(name);
        assert_eq!(attribute(&other, name, "source").as_deref(), Some(S3));
        assert_eq!(attribute(&other, name, "checksum"), attribute(&mount, name, "checksum"), "{name}");
    }
    other.unmount();
    assert_eq!(near.counts().put, 0, "what is nearby is not put there again");
    let far = far.counts();
    assert_eq!(far.get, 0, "{far:?}");
    assert!(artifacts.iter().all(|(name, _)| far.heads_of(&key(name)) == 0), "{far:?}");
}

#[test]
fn commands_fill_before_they_end_and_only_when_told_to() {
    let (near, far) = (S3Server::start(), S3Server::start());
    let body = |i: u64| random_bytes(i, 300_000);
    let names = [0, 1, 2, 3].map(|i| format!("vk-{i}.zst"));
    for (i, name) in names.iter().enumerate() {
        far.put(&key(name), body(i as u64));
    }
    let mut place = machine(&near.url(), &far.url());
    place.unset("AZTEC_CACHE_FILL").arg("-v");
    run(&place, &["prefetch", &names[0]]);
    assert_eq!(near.counts().put, 0, "nobody asked for it");
    run(&place, &["get", &names[0], "--fill"]);
    assert_eq!(near.counts().put, 0, "a hit fetches nothing");
    let prefetched = said(&run(&place, &["prefetch", &names[1], &names[2], "--fill"]));
    assert_same(&names[1], &near.object(&key(&names[1])).unwrap(), &body(1));
    assert_same(&names[2], &near.object(&key(&names[2])).unwrap(), &body(2));
    assert!(
        prefetched.contains(&format!("filled into {S3}, 300000 bytes; 2 artifacts so far")),
        "{prefetched}"
    );
    let config = place.dir.path().join("config.toml");
    fs::write(&config, "fill = true\n").unwrap();
    place.env("AZTEC_CACHE_CONFIG", config);
    assert_same("read", &run(&place, &["get", &names[3]]).stdout, &body(3));
    assert_same(&names[3], &near.object(&key(&names[3])).unwrap(), &body(3));
}

#[test]
fn what_is_asked_about_again_is_filled_once_and_read_as_it_is_nearby() {
    let (near, far) = (S3Server::start(), S3Server::start());
    let name = "a.zst";
    far.put(&key(name), "from far away");
    let mut place = machine(&near.url(), &far.url());
    place.arg("--revalidate").arg("0s");
    let read = || String::from_utf8(run(&place, &["get", name]).stdout).unwrap();
    assert_eq!(read(), "from far away");
    assert_eq!(near.object(&key(name)).unwrap(), "from far away");
    near.reset_counts();
    far.reset_counts();
    for _ in 0..3 {
        assert_eq!(read(), "from far away");
    }
    assert_eq!(near.counts().put, 0, "it is there");
    assert_eq!(near.counts().heads_of(&key(name)), 3);
    assert!(near.counts().get <= 1, "{:?}", near.counts());
    assert_eq!(far.counts().requests(), 0, "{:?}", far.counts());
    near.put(&key(name), "another's");
    assert_eq!(read(), "another's");
    near.remove(&key(name));
    far.put(&key(name), "a new one");
    assert_eq!(read(), "a new one");
    assert_eq!(near.object(&key(name)).unwrap(), "a new one");
}

#[test]
fn no_reader_waits_for_it_and_two_are_uploaded_at_a_time() {
    needs_fuse!();
    let (near, far) = (S3Server::start(), S3Server::start());
    let names = [0, 1, 2, 3, 4].map(|i| format!("vk-{i}.zst"));
    for (i, name) in names.iter().enumerate() {
        far.put(&key(name), random_bytes(i as u64, 100_000));
    }
    let place = machine(&near.url(), &far.url());
    let held = near.hold(Op::Put, None);
    let mount = place.mount();
    for (i, name) in names[..4].iter().enumerate() {
        assert_same(name, &mount.read(name).unwrap(), &random_bytes(i as u64, 100_000));
        place.wait_until_cached(name);
    }
    assert!(held.wait_until_waiting(2, PATIENCE));
    // The consumer of a command sees the end, too.
    let alone = machine(&near.url(), &far.url());
    let mut get = alone.command(&["get", &names[4]]);
    let mut get = get.args(&alone.args).stdout(Stdio::piped()).spawn().unwrap();
    let mut bytes = Vec::new();
    get.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    assert_same("the consumer's", &bytes, &random_bytes(4, 100_000));
    assert!(held.wait_until_waiting(3, PATIENCE), "the command's own");
    assert!(get.try_wait().unwrap().is_none(), "it is still filling");
    assert_eq!(held.arrived(), 3, "two of the mount's four");
    held.release();
    assert!(get.wait().unwrap().success());
    assert!(near.object(&key(&names[4])).is_some());
    // What is under way at the end comes to its end.
    mount.unmount();
    for (i, name) in names.iter().enumerate() {
        assert_same(name, &near.object(&key(name)).unwrap(), &random_bytes(i as u64, 100_000));
    }
}

#[test]
fn what_somebody_else_has_put_there_stays() {
    needs_fuse!();
    let (near, far) = (S3Server::start(), S3Server::start());
    for name in ["a.zst", "b.zst"] {
        far.put(&key(name), "from far away");
    }
    let mut place = machine(&near.url(), &far.url());
    place.arg("-vv");
    let mount = place.mount();
    let stays = |mount: &crate::common::Mount, name: &str| {
        mount.said().contains(&format!("{name}: {S3} has one already, which stays"))
    };
    // Before it is looked for, and between that and the upload.
    let held = far.hold(Op::Get, Some(&key("a.zst")));
    let path = mount.file("a.zst");
    let reader = std::thread::spawn(move || fs::read(path));
    assert!(held.wait_until_waiting(1, PATIENCE));
    near.put(&key("a.zst"), "another's");
    held.release();
    assert_eq!(reader.join().unwrap().unwrap(), b"from far away");
    wait_for("a word about it", || stays(&mount, "a.zst"));
    let held = near.hold(Op::Put, Some(&key("b.zst")));
    assert_eq!(mount.read("b.zst").unwrap(), b"from far away");
    assert!(held.wait_until_waiting(1, PATIENCE));
    near.put(&key("b.zst"), "another's");
    held.release();
    wait_for("a word about it", || stays(&mount, "b.zst"));
    for name in ["a.zst", "b.zst"] {
        assert_eq!(near.object(&key(name)).unwrap(), "another's", "{name}");
    }
}

#[test]
fn while_the_store_nearby_is_down_reads_go_on_and_it_is_filled_later() {
    needs_fuse!();
    let (near, far) = (S3Server::start(), S3Server::start());
    for name in ["a.zst", "b.zst", "c.zst"] {
        far.put(&key(name), name.to_owned());
    }
    let mut place = machine(&near.url(), &far.url());
    place.arg("-v");
    near.stop();
    let mount = place.mount();
    for name in ["a.zst", "b.zst"] {
        assert_eq!(mount.read(name).unwrap(), name.as_bytes());
    }
    wait_for("a word about it", || mount.said().contains("--fill goes without"));
    near.restart();
    wait_for("a probe to succeed", || mount.said().contains("answers again"));
    assert_eq!(mount.read("c.zst").unwrap(), b"c.zst");
    for name in ["a.zst", "b.zst", "c.zst"] {
        wait_until_filled(&near, name, name.as_bytes());
    }
    assert_eq!(mount.said().matches("--fill goes without").count(), 1, "{}", mount.said());
}

#[test]
fn a_store_that_refuses_is_said_once() {
    let (near, far) = (S3Server::start(), S3Server::start());
    let names: Vec<String> = (0..10).map(|i| format!("vk-{i}.zst")).collect();
    names.iter().for_each(|name| drop(far.put(&key(name), "x")));
    near.add_fault(Fault::status(403, "AccessDenied").on(Op::Put));
    let place = machine(&near.url(), &far.url());
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let said = said(&run(&place, &[&["prefetch"], &names[..]].concat()));
    assert!(said.contains("--fill goes without") && said.lines().count() == 1, "{said}");
    assert!(near.keys().is_empty());
}

#[test]
fn that_it_does_nothing_is_said_once() {
    needs_fuse!();
    let (near, far) = (S3Server::start(), S3Server::start());
    for server in [&near, &far] {
        server.put(&key("a.zst"), "a");
    }
    let warned = |place: &Place, remedy: &str| {
        let said = said(&run(place, &["get", "a.zst"]));
        assert!(said.contains(remedy) && said.matches(NOTHING).count() == 1, "{said}");
    };
    let ours = || machine(&near.url(), &far.url());
    let mut only = ours();
    only.env("AZTEC_CACHE_REMOTE", S3);
    warned(&only, "--remote");
    assert_eq!(said(&run(&only, &["get", "a.zst"])), "", "a hit has nothing to do with it");
    let mut last = ours();
    last.env("AZTEC_CACHE_REMOTE", format!("{} {S3}", web(&far.url())));
    warned(&last, "--remote");
    let mut unsigned = ours();
    unsigned.arg("--no-sign-request");
    warned(&unsigned, "credentials");
    let mut nowhere = ours();
    nowhere.cache = None;
    warned(&nowhere, "CACHE_LOCAL_DIR");
    let mount = last.mount();
    wait_for("a word about it", || mount.said().contains(NOTHING));
    mount.unmount();
    assert_eq!((near.counts().put, far.counts().put), (0, 0));
}

/// A team's own SeaweedFS in front of S3 at the end of a long way; the times are printed, nothing is asserted of them.
#[test]
fn an_office_s_seaweed_fs_serves_what_its_first_reader_fetched() {
    let near = Seaweed::start().unwrap_or_else(|error| panic!("no independent server: {error}"));
    let far = S3Server::start();
    let names: Vec<String> = (0..40).map(|i| format!("circuit-{i}.zst")).collect();
    let body = |i: usize| random_bytes(i as u64, if i == 0 { 30 << 20 } else { 200_000 });
    for (i, name) in names.iter().enumerate() {
        far.put(&key(name), body(i));
    }
    let profile = Profile { latency: Duration::from_millis(80), rate: Some(1 << 20), ..Profile::default() };
    let way = Proxy::start(far.addr(), profile);
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let prefetch = |place: &Place| {
        let start = Instant::now();
        run(place, &[&["prefetch"], &names[..]].concat());
        let took = start.elapsed();
        for (i, name) in names.iter().enumerate() {
            assert_same(name, &fs::read(place.cache().join(name)).unwrap(), &body(i));
        }
        took
    };
    let first = prefetch(&machine(&near.url(), &way.url()));
    far.reset_counts();
    let second = prefetch(&machine(&near.url(), &way.url()));
    assert_eq!(far.counts().requests(), 0, "all of it was nearby");
    let mut without = machine(&near.url(), &way.url());
    without.env("AZTEC_CACHE_REMOTE", web(&way.url())).unset("AZTEC_CACHE_FILL").args.clear();
    let without = prefetch(&without);
    eprintln!(
        "40 artifacts, 38 MB: {without:.2?} from far away; {first:.2?} with filling SeaweedFS; {second:.2?} from there"
    );
}
