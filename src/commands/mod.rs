//! The subcommands, a file each.

mod mount;
mod unmount;

use crate::cli::{Cli, Command};
use crate::error::Result;

/// Does what the command line says; returns the exit code.
pub fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Unmount(args) => unmount::run(&args).map(|()| 0),
    }
}
