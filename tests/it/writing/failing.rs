//! Writers that fail, and files that aren't what their names say: nothing is published.

use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

use aztec_cache_test_support::artifacts::{random_bytes, tar_gz, tar_zst};
use aztec_cache_test_support::s3::S3Server;

use super::{
    assert_nothing_published, assert_published, bash, bash_command, python, said, spooled, succeeded,
};
use crate::common::{Place, Tmpfs, needs_fuse, needs_root, wait_for};

/// Scripts that write a part of something to `$M/$N` and fail.
const FAILING: &[(&str, &str)] = &[
    ("killed", "(exec > $M/$N; head -c 70000 src; kill -9 $BASHPID)"),
    ("exits with its file open", "(exec > $M/$N; head -c 70000 src; exit 3)"),
    ("the command fails, the shell closes", "{ sh -c 'head -c 70000 src; exit 22'; } > $M/$N"),
    ("a failing command among good ones", "{ head -c 70000 src; sh -c 'exit 1'; head -c 100 src; } > $M/$N"),
    ("interrupted", "(exec > $M/$N; head -c 70000 src; kill -INT $BASHPID; sleep 60)"),
];

#[test]
fn a_writer_that_fails_publishes_nothing() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    fs::write(place.dir.path().join("src"), random_bytes(3, 200_000)).unwrap();
    for (index, (what, script)) in FAILING.iter().enumerate() {
        let name = format!("failed-{index}.bin");
        bash(&place, &mount, &format!("N={name}; {script}"));
        wait_for(&format!("{what}: said"), || {
            mount.said().lines().any(|line| line.contains(&name) && line.contains("nothing is published"))
        });
        assert_nothing_published(&server, &place, &mount, &name);
    }
}

/// Programs that copy from a pipe, so that they can be killed in the middle.
#[test]
fn a_program_killed_in_the_middle_of_copying_publishes_nothing() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    for (index, command) in
        ["dd of=$M/$N bs=4096 status=none", "cat > $M/$N", "cp /dev/stdin $M/$N", "tee $M/$N"]
            .iter()
            .enumerate()
    {
        let name = format!("killed-{index}.bin");
        let script = format!("N={name}; exec {command}");
        let mut writer = bash_command(&place, &mount, &script)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("bash runs");
        writer.stdin.as_mut().unwrap().write_all(&[9; 100_000]).unwrap();
        let spool = place.cache().join(".aztec-cache/spool");
        wait_for("some of it to be written", || {
            spooled(&place)
                .iter()
                .any(|name| fs::metadata(spool.join(name)).is_ok_and(|meta| meta.len() > 4096))
        });
        writer.kill().unwrap();
        writer.wait().unwrap();
        wait_for(command, || {
            mount.said().lines().any(|line| line.contains(&name) && line.contains("signal 9"))
        });
        assert_nothing_published(&server, &place, &mount, &name);
    }
}

#[test]
fn a_failed_writer_s_name_is_free_for_the_next() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    // As a download script has it: into the file, away with it if that fails, once more.
    let script = "f=$M/again.txt
        sh -c 'echo half; exit 6' > $f || rm -f $f
        test ! -e $f
        sh -c 'echo whole' > $f && cat $f";
    let output = bash(&place, &mount, script);
    succeeded(&output);
    assert_eq!(output.stdout, b"whole\n");
    assert_published(&server, &place, &mount, "again.txt", b"whole\n");
}

#[test]
fn damaged_archives_are_refused_at_close() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let (gz, zst) = (tar_gz(1, 300_000, 4), tar_zst(2, 300_000, 4));
    let bad: [(&str, &[u8]); 5] = [
        ("cut-1.tar.gz", &gz[..gz.len() - 100]),
        ("cut-2.zst", &zst[..zst.len() / 2]),
        ("empty-1.tar.gz", b""),
        ("empty-2.zst", b""),
        ("error-page.zst", b"<html>503 Slow Down</html>"),
    ];
    for (name, bytes) in bad {
        fs::write(place.dir.path().join("src"), bytes).unwrap();
        let output = bash(&place, &mount, &format!("LC_ALL=C cp src $M/{name}"));
        assert!(said(&output).contains("Input/output error"), "{name}: {}", said(&output));
        assert_nothing_published(&server, &place, &mount, name);
        wait_for("it to be said", || mount.said().lines().any(|line| line.contains(name)));
    }
    for (name, bytes) in [("good-1.tar.gz", &gz), ("good-2.zst", &zst)] {
        fs::write(mount.file(name), bytes).unwrap();
        assert_published(&server, &place, &mount, name, bytes);
    }
}

#[test]
fn archives_are_taken_as_they_are_when_so_told() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--no-check-archives");
    let mount = place.mount();
    fs::write(mount.file("odd.tar.gz"), b"not gzip at all").unwrap();
    assert_published(&server, &place, &mount, "odd.tar.gz", b"not gzip at all");
}

#[test]
fn a_full_disk_is_told_to_the_writer_and_nothing_is_published() {
    needs_fuse!();
    needs_root!("a disk of its own");
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--min-free").arg("0");
    let _disk = Tmpfs::at(place.cache(), "size=8M");
    let mount = place.mount();
    let output = bash(&place, &mount, "LC_ALL=C head -c 12M /dev/zero > $M/large.bin");
    assert!(said(&output).contains("No space left on device"), "{}", said(&output));
    assert_nothing_published(&server, &place, &mount, "large.bin");
    fs::write(mount.file("small.bin"), [5; 1 << 20]).unwrap();
    assert_published(&server, &place, &mount, "small.bin", &[5; 1 << 20]);
}

#[test]
fn a_file_larger_than_the_cap_is_refused_while_it_is_written() {
    needs_fuse!();
    let server = S3Server::start();
    let mut place = Place::of(&server);
    place.arg("--max-cache-size").arg("4MiB");
    let mount = place.mount();
    let output = bash(&place, &mount, "LC_ALL=C head -c 8M /dev/zero > $M/large.bin");
    assert!(said(&output).contains("No space left on device"), "{}", said(&output));
    assert_nothing_published(&server, &place, &mount, "large.bin");
}

#[test]
fn a_file_that_was_removed_while_it_was_written_comes_to_nothing() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let mut file = File::create(mount.file("removed.txt")).unwrap();
    file.write_all(b"some").unwrap();
    fs::remove_file(mount.file("removed.txt")).unwrap();
    file.write_all(b" more").unwrap();
    drop(file);
    assert_nothing_published(&server, &place, &mount, "removed.txt");
    succeeded(&python(&place, &mount, "open(m + '/removed.txt', 'w').write('anew')"));
    assert_published(&server, &place, &mount, "removed.txt", b"anew");
}
