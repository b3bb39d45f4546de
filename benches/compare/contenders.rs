//! The file systems that are compared, and how each is started.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use aztec_cache_test_support::user::{User, ordinary_user};

use crate::stage::{ACCESS_KEY, BUCKET, SECRET_KEY};
use crate::work_dir::give;
use crate::{Result, process, task};

/// The binary that is measured, as cargo built it.
const BINARY: &str = env!("CARGO_BIN_EXE_aztec-cache");
/// Our mount by root: the kernel reads local files by itself.
pub const OURS: &str = "ours";
/// Our mount by an ordinary user, through `fusermount3`: the kernel's page cache.
pub const OURS_USER: &str = "ours-user";
/// Our `cache_download`, with our mount by root there.
pub const SCRIPTS_MOUNT: &str = "scripts+mount";
/// Our `cache_download` without a mount.
pub const SCRIPTS: &str = "scripts";
/// Our `aztec-cache extract`, without a mount.
pub const EXTRACT: &str = "extract";
/// A plain copy on the same disk.
pub const LOCAL: &str = "local file";
/// The very file in our cache directory, read without the mount.
pub const CACHE_FILE: &str = "cache file";

/// Where a mount lives and what it reads.
#[derive(Clone)]
pub struct Setup {
    /// The mountpoint, an empty directory.
    pub mountpoint: PathBuf,
    /// Its cache directory.
    pub cache: PathBuf,
    /// For its settings.
    pub home: PathBuf,
    /// The S3 server.
    pub endpoint: String,
    /// What it shows of the bucket, ends in `/`.
    pub prefix: String,
    /// Whether the server is asked as a plain web server, not as one of S3.
    pub web: bool,
    /// What else our mount is told.
    pub flags: &'static [&'static str],
}

impl Setup {
    /// What belongs to `user`, if there is one, in the directory `home`.
    ///
    /// # Errors
    /// The directories in it can't be made.
    pub fn new(home: &Path, endpoint: &str, prefix: &str, user: Option<&User>) -> Result<Setup> {
        let [mountpoint, cache] = ["mnt", "cache"].map(|name| home.join(name));
        for dir in [&mountpoint, &cache] {
            fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            give(dir, user)?;
        }
        let (home, endpoint, prefix) = (home.to_owned(), endpoint.to_owned(), prefix.to_owned());
        Ok(Setup { mountpoint, cache, home, endpoint, prefix, web: false, flags: &[] })
    }

    /// What is read, as ours is told.
    fn remote(&self) -> String {
        let scheme = if self.web { format!("{}/", self.endpoint) } else { "s3://".to_owned() };
        format!("{scheme}{BUCKET}/{}", self.prefix)
    }

    /// The flags of the S3 server.
    fn server_flags(&self) -> Vec<&str> {
        if self.web { Vec::new() } else { vec!["--endpoint-url", &self.endpoint] }
    }
}

/// A file system.
#[derive(Clone, Debug)]
pub struct FileSystem {
    /// In tables.
    pub name: &'static str,
    /// What it calls its version.
    pub version: String,
    /// Whose mount it is, when not that of whoever runs the benchmark.
    pub user: Option<User>,
    kind: Kind,
    program: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    Rclone { streams: bool },
    S3fs,
    Mountpoint,
}

