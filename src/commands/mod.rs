//! The subcommands, a file each.

mod engine;
mod evict;
mod exists;
mod extract;
mod get;
mod ls;
mod mount;
mod prefetch;
mod progress;
mod setup_passthrough;
mod unmount;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cli::{self, Cli, Command};
use crate::error::Result;
use crate::privilege;

/// The whole program: does what `args` say; a failure is one line on stderr.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = cli::parse(args).and_then(|cli| cli.map_or(Ok(0), run));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("aztec-cache: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Does what the command line says; returns the exit code.
fn run(cli: Cli) -> Result<u8> {
    privilege::lower();
    match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Unmount(args) => unmount::run(&args).map(|()| 0),
        Command::Get(args) => get::run(&args).map(|()| 0),
        Command::Extract(args) => extract::run(&args).map(|()| 0),
        Command::Exists(args) => exists::run(&args),
        Command::Ls(args) => ls::run(&args).map(|()| 0),
        Command::Prefetch(args) => prefetch::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Evict(args) => evict::evict(&args),
        Command::Prune(args) => evict::prune(&args).map(|()| 0),
        Command::SetupPassthrough(args) => setup_passthrough::run(&args).map(|()| 0),
    }
}
