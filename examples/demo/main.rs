//! aztec-cache in a terminal: an S3 server in this process, a mount of it, and what reading through it costs.
//!
//! `cargo run --release --example demo`, with `-- --keep` to play with the mount afterwards.

mod fuse;
mod interrupts;
mod shell;
mod stage;
mod story;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::interrupts::Interrupts;
use crate::stage::Stage;

const USAGE: &str = "\
Shows aztec-cache at work: cold and warm reads of a mounted bucket, with the requests they cost.

Usage: cargo run --release --example demo [-- --keep]

  --keep  leave it mounted afterwards, until Enter or Ctrl-C";

/// Why the story ended early.
enum Failure {
    /// A signal, by its number.
    Interrupted(i32),
    /// What went wrong and the remedy, in one line.
    Broken(String),
}

impl Failure {
    fn new(what: impl fmt::Display, error: &io::Error, remedy: &str) -> Failure {
        Failure::Broken(format!("{what}: {error}; {remedy}"))
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    // The stage puts this very file into PATH as `aztec-cache`, since an example is built without the binary.
    if args.next().is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new(stage::PROGRAM))) {
        return aztec_cache::commands::main(std::env::args_os());
    }
    let args: Vec<OsString> = args.collect();
    match args.iter().map(|arg| arg.to_str()).collect::<Option<Vec<_>>>().as_deref() {
        Some([]) => demo(false),
        Some(["--keep"]) => demo(true),
        Some(["-h" | "--help"]) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("demo: unknown arguments {args:?}; the only option is --keep");
            ExitCode::from(2)
        }
    }
}

fn demo(keep: bool) -> ExitCode {
    match play(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Interrupted(signal)) => {
            eprintln!("demo: interrupted");
            ExitCode::from(128 + u8::try_from(signal).unwrap_or(0))
        }
        Err(Failure::Broken(what)) => {
            eprintln!("demo: {what}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the story and strikes the stage, however the story ended.
fn play(keep: bool) -> Result<(), Failure> {
    fuse::check()?;
    let interrupts = Interrupts::catch()?;
    let stage = Stage::set_up(&interrupts)?;
    let mut told = story::tell(&stage);
    if keep && told.is_ok() {
        told = story::keep(&stage, &interrupts);
    }
    match (told, stage.strike()) {
        (Err(Failure::Broken(what)), Err(Failure::Broken(left))) => {
            Err(Failure::Broken(format!("{what}\ndemo: {left}")))
        }
        (told, struck) => struck.and(told),
    }
}
