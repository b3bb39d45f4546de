//! `cache_download` and `cache_exists`: what is said and done when all goes well, or as it may.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use aztec_cache_test_support::nginx::Nginx;
use aztec_cache_test_support::s3::S3Server;

use super::{Said, Shell, Tarball, Way, has_aws, ways};
use crate::common::{assert_same, key, names_in};

const SIZE: usize = 300_000;

/// What is said of a miss and of a hit, each when it ends well.
fn missed(name: &str) -> Said {
    Said::new(
        0,
        &[
            &format!("Local cache miss for {name}, downloading from remote."),
            &format!("Cache download and extraction of {name} complete in Ns."),
        ],
    )
}

fn hit(name: &str) -> Said {
    Said::new(
        0,
        &[
            &format!("Local cache hit for {name}."),
            &format!("Cache extraction of {name} from local cache complete in Ns."),
        ],
    )
}

#[test]
fn a_miss_is_fetched_and_kept_and_then_a_hit_that_asks_nobody() {
    for way in ways() {
        for ext in ["tar.gz", "zst"] {
            let (server, tarball) = (S3Server::start(), Tarball::new(ext, SIZE));
            tarball.put_on(&server);
            let shell = Shell::anonymous(&server, way);
            assert_eq!(shell.download(&tarball.name), missed(&tarball.name), "{way:?}");
            tarball.assert_unpacked(&shell.out());
            shell.place.wait_until_cached(&tarball.name);
            let kept = fs::read(shell.place.cache().join(&tarball.name)).unwrap();
            assert_same("kept", &kept, &tarball.bytes);
            server.stop();
            fs::remove_dir_all(shell.out()).unwrap();
            assert_eq!(shell.download(&tarball.name), hit(&tarball.name), "{way:?}");
            tarball.assert_unpacked(&shell.out());
        }
    }
}

#[test]
fn what_follows_the_end_of_an_archive_does_no_harm() {
    for way in ways() {
        for (name, zip) in [("noir-1.tar.gz", "gzip"), ("noir-1.zst", "zstd")] {
            let server = S3Server::start();
            let shell = Shell::anonymous(&server, way);
            fs::write(shell.place.dir.path().join("inner"), "bytes").unwrap();
            let mut tar = Command::new("tar");
            // Records of 2 MiB, more than a pipe holds.
            tar.args(["-b", "4096", "-I", zip, "-cf", "-", "inner"]).current_dir(shell.place.dir.path());
            server.put(&key(name), tar.output().expect("tar runs").stdout);
            assert_eq!(shell.download(name), missed(name), "{way:?}");
            shell.place.wait_until_cached(name);
            assert_eq!(shell.download(name), hit(name), "{way:?}");
            assert_eq!(fs::read(shell.out().join("inner")).unwrap(), b"bytes");
            let listed = shell.run("cache_ls", &[name]);
            assert!(listed.code == Some(0) && listed.text.ends_with(" inner\n"), "{way:?}: {listed:?}");
        }
    }
}

#[test]
fn signed_reads_work_too() {
    for way in ways().into_iter().filter(|way| *way != Way::Bare || has_aws()) {
        let (server, tarball) = (S3Server::start(), Tarball::new("zst", SIZE));
        tarball.put_on(&server);
        let shell = Shell::signed(&server, way);
        assert_eq!(shell.download(&tarball.name), missed(&tarball.name), "{way:?}");
        tarball.assert_unpacked(&shell.out());
        assert!(server.log().iter().all(|request| request.signed), "{:?}", server.log());
        let absent = Tarball::new("zst", SIZE + 1).name;
        let lines = [
            format!("Local cache miss for {absent}, downloading from remote."),
            format!("Cache download of {absent} failed."),
        ];
        assert_eq!(shell.download(&absent), Said::new(1, &[&lines[0], &lines[1]]), "{way:?}");
        assert_eq!(shell.run("cache_exists", &[&tarball.name]), Said::new(0, &[]));
        assert_eq!(shell.run("cache_exists", &[&absent]), Said::new(1, &[]));
    }
}

