//! `extract`: what GNU tar makes of an archive is made of it, and nothing outside of the directory.

mod archives;
mod damage;
mod existing;
mod formats;
mod hostile;
mod snapshot;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aztec_cache_test_support::s3::S3Server;

use super::{command, offline, run};
use crate::common::{Place, assert_refused, key, names_in};

const NAME: &str = "noir-b786c534d2b9261d.tar.gz";

/// Archives served from a bucket, unpacked side by side by tar and by us.
struct Bench {
    server: S3Server,
    place: Place,
    umask: &'static str,
}

impl Bench {
    fn new() -> Bench {
        let server = S3Server::start();
        let place = Place::of(&server);
        Bench { server, place, umask: "022" }
    }

    /// From now on an ordinary user unpacks, if the tester isn't one.
    fn of_ordinary_user() -> Bench {
        let mut bench = Bench::new();
        if let Some(user) = aztec_cache_test_support::user::ordinary_user() {
            bench.place.owned_by(user);
        }
        bench
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.place.dir.path().join(name)
    }

    /// `command` under the umask, as whoever unpacks.
    fn masked(&self, inner: &Command) -> Command {
        let mut outer = self.place.program("sh");
        outer.args(["-c", &format!("umask {} && exec \"$@\"", self.umask), "sh"]).arg(inner.get_program());
        outer.args(inner.get_args()).env_clear();
        outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer
    }

    /// Unpacks the archive into the directory `ours`.
    fn extract(&self, archive: &[u8]) -> Output {
        self.server.put(&key(NAME), archive.to_vec());
        let _ = fs::remove_file(self.place.cache().join(NAME));
        let ours = self.dir("ours");
        self.masked(&command(&self.place, &["extract", NAME, ours.to_str().unwrap()])).output().unwrap()
    }

    /// Unpacks it into the directory `piped` as it comes through a pipe: then it takes several threads, however small it is.
    fn extract_piped(&self, archive: &[u8]) -> Output {
        let piped = self.dir("piped");
        let mut command = self.masked(&command(&self.place, &["extract", "-", piped.to_str().unwrap()]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // It need not read all of one that it refuses.
            scope.spawn(move || drop(stdin.write_all(archive)));
            child.wait_with_output().unwrap()
        })
    }

    /// Unpacks it into the directory `theirs` with tar.
    fn tar(&self, archive: &[u8]) -> Output {
        let (file, theirs) = (self.dir("archive"), self.dir("theirs"));
        fs::write(&file, archive).unwrap();
        let mut mkdir = Command::new("mkdir");
        assert!(self.masked(mkdir.arg("-p").arg(&theirs)).status().unwrap().success());
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(&file).arg("-C").arg(&theirs).env("PATH", std::env::var_os("PATH").unwrap());
        self.masked(&tar).output().unwrap()
    }

    /// Unpacks with both, which must succeed, and compares all that is there then.
    #[track_caller]
    fn assert_as_tar(&self, what: &str, archive: &[u8]) {
        let is_new = !self.dir("ours").exists();
        let tar = self.tar(archive);
        assert!(tar.status.success(), "{what}: {}", String::from_utf8_lossy(&tar.stderr));
        let output = self.extract(archive);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && output.stdout.is_empty(), "{what}: {said}");
        snapshot::assert_same(what, &self.dir("ours"), &self.dir("theirs"));
        if is_new {
            let output = self.extract_piped(archive);
            assert!(output.status.success(), "{what}, piped: {}", String::from_utf8_lossy(&output.stderr));
            snapshot::assert_same(what, &self.dir("piped"), &self.dir("theirs"));
        }
    }

    /// Makes room for the next archive.
    fn clear(&self) {
        for name in ["ours", "theirs", "piped"] {
            let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(self.dir(name)).output();
            let _ = fs::remove_dir_all(self.dir(name));
        }
    }

    /// Checks that our side refuses with `code`, and names `parts`.
    #[track_caller]
    fn assert_refused(&self, archive: &[u8], code: i32, parts: &[&str]) {
        let is_new = !self.dir("ours").exists();
        assert_refused(&self.extract(archive), code, parts);
        if is_new {
            let parts: Vec<&str> = parts.iter().copied().filter(|part| *part != NAME).collect();
            assert_refused(&self.extract_piped(archive), code, &parts);
            let _ = fs::remove_dir_all(self.dir("piped"));
        }
    }
}

