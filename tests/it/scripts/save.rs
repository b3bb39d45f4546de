//! `cache_upload`: what is kept here, what is uploaded, and when it isn't.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aztec_cache_test_support::s3::{Fault, Op, S3Server};
use aztec_cache_test_support::web::{Reply, WebServer};

use super::{Said, Shell, Way, has_aws, scripts};
use crate::common::{Place, assert_same, key, names_in};

const NAMES: [&str; 2] = ["noir-0123456789abcdef.tar.gz", "bb.js-0123456789abcdef.zst"];

/// The ways in which scripts upload: by the program and, where it is there, the AWS CLI.
fn ways() -> Vec<Way> {
    [Way::Program, Way::Bare].into_iter().filter(|way| *way != Way::Bare || has_aws()).collect()
}

/// A place with something to pack: `target/`, in which there are files, links and an executable.
fn with_target(shell: Shell) -> Shell {
    let target = shell.place.dir.path().join("target");
    fs::create_dir_all(target.join("deep/er")).unwrap();
    fs::write(target.join("deep/er/file"), "text ".repeat(10_000)).unwrap();
    std::os::unix::fs::symlink("deep/er/file", target.join("link")).unwrap();
    fs::copy(scripts().join("cache_upload"), target.join("script")).unwrap();
    shell
}

#[track_caller]
fn assert_round_trip(shell: &Shell, name: &str) {
    fs::remove_dir_all(shell.place.cache()).unwrap();
    let said = shell.download(name);
    assert_eq!(said.code, Some(0), "{:?}: {}", shell.way, said.text);
    let unpacked = shell.out().join("target");
    let target = shell.place.dir.path().join("target");
    assert_same("file", &fs::read(unpacked.join("deep/er/file")).unwrap(), "text ".repeat(10_000).as_bytes());
    assert_eq!(fs::read_link(unpacked.join("link")).unwrap(), PathBuf::from("deep/er/file"));
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions();
    assert_eq!(mode(unpacked.join("script")), mode(target.join("script")));
}

#[test]
fn what_is_saved_is_a_hit_afterwards_and_uploaded_only_in_ci() {
    for way in [Way::Program, Way::Bare] {
        for name in NAMES {
            let server = S3Server::start();
            let shell = with_target(Shell::signed(&server, way));
            let saved = Said::new(0, &[&format!("Saved {name} to local cache.")]);
            assert_eq!(shell.run("cache_upload", &[name, "target"]), saved, "{way:?}");
            assert_eq!(server.counts().requests(), 0, "{way:?}");
            let left: Vec<String> =
                names_in(shell.place.cache()).into_iter().filter(|name| name != ".aztec-cache").collect();
            assert_eq!(left, [name], "{way:?}");
            server.stop();
            let said = shell.download(name);
            assert!(
                said.text.starts_with(&format!("Local cache hit for {name}.\n")),
                "{way:?}: {}",
                said.text
            );
            assert_eq!(said.code, Some(0), "{way:?}");
            assert_eq!(shell.run("cache_exists", &[name]), Said::new(0, &[]), "{way:?}");
        }
    }
}

#[test]
fn in_ci_it_is_uploaded_and_comes_back() {
    for way in ways() {
        for (setting, value) in [("CI", "1"), ("S3_FORCE_UPLOAD", "1")] {
            for name in NAMES {
                let server = S3Server::start();
                let mut shell = with_target(Shell::signed(&server, way));
                shell.place.env(setting, value);
                let lines = [
                    format!("Saved {name} to local cache."),
                    format!("Cache upload of {name} complete in Ns."),
                ];
                let said = shell.run("cache_upload", &[name, "target"]);
                assert_eq!(said, Said::new(0, &[&lines[0], &lines[1]]), "{way:?}");
                let kept = fs::read(shell.place.cache().join(name)).unwrap();
                assert_same("uploaded", &server.object(&key(name)).expect("an object"), &kept);
                // Read as it is there, and not by who writes it.
                shell.place.unset("CI");
                assert_round_trip(&shell, name);
            }
        }
    }
}

#[test]
fn without_a_local_directory_it_is_only_uploaded() {
    for way in ways() {
        let (server, name) = (S3Server::start(), NAMES[0]);
        let mut shell = with_target(Shell::signed(&server, way));
        shell.place.cache = None;
        assert_eq!(shell.run("cache_upload", &[name, "target"]), Said::new(0, &[]), "{way:?}");
        assert_eq!(server.counts().requests(), 0, "{way:?}");
        shell.place.env("CI", "1");
        let uploaded = Said::new(0, &[&format!("Cache upload of {name} complete in Ns.")]);
        assert_eq!(shell.run("cache_upload", &[name, "target"]), uploaded, "{way:?}");
        assert!(server.object(&key(name)).is_some());
        assert_eq!(names_in(shell.place.dir.path()), ["target"], "{way:?}");
    }
}

#[test]
fn a_local_directory_that_can_not_be_made_is_done_without() {
    for way in ways() {
        let (server, name) = (S3Server::start(), NAMES[0]);
        let mut shell = with_target(Shell::signed(&server, way));
        let dir = shell.place.dir.path().join("target/script/cache");
        shell.place.cache = Some(dir.clone());
        let warning =
            format!("Warning: Cannot create local cache dir {}, skipping local cache.", dir.display());
        assert_eq!(shell.run("cache_upload", &[name, "target"]), Said::new(0, &[&warning]), "{way:?}");
        shell.place.env("CI", "1");
        let done = format!("Cache upload of {name} complete in Ns.");
        assert_eq!(shell.run("cache_upload", &[name, "target"]), Said::new(0, &[&warning, &done]), "{way:?}");
        assert!(server.object(&key(name)).is_some());
    }
}

