//! One large file, read to its end.

use std::fs;
use std::path::{Path, PathBuf};

use aztec_cache_test_support::artifacts::random_bytes;

use crate::args::Link;
use crate::contenders::{CACHE_FILE, FileSystem, LOCAL};
use crate::context::Context;
use crate::mounted::Mounted;
use crate::process::{self, cpu_of, peak_memory_of};
use crate::shell::Shell;
use crate::{Result, task, work_dir};

const PREFIX: &str = "build-cache/read/";
const NAME: &str = "large-0123456789abcdef.zst";
/// The least a first byte can cost: one request's, and a HEAD before it.
pub const ROUND_TRIPS: &str = "HEAD + GET";

/// Runs the workload.
pub fn run(context: &mut Context) -> Result<()> {
    let local = context.work.dir("local")?.join(NAME);
    let bytes = random_bytes(1, context.scale.large as usize);
    fs::write(&local, &bytes).map_err(|error| format!("{}: {error}", local.display()))?;
    context.stage()?.put(&key(), || bytes)?;
    for run in 0..context.runs {
        for link in context.links.clone() {
            let what = format!("read, {}, run {}", link.name(), run + 1);
            round_trips(context, link)?;
            for shell in context.shells_of(run) {
                context.attempt(shell.name, &what, |context| fetch(context, shell, link))?;
            }
            for fs in Context::turn(&context.file_systems, run) {
                context.attempt(fs.name, &what, |context| read(context, &fs, link, &local))?;
            }
        }
    }
    let _ = fs::remove_file(&local);
    Ok(())
}

fn key() -> String {
    format!("{PREFIX}{NAME}")
}

fn round_trips(context: &mut Context, link: Link) -> Result<()> {
    let (head, first) = context.stage()?.round_trips(link, &key())?;
    context.results.add("read.first", Some(link), ROUND_TRIPS, head + first);
    Ok(())
}

fn fetch(context: &mut Context, shell: Shell, link: Link) -> Result<()> {
    let scratch = context.work.scratch("fetch-", None)?;
    let url = context.url(link)?;
    context.stage()?.warm(&key())?;
    process::settle_disk();
    let ran = process::run(&mut shell.fetch(&url, &key(), &scratch.path().join(NAME)))?;
    context.results.add("read.cold", Some(link), shell.name, ran.wall);
    context.results.add("read.cpu", Some(link), shell.name, ran.cpu);
    Ok(())
}

fn read(context: &mut Context, fs: &FileSystem, link: Link, local: &Path) -> Result<()> {
    let size = context.scale.large;
    let url = context.url(link)?;
    context.stage()?.warm(&key())?;
    let mut mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    process::settle_disk();
    let before = cpu_of(mounted.pid())?;
    let cold = mounted.read(NAME, size)?;
    mounted.wait_until_idle()?;
    let mut add = |id, value| context.results.add(id, Some(link), fs.name, value);
    add("read.first", cold.first());
    add("read.cold", cold.seconds());
    add("read.cpu", cpu_of(mounted.pid())? - before);
    add("read.memory", peak_memory_of(mounted.pid())?);
    // What is warm doesn't come over the link.
    if Some(&link) == context.links.first() {
        warm(context, &mut mounted, fs, local)?;
    }
    Ok(())
}

fn warm(context: &mut Context, mounted: &mut Mounted, fs: &FileSystem, local: &Path) -> Result<()> {
    let size = context.scale.large;
    process::settle_disk();
    for turn in 0..=context.scale.warm_reads {
        // The second time isn't like the third: the kernel marks pages that are used again.
        let row = if turn == 0 { "read.second" } else { "read.warm" };
        // In turns with the local files, so that what slows the machine down slows all.
        context.results.add(row, None, fs.name, mounted.read(NAME, size)?.seconds());
        context.results.add(row, None, LOCAL, read_local(local)?);
        if fs.is_ours() {
            context.results.add(row, None, CACHE_FILE, read_local(&mounted.cached(NAME))?);
        }
    }
    mounted.restart()?;
    context.results.add("read.restart", None, fs.name, mounted.read(NAME, size)?.seconds());
    if work_dir::drop_caches() {
        context.results.add("read.dropped", None, fs.name, mounted.read(NAME, size)?.seconds());
        work_dir::drop_caches();
        context.results.add("read.dropped", None, LOCAL, read_local(local)?);
    }
    Ok(())
}

fn read_local(path: &Path) -> Result<f64> {
    let path: PathBuf = path.to_owned();
    Ok(task::run(&[&"read", &path], None)?.seconds())
}