#[test]
fn a_public_server_says_403_of_what_it_does_not_have() {
    for way in ways() {
        let server = Nginx::start().unwrap_or_else(|error| panic!("no independent server: {error}"));
        let (tarball, absent) = (Tarball::new("tar.gz", SIZE), "vk-0123456789abcdef.tar.gz");
        server.put(&format!("hidden/{}", tarball.name), &tarball.bytes);
        let shell = Shell::reading(&format!("{}hidden/", server.url()), way);
        assert_eq!(shell.run("cache_exists", &[&tarball.name]), Said::new(0, &[]), "{way:?}");
        assert_eq!(shell.run("cache_exists", &[absent]), Said::new(1, &[]), "{way:?}");
        assert_eq!(shell.download(&tarball.name), missed(&tarball.name), "{way:?}");
        tarball.assert_unpacked(&shell.out());
        let lines = [
            format!("Local cache miss for {absent}, downloading from remote."),
            format!("Cache download of {absent} failed."),
        ];
        assert_eq!(shell.download(absent), Said::new(1, &[&lines[0], &lines[1]]), "{way:?}");
        assert!(!shell.place.cache().join(absent).exists());
        assert!(server.log().iter().any(|request| request.status == 403), "{:?}", server.log());
    }
}

#[test]
fn without_a_local_directory_nothing_is_said_of_one_and_nothing_kept() {
    for way in ways() {
        for unset in [true, false] {
            let (server, tarball) = (S3Server::start(), Tarball::new("tar.gz", SIZE));
            tarball.put_on(&server);
            let mut shell = Shell::anonymous(&server, Way::Bare);
            shell.place.cache = None;
            if !unset {
                shell.place.env("CACHE_LOCAL_DIR", "");
            }
            let shell = Shell::new(shell.place, way);
            let done = format!("Cache download and extraction of {} complete in Ns.", tarball.name);
            assert_eq!(shell.download(&tarball.name), Said::new(0, &[&done]), "{way:?}");
            tarball.assert_unpacked(&shell.out());
            let failed = Said::new(1, &["Cache download of vk-1.tar.gz failed."]);
            assert_eq!(shell.download("vk-1.tar.gz"), failed, "{way:?}");
            let left: Vec<String> =
                names_in(shell.place.dir.path()).into_iter().filter(|name| name != "mnt").collect();
            assert_eq!(left, ["out"], "{way:?}");
        }
    }
}

#[test]
fn a_local_directory_that_can_not_be_made_is_done_without() {
    for way in ways() {
        let (server, tarball) = (S3Server::start(), Tarball::new("tar.gz", SIZE));
        tarball.put_on(&server);
        let mut shell = Shell::anonymous(&server, way);
        fs::write(shell.place.dir.path().join("file"), b"in the way").unwrap();
        let dir = shell.place.dir.path().join("file/cache");
        shell.place.cache = Some(dir.clone());
        let lines = [
            format!("Warning: Cannot create local cache dir {}, skipping local cache.", dir.display()),
            format!("Cache download and extraction of {} complete in Ns.", tarball.name),
        ];
        assert_eq!(shell.download(&tarball.name), Said::new(0, &[&lines[0], &lines[1]]), "{way:?}");
        tarball.assert_unpacked(&shell.out());
    }
}

#[test]
fn a_local_directory_that_can_not_be_written_is_read() {
    for way in [Way::Program, Way::Bare] {
        let (server, here, there) =
            (S3Server::start(), Tarball::new("tar.gz", SIZE), Tarball::new("zst", SIZE));
        here.put_on(&server);
        there.put_on(&server);
        let shell = Shell::anonymous(&server, way);
        shell.leave(&here.name, &here.bytes);
        let _read_only = ReadOnly::new(shell.place.cache());
        assert_eq!(shell.download(&here.name), hit(&here.name), "{way:?}");
        assert_eq!(shell.download(&there.name), missed(&there.name), "{way:?}");
        there.assert_unpacked(&shell.out());
    }
}

/// Takes the right to write in a directory away, which root keeps.
struct ReadOnly<'a>(&'a std::path::Path);

impl ReadOnly<'_> {
    fn new(dir: &std::path::Path) -> ReadOnly<'_> {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o555)).expect("it is ours");
        ReadOnly(dir)
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = fs::set_permissions(self.0, fs::Permissions::from_mode(0o755));
    }
}

