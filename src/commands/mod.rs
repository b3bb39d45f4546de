//! The subcommands, a file each.

mod cache_download;
mod engine;
mod evict;
mod exists;
mod extract;
mod get;
mod ls;
mod mount;
mod prefetch;
mod progress;
mod put;
mod setup_passthrough;
mod status;
mod unmount;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cli::{self, Cli, Command, LogArgs};
use crate::error::{Kind, Result};
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
        Command::Get(args) => or_quiet_miss(get::run(&args), &args.engine.log),
        Command::Put(args) => put::run(&args),
        Command::CacheDownload(args) => Ok(cache_download::run(&args)),
        Command::Extract(args) => or_quiet_miss(extract::run(&args), &args.engine.log),
        Command::Exists(args) => exists::run(&args),
        Command::Ls(args) => ls::run(&args).map(|()| 0),
        Command::Prefetch(args) => prefetch::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Evict(args) => evict::evict(&args),
        Command::Prune(args) => evict::prune(&args).map(|()| 0),
        Command::Status(args) => status::run(&args).map(|()| 0),
        Command::SetupPassthrough(args) => setup_passthrough::run(&args).map(|()| 0),
    }
}

/// The exit code. With `--quiet` nothing is said of an artifact that doesn't exist: scripts that try their luck look at the
/// code.
fn or_quiet_miss(result: Result<()>, log: &LogArgs) -> Result<u8> {
    match result {
        Err(error) if log.quiet && error.kind() == Kind::NotFound => Ok(error.exit_code()),
        result => result.map(|()| 0),
    }
}
