//! The subcommands, a file each.

mod mount;
mod setup_passthrough;
mod unmount;

use crate::cli::{Cli, Command};
use crate::error::Result;
use crate::privilege;

/// Does what the command line says; returns the exit code.
pub fn run(cli: Cli) -> Result<u8> {
    privilege::lower();
    match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Unmount(args) => unmount::run(&args).map(|()| 0),
        Command::SetupPassthrough(args) => setup_passthrough::run(&args).map(|()| 0),
    }
}
