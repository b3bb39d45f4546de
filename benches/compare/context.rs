//! What all workloads share.

use std::fs::{File, TryLockError};
use std::time::SystemTime;

use crate::args::{Args, Link, Server};
use crate::contenders::{EXTRACT, FileSystem, SCRIPTS, SCRIPTS_MOUNT};
use crate::results::Results;
use crate::scale::Scale;
use crate::shell::Shell;
use crate::stage::Stage;
use crate::work_dir::WorkDir;
use crate::{Result, interrupt, process};

/// One run of the benchmark.
pub struct Context {
    /// How large everything is.
    pub scale: Scale,
    /// How often everything is done.
    pub runs: u32,
    /// The ways to the server.
    pub links: Vec<Link>,
    /// The mounts compared.
    pub file_systems: Vec<FileSystem>,
    /// Our mount, which the scripts use.
    pub own: FileSystem,
    /// The ways in which our scripts are compared.
    pub scripts: Vec<&'static str>,
    /// Whether our command that unpacks is compared.
    pub extracts: bool,
    /// The commands compared.
    pub shells: Vec<Shell>,
    /// What was measured so far.
    pub results: Results,
    /// What didn't work.
    pub notes: Vec<String>,
    /// When it all began.
    pub began: SystemTime,
    /// Which server is read from.
    pub server: Server,
    // Dropped in this order: the server's files are in the directory.
    stage: Option<Stage>,
    /// Where files go.
    pub work: WorkDir,
    /// Locked: two benchmarks at a time would measure each other.
    _turn: Option<File>,
}

/// Waits until no other benchmark runs on this machine, as far as that can be known.
fn wait_for_turn() -> Result<Option<File>> {
    let Ok(file) = File::create(std::env::temp_dir().join("aztec-cache-bench.lock")) else { return Ok(None) };
    let mut told = false;
    while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        if !std::mem::replace(&mut told, true) {
            eprintln!("compare: another benchmark is running: waiting for its end");
        }
        interrupt::check()?;
        std::thread::sleep(process::POLL);
    }
    Ok(Some(file))
}

impl Context {
    /// Looks for the contenders.
    pub fn new(args: &Args) -> Result<Context> {
        let chosen =
            |name: &str| args.contenders.is_empty() || args.contenders.iter().any(|chosen| chosen == name);
        let turn = wait_for_turn()?;
        let work = WorkDir::new()?;
        let mut file_systems = FileSystem::all(work.path())?;
        let own = file_systems.first().cloned().ok_or("no mount of ours")?;
        file_systems.retain(|fs| chosen(fs.name));
        let mut scripts = vec![SCRIPTS_MOUNT, SCRIPTS];
        scripts.retain(|name| chosen(name));
        let mut shells = Shell::all();
        shells.retain(|shell| chosen(shell.name));
        Ok(Context {
            scale: args.scale(),
            runs: args.runs(),
            links: args.links(),
            file_systems,
            own,
            scripts,
            extracts: chosen(EXTRACT),
            shells,
            results: Results::default(),
            notes: Vec::new(),
            began: SystemTime::now(),
            server: args.server,
            stage: None,
            work,
            _turn: turn,
        })
    }

    /// The server, started when it is first asked for.
    pub fn stage(&mut self) -> Result<&mut Stage> {
        if self.stage.is_none() {
            self.stage = Some(Stage::start(self.server, self.work.path())?);
        }
        Ok(self.stage.as_mut().expect("just started"))
    }

    /// Ends the server, and with it what it has on disk.
    pub fn end_stage(&mut self) {
        self.stage = None;
    }

    /// The endpoint URL of a link to the server.
    pub fn url(&mut self, link: Link) -> Result<String> {
        Ok(self.stage()?.url(link))
    }

    /// Measures one contender once. That it fails is noted, and doesn't keep the others from being measured.
    pub fn attempt(
        &mut self,
        name: &str,
        what: &str,
        measure: impl FnOnce(&mut Context) -> Result<()>,
    ) -> Result<()> {
        interrupt::check()?;
        self.progress(&format!("{what}: {name}"));
        if let Err(error) = measure(self) {
            interrupt::check()?;
            let note = format!("{what}, {name}: {error}");
            eprintln!("compare: {note}");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(())
    }

    /// Our mounts.
    pub fn ours(&self) -> Vec<FileSystem> {
        self.file_systems.iter().filter(|fs| fs.is_ours()).cloned().collect()
    }

    /// The same in another order for each run, so that nobody always comes after the same other.
    pub fn turn<T: Clone>(items: &[T], run: u32) -> Vec<T> {
        let mut items = items.to_vec();
        if !items.is_empty() {
            let by = run as usize % items.len();
            items.rotate_left(by);
        }
        items
    }

    /// The commands that take part in a run.
    pub fn shells_of(&self, run: u32) -> Vec<Shell> {
        let mut shells = Context::turn(&self.shells, run);
        shells.retain(|shell| shell.takes_part(run));
        shells
    }

    /// Tells whoever waits how far it is.
    pub fn progress(&self, what: &str) {
        let since = self.began.elapsed().unwrap_or_default().as_secs();
        eprintln!("[{since:4} s] {what}");
    }
}
