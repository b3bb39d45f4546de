//! Side by side: a build cache read through our mount, and by other ways to the same bytes.
//!
//! `cargo bench --bench compare -- --help` has the flags; `docs/performance.md` tells how to read what comes out.
//!
//! The S3 server and the proxy run in processes of their own (this binary, started again, see [`helper`]), and so does
//! whatever reads (see [`task`]): what is measured of a process is that process's alone.

mod args;
mod artifacts;
mod contenders;
mod context;
mod helper;
mod interrupt;
mod machine;
mod measures;
mod mounted;
mod process;
mod report;
mod results;
mod scale;
mod shell;
mod stage;
mod task;
mod work_dir;
mod workloads;

use std::process::ExitCode;

use clap::Parser;

use args::Args;
use context::Context;

/// What goes wrong, said to a person.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let result = match args.next().as_deref() {
        Some(helper::ROLE) => helper::serve(&args.collect::<Vec<_>>()),
        Some(task::ROLE) => task::perform(&args.collect::<Vec<_>>()),
        _ => compare(&Args::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Result<()> {
    interrupt::watch()?;
    let mut context = Context::new(args)?;
    let began = std::time::Instant::now();
    for workload in args.workloads() {
        context.progress(&format!("== {workload:?}"));
        if let Err(error) = workloads::run(workload, &mut context) {
            // What was measured until then is worth having.
            print!("{}", report::tables(&context, &[]));
            return Err(error);
        }
    }
    context.progress(&format!("done in {:.0} s", began.elapsed().as_secs_f64()));
    let measures = measures::judge(&context.results);
    print!("{}", report::tables(&context, &measures));
    report::write_json(&args.json(), args, &context, &measures)
}