#[test]
fn an_archive_is_unpacked_and_kept() {
    let bench = Bench::new();
    let archive = archives::simple(20);
    bench.assert_as_tar("fetched", &archive);
    assert_eq!(fs::read(bench.place.cache().join(NAME)).unwrap(), archive);
    bench.clear();
    bench.server.reset_counts();
    let ours = bench.dir("ours");
    let again = run(&bench.place, &["extract", NAME, ours.to_str().unwrap()]);
    assert!(again.status.success() && again.stderr.is_empty(), "{again:?}");
    assert_eq!(bench.server.counts().requests(), 0);
    bench.tar(&archive);
    snapshot::assert_same("kept", &ours, &bench.dir("theirs"));
}

#[test]
fn an_archive_on_standard_input_comes_from_anywhere() {
    let mut bench = Bench::new();
    // Nothing that has to do with a remote or a cache is looked at.
    bench.place.cache = None;
    bench.place.env("S3_BUILD_CACHE_AWS_PARAMS", "--no-such-option").env("NO_CACHE", "1");
    let archive = archives::simple(20);
    bench.tar(&archive);
    let file = bench.dir("archive");
    let extract = |input: &Path| {
        let ours = bench.dir("ours");
        let mut command = command(&bench.place, &["extract", "-", ours.to_str().unwrap()]);
        command.stdin(fs::File::open(input).unwrap()).output().unwrap()
    };
    let output = extract(&file);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    snapshot::assert_same("a file", &bench.dir("ours"), &bench.dir("theirs"));
    fs::write(&file, &archive[..archive.len() - 1]).unwrap();
    assert_refused(&extract(&file), 3, &["standard input", "truncated"]);
    assert_refused(&extract(bench.place.dir.path()), 5, &["standard input", "directory"]);
}

#[test]
fn it_goes_where_it_is_told_or_here_and_works_without_a_cache_directory() {
    let mut bench = Bench::new();
    bench.place.cache = None;
    bench.server.put(&key(NAME), archives::simple(3));
    let here = bench.dir("here");
    fs::create_dir(&here).unwrap();
    let output = command(&bench.place, &["extract", NAME]).current_dir(&here).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let deep = bench.dir("not/there/yet");
    let output = run(&bench.place, &["extract", NAME, deep.to_str().unwrap()]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    snapshot::assert_same("both", &here, &deep);
    assert_eq!(names_in(&here).len(), 3);
}

#[test]
fn a_refusal_has_the_contract_s_code_and_makes_no_directory() {
    let bench = Bench::new();
    bench.server.put(&key(NAME), archives::simple(3));
    let (dir, place) = (bench.dir("ours"), &bench.place);
    let extract = |name: &str, dir: &Path| command(place, &["extract", name, dir.to_str().unwrap()]);
    let refused = |mut command: Command| command.output().unwrap();
    assert_refused(&refused(extract("missing.tar.gz", &dir)), 1, &["missing.tar.gz"]);
    let text = "Not using cache for noir-disabled-cache.zst due to uncommitted changes/files.";
    assert_refused(&refused(extract("noir-disabled-cache.zst", &dir)), 1, &[text]);
    let mut no_cache = extract(NAME, &dir);
    no_cache.env("NO_CACHE", "1");
    let text = format!("Not using cache for {NAME} because NO_CACHE=1.");
    assert_refused(&refused(no_cache), 1, &[&text]);
    assert_refused(&refused(extract("../x", &dir)), 2, &["'../x'"]);
    let mut quiet = extract("missing.tar.gz", &dir);
    let output = quiet.arg("--quiet").output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(1), 0), "{output:?}");
    let offline = offline();
    assert_eq!(run(&offline, &["extract", NAME, dir.to_str().unwrap()]).status.code(), Some(3));
    assert!(!dir.exists());

    let file = bench.dir("file");
    fs::write(&file, "mine").unwrap();
    assert_refused(&refused(extract(NAME, &file)), 5, &[file.to_str().unwrap()]);
    assert_refused(&refused(extract(NAME, &file.join("below"))), 5, &[file.to_str().unwrap()]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_directory_that_can_t_be_written_is_said() {
    let bench = Bench::of_ordinary_user();
    let output = bench.place.program("mkdir").args(["-m", "555", "ours"]).status().unwrap();
    assert!(output.success());
    let ours = bench.dir("ours");
    bench.assert_refused(
        &archives::simple(3),
        5,
        &[ours.join("file-0").to_str().unwrap(), "Permission denied"],
    );
    assert_eq!(names_in(&ours), [""; 0]);
}