#[test]
fn what_exists_is_kept_unless_it_is_forced() {
    for way in ways() {
        let (server, name) = (S3Server::start(), NAMES[1]);
        server.put(&key(name), "another one's");
        let mut shell = with_target(Shell::signed(&server, way));
        shell.place.env("CI", "1");
        let said = shell.run("cache_upload", &[name, "target"]);
        assert_eq!(said.code, Some(0), "{way:?}");
        assert!(said.text.ends_with(&format!("Skipping S3 upload, already exists: {name}\n")), "{said:?}");
        assert_eq!(server.object(&key(name)).unwrap(), "another one's");
        shell.place.env("S3_FORCE_UPLOAD", "1");
        let said = shell.run("cache_upload", &[name, "target"]);
        assert!(said.text.ends_with(&format!("Cache upload of {name} complete in Ns.\n")), "{said:?}");
        assert_round_trip(&shell, name);
    }
}

#[test]
fn what_is_not_to_be_cached_is_not_saved() {
    for way in [Way::Program, Way::Bare] {
        let server = S3Server::start();
        let mut shell = with_target(Shell::signed(&server, way));
        shell.place.env("CI", "1");
        let disabled = "noir-disabled-cache.tar.gz";
        let line = format!("Skipping upload of {disabled} due to uncommitted changes/files.");
        assert_eq!(shell.run("cache_upload", &[disabled, "target"]), Said::new(0, &[&line]), "{way:?}");
        shell.place.env("NO_CACHE_UPLOAD", "1");
        let line = "Skipping upload because NO_CACHE_UPLOAD=1.";
        assert_eq!(shell.run("cache_upload", &[NAMES[0], "target"]), Said::new(0, &[line]), "{way:?}");
        assert_eq!(server.counts().requests(), 0, "{way:?}");
        assert!(!shell.place.cache().exists(), "{way:?}");
    }
}

#[test]
fn who_has_no_credentials_is_not_expected_to_upload() {
    for way in ways() {
        let (server, name) = (S3Server::start(), NAMES[0]);
        let mut shell = with_target(Shell::signed(&server, way));
        shell.place.unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY").env("CI", "1");
        let saved = Said::new(0, &[&format!("Saved {name} to local cache.")]);
        assert_eq!(shell.run("cache_upload", &[name, "target"]), saved, "{way:?}");
        assert!(server.keys().is_empty());
    }
}

#[test]
fn an_upload_that_is_refused_fails_the_upload_and_nothing_else() {
    for way in ways() {
        let (server, name) = (S3Server::start(), NAMES[0]);
        server.add_fault(Fault::status(403, "AccessDenied").on(Op::Put));
        let mut shell = with_target(Shell::signed(&server, way));
        shell.place.env("CI", "1");
        let said = shell.run("cache_upload", &[name, "target"]);
        assert_eq!(said.code, Some(0), "{way:?}");
        assert!(said.text.starts_with(&format!("Saved {name} to local cache.\n")), "{way:?}: {}", said.text);
        assert!(said.text.contains("AccessDenied") || said.text.contains("denied"), "{way:?}: {}", said.text);
        assert!(said.text.ends_with(&format!("Cache upload of {name} failed.\n")), "{way:?}: {}", said.text);
        assert!(shell.place.cache().join(name).exists());
    }
}

#[test]
fn what_can_not_be_packed_is_saved_nowhere() {
    for way in [Way::Program, Way::Bare] {
        for name in NAMES {
            let server = S3Server::start();
            let mut shell = with_target(Shell::signed(&server, way));
            shell.place.env("CI", "1");
            let said = shell.run("cache_upload", &[name, "target", "absent"]);
            assert_ne!(said.code, Some(0), "{way:?}: {}", said.text);
            assert!(said.text.contains("absent: Cannot stat"), "{way:?}: {}", said.text);
            assert!(server.keys().is_empty());
            let left = names_in(shell.place.cache());
            assert!(left.iter().all(|name| name == ".aztec-cache"), "{way:?}: {left:?}");
        }
    }
}

#[test]
fn the_ci_server_takes_uploads_and_may_redirect_them() {
    for way in [Way::Program, Way::Bare] {
        let stored = Arc::new(Mutex::new(None));
        let storage = stored.clone();
        let elsewhere = WebServer::start(move |request| {
            *storage.lock().unwrap() = request.body.clone();
            Reply::new(200)
        });
        let target = elsewhere.url();
        let server =
            WebServer::start(move |request| match (&*request.method, request.header("authorization")) {
                ("PUT", Some(_)) => Reply::new(307).header("Location", &format!("{target}stored")),
                ("HEAD", Some(_)) => stored
                    .lock()
                    .unwrap()
                    .as_ref()
                    .map_or(Reply::new(404), |body: &Vec<u8>| Reply::whole(body)),
                _ => Reply::new(401),
            });
        let mut place = Place::reading(&[]);
        place.unset("AZTEC_CACHE_REMOTE").unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY");
        place.env("CI3_SERVER", server.url()).env("CI3_PASSWORD", "pw").env("CI", "1");
        let shell = with_target(Shell::new(place, way));
        let said = shell.run("cache_upload", &[NAMES[0], "target"]);
        let done = format!("Cache upload of {} complete in Ns.\n", NAMES[0]);
        assert!(said.text.ends_with(&done), "{way:?}: {}", said.text);
        let requests = elsewhere.requests();
        let put = requests.iter().find(|request| request.method == "PUT").expect("a PUT");
        assert_eq!(put.header("authorization"), None, "{way:?}");
        let size = fs::metadata(shell.place.cache().join(NAMES[0])).unwrap().len();
        assert_eq!(put.header("content-length"), Some(&*size.to_string()), "{way:?}");
    }
}
