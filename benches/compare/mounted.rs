//! A mount that lasts as long as its guard, and its cache directory with it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use crate::contenders::{FileSystem, Setup};
use crate::process::{end, last_lines, wait_for};
use crate::task::{self, Outcome};
use crate::work_dir::{Scratch, WorkDir};
use crate::{Result, process};

/// How long a daemon may take to end once it is unmounted.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mount.
pub struct Mounted {
    fs: FileSystem,
    setup: Setup,
    /// Where the names are.
    root: PathBuf,
    child: Option<Child>,
    /// Goes last, where it isn't another's.
    place: Option<Scratch>,
}

impl Mounted {
    /// Mounts what is below `prefix` of the bucket at `endpoint`, with an empty cache.
    pub fn new(fs: &FileSystem, work: &WorkDir, endpoint: &str, prefix: &str) -> Result<Mounted> {
        Mounted::with_flags(fs, work, endpoint, prefix, &[])
    }

    /// The same, with more flags for ours.
    pub fn with_flags(
        fs: &FileSystem,
        work: &WorkDir,
        endpoint: &str,
        prefix: &str,
        flags: &'static [&'static str],
    ) -> Result<Mounted> {
        let place = work.scratch("mount-", fs.user.as_ref())?;
        let setup = Setup::new(place.path(), endpoint, prefix, fs.user.as_ref())?;
        let mut mounted = Mounted::of(fs, Setup { flags, ..setup })?;
        mounted.place = Some(place);
        Ok(mounted)
    }

    /// Mounts what `setup` says.
    pub fn of(fs: &FileSystem, setup: Setup) -> Result<Mounted> {
        let root = fs.root(&setup);
        let mut mounted = Mounted { fs: fs.clone(), setup, root, child: None, place: None };
        mounted.start()?;
        Ok(mounted)
    }

    /// Unmounts and mounts again, with the same cache directory.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.start()
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The path of a name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where our mount keeps the file of a name.
    pub fn cached(&self, name: &str) -> PathBuf {
        self.setup.cache.join(name)
    }

    /// Where the names are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads a file to its end, as the mount's owner.
    pub fn read(&self, name: &str, size: u64) -> Result<Outcome> {
        let outcome = self.task(&[&"read", &self.path(name)])?;
        if outcome.count() != size {
            return Err(format!("{}: {name} has {} bytes instead of {size}", self.fs.name, outcome.count()));
        }
        Ok(outcome)
    }

    /// Performs a task, as the mount's owner.
    pub fn task(&self, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Result<Outcome> {
        task::run(args, self.fs.user.as_ref())
    }

    /// A program run by the mount's owner.
    pub fn program(&self, program: &str) -> Command {
        task::program(program, self.fs.user.as_ref())
    }

    /// Waits until the daemon has nothing to do; for ours, until nothing is half fetched.
    pub fn wait_until_idle(&self) -> Result<()> {
        if self.fs.is_ours() {
            let partial = self.setup.cache.join(".aztec-cache/partial");
            wait_for("downloads to be complete", || {
                Ok(fs::read_dir(&partial).is_ok_and(|mut files| files.next().is_none()))
            })?;
        }
        process::wait_until_idle(self.pid())
    }

    fn start(&mut self) -> Result<()> {
        let log = self.setup.home.join("log");
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = self.fs.daemon(&self.setup)?;
        let error = |error: std::io::Error| format!("{}: {error}", self.fs.name);
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(error)?).stderr(file);
        // A group of its own, so that Ctrl-C doesn't end it before it is unmounted.
        self.child = Some(command.process_group(0).spawn().map_err(error)?);
        let ready = self.wait_until_ready(&log);
        ready.map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            format!("{}: {error}; it said: {}", self.fs.name, last_lines(&said, 5))
        })
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<()> {
        let (fs, setup, child) = (&self.fs, &self.setup, &mut self.child);
        wait_for("the mount", || {
            let child = child.as_mut().expect("it was started");
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("the mount ended with {status}"));
            }
            let said = fs::read_to_string(log).unwrap_or_default();
            Ok(is_mounted(&setup.mountpoint) && fs.is_ready(&said))
        })?;
        // An answer to one question shows that it answers.
        let output = self.program("stat").arg(&self.setup.mountpoint).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("stat: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("stat: {error}")),
        }
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let mountpoint = &self.setup.mountpoint;
        if is_mounted(mountpoint) && umount2(mountpoint, MntFlags::MNT_DETACH).is_err() {
            // What it says doesn't matter: whether it is still mounted does.
            let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(mountpoint).output();
        }
        end(&mut child, PATIENCE);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.stop();
        if is_mounted(&self.setup.mountpoint) {
            eprintln!("compare: still mounted: {}", self.setup.mountpoint.display());
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(1).is_some_and(|found| Path::new(found) == path))
}
