//! `unmount` while something is still to be saved.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use aztec_cache_test_support::s3::{Gate, Op, S3Server};

use super::{assert_published, python, succeeded};
use crate::common::{
    Mount, PATIENCE, Place, assert_same, key, mounted, names_in, needs_fuse, wait_for, within,
};

const NAME: &str = "contract-1.bin";

fn journal(place: &Place) -> Vec<String> {
    names_in(&place.cache().join(".aztec-cache/journal"))
}

/// A mount with an upload under way that the server doesn't answer.
fn pending(server: &S3Server) -> (Gate, Place, Mount) {
    let gate = server.hold(Op::Put, None);
    let mut place = Place::of(server);
    place.arg("--upload=background");
    let mount = place.mount();
    fs::write(mount.file(NAME), b"on its way").unwrap();
    assert!(gate.wait_until_waiting(1, PATIENCE));
    (gate, place, mount)
}

/// Begins to unmount; waits until it says what it waits for.
fn begin_to_unmount(place: &Place) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut command = place.command(&["unmount"]);
    let mut child = command.arg(place.mountpoint()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "aztec-cache: waiting for 1 file to be saved, at most 35 s\n");
    assert_eq!(mounted(&place.mountpoint()), None);
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    (child, said)
}

#[test]
fn it_returns_once_the_remote_has_what_was_being_uploaded() {
    needs_fuse!();
    let server = S3Server::start();
    let (gate, place, _mount) = pending(&server);
    let (mut unmounting, mut said) = begin_to_unmount(&place);
    gate.release();
    assert!(unmounting.wait().unwrap().success());
    assert_same("there", &server.object(&key(NAME)).expect("uploaded"), b"on its way");
    assert_eq!(journal(&place), Vec::<String>::new());
    assert_eq!(said.read_line(&mut String::new()).unwrap(), 0, "nothing is left");
}

#[test]
fn what_is_not_uploaded_by_then_is_left_to_the_next_mount() {
    needs_fuse!();
    let server = S3Server::start();
    let (gate, place, mount) = pending(&server);
    let (mut unmounting, mut said) = begin_to_unmount(&place);
    // Instead of the 30 seconds that it goes on by itself.
    mount.signal(libc::SIGTERM);
    assert!(unmounting.wait().unwrap().success());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.starts_with("aztec-cache: 1 upload left to the next mount"), "{line}");
    assert!(line.contains(place.cache().to_str().unwrap()), "{line}");
    assert_eq!(journal(&place).len(), 1);
    drop(mount);
    server.stop();
    gate.release();
    server.restart();
    server.reset_counts();
    let mount = place.mount();
    wait_for("the journal to be empty", || journal(&place).is_empty());
    assert_published(&server, &place, &mount, NAME, b"on its way");
}

#[test]
fn a_daemon_that_hangs_is_not_waited_for() {
    needs_fuse!();
    let server = S3Server::start();
    let (_gate, place, mount) = pending(&server);
    mount.signal(libc::SIGSTOP);
    let mut unmounting = place.command(&["unmount"]);
    unmounting.arg(place.mountpoint());
    let output = within(PATIENCE, "unmounting", move || unmounting.output().unwrap());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(mounted(&place.mountpoint()), None);
    mount.signal(libc::SIGTERM);
    mount.signal(libc::SIGCONT);
    assert_eq!(journal(&place).len(), 1);
}

#[test]
fn a_file_that_is_still_written_is_waited_for() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let mut file = File::create(mount.file(NAME)).unwrap();
    file.write_all(b"one, ").unwrap();
    let (mut unmounting, _said) = begin_to_unmount(&place);
    file.write_all(b"two").unwrap();
    drop(file);
    assert!(unmounting.wait().unwrap().success());
    assert_same("there", &server.object(&key(NAME)).expect("uploaded"), b"one, two");
}

#[test]
fn what_is_sent_without_a_journal_is_waited_for() {
    needs_fuse!();
    let server = S3Server::start();
    let gate = server.hold(Op::Put, None);
    let mut place = Place::of(&server);
    place.cache = None;
    let mount = place.mount();
    // Published behind the end of its writer, which closes nothing itself.
    let script =
        "os.write(os.open(f'{m}/contract-1.bin', os.O_CREAT | os.O_WRONLY), b'on its way'); os._exit(0)";
    succeeded(&python(&place, &mount, script));
    assert!(gate.wait_until_waiting(1, PATIENCE));
    let (mut unmounting, _said) = begin_to_unmount(&place);
    gate.release();
    assert!(unmounting.wait().unwrap().success());
    assert_same("there", &server.object(&key(NAME)).expect("uploaded"), b"on its way");
}