impl FileSystem {
    /// Those found on this machine, ours first: a copy in `dir`, which stays the same when the binary is built anew.
    pub fn all(dir: &Path) -> Result<Vec<FileSystem>> {
        let binary = dir.join("aztec-cache");
        fs::copy(BINARY, &binary).map_err(|error| format!("{BINARY}: {error}"))?;
        let own = process::find(&binary, "--version").unwrap_or_default();
        let new = |name: &'static str, version, user, kind| {
            let program = if kind == Kind::Ours { binary.clone() } else { name.into() };
            FileSystem { name, version, user, kind, program }
        };
        let mut all = Vec::new();
        match ordinary_user() {
            Some(user) => {
                all.push(new(OURS, own.clone(), None, Kind::Ours));
                if may_mount(&user, &binary) {
                    all.push(new(OURS_USER, own, Some(user), Kind::Ours));
                } else {
                    eprintln!(
                        "compare: no mount by an ordinary user: /dev/fuse isn't 0666, or no fusermount3"
                    );
                }
            }
            None => all.push(new(OURS_USER, own, None, Kind::Ours)),
        }
        if let Some(version) = process::find("rclone", "version") {
            let flags = Command::new("rclone").args(["help", "flags"]).output();
            let streams = flags.is_ok_and(|flags| {
                String::from_utf8_lossy(&flags.stdout).contains("--vfs-read-chunk-streams")
            });
            all.push(new("rclone", version, None, Kind::Rclone { streams }));
        }
        if let Some(version) = process::find("s3fs", "--version") {
            all.push(new("s3fs", version, None, Kind::S3fs));
        }
        if let Some(version) = process::find("mount-s3", "--version") {
            all.push(new("mount-s3", version, None, Kind::Mountpoint));
        }
        Ok(all)
    }

    /// Whether it is ours.
    pub fn is_ours(&self) -> bool {
        self.kind == Kind::Ours
    }

    /// Where below the mountpoint the prefix's names are.
    pub fn root(&self, setup: &Setup) -> PathBuf {
        match self.kind {
            // It wants an object for each directory it mounts, but not for those below.
            Kind::S3fs => setup.mountpoint.join(setup.prefix.trim_end_matches('/')),
            _ => setup.mountpoint.clone(),
        }
    }

    /// Whether a daemon that said this is ready, as far as it says so.
    pub fn is_ready(&self, said: &str) -> bool {
        self.kind != Kind::Ours || said.contains(" mounted at ")
    }

    /// The daemon, in front.
    pub fn daemon(&self, setup: &Setup) -> Result<Command> {
        match self.kind {
            Kind::Ours => Ok(self.ours(setup)),
            Kind::Rclone { streams } => Ok(self.rclone(setup, streams)),
            Kind::S3fs => self.s3fs(setup),
            Kind::Mountpoint => Ok(self.mountpoint(setup)),
        }
    }

    /// One of our scripts, which finds this program, and its mount where that is mounted.
    pub fn script(&self, setup: &Setup, name: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-scripts").join(name);
        let mut command = self.settings(task::program(script, self.user.as_ref()), setup);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let ours = self.program.parent().map(Path::to_owned);
        let path = std::env::join_paths(ours.into_iter().chain(std::env::split_paths(&path)));
        command.env("PATH", path.unwrap_or_default()).env("CACHE_LOCAL_DIR", &setup.cache);
        command.env("AZTEC_CACHE_MOUNTPOINT", &setup.mountpoint);
        command.env("AZTEC_CACHE_REMOTE", setup.remote());
        if !setup.web {
            command.env("S3_BUILD_CACHE_AWS_PARAMS", setup.server_flags().join(" "));
        }
        command
    }

    /// Our command that fetches and unpacks an artifact.
    pub fn extract(&self, setup: &Setup, name: &str, into: &Path) -> Command {
        let mut command = self.command(setup);
        command.arg("extract").args(setup.server_flags()).arg("--remote").arg(setup.remote());
        command.arg("--cache-dir").arg(&setup.cache).arg(name).arg(into);
        command
    }

    fn command(&self, setup: &Setup) -> Command {
        self.settings(task::program(&self.program, self.user.as_ref()), setup)
    }

    fn settings(&self, mut command: Command, setup: &Setup) -> Command {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &setup.home).current_dir(&setup.home);
        // Nothing outside this machine is asked for credentials.
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    fn ours(&self, setup: &Setup) -> Command {
        let mut command = self.command(setup);
        command.args(["mount", "--foreground"]).args(setup.server_flags());
        command.arg("--remote").arg(setup.remote());
        command.args(setup.flags).arg("--cache-dir").arg(&setup.cache).arg(&setup.mountpoint);
        command
    }

    /// Tuned: attributes and listings kept, no needless HEADs, and several streams where it has them.
    fn rclone(&self, setup: &Setup, streams: bool) -> Command {
        let mut command = self.command(setup);
        let remote = format!(
            ":s3,provider=Other,env_auth=true,force_path_style=true,endpoint='{}':{BUCKET}/{}",
            setup.endpoint, setup.prefix
        );
        command.arg("mount").arg(remote).arg(&setup.mountpoint).arg("--cache-dir").arg(&setup.cache);
        command.args(["--config", "/dev/null", "--read-only", "--vfs-cache-mode", "full", "--no-modtime"]);
        command.args(["--dir-cache-time", "1h", "--attr-timeout", "1h", "--no-checksum"]);
        if streams {
            command.args(["--vfs-read-chunk-size", "4M", "--vfs-read-chunk-streams", "16"]);
        }
        command
    }

    /// Tuned: parallel requests, large parts, missing names kept.
    fn s3fs(&self, setup: &Setup) -> Result<Command> {
        let password = setup.home.join("s3fs-password");
        let write = || {
            fs::write(&password, format!("{ACCESS_KEY}:{SECRET_KEY}"))?;
            fs::set_permissions(&password, fs::Permissions::from_mode(0o600))
        };
        write().map_err(|error: std::io::Error| format!("{}: {error}", password.display()))?;
        fs::create_dir_all(&setup.cache).map_err(|error| format!("{}: {error}", setup.cache.display()))?;
        let mut command = self.command(setup);
        // Credentials come from the file alone.
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.arg(BUCKET).arg(&setup.mountpoint).args(["-f", "-o", "ro", "-o", "use_path_request_style"]);
        command.args(["-o", "parallel_count=20", "-o", "multipart_size=10", "-o", "enable_noobj_cache"]);
        command.args(["-o", "max_stat_cache_size=200000", "-o", "multireq_max=50"]);
        for (name, value) in [
            ("url", setup.endpoint.as_ref()),
            ("passwd_file", password.as_os_str()),
            ("use_cache", setup.cache.as_os_str()),
        ] {
            command.arg("-o").arg(format!("{name}={}", Path::new(value).display()));
        }
        Ok(command)
    }

    fn mountpoint(&self, setup: &Setup) -> Command {
        let mut command = self.command(setup);
        command.arg(BUCKET).arg(&setup.mountpoint).args([
            "--foreground",
            "--read-only",
            "--force-path-style",
        ]);
        command.args(["--prefix", &setup.prefix, "--endpoint-url", &setup.endpoint]);
        command.args(["--metadata-ttl", "indefinite", "--region", "us-east-1", "--cache"]).arg(&setup.cache);
        command
    }
}

fn may_mount(user: &User, binary: &Path) -> bool {
    let mode = fs::metadata("/dev/fuse").map_or(0, |device| device.permissions().mode());
    let may_run = user.command(binary).arg("--version").output().is_ok_and(|output| output.status.success());
    mode & 0o006 == 0o006 && may_run && process::find("fusermount3", "-V").is_some()
}
