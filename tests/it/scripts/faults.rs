//! `cache_download` when things go wrong: damaged files, broken downloads, dead mounts, interruptions, several at once.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use aztec_cache_test_support::s3::{Fault, S3Server};
use aztec_cache_test_support::web::{Reply, WebServer};

use super::{Said, Shell, Tarball, Way, has_aws, ways};
use crate::common::{PATIENCE, assert_same, key, names_in, needs_fuse, wait_for, within};

const SIZE: usize = 300_000;

/// A server that has `tarball`.
fn server_with(tarball: &Tarball) -> S3Server {
    let server = S3Server::start();
    tarball.put_on(&server);
    server
}

#[test]
fn a_truncated_local_file_is_replaced() {
    for way in ways() {
        for ext in ["tar.gz", "zst"] {
            for length in [0, 1000, SIZE / 2] {
                let tarball = Tarball::new(ext, SIZE);
                let server = server_with(&tarball);
                let shell = Shell::anonymous(&server, way);
                shell.leave(&tarball.name, &tarball.bytes[..length]);
                let said = shell.download(&tarball.name);
                assert_eq!(said.code, Some(0), "{way:?}: {}", said.text);
                assert!(
                    said.text.starts_with(&format!("Local cache hit for {}.\n", tarball.name)),
                    "{said:?}"
                );
                tarball.assert_unpacked(&shell.out());
                let kept = shell.place.cache().join(&tarball.name);
                wait_for("the whole file", || fs::read(&kept).is_ok_and(|kept| kept == tarball.bytes));
            }
        }
    }
}

