//! Writing through the mount: real programs, a real S3 server, and what becomes of files whose writers fail.

mod completion;
mod failing;
mod fsx;
mod modes;
mod programs;
mod rules;
mod unmounting;

use std::process::{Command, Output};

use aztec_cache_test_support::s3::S3Server;

use crate::common::{Mount, Place, assert_same, key, names_in, wait_for};

/// Runs `script` in bash, as whoever mounts. `$M` is the mount.
fn bash(place: &Place, mount: &Mount, script: &str) -> Output {
    bash_command(place, mount, script).output().expect("bash runs")
}

fn bash_command(place: &Place, mount: &Mount, script: &str) -> Command {
    let mut command = place.program("bash");
    command.args(["-c", script]).env("M", &mount.path);
    command
}

/// Runs `script` in Python, which makes the system calls that it says and no others. `m` is the mount.
fn python(place: &Place, mount: &Mount, script: &str) -> Output {
    let prelude =
        format!("import mmap, os, subprocess, sys\nm = {:?}\n", mount.path.to_str().expect("UTF-8"));
    place.program("python3").args(["-c", &(prelude + script)]).output().expect("python3 runs")
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{:?}: {}", output.status, said(output));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that `name` is `body` to all: in the mount, in the cache directory, on the server. The last close of a process that
/// ends is published behind it.
#[track_caller]
fn assert_published(server: &S3Server, place: &Place, mount: &Mount, name: &str, body: &[u8]) {
    wait_for(&format!("{name} on the server"), || server.object(&key(name)).is_some());
    assert_same(&format!("{name} on the server"), &server.object(&key(name)).expect("it is there"), body);
    // As who mounts: others may not look.
    let read = bash(place, mount, &format!("cat $M/{name}"));
    succeeded(&read);
    assert_same(&format!("{name} in the mount"), &read.stdout, body);
    assert_same(
        &format!("{name} in the cache"),
        &std::fs::read(place.cache().join(name)).expect("it is there"),
        body,
    );
    assert_eq!(server.counts().puts_of(&key(name)), 1, "{name} is uploaded once");
}

/// Checks that nothing is left of `name`, nor of what was written for it.
#[track_caller]
fn assert_nothing_published(server: &S3Server, place: &Place, mount: &Mount, name: &str) {
    wait_for("the spool to be empty", || spooled(place).is_empty());
    assert!(!place.cache().join(name).exists(), "{name} in the cache directory");
    assert!(!mount.file(name).exists(), "{name} in the mount");
    assert_eq!(server.object(&key(name)), None, "{name} on the server");
    assert_eq!(server.counts().puts_of(&key(name)), 0, "{name} was sent");
}

/// The files being written.
fn spooled(place: &Place) -> Vec<String> {
    names_in(&place.cache().join(".aztec-cache/spool"))
}
