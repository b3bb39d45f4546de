//! `status`, and the report in the mount that it reads.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;
use serde_json::{Value, json};

use super::quiet_output;
use crate::common::{
    PATIENCE, Place, assert_refused, errno, key, names_in, needs_fuse, needs_root, wait_for,
};

const NAME: &str = "noir-b786c534d2b9261d.tar.gz";
const SIZE: u64 = 20 << 20;

/// All that the report has, in the order of the contract.
const FIELDS: [&str; 16] = [
    "version",
    "pid",
    "mountpoint",
    "remotes",
    "cache",
    "opens",
    "hits",
    "misses",
    "coalesced",
    "bytes_from_cache",
    "bytes_from_remote",
    "requests",
    "retries",
    "errors",
    "passthrough",
    "in_flight",
];

fn status(place: &Place, args: &[&str]) -> Output {
    place.command(&["status"]).arg(place.mountpoint()).args(args).output().unwrap()
}

fn json(place: &Place) -> Value {
    let output = status(place, &["--json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(place: &Place) -> String {
    let output = status(place, &[]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn without_a_mount_it_tells_of_the_cache_directory_alone() {
    let server = S3Server::start();
    server.put(&key(NAME), random_bytes(1, 700_001));
    let mut place = Place::of(&server);
    let report = json(&place);
    assert_eq!(report["cache"]["files"], 0);
    assert!(!place.cache().exists(), "made by a mere look");
    quiet_output(&place, &["get", NAME]);
    server.stop();
    let report = json(&place);
    let object = report.as_object().unwrap();
    let mut fields: Vec<&str> = FIELDS.to_vec();
    fields.push("pending_uploads");
    fields.sort();
    assert_eq!(object.keys().map(String::as_str).collect::<Vec<_>>(), fields);
    for name in fields {
        match name {
            "version" => assert_eq!(report[name], env!("CARGO_PKG_VERSION")),
            "remotes" | "pending_uploads" => assert_eq!(report[name], json!([])),
            "requests" => assert!(report[name].as_object().unwrap().values().all(Value::is_null)),
            "cache" => {}
            unknown => assert_eq!(report[unknown], Value::Null, "{unknown}"),
        }
    }
    let cache = &report["cache"];
    assert_eq!((&cache["dir"], &cache["files"]), (&json!(place.cache()), &json!(1)));
    assert_eq!((&cache["max_bytes"], &cache["evicted_files"]), (&Value::Null, &Value::Null));
    assert!((700_001..800_000).contains(&cache["bytes"].as_u64().unwrap()), "{cache}");
    assert_eq!(cache["pinned_bytes"], 0);
    let lines = text(&place);
    assert!(lines.starts_with("mount      none\ncache      ") && lines.contains(": 1 files, "), "{lines}");

    place.cache = None;
    let report = json(&place);
    assert!(report["cache"].as_object().unwrap().values().all(Value::is_null));
    assert_eq!(report["pending_uploads"], Value::Null);
    assert_eq!(text(&place), "mount      none\ncache      none\n");
}

#[test]
fn a_mount_counts_what_it_does() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key(NAME), random_bytes(1, SIZE as usize));
    let mut place = Place::of(&server);
    // As one mount among others: what is known of it is its own.
    place.arg("--revalidate").arg("never");
    let mount = place.mount();
    let fresh = mount.status();
    assert_eq!(
        (&fresh["opens"], &fresh["hits"], &fresh["bytes_from_remote"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!((&fresh["pid"], &fresh["mountpoint"]), (&json!(mount.pid()), &json!(mount.path)));
    assert_eq!(fresh["passthrough"], mount.said().contains(" passthrough,"));
    assert_eq!((&fresh["in_flight"], &fresh["errors"]), (&json!([]), &json!({})));

    // Two at a time, of which the first begins.
    let gate = server.hold_gets_from(&key(NAME), 4 << 20, 0);
    let mut first = File::open(mount.file(NAME)).unwrap();
    let mut second = File::open(mount.file(NAME)).unwrap();
    assert!(gate.wait_until_waiting(1, PATIENCE));
    wait_for("the first bytes", || mount.status()["in_flight"][0]["bytes"].as_u64().unwrap_or(0) >= 4 << 20);
    let report = mount.status();
    assert_eq!(report["in_flight"][0]["name"], NAME);
    assert_eq!(report["in_flight"][0]["size"], SIZE);
    assert!(text(&place).contains(&format!("fetching   {NAME}: ")), "{}", text(&place));
    gate.release();
    let mut bytes = Vec::new();
    first.read_to_end(&mut bytes).unwrap();
    second.read_to_end(&mut bytes).unwrap();
    drop((first, second));
    place.wait_until_cached(NAME);
    let warm = fs::read(place.cache().join(NAME)).unwrap();
    assert_eq!(warm.len() as u64, SIZE);
    wait_for("a hit", || {
        drop(mount.read(NAME).unwrap());
        mount.status()["hits"].as_u64() > Some(0)
    });
    for _ in 0..2 {
        assert_eq!(errno(mount.read("missing.tar.gz")), libc::ENOENT);
    }

    let report = mount.status();
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!((count("misses"), count("coalesced")), (1, count("opens") - count("hits") - 1));
    assert_eq!((count("bytes_from_remote"), count("retries")), (SIZE, 0));
    assert_eq!(report["errors"]["ENOENT"], 2);
    let (asked, counts) = (&report["requests"], server.counts());
    let expected =
        json!({ "head": counts.head, "get": counts.get, "list": counts.list, "put": 0, "delete": 0 });
    assert_eq!(asked, &expected);
    let remote =
        json!([{ "url": "s3://aztec-ci-artifacts/build-cache/", "reachable": true, "can_list": true }]);
    assert_eq!((&report["remotes"], &report["in_flight"]), (&remote, &json!([])));
    assert_eq!((&report["cache"]["files"], &report["cache"]["evicted_files"]), (&json!(1), &json!(0)));

    let lines = text(&place);
    let begin = format!("mount      {} (version ", mount.path.display());
    assert!(lines.starts_with(&begin) && lines.contains(&format!("process {}, ", mount.pid())), "{lines}");
    for line in
        ["remote     s3://aztec-ci-artifacts/build-cache/ (reachable, can be listed)", "errors     2 ENOENT"]
    {
        assert!(lines.lines().any(|found| found == line), "{line:?} is missing: {lines}");
    }
    assert!(lines.lines().all(|line| line.get(10..11) == Some(" ")), "aligned: {lines}");
    let same = json(&place);
    assert_eq!(same["requests"], report["requests"]);
}

#[test]
fn what_is_open_is_pinned_and_what_went_is_counted() {
    needs_fuse!();
    let server = S3Server::start();
    let names: Vec<String> = (0..3).map(|n| format!("bench-{n}.tar.gz")).collect();
    for name in &names {
        server.put(&key(name), random_bytes(1, 1_000_000));
    }
    let mut place = Place::of(&server);
    place.arg("--max-cache-size").arg("2500000");
    let mount = place.mount();
    for name in &names[..2] {
        mount.read(name).unwrap();
        place.wait_until_cached(name);
    }
    let allocated = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(place.cache().join(name)).unwrap().blocks() * 512
    };
    wait_for("the fetched files to be closed", || mount.status()["cache"]["pinned_bytes"] == 0);
    let open = File::open(mount.file(&names[1])).unwrap();
    assert_eq!(mount.status()["cache"]["pinned_bytes"], allocated(&names[1]));
    mount.read(&names[2]).unwrap();
    place.wait_until_cached(&names[2]);
    drop(open);
    let cache = mount.status()["cache"].clone();
    assert_eq!(
        (&cache["files"], &cache["evicted_files"], &cache["max_bytes"]),
        (&json!(2), &json!(1), &json!(2_500_000))
    );
    assert_eq!(cache["bytes"], allocated(&names[1]) + allocated(&names[2]));
    let lines = text(&place);
    assert!(lines.contains(" of 2.4 MiB") && lines.contains(", 1 evicted"), "{lines}");
}

#[test]
fn a_remote_that_is_down_and_what_waits_for_it_are_told() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--upload").arg("background");
    let mount = place.mount();
    server.stop();
    assert_eq!(errno(mount.read("cold.tar.gz")), libc::EHOSTUNREACH);
    assert_eq!(mount.status()["remotes"][0]["reachable"], false);
    fs::write(mount.file("result.txt"), "new").unwrap();
    let pending = |report: &Value| report["pending_uploads"][0].clone();
    wait_for("the upload to be tried", || pending(&mount.status())["name"] == "result.txt");
    let report = mount.status();
    assert_eq!((&pending(&report)["size"], &pending(&report)["refused"]), (&json!(3), &json!(false)));
    assert!(
        report["cache"]["pinned_bytes"].as_u64() > Some(0)
            && report["errors"]["EHOSTUNREACH"].as_u64() > Some(0)
    );
    let lines = text(&place);
    assert!(lines.contains("remote     s3://aztec-ci-artifacts/build-cache/ (unreachable"), "{lines}");
    assert!(lines.contains("to upload  result.txt: 3 B"), "{lines}");
    server.restart();
    wait_for("the upload", || mount.status()["pending_uploads"] == json!([]));
    assert!(mount.status()["requests"]["put"].as_u64() > Some(0));
    wait_for("the remote", || mount.status()["remotes"][0]["reachable"] == true);
}

#[test]
fn the_report_is_in_no_listing_and_can_only_be_read() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key(NAME), "bytes");
    let mut place = Place::of(&server);
    place.of_ordinary_user();
    let mount = place.mount();
    let run = |script: &str| {
        let mut shell = place.program("sh");
        shell.arg("-c").arg(script).env("LC_ALL", "C").current_dir(&mount.path).output().unwrap()
    };
    assert_eq!(
        String::from_utf8(run("ls -a; find .").stdout).unwrap(),
        format!(".\n..\n{NAME}\n.\n./{NAME}\n")
    );
    let report = run("cat .aztec-cache/status.json");
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["pid"], mount.pid());
    let copied =
        run("cp .aztec-cache/status.json $PWD/../copy && stat -c %a .aztec-cache .aztec-cache/status.json");
    assert_eq!(String::from_utf8(copied.stdout).unwrap(), "111\n444\n");
    assert!(fs::metadata(place.dir.path().join("copy")).unwrap().len() > 100);
    for script in [
        "ls .aztec-cache",
        "cat .aztec-cache/other",
        "echo x > .aztec-cache/status.json",
        "rm -f .aztec-cache/status.json",
        "touch .aztec-cache/new",
        "rmdir .aztec-cache",
        "mkdir .aztec-cache/new",
        "mv .aztec-cache elsewhere",
        "mv .aztec-cache/status.json elsewhere",
        "chmod 600 .aztec-cache/status.json",
    ] {
        let output = run(script);
        assert!(!output.status.success(), "{script}: {output:?}");
    }
    let again = run("cat .aztec-cache/status.json");
    assert!(again.status.success() && run("ls -a").stdout == format!(".\n..\n{NAME}\n").as_bytes());
}

#[test]
fn root_can_t_change_the_report_either() {
    needs_fuse!();
    needs_root!("what permissions don't keep from root");
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let file = mount.file(".aztec-cache/status.json");
    assert_eq!(errno(fs::write(&file, "mine")), libc::EPERM);
    assert_eq!(errno(fs::remove_file(&file)), libc::EPERM);
    assert_eq!(errno(fs::create_dir(mount.file(".aztec-cache/new"))), libc::EPERM);
    assert_eq!(errno(fs::read_dir(mount.file(".aztec-cache"))), libc::EPERM);
    assert_eq!(errno(fs::set_permissions(&file, fs::Permissions::from_mode(0o600))), libc::EPERM);
    assert_eq!(mount.status()["pid"], mount.pid());
    assert_eq!(names_in(&mount.path), [""; 0]);
}

#[test]
fn a_dead_mount_is_told_with_what_helps() {
    needs_fuse!();
    let place = Place::of(&S3Server::start());
    let mut mount = place.mount();
    mount.signal(libc::SIGKILL);
    mount.wait();
    let mountpoint = mount.path.display().to_string();
    assert_refused(&status(&place, &["--json"]), 6, &[&mountpoint, "its daemon died", "aztec-cache mount"]);
}
