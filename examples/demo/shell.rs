//! A shell whose commands and remarks are shown as they happen.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::interrupts::Interrupts;

const BOLD: &str = "1";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// Runs commands with `sh`, in a home and an environment of its own.
pub struct Shell {
    home: PathBuf,
    env: RefCell<Vec<(String, OsString)>>,
    interrupts: Arc<Interrupts>,
    coloured: bool,
}

impl Shell {
    /// A shell at home in `home`, with nothing but `PATH` of the caller's environment, and programs in
    /// `home`'s `.bin` before others.
    pub fn new(home: &Path, interrupts: &Arc<Interrupts>) -> Shell {
        let mut path = OsString::from(home.join(".bin"));
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Shell {
            home: home.to_owned(),
            env: RefCell::new(vec![("HOME".to_owned(), home.into()), ("PATH".to_owned(), path)]),
            interrupts: interrupts.clone(),
            coloured: std::io::stdout().is_terminal() && !no_colour,
        }
    }

    /// Sets a variable for the commands that follow, unshown.
    pub fn set(&self, name: &str, value: impl Into<OsString>) {
        self.env.borrow_mut().push((name.to_owned(), value.into()));
    }

    /// Sets a variable for the commands that follow; `shown` is its value as one would write it.
    pub fn export(&self, name: &str, value: impl Into<OsString>, shown: &str) -> Result<(), Failure> {
        self.set(name, value);
        self.print(BOLD, format_args!("$ export {name}={shown}"))
    }

    /// Anything else.
    pub fn say(&self, text: impl Display) -> Result<(), Failure> {
        self.print("", text)
    }

    /// What the next commands are about.
    pub fn remark(&self, text: impl Display) -> Result<(), Failure> {
        self.say("")?;
        self.print(CYAN, format_args!("# {text}"))
    }

    /// What the last command cost.
    pub fn measure(&self, text: impl Display) -> Result<(), Failure> {
        self.print(GREEN, format_args!("  {text}"))
    }

    /// # Errors
    /// A signal has been caught.
    pub fn check(&self) -> Result<(), Failure> {
        self.interrupts.check()
    }

    /// Shows and runs a command; returns how long it took.
    ///
    /// # Errors
    /// It failed, or a signal ended it.
    pub fn run(&self, command: &str) -> Result<Duration, Failure> {
        self.start(command, |sh| self.interrupts.run(sh))
    }

    /// Like [`Shell::run`], but no signal ends it half-way: for what has to be undone later.
    pub fn run_whole(&self, command: &str) -> Result<Duration, Failure> {
        self.start(command, Command::status)
    }

    fn start(
        &self,
        command: &str,
        run: impl FnOnce(&mut Command) -> std::io::Result<std::process::ExitStatus>,
    ) -> Result<Duration, Failure> {
        self.check()?;
        self.print(BOLD, format_args!("$ {command}"))?;
        let start = Instant::now();
        let status = run(&mut self.sh(command)).map_err(|e| Failure::new("sh", &e, "check PATH"))?;
        let took = start.elapsed();
        self.check()?;
        if status.success() {
            return Ok(took);
        }
        Err(Failure::Broken(format!("'{command}' failed ({status}); mend what it says above and try again")))
    }

    /// `command` in a process group of its own: a terminal's Ctrl-C reaches the demo alone, which then ends it.
    pub fn sh(&self, command: &str) -> Command {
        let mut sh = Command::new("sh");
        sh.args(["-c", command]).env_clear().envs(self.env.borrow().iter().cloned());
        sh.current_dir(&self.home).stdin(Stdio::null()).process_group(0);
        sh
    }

    fn print(&self, colour: &str, text: impl Display) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let written = match self.coloured && !colour.is_empty() {
            true => writeln!(out, "\x1b[{colour}m{text}\x1b[0m"),
            false => writeln!(out, "{text}"),
        };
        written.map_err(|e| Failure::new("stdout", &e, "let it go to a terminal or a file"))
    }
}
