//! When a file is complete, and who sees it until then.

use std::fs;
use std::io::Write;

use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Fault, Op, S3Server};

use super::{assert_published, bash, python, said, spooled, succeeded};
use crate::common::{Place, assert_same, errno, key, needs_fuse, wait_for, xattr};

fn place(server: &S3Server) -> Place {
    Place::of(server)
}

#[test]
fn what_is_being_written_shows_to_its_writer_alone() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    let mut file = fs::File::create(mount.file("new.bin")).unwrap();
    file.write_all(&[7; 200_000]).unwrap();
    assert_eq!(fs::metadata(mount.file("new.bin")).unwrap().len(), 200_000);
    assert_same("as written so far", &mount.read("new.bin").unwrap(), &[7; 200_000]);
    // To others it isn't there.
    let others = bash(&place, &mount, "test ! -e $M/new.bin && ! ls $M | grep new && ! cat $M/new.bin");
    succeeded(&others);
    drop(file);
    succeeded(&bash(&place, &mount, "cat $M/new.bin > /dev/null && ls $M | grep new"));
    assert_published(&server, &place, &mount, "new.bin", &[7; 200_000]);
    assert_eq!(xattr(&mount.file("new.bin"), "user.aztec_cache.state").as_deref(), Some("cached"));
    assert_eq!(xattr(&mount.file("new.bin"), "user.aztec_cache.source").as_deref(), Some("upload"));
}

#[test]
fn only_the_last_of_many_closes_completes_a_file() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    // Each command of the group closes its copy of the descriptor at its end.
    let script =
        "{ echo one; cat /dev/null; ( echo two ); bash -c 'echo three'; } > $M/group.txt && cat $M/group.txt";
    let output = bash(&place, &mount, script);
    succeeded(&output);
    assert_eq!(output.stdout, b"one\ntwo\nthree\n");
    assert_published(&server, &place, &mount, "group.txt", b"one\ntwo\nthree\n");
}

#[test]
fn a_forked_child_s_end_completes_nothing() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    let script = "
fd = os.open(m + '/forked.txt', os.O_WRONLY | os.O_CREAT, 0o644)
os.write(fd, b'parent ')
if os.fork() == 0:
    os.write(fd, b'child '); os.close(fd); os._exit(0)
os.wait()
os.write(fd, b'parent again')
os.close(fd)
assert open(m + '/forked.txt').read() == 'parent child parent again'
";
    succeeded(&python(&place, &mount, script));
    assert_published(&server, &place, &mount, "forked.txt", b"parent child parent again");
}

#[test]
fn a_file_that_a_child_still_writes_is_not_complete_when_its_parent_closes_it() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    let script = "
r, w = os.pipe()
fd = os.open(m + '/inherited.txt', os.O_WRONLY | os.O_CREAT, 0o644)
os.write(fd, b'parent ')
if os.fork() == 0:
    os.read(r, 1); os.write(fd, b'child'); os._exit(0)
os.close(fd)
assert not os.path.exists(m + '/inherited.txt') or os.path.getsize(m + '/inherited.txt') == 7
os.write(w, b'x')
os.wait()
";
    succeeded(&python(&place, &mount, script));
    assert_published(&server, &place, &mount, "inherited.txt", b"parent child");
}

#[test]
fn what_is_written_by_way_of_memory_counts() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    let script = "
fd = os.open(m + '/mapped.bin', os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(fd, 10000)
map = mmap.mmap(fd, 10000)
os.close(fd)
map[:] = b'm' * 10000
map.flush()
map.close()
";
    succeeded(&python(&place, &mount, script));
    assert_published(&server, &place, &mount, "mapped.bin", &[b'm'; 10_000]);
}

#[test]
fn of_two_writers_the_first_to_close_wins_and_both_succeed() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    let script = "
import os
a = os.open(m + '/twice.txt', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
os.write(a, b'first')
sh = ['sh', '-c', 'printf second-one > ' + m + '/twice.txt']
subprocess.run(sh, check=True)
assert subprocess.run(['cat', m + '/twice.txt'], capture_output=True).stdout == b'second-one'
os.write(a, b' writer')
os.close(a)
assert open(m + '/twice.txt').read() == 'second-one'
";
    succeeded(&python(&place, &mount, script));
    assert_published(&server, &place, &mount, "twice.txt", b"second-one");
    assert!(mount.said().contains("twice.txt"), "it is said: {}", mount.said());
}

#[test]
fn who_wants_to_be_the_only_writer_is_told_of_another() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    let file = fs::File::create_new(mount.file("mine.txt")).unwrap();
    let other = python(
        &place,
        &mount,
        "
try:
    os.open(m + '/mine.txt', os.O_WRONLY | os.O_CREAT | os.O_EXCL)
except FileExistsError:
    sys.exit(0)
sys.exit(1)
",
    );
    succeeded(&other);
    drop(file);
    assert_eq!(errno(fs::File::create_new(mount.file("mine.txt"))), libc::EEXIST);
}

#[test]
fn fsync_makes_what_is_written_so_far_durable_and_publishes_nothing() {
    needs_fuse!();
    let server = S3Server::start();
    let place = place(&server);
    let mount = place.mount();
    let mut file = fs::File::create(mount.file("synced.bin")).unwrap();
    file.write_all(&[1; 100_000]).unwrap();
    file.sync_all().unwrap();
    assert_eq!(spooled(&place).len(), 1);
    assert_eq!(server.counts().puts_of(&key("synced.bin")), 0);
    file.write_all(&[2; 100_000]).unwrap();
    file.sync_data().unwrap();
    drop(file);
    assert_published(&server, &place, &mount, "synced.bin", &[[1; 100_000], [2; 100_000]].concat());
}

#[test]
fn close_reports_a_refused_upload_and_the_local_file_stays() {
    needs_fuse!();
    let server = S3Server::start();
    server.add_fault(Fault::status(403, "AccessDenied").on(Op::Put));
    let place = place(&server);
    let mount = place.mount();
    let body = random_bytes(1, 50_000);
    fs::write(place.dir.path().join("src"), &body).unwrap();
    let output = bash(&place, &mount, "LC_ALL=C cp src $M/refused.bin");
    assert!(!output.status.success() && said(&output).contains("Permission denied"), "{}", said(&output));
    assert_same("here", &fs::read(place.cache().join("refused.bin")).unwrap(), &body);
    assert_eq!(
        xattr(&mount.file("refused.bin"), "user.aztec_cache.state").as_deref(),
        Some("pending-upload")
    );
    // Whoever mounts next, with the right to it, uploads it.
    mount.unmount();
    server.set_faults([]);
    let mount = place.mount();
    wait_for("the upload", || server.object(&key("refused.bin")).is_some());
    assert_same("there", &server.object(&key("refused.bin")).unwrap(), &body);
    wait_for("the state", || {
        xattr(&mount.file("refused.bin"), "user.aztec_cache.state").as_deref() == Some("cached")
    });
}
