//! `ls -l` of a large directory.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::args::Link;
use crate::contenders::{FileSystem, LOCAL};
use crate::context::Context;
use crate::mounted::Mounted;
use crate::{Result, process, task, work_dir};

const PREFIX: &str = "build-cache/ls/";

/// Runs the workload.
pub fn run(context: &mut Context) -> Result<()> {
    let names: Vec<String> =
        (0..context.scale.names).map(|index| format!("contract-{index:016x}.tar.gz")).collect();
    let keys: Vec<String> = names.iter().map(|name| format!("{PREFIX}{name}")).collect();
    context.stage()?.put_small(&keys, b"x")?;
    for run in 0..context.runs {
        for link in context.links.clone() {
            let what = format!("ls, {}, run {}", link.name(), run + 1);
            for fs in Context::turn(&context.file_systems, run) {
                context.attempt(fs.name, &what, |context| list(context, &fs, link))?;
            }
        }
    }
    list_local(context, &names)
}

fn list(context: &mut Context, fs: &FileSystem, link: Link) -> Result<()> {
    let url = context.url(link)?;
    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    let first = ls(mounted.program("ls"), mounted.root(), context.scale.names)?;
    context.results.add("ls.first", Some(link), fs.name, first);
    let again = ls(mounted.program("ls"), mounted.root(), context.scale.names)?;
    context.results.add("ls.again", Some(link), fs.name, again);
    Ok(())
}

/// Last, since emptying the kernel's caches would make the server slower for others.
fn list_local(context: &mut Context, names: &[String]) -> Result<()> {
    let dir = context.work.scratch("names-", None)?;
    for name in names {
        File::create(dir.path().join(name)).map_err(|error| format!("{name}: {error}"))?;
    }
    for _ in 0..context.runs {
        let cold = work_dir::drop_caches();
        let first = ls(task::program("ls", None), dir.path(), context.scale.names)?;
        let again = ls(task::program("ls", None), dir.path(), context.scale.names)?;
        for link in context.links.clone() {
            if cold {
                context.results.add("ls.first", Some(link), LOCAL, first);
            }
            context.results.add("ls.again", Some(link), LOCAL, again);
        }
    }
    Ok(())
}

fn ls(mut command: Command, dir: &Path, names: u64) -> Result<f64> {
    let ran = process::run(command.env("LC_ALL", "C").arg("-l").arg(dir))?;
    let found = ran.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"-")).count() as u64;
    if found != names {
        return Err(format!("{found} names instead of {names}"));
    }
    Ok(ran.wall)
}
