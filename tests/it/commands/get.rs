//! `get`: an artifact on stdout or in a file, whole or with an error.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::S3Server;
use aztec_cache_test_support::web::{Reply, WebServer};

use super::{command, offline, quiet_output, run};
use crate::common::{Place, assert_refused, assert_same, key, names_in};

#[test]
fn the_bytes_are_written_and_kept() {
    let server = S3Server::start();
    for size in [0, 1, 700_001, 1 << 20, 20 << 20] {
        let (name, body) = (format!("size-{size}.zst"), random_bytes(size as u64, size));
        server.put(&key(&name), body.clone());
        let place = Place::of(&server);
        assert_same(&name, &quiet_output(&place, &["get", &name]), &body);
        assert_same("kept", &fs::read(place.cache().join(&name)).unwrap(), &body);
        server.reset_counts();
        assert_same("again", &quiet_output(&place, &["get", &name]), &body);
        assert_eq!(server.counts().requests(), 0);
    }
}

#[test]
fn a_kept_file_that_was_damaged_since_is_fetched_anew() {
    let server = S3Server::start();
    let body = random_bytes(1, 700_001);
    server.put(&key("noir-1.tar.gz"), body.clone());
    let place = Place::of(&server);
    quiet_output(&place, &["get", "noir-1.tar.gz"]);
    let mut damaged = body.clone();
    damaged[1000] ^= 1;
    fs::write(place.cache().join("noir-1.tar.gz"), damaged).unwrap();
    let output = run(&place, &["get", "noir-1.tar.gz"]);
    assert!(output.status.success(), "{output:?}");
    assert_same("mended", &output.stdout, &body);
}

#[test]
fn leftovers_are_looked_for_once_an_hour() {
    let (server, hour) = (S3Server::start(), Duration::from_secs(3600));
    let place = Place::of(&server);
    let leftover = place.cache().join(".aztec-cache/partial/0123456789abcdef");
    let touch = |path: &Path, at: SystemTime| {
        File::options().create(true).append(true).open(path).unwrap().set_modified(at).unwrap();
    };
    let get = |name: &str| {
        server.put(&key(name), name.to_owned());
        assert_eq!(quiet_output(&place, &["get", name]), name.as_bytes());
    };
    get("noir-1.flag");
    touch(&leftover, SystemTime::UNIX_EPOCH);
    get("noir-2.flag");
    assert!(leftover.exists(), "the first one has looked");
    // One in the future is of a clock that was wrong.
    for (at, name) in [(SystemTime::now() - hour, "noir-3.flag"), (SystemTime::now() + hour, "noir-4.flag")] {
        touch(&leftover, SystemTime::UNIX_EPOCH);
        touch(&place.cache().join(".aztec-cache/swept"), at);
        get(name);
        assert!(!leftover.exists(), "{name}");
    }
}

#[test]
fn it_works_without_a_cache_directory() {
    let server = S3Server::start();
    let body = random_bytes(1, 9_000_000);
    server.put(&key("noir-1.tar.gz"), body.clone());
    let mut place = Place::of(&server);
    place.cache = None;
    assert_same("read", &quiet_output(&place, &["get", "noir-1.tar.gz"]), &body);
    assert_eq!(names_in(place.dir.path()), Vec::<String>::new());
}

