//! The `aztec-cache` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    aztec_cache::commands::main(std::env::args_os())
}
