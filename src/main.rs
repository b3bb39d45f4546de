//! The `aztec-cache` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = aztec_cache::cli::parse(std::env::args_os()).and_then(|cli| match cli {
        Some(cli) => aztec_cache::commands::run(cli),
        None => Ok(0),
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("aztec-cache: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