#[test]
fn bytes_come_while_the_rest_is_on_its_way_and_the_last_ones_when_all_are_there() {
    let server = S3Server::start();
    let body = random_bytes(1, 20 << 20);
    server.put(&key("noir-1.tar.gz"), body.clone());
    let place = Place::of(&server);
    let gate = server.hold_gets_from(&key("noir-1.tar.gz"), 9 << 20, 0);
    let mut child =
        command(&place, &["get", "noir-1.tar.gz"]).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut first = vec![0; 7 << 20];
    stdout.read_exact(&mut first).unwrap();
    assert!(!place.cache().join("noir-1.tar.gz").exists());
    drop(gate);
    stdout.read_to_end(&mut first).unwrap();
    assert_same("all", &first, &body);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_breaks_off_is_an_error_and_short() {
    let body = random_bytes(1, 5 << 20);
    let sent = body.clone();
    // Nothing to go on by: a broken body can't be taken up.
    let server = WebServer::start(move |request| match &*request.method {
        "HEAD" => Reply::whole(&sent),
        _ => Reply::whole(&sent).cut_after(sent.len() - 1),
    });
    let place = Place::reading(&[&server.url()]);
    let output = run(&place, &["get", "noir-1.tar.gz"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.starts_with("aztec-cache: ") && said.contains("noir-1.tar.gz"), "{said}");
    assert!(output.stdout.len() <= body.len() - (1 << 20), "{} bytes", output.stdout.len());
    assert_same("what came", &output.stdout, &body[..output.stdout.len()]);
    assert!(!place.cache().join("noir-1.tar.gz").exists());
}

#[test]
fn a_file_appears_whole_or_stays_as_it_was() {
    let server = S3Server::start();
    let body = random_bytes(1, 5 << 20);
    server.put(&key("noir-1.tar.gz"), body.clone());
    let place = Place::of(&server);
    let out = place.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let file = out.join("file");
    fs::write(&file, "old").unwrap();
    let path = file.to_str().unwrap();
    let refused = run(&place, &["get", "missing.tar.gz", "-o", path]);
    assert_refused(&refused, 1, &["missing.tar.gz", "no such object"]);
    assert_eq!(fs::read(&file).unwrap(), b"old");
    assert!(quiet_output(&place, &["get", "noir-1.tar.gz", "-o", path]).is_empty());
    assert_same("the file", &fs::read(&file).unwrap(), &body);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o600, 0o600);
    assert_eq!(names_in(&out), ["file"]);
    assert!(quiet_output(&place, &["get", "noir-1.tar.gz", "--output", "/dev/null"]).is_empty());
    let refused = run(&place, &["get", "noir-1.tar.gz", "-o", out.to_str().unwrap()]);
    assert_refused(&refused, 5, &[out.to_str().unwrap(), "directory"]);
    let refused = run(&place, &["get", "noir-1.tar.gz", "-o", "/nonexistent/file"]);
    assert_refused(&refused, 5, &["/nonexistent/file"]);
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), random_bytes(1, 20 << 20));
    let place = Place::of(&server);
    let mut child = command(&place, &["get", "noir-1.tar.gz"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut first = [0; 10];
    child.stdout.take().expect("it is piped").read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), random_bytes(1, 3 << 20));
    let place = Place::of(&server);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(&place, &["get", "noir-1.tar.gz"]).stdout(full).output().unwrap();
    assert_refused(&output, 5, &["stdout", "No space left"]);
}

#[test]
fn refusals_have_the_contract_s_codes() {
    let server = S3Server::start();
    let place = Place::of(&server);
    assert_refused(&run(&place, &["get", "missing.tar.gz"]), 1, &["missing.tar.gz"]);
    let disabled = run(&place, &["get", "noir-disabled-cache.tar.gz"]);
    let text = "Not using cache for noir-disabled-cache.tar.gz due to uncommitted changes/files.";
    assert_refused(&disabled, 1, &[text]);
    let no_cache = command(&place, &["get", "noir-1.tar.gz"]).env("NO_CACHE", "1").output().unwrap();
    assert_refused(&no_cache, 1, &["Not using cache for noir-1.tar.gz because NO_CACHE=1."]);
    assert_refused(&run(&place, &["get", "../noir-1.tar.gz"]), 2, &["'../noir-1.tar.gz'"]);
    assert_refused(&run(&place, &["get", "noir-1.tar.gz", "--remote", "x"]), 2, &["--remote"]);
    let offline = run(&offline(), &["get", "noir-1.tar.gz"]);
    assert_eq!(offline.status.code(), Some(3));
    let locked = WebServer::start(|_| Reply::new(403));
    let place = Place::reading(&[&locked.url().replace("://", "://me:s3cret@")]);
    let refused = run(&place, &["get", "noir-1.tar.gz"]);
    assert_refused(&refused, 4, &[&format!("{}noir-1.tar.gz", locked.url()), "password"]);
}

#[test]
fn without_a_home_and_with_a_cache_directory_that_can_t_be_made() {
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    let mut place = Place::of(&server);
    place.cache = Some("/proc/nowhere".into());
    let output = command(&place, &["get", "noir-1.tar.gz"]).env_remove("HOME").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(output.stdout, b"bytes");
    assert!(
        said.contains("Cannot create local cache dir /proc/nowhere") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn quietly_a_miss_is_told_by_the_exit_code_alone() {
    let server = S3Server::start();
    let place = Place::of(&server);
    let output = run(&place, &["get", "--quiet", "absent-1.tar.gz"]);
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(1), 0, 0));
    server.stop();
    assert_refused(&run(&place, &["get", "--quiet", "absent-1.tar.gz"]), 3, &["absent-1.tar.gz"]);
}