#[test]
fn a_file_that_was_damaged_since_it_was_fetched_is_replaced_once() {
    for way in ways() {
        let tarball = Tarball::new("tar.gz", SIZE);
        let server = server_with(&tarball);
        let shell = Shell::anonymous(&server, way);
        assert_eq!(shell.download(&tarball.name).code, Some(0));
        shell.place.wait_until_cached(&tarball.name);
        let kept = shell.place.cache().join(&tarball.name);
        damage_unnoticed(&kept, &tarball.bytes);
        let lines = [
            format!("Local cache hit for {}.", tarball.name),
            format!("The local file of {} is damaged, downloading from remote.", tarball.name),
            format!("Cache download and extraction of {} complete in Ns.", tarball.name),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(shell.download(&tarball.name), Said::new(0, &lines), "{way:?}");
        tarball.assert_unpacked(&shell.out());
        // A mount gives all bytes out a moment before it has put the file in its place.
        shell.place.wait_until_cached(&tarball.name);
        assert_same("healed", &fs::read(&kept).unwrap(), &tarball.bytes);

        damage_unnoticed(&kept, &tarball.bytes);
        server.stop();
        let said = shell.download(&tarball.name);
        assert_eq!(said.code, Some(1), "{way:?}: {}", said.text);
        assert!(said.text.ends_with(&format!("Cache download of {} failed.\n", tarball.name)), "{said:?}");
    }
}

/// Changes bytes in the middle, as a bad disk does: the time of the last write stays.
fn damage_unnoticed(path: &Path, bytes: &[u8]) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 100].fill(0xa5);
    fs::write(path, bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn a_directory_that_can_not_be_unpacked_into_costs_no_local_file() {
    for way in ways() {
        let tarball = Tarball::new("tar.gz", SIZE);
        let server = server_with(&tarball);
        let shell = Shell::anonymous(&server, way);
        assert_eq!(shell.download(&tarball.name).code, Some(0));
        shell.place.wait_until_cached(&tarball.name);
        server.reset_counts();
        // A file where the tarball has a directory that isn't empty.
        fs::create_dir_all(shell.place.dir.path().join("other/dir-0/file-0.bin/x")).unwrap();
        let said = shell.run("cache_download", &[&tarball.name, "other"]);
        assert_eq!(said.code, Some(1), "{way:?}: {}", said.text);
        let why = match way {
            Way::Bare => "tar: dir-0/file-0.bin: Cannot",
            Way::Mount | Way::Program => "can't unpack other/dir-0/file-0.bin: Directory not empty",
        };
        assert_eq!(said.text.matches(why).count(), 1, "{way:?}: {}", said.text);
        assert!(said.text.ends_with(&format!("Cache download of {} failed.\n", tarball.name)), "{said:?}");
        assert_eq!(server.counts().requests(), 0, "{way:?}");
        shell.place.wait_until_cached(&tarball.name);
        let kept = fs::read(shell.place.cache().join(&tarball.name)).unwrap();
        assert_same("kept", &kept, &tarball.bytes);
    }
}

#[test]
fn a_download_that_breaks_off_or_a_server_that_is_busy_is_tried_again() {
    for way in ways() {
        for fault in [Fault::truncate(100_000).times(1), Fault::status(503, "SlowDown").times(1)] {
            let tarball = Tarball::new("zst", SIZE);
            let server = server_with(&tarball);
            let shell = Shell::anonymous(&server, way);
            server.add_fault(fault);
            let said = shell.download(&tarball.name);
            assert_eq!(said.code, Some(0), "{way:?}: {}", said.text);
            tarball.assert_unpacked(&shell.out());
            shell.place.wait_until_cached(&tarball.name);
        }
    }
}

#[test]
fn a_remote_that_always_breaks_off_fails_and_leaves_nothing() {
    for way in ways() {
        let tarball = Tarball::new("zst", SIZE);
        let server = server_with(&tarball);
        let shell = Shell::anonymous(&server, way);
        server.add_fault(Fault::truncate(0));
        let said = shell.download(&tarball.name);
        assert_eq!(said.code, Some(1), "{way:?}: {}", said.text);
        assert!(said.text.ends_with(&format!("Cache download of {} failed.\n", tarball.name)), "{said:?}");
        let left = names_in(shell.place.cache());
        assert!(left.iter().all(|name| name == ".aztec-cache"), "{way:?}: {left:?}");
    }
}

#[test]
fn a_remote_that_is_down_fails_soon() {
    for way in ways() {
        let tarball = Tarball::new("zst", SIZE);
        let server = server_with(&tarball);
        let shell = Shell::anonymous(&server, way);
        server.stop();
        let said = shell.download(&tarball.name);
        assert_eq!(said.code, Some(1), "{way:?}: {}", said.text);
        assert!(said.text.ends_with(&format!("Cache download of {} failed.\n", tarball.name)), "{said:?}");
        assert_eq!(shell.run("cache_exists", &[&tarball.name]), Said::new(1, &[]), "{way:?}");
    }
}

#[test]
fn several_that_want_one_artifact_all_get_it() {
    for way in ways() {
        let tarball = Tarball::new("zst", 2_000_000);
        let server = server_with(&tarball);
        let shell = Shell::anonymous(&server, way);
        let run = |index: usize| {
            shell
                .command("cache_download", &[&tarball.name, &format!("out-{index}")])
                .spawn()
                .expect("bash runs")
        };
        let children: Vec<Child> = (0..8).map(run).collect();
        for (index, child) in children.into_iter().enumerate() {
            let said = Said::from(child.wait_with_output().unwrap());
            assert_eq!(said.code, Some(0), "{way:?}: {}", said.text);
            tarball.assert_unpacked(&shell.place.dir.path().join(format!("out-{index}")));
        }
        if way != Way::Bare {
            let size = tarball.bytes.len() as u64;
            assert!(server.counts().bytes_of(&key(&tarball.name)) < size * 11 / 10, "it came once");
        }
        let kept = fs::read(shell.place.cache().join(&tarball.name)).unwrap();
        assert_same("kept", &kept, &tarball.bytes);
    }
}

#[test]
fn an_interrupted_download_leaves_nothing_half() {
    for way in ways() {
        for signed in [false, true] {
            if signed && way == Way::Bare && !has_aws() {
                continue;
            }
            for to_all in [false, true] {
                let tarball = Tarball::new("zst", 2_000_000);
                let server = server_with(&tarball);
                let shell = if signed { Shell::signed(&server, way) } else { Shell::anonymous(&server, way) };
                let gate = server.hold_gets(&key(&tarball.name), 500_000);
                let child =
                    shell.command("cache_download", &[&tarball.name, "out"]).spawn().expect("bash runs");
                assert!(gate.wait_until_waiting(1, PATIENCE), "{way:?}");
                interrupt(&child, to_all);
                let said = wait(child);
                assert_eq!(said.code, Some(130), "{way:?}: {}", said.text);
                let left = names_in(shell.place.cache());
                assert!(left.iter().all(|name| name == ".aztec-cache"), "{way:?}: {left:?}");
                gate.release();
                assert_eq!(shell.download(&tarball.name).code, Some(0), "{way:?}");
                tarball.assert_unpacked(&shell.out());
            }
        }
    }
}

/// Ctrl-C, which all processes of the terminal get, or a signal to the script alone.
fn interrupt(child: &Child, to_all: bool) {
    let pid = child.id() as i32;
    // SAFETY: kill(2) of our own child, or of the process group that it leads, takes no pointers.
    assert_eq!(unsafe { libc::kill(if to_all { -pid } else { pid }, libc::SIGINT) }, 0);
}

/// What became of a child that ends soon, and with it all that it started: what it prints to is closed.
fn wait(child: Child) -> Said {
    within(PATIENCE, "the script's end", move || child.wait_with_output().expect("it is our child")).into()
}

#[test]
fn a_mount_whose_daemon_is_dead_or_hangs_is_passed_by() {
    needs_fuse!();
    for signal in [libc::SIGKILL, libc::SIGSTOP] {
        let tarball = Tarball::new("tar.gz", SIZE);
        let server = server_with(&tarball);
        let mut shell = Shell::anonymous(&server, Way::Mount);
        let mut mount = shell.mount.take().expect("it is mounted");
        mount.signal(signal);
        if signal == libc::SIGKILL {
            mount.wait();
        }
        let said = shell.download(&tarball.name);
        assert_eq!(said.code, Some(0), "{}", said.text);
        tarball.assert_unpacked(&shell.out());
        assert_eq!(shell.run("cache_exists", &[&tarball.name]), Said::new(0, &[]));
        assert_eq!(shell.run("cache_exists", &["vk-1.tar.gz"]), Said::new(1, &[]));
        if signal == libc::SIGSTOP {
            mount.signal(libc::SIGCONT);
        }
    }
}

#[test]
fn an_archive_that_leads_out_of_the_directory_is_refused_with_a_word_about_it() {
    for way in ways().into_iter().filter(|way| *way != Way::Bare) {
        let server = S3Server::start();
        let shell = Shell::anonymous(&server, way);
        server.put(&key("noir-1.tar.gz"), leading_out(shell.place.dir.path()));
        // A miss, and then a hit.
        for _ in 0..2 {
            let said = shell.download("noir-1.tar.gz");
            assert_eq!(said.code, Some(1), "{way:?}: {}", said.text);
            assert_eq!(said.text.matches("'../a' leads out of the directory").count(), 1, "{}", said.text);
            assert!(said.text.ends_with("Cache download of noir-1.tar.gz failed.\n"), "{}", said.text);
            assert!(!shell.place.dir.path().join("a").exists());
            shell.place.wait_until_cached("noir-1.tar.gz");
        }
    }
}

/// An archive of a file `../a`, made by tar in `dir`.
fn leading_out(dir: &Path) -> Vec<u8> {
    fs::write(dir.join("inner"), "x").unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--absolute-names", "--transform=s,inner,../a,", "-czf", "-", "inner"]).current_dir(dir);
    tar.output().expect("tar runs").stdout
}

#[test]
fn a_hit_takes_no_settings_and_no_request() {
    let tarball = Tarball::new("tar.gz", SIZE);
    let server = server_with(&tarball);
    let mut shell = Shell::anonymous(&server, Way::Program);
    assert_eq!(shell.download(&tarball.name).code, Some(0));
    server.stop();
    // No program with these would get at a remote.
    shell.place.env("AZTEC_CACHE_REMOTE", "nonsense://").env("S3_BUILD_CACHE_AWS_PARAMS", "--nonsense");
    let expected = Said::new(
        0,
        &[
            &format!("Local cache hit for {}.", tarball.name),
            &format!("Cache extraction of {} from local cache complete in Ns.", tarball.name),
        ],
    );
    assert_eq!(shell.download(&tarball.name), expected);
    tarball.assert_unpacked(&shell.out());
    shell.place.env("NO_CACHE", "1");
    assert_eq!(shell.download(&tarball.name).code, Some(1));
    shell.place.unset("NO_CACHE");
    // What someone has written there since is not known to be whole: it is compared with the remote's.
    shell.leave(&tarball.name, &tarball.bytes);
    assert!(shell.download(&tarball.name).text.contains("nonsense"));
}

#[test]
fn the_password_of_the_ci_server_does_not_follow_a_redirect() {
    for way in ways() {
        let tarball = Tarball::new("tar.gz", SIZE);
        let bytes = tarball.bytes.clone();
        let elsewhere = WebServer::start(move |request| Reply::part(request, &bytes));
        let target = elsewhere.url();
        let server = WebServer::start(move |request| match request.header("authorization") {
            // aztec:p"w\d
            Some("Basic YXp0ZWM6cCJ3XGQ=") => Reply::new(302).header("Location", &format!("{target}stored")),
            _ => Reply::new(401),
        });
        let mut place = Shell::reading("http://127.0.0.1:1/", Way::Bare).place;
        place.unset("AZTEC_CACHE_REMOTE");
        place.env("CI3_SERVER", server.url().trim_end_matches('/')).env("CI3_PASSWORD", "p\"w\\d");
        // After the server the bucket would be asked, here and not elsewhere.
        place.env("S3_BUILD_CACHE_AWS_PARAMS", "--endpoint-url http://127.0.0.1:1 --no-sign-request");
        let shell = Shell::new(place, way);
        let said = shell.download(&tarball.name);
        assert_eq!(said.code, Some(0), "{way:?}: {}", said.text);
        tarball.assert_unpacked(&shell.out());
        let target = format!("/artifacts/{}", tarball.name);
        assert!(server.requests().iter().any(|request| request.target == target));
        let asked = elsewhere.requests();
        assert!(!asked.is_empty());
        assert!(asked.iter().all(|request| request.header("authorization").is_none()), "{asked:?}");
    }
}

#[test]
fn a_ci_server_that_does_not_have_it_is_followed_by_the_bucket() {
    for way in ways().into_iter().filter(|way| *way != Way::Bare || has_aws()) {
        let tarball = Tarball::new("tar.gz", SIZE);
        let bucket = server_with(&tarball);
        let server = WebServer::start(|_| Reply::new(404));
        let mut place = Shell::signed(&bucket, Way::Bare).place;
        place.env("CI3_SERVER", server.url());
        let shell = Shell::new(place, way);
        let said = shell.download(&tarball.name);
        assert_eq!(said.code, Some(0), "{way:?}: {}", said.text);
        tarball.assert_unpacked(&shell.out());
        assert!(!server.requests().is_empty());
    }
}

#[test]
fn a_name_with_odd_characters_is_asked_for_as_it_is() {
    for way in ways() {
        let tarball = Tarball::new("tar.gz", SIZE);
        let server = S3Server::start();
        server.put(&key("odd name+100%&a=b#é.tar.gz"), tarball.bytes.clone());
        let shell = Shell::anonymous(&server, way);
        let said = shell.download("odd name+100%&a=b#é.tar.gz");
        assert_eq!(said.code, Some(0), "{way:?}: {}", said.text);
        tarball.assert_unpacked(&shell.out());
    }
}

#[test]
fn a_stuck_reader_of_the_mount_does_not_hold_up_the_next() {
    needs_fuse!();
    let (stuck, tarball) = (Tarball::new("zst", SIZE + 1), Tarball::new("zst", SIZE));
    let server = server_with(&tarball);
    stuck.put_on(&server);
    let shell = Shell::anonymous(&server, Way::Mount);
    let gate = server.hold_gets(&key(&stuck.name), 0);
    let mut waiting = shell.command("cache_download", &[&stuck.name, "stuck"]).spawn().expect("bash runs");
    assert!(gate.wait_until_waiting(1, PATIENCE));
    let name = tarball.name.clone();
    let said = shell.download(&name);
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(waiting.try_wait().unwrap(), None);
    gate.release();
    assert!(waiting.wait().unwrap().success());
}
