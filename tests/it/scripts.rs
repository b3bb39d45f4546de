//! The scripts of `mount-scripts/`, run as a build runs them: each through the mount, by the program alone, and with neither.

mod download;
mod faults;
mod flags;
mod mounting;
mod save;
mod stock;

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aztec_cache_test_support::artifacts::{files_of, name, tar_gz, tar_zst};
use aztec_cache_test_support::s3::S3Server;

use crate::common::{BINARY, Mount, Place, assert_same, can_mount, key};

/// How a script gets at the remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The mount is there, and so is the program.
    Mount,
    /// The program is in PATH.
    Program,
    /// curl, aws and tar are all that there is.
    Bare,
}

/// All of them that can be had here.
pub fn ways() -> Vec<Way> {
    let mut ways = vec![Way::Program, Way::Bare];
    if can_mount() {
        ways.push(Way::Mount);
    }
    ways
}

/// A tarball, and what is in it.
pub struct Tarball {
    pub name: String,
    pub bytes: Vec<u8>,
    seed: u64,
    size: usize,
}

impl Tarball {
    const FILES: usize = 5;

    /// One of about `size` bytes; `ext` is `tar.gz` or `zst`.
    pub fn new(ext: &str, size: usize) -> Tarball {
        let seed = size as u64;
        let bytes = match ext {
            "zst" => tar_zst(seed, size, Tarball::FILES),
            _ => tar_gz(seed, size, Tarball::FILES),
        };
        Tarball { name: name("noir", seed, ext), bytes, seed, size }
    }

    /// Checks that it was unpacked into `dir`.
    #[track_caller]
    pub fn assert_unpacked(&self, dir: &Path) {
        for (path, content) in files_of(self.seed, self.size, Tarball::FILES) {
            assert_same(&path, &fs::read(dir.join(&path)).expect("an unpacked file"), &content);
        }
    }

    /// Puts it on the server.
    pub fn put_on(&self, server: &S3Server) {
        server.put(&key(&self.name), self.bytes.clone());
    }
}

/// What a script did.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub code: Option<i32>,
    /// Its stderr, with `N` for seconds.
    pub text: String,
}

impl Said {
    pub fn new(code: i32, lines: &[&str]) -> Said {
        Said { code: Some(code), text: lines.iter().map(|line| format!("{line}\n")).collect() }
    }
}

impl From<Output> for Said {
    #[track_caller]
    fn from(output: Output) -> Said {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.stdout.is_empty(), "on stdout: {}", String::from_utf8_lossy(&output.stdout));
        // As a shell tells the end by a signal.
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
        Said { code, text: without_seconds(&text) }
    }
}

/// `in 12s.` becomes `in Ns.`
fn without_seconds(text: &str) -> String {
    let mut parts = text.split(" in ");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_time = rest.len() < part.len() && rest.starts_with("s.");
        all += &if is_time { format!(" in N{rest}") } else { format!(" in {part}") };
    }
    all
}

/// Where scripts are run: a home with settings, in one of the ways.
pub struct Shell {
    // Dropped first: the mountpoint lies in the place.
    pub mount: Option<Mount>,
    pub place: Place,
    pub way: Way,
}

impl Shell {
    /// Reads as anyone may who knows the names.
    pub fn anonymous(server: &S3Server, way: Way) -> Shell {
        let public = format!("{}/aztec-ci-artifacts/build-cache/", server.url());
        Shell::reading(&public, way)
    }

    /// Reads from `remote`.
    pub fn reading(remote: &str, way: Way) -> Shell {
        let mut place = Place::reading(&[remote]);
        place.unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY");
        Shell::new(place, way)
    }

    /// Reads and writes with the test server's keys, as `S3_BUILD_CACHE_AWS_PARAMS` has it.
    pub fn signed(server: &S3Server, way: Way) -> Shell {
        let mut place = Place::reading(&[]);
        place.unset("AZTEC_CACHE_REMOTE");
        place.env("S3_BUILD_CACHE_AWS_PARAMS", format!("--endpoint-url '{}'", server.url()));
        Shell::new(place, way)
    }

    pub fn new(mut place: Place, way: Way) -> Shell {
        place.env("AZTEC_CACHE_MOUNTPOINT", place.mountpoint());
        let mount = (way == Way::Mount).then(|| place.mount());
        Shell { mount, place, way }
    }

    /// A script with this place's environment and nothing of the tester's own.
    pub fn command(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new(scripts().join(script));
        command.env_clear().env("PATH", path(self.way != Way::Bare)).env("HOME", self.place.dir.path());
        command.env("AWS_EC2_METADATA_DISABLED", "true").envs(self.place.env.iter().cloned());
        if let Some(cache) = &self.place.cache {
            command.env("CACHE_LOCAL_DIR", cache);
        }
        command.args(args).current_dir(self.place.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    /// Runs a script.
    #[track_caller]
    pub fn run(&self, script: &str, args: &[&str]) -> Said {
        self.command(script, args).output().expect("bash runs").into()
    }

    /// `cache_download`, into the directory `out`.
    #[track_caller]
    pub fn download(&self, name: &str) -> Said {
        self.run("cache_download", &[name, "out"])
    }

    pub fn out(&self) -> PathBuf {
        self.place.dir.path().join("out")
    }

    /// Puts a file into the local directory, as a script of another kind leaves it.
    pub fn leave(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.place.cache()).expect("a directory of ours");
        fs::write(self.place.cache().join(name), bytes).expect("a file of ours");
    }
}

/// Where the scripts are.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-scripts")
}

/// The tester's PATH, with the program under test or without any.
pub fn path(with_program: bool) -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let theirs = std::env::split_paths(&path).filter(|dir| !dir.join("aztec-cache").exists());
    let ours = Path::new(BINARY).parent().filter(|_| with_program).map(Path::to_owned);
    std::env::join_paths(ours.into_iter().chain(theirs)).expect("no colons in it")
}

/// Whether the AWS CLI is there; says so aloud when not.
pub fn has_aws() -> bool {
    let found = Command::new("aws").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: no AWS CLI (apt-get install awscli)");
        assert!(std::env::var_os("AZTEC_CACHE_REQUIRE_FUSE").is_none(), "it is required here");
    }
    found
}
