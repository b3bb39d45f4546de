//! The programs that people write files with.

use std::fs;

use aztec_cache_test_support::artifacts::{random_bytes, tar_gz};
use aztec_cache_test_support::s3::S3Server;

use super::{assert_published, bash, succeeded};
use crate::common::{Place, assert_same, key, needs_fuse, needs_root, wait_for};

/// What each writes is `src`, in the mount as `$M/$N`.
const PROGRAMS: &[(&str, &str)] = &[
    ("cp", "cp src $M/$N"),
    ("cp-p", "cp -p src $M/$N"),
    ("cp-then-mv", "cp src $M/$N.tmp.$$ && mv $M/$N.tmp.$$ $M/$N"),
    ("hidden-then-mv", "cp src $M/.$N.part && mv $M/.$N.part $M/$N"),
    ("mv", "cp src moved && mv moved $M/$N"),
    ("dd", "dd if=src of=$M/$N bs=4096 status=none"),
    ("dd-fsync", "dd if=src of=$M/$N bs=64k conv=fsync status=none"),
    (
        "dd-backwards",
        "dd if=src of=$M/.$N bs=100000 skip=1 seek=1 conv=notrunc status=none &&
         dd if=src of=$M/.$N bs=100000 count=1 conv=notrunc status=none && mv $M/.$N $M/$N",
    ),
    ("install", "install -m 600 src $M/$N"),
    ("rsync", "rsync -a src $M/$N"),
    ("rsync-inplace", "rsync --inplace src $M/$N"),
    ("cat", "cat src > $M/$N"),
    ("group", "{ head -c 70000 src; tail -c +70001 src; } > $M/$N"),
    ("subshell", "( head -c 70000 src; exec tail -c +70001 src ) > $M/$N"),
    ("tee", "cat src | tee $M/$N > /dev/null"),
    ("append", "exec 3>> $M/$N; head -c 70000 src >&3; tail -c +70001 src >&3; exec 3>&-"),
    ("ln-like", "python3 -c 'import os,sys,shutil; shutil.copyfile(\"src\", sys.argv[1])' $M/$N"),
    (
        "python-sparse",
        "python3 -c '
import os, sys
src = open(\"src\", \"rb\").read()
f = open(sys.argv[1], \"wb\")
f.truncate(len(src) + 5)
for at in range(0, len(src), 30011)[::-1]:
    f.seek(at); f.write(src[at:at + 30011])
f.truncate(len(src))
f.close()' $M/$N",
    ),
];

fn every_program_s_file_arrives(place: &mut Place, server: &S3Server) {
    let body = random_bytes(7, 300_001);
    let mount = place.mount();
    fs::write(place.dir.path().join("src"), &body).unwrap();
    for (program, script) in PROGRAMS {
        let name = format!("by-{program}-1.bin");
        succeeded(&bash(place, &mount, &format!("set -e; N={name}; {script}")));
        assert_published(server, place, &mount, &name, &body);
    }
    assert_eq!(server.keys().len(), PROGRAMS.len(), "no temporary names: {:?}", server.keys());
    mount.unmount();
}

#[test]
fn every_program_s_file_arrives_whole_here_and_there() {
    needs_fuse!();
    let server = S3Server::start();
    every_program_s_file_arrives(&mut Place::of(&server), &server);
}

#[test]
fn every_program_s_file_arrives_from_an_ordinary_user_too() {
    needs_fuse!();
    needs_root!("mounts of another user");
    let server = S3Server::start();
    every_program_s_file_arrives(Place::of(&server).of_ordinary_user(), &server);
}

#[test]
fn archives_made_in_place_unpack_from_the_mount() {
    needs_fuse!();
    let server = S3Server::start();
    let place = Place::of(&server);
    let mount = place.mount();
    let script = "set -e; mkdir tree; seq 100000 > tree/numbers; ln -s numbers tree/link
        tar -czf $M/made-1.tar.gz tree; tar -c tree | zstd -q > $M/made-2.zst; tar -cf $M/made-3.tar tree
        zstd -q $M/made-3.tar -o $M/made-4.tar.zst
        for a in made-1.tar.gz made-2.zst made-3.tar made-4.tar.zst; do
          rm -rf out; mkdir out; tar -xf $M/$a -C out; diff -r tree out/tree
        done";
    succeeded(&bash(&place, &mount, script));
    for name in ["made-1.tar.gz", "made-2.zst", "made-3.tar", "made-4.tar.zst"] {
        wait_for(name, || server.object(&key(name)).is_some());
        assert_same(name, &mount.read(name).unwrap(), &server.object(&key(name)).unwrap());
    }
}

#[test]
fn a_written_artifact_is_there_for_other_mounts_and_after_a_restart() {
    needs_fuse!();
    let server = S3Server::start();
    let (place, elsewhere) = (Place::of(&server), Place::of(&server));
    let archive = tar_gz(3, 400_000, 5);
    let (mount, other) = (place.mount(), elsewhere.mount());
    fs::write(mount.file("noir-1.tar.gz"), &archive).unwrap();
    assert_same("elsewhere", &other.read("noir-1.tar.gz").unwrap(), &archive);
    mount.unmount();
    server.reset_counts();
    let mount = place.mount();
    assert_same("after a restart", &mount.read("noir-1.tar.gz").unwrap(), &archive);
    assert_eq!(server.counts().gets_of(&key("noir-1.tar.gz")), 0, "it was here already");
}