#[test]
fn what_is_not_to_be_cached_is_not_looked_for() {
    for way in ways() {
        let (server, tarball) = (S3Server::start(), Tarball::new("tar.gz", SIZE));
        tarball.put_on(&server);
        let mut shell = Shell::anonymous(&server, way);
        shell.leave(&tarball.name, &tarball.bytes);
        server.reset_counts();
        let disabled = "noir-disabled-cache.tar.gz";
        let refused = "Not using cache for noir-disabled-cache.tar.gz due to uncommitted changes/files.";
        assert_eq!(shell.download(disabled), Said::new(1, &[refused]), "{way:?}");
        assert_eq!(shell.run("cache_exists", &[disabled]), Said::new(1, &[]), "{way:?}");
        shell.place.env("NO_CACHE", "1");
        let refused = format!("Not using cache for {} because NO_CACHE=1.", tarball.name);
        assert_eq!(shell.download(&tarball.name), Said::new(1, &[&refused]), "{way:?}");
        assert_eq!(shell.run("cache_exists", &[&tarball.name]), Said::new(1, &[]), "{way:?}");
        assert!(!shell.out().exists());
        assert_eq!(server.counts().requests(), 0, "{way:?}");
        shell.place.env("NO_CACHE", "0");
        assert_eq!(shell.run("cache_exists", &[&tarball.name]), Said::new(0, &[]), "{way:?}");
    }
}

#[test]
fn a_file_of_another_script_is_a_hit_with_and_without_its_remote() {
    for way in ways() {
        for reachable in [true, false] {
            let (server, tarball) = (S3Server::start(), Tarball::new("zst", SIZE));
            tarball.put_on(&server);
            let shell = Shell::anonymous(&server, way);
            shell.leave(&tarball.name, &tarball.bytes);
            if !reachable {
                server.stop();
            }
            assert_eq!(shell.download(&tarball.name), hit(&tarball.name), "{way:?}");
            tarball.assert_unpacked(&shell.out());
            assert_eq!(shell.run("cache_exists", &[&tarball.name]), Said::new(0, &[]), "{way:?}");
            assert_eq!(server.counts().get, 0, "{way:?}");
        }
    }
}

#[test]
fn the_directory_is_this_one_unless_another_is_named_which_is_made() {
    let (server, tarball) = (S3Server::start(), Tarball::new("tar.gz", SIZE));
    tarball.put_on(&server);
    let shell = Shell::anonymous(&server, Way::Program);
    assert_eq!(shell.run("cache_download", &[&tarball.name]), missed(&tarball.name));
    tarball.assert_unpacked(shell.place.dir.path());
    assert_eq!(shell.run("cache_download", &[&tarball.name, "a/b c/d"]), hit(&tarball.name));
    tarball.assert_unpacked(&shell.place.dir.path().join("a/b c/d"));
}

#[test]
fn it_unpacks_although_nobody_reads_what_it_says() {
    let tarball = Tarball::new("tar.gz", SIZE);
    let server = S3Server::start();
    tarball.put_on(&server);
    let shell = Shell::anonymous(&server, Way::Program);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = shell.command("cache_download", &[&tarball.name, "out"]);
    assert!(command.stderr(writer).status().unwrap().success());
    tarball.assert_unpacked(&shell.out());
}

#[test]
fn wrong_usage_is_told() {
    let server = S3Server::start();
    let shell = Shell::anonymous(&server, Way::Bare);
    shell.leave("secret.tar.gz", b"x");
    for script in ["cache_download", "cache_exists", "cache_ls", "cache_download_flag"] {
        assert_eq!(shell.run(script, &[]).code, Some(2), "{script}");
        for name in ["../cache/secret.tar.gz", "/etc/passwd", "a//b", "./a", ".aztec-cache/format"] {
            assert_eq!(shell.run(script, &[name]).code, Some(2), "{script} {name}");
        }
    }
    assert_eq!(server.counts().requests(), 0);
}

#[test]
fn the_contents_are_listed_on_stderr() {
    for way in ways() {
        let (server, tarball) = (S3Server::start(), Tarball::new("zst", SIZE));
        tarball.put_on(&server);
        let shell = Shell::anonymous(&server, way);
        let said = shell.run("cache_ls", &[&tarball.name]);
        assert_eq!(said.code, Some(0), "{way:?}: {}", said.text);
        let names: Vec<&str> = said.text.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(
            names,
            [
                "dir-0/file-0.bin",
                "dir-1/file-1.bin",
                "dir-2/file-2.bin",
                "dir-3/file-3.bin",
                "dir-4/file-4.bin"
            ]
        );
        let failed = Said::new(1, &["Cache download of vk-1.zst failed."]);
        assert_eq!(shell.run("cache_ls", &["vk-1.zst"]), failed, "{way:?}");
    }
}
