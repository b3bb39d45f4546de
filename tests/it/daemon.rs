//! The life of a mount: becoming ready, ending, and what is left.

mod location;
mod signals;
mod unmounting;
mod users;

use std::fs;
use std::process::Stdio;

use aztec_cache_test_support::s3::S3Server;

use crate::common::{Place, assert_refused, key, mounted, names_in, needs_fuse};

/// A server with one artifact, `noir-1.tar.gz`.
fn serve() -> S3Server {
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    server
}

#[test]
fn a_daemon_says_one_line_and_answers_at_once() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let (output, _guard) = place.mount_daemon(&[]);
    let read = fs::read(place.mountpoint().join("noir-1.tar.gz"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(read.unwrap(), b"bytes");
    assert!(output.stdout.is_empty());
    // Passthrough or not is the kernel's choice.
    let said = said.replace("read-write, no passthrough\n", "read-write, passthrough\n");
    let line = format!(
        "aztec-cache: s3://aztec-ci-artifacts/build-cache/ mounted at {}: local cache {}, read-write, passthrough\n",
        place.mountpoint().display(),
        place.cache().display()
    );
    assert_eq!(said, line);
    let expected = ("s3://aztec-ci-artifacts/build-cache/".to_owned(), "fuse.aztec-cache".to_owned());
    assert_eq!(mounted(&place.mountpoint()), Some(expected));
}

#[test]
fn without_a_local_cache_the_ready_line_says_so() {
    needs_fuse!();
    let server = serve();
    let mut place = Place::of(&server);
    place.cache = None;
    place.env("CACHE_LOCAL_DIR", "");
    let (output, _guard) = place.mount_daemon(&[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains(": no local cache, read-write"), "{said}");
    assert_eq!(fs::read(place.mountpoint().join("noir-1.tar.gz")).unwrap(), b"bytes");
    assert_eq!(names_in(place.dir.path()), ["mnt"]);
}

#[test]
fn a_daemon_tells_its_warnings_to_the_terminal_it_was_started_from() {
    needs_fuse!();
    let server = serve();
    let mut place = Place::of(&server);
    fs::write(place.cache(), "a file").unwrap();
    place.env("S3_BUILD_CACHE_AWS_PARAMS", "--output json");
    let (output, _guard) = place.mount_daemon(&[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for part in [
        "aztec-cache: warning: S3_BUILD_CACHE_AWS_PARAMS: --output ",
        "aztec-cache: warning: Cannot create local cache dir ",
        " mounted at ",
    ] {
        assert_eq!(said.matches(part).count(), 1, "{part:?}: {said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn what_stops_a_daemon_is_said_by_its_parent_with_its_exit_code() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let bundle = place.dir.path().join("bundle.pem");
    fs::write(&bundle, "no certificate").unwrap();
    let bundle = bundle.to_str().unwrap();
    assert_refused(&place.mount_daemon(&["--ca-bundle", bundle]).0, 2, &[bundle, "PEM"]);
    fs::create_dir(place.mountpoint()).unwrap();
    fs::write(place.mountpoint().join("file"), "mine").unwrap();
    assert_refused(&place.mount_daemon(&[]).0, 6, &["not empty"]);
    assert_eq!(mounted(&place.mountpoint()), None);
}

#[test]
fn quiet_prints_no_ready_line() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let (output, _guard) = place.mount_daemon(&["-q"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty() && output.stdout.is_empty());
    assert_eq!(fs::read(place.mountpoint().join("noir-1.tar.gz")).unwrap(), b"bytes");
}

#[test]
fn a_daemon_is_in_a_session_of_its_own_and_holds_no_directory() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let (output, _guard) = place.mount_daemon(&[]);
    assert!(output.status.success());
    let pid = signals::daemon_of(&place.mountpoint());
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!(target.to_str(), Some("/dev/null"), "descriptor {fd}");
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(session, pid.to_string());
}

#[test]
fn the_log_file_gets_the_log() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    // Relative to where the daemon was started.
    let (output, guard) = place.mount_daemon(&["--log-file", "mount.log", "-vv"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read(place.mountpoint().join("noir-1.tar.gz")).unwrap(), b"bytes");
    assert!(!place.mountpoint().join("missing.tar.gz").exists());
    let log = || fs::read_to_string(place.dir.path().join("mount.log")).unwrap();
    crate::common::wait_for("the log", || log().contains("missing.tar.gz: "));
    assert!(log().lines().all(|line| line.contains(" aztec-cache[")), "{}", log());
    drop(guard);
}

#[test]
fn a_mountpoint_in_use_is_refused_and_goes_on() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let mut mount = place.mount();
    let path = place.mountpoint();
    let parts = ["already mounted", path.to_str().unwrap(), "aztec-cache unmount"];
    for foreground in [&[][..], &["--foreground"]] {
        let mut again = place.command(&["mount"]);
        let output = again.arg(&path).args(&place.args).args(foreground).output().unwrap();
        assert_refused(&output, 6, &parts);
    }
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.signal(libc::SIGTERM);
    assert_eq!(mount.wait(), Some(0));
    assert_eq!(mounted(&path), None, "there was one mount");
}

#[test]
fn of_many_mounts_begun_at_once_one_is_made() {
    needs_fuse!();
    let server = serve();
    let place = Place::of(&server);
    let _guard = crate::common::Unmount(place.mountpoint());
    let start =
        || place.command(&["mount"]).arg(place.mountpoint()).args(&place.args).stderr(Stdio::piped()).spawn();
    let started: Vec<_> = (0..6).map(|_| start().unwrap()).collect();
    let ended = started.into_iter().map(|mount| mount.wait_with_output().unwrap());
    let (made, refused): (Vec<_>, Vec<_>) = ended.partition(|output| output.status.success());
    refused.iter().for_each(|output| assert_refused(output, 6, &["already mounted"]));
    assert_eq!(made.len(), 1);
    assert_eq!(fs::read(place.mountpoint().join("noir-1.tar.gz")).unwrap(), b"bytes");
    assert!(place.command(&["unmount"]).arg(place.mountpoint()).output().unwrap().status.success());
    assert_eq!(mounted(&place.mountpoint()), None);
}
