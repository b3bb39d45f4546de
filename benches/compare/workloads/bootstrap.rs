//! Many tarballs of all sizes, unpacked 16 at a time, as a build does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use aztec_cache_test_support::user::User;

use super::tar::tar;
use crate::args::Link;
use crate::artifacts::{self, Artifact};
use crate::contenders::{FileSystem, LOCAL, SCRIPTS_MOUNT, Setup};
use crate::context::Context;
use crate::mounted::Mounted;
use crate::shell::Shell;
use crate::work_dir::{self, give};
use crate::{Result, process, task};

const PREFIX: &str = "build-cache/bootstrap/";
/// Tarballs unpacked at a time.
const JOBS: usize = 16;
/// One in so many is there already when a bootstrap is half warm.
const HALF: usize = 2;

/// Runs the workload.
pub fn run(context: &mut Context) -> Result<()> {
    let dir = context.work.scratch("bootstrap-", None)?;
    let artifacts = artifacts::bootstrap(dir.path(), &context.scale)?;
    for artifact in &artifacts {
        context.stage()?.put(&key(artifact), || artifact.bytes())?;
    }
    for run in 0..context.runs {
        let what = format!("bootstrap, run {}", run + 1);
        for link in context.links.clone() {
            let what = format!("{what}, {}", link.name());
            for shell in context.shells_of(run) {
                if !(shell.is_slow_to_start() && context.scale.is_quick()) {
                    context
                        .attempt(shell.name, &what, |context| by_shell(context, shell, link, &artifacts))?;
                }
            }
            for fs in Context::turn(&context.file_systems, run) {
                context.attempt(fs.name, &what, |context| by_mount(context, &fs, link, &artifacts))?;
            }
            for name in context.scripts.clone() {
                context.attempt(name, &what, |context| by_scripts(context, name, link, &artifacts))?;
            }
        }
    }
    Ok(())
}

/// What is warm takes the same time over any link: it is measured over the last, the slowest, alone.
fn is_last(context: &Context, link: Link) -> bool {
    Some(&link) == context.links.last()
}

fn key(artifact: &Artifact) -> String {
    format!("{PREFIX}{}", artifact.name)
}

fn by_shell(context: &mut Context, shell: Shell, link: Link, artifacts: &[Artifact]) -> Result<()> {
    let url = context.url(link)?;
    let kept = context.work.scratch("fetch-", None)?;
    let file = |artifact: &Artifact| -> PathBuf { kept.path().join(&artifact.name) };
    let command = |artifact: &Artifact, into: &Path| {
        let file = file(artifact);
        if shell.keeps && file.exists() {
            return tar(task::program("tar", None), &file, into);
        }
        shell.fetch_and_unpack(&url, &key(artifact), &file, into)
    };
    let seconds = all(context, None, artifacts, &command)?;
    context.results.add("bootstrap.cold", Some(link), shell.name, seconds);
    if shell.keeps && is_last(context, link) {
        let seconds = all(context, None, artifacts, &command)?;
        context.results.add("bootstrap.warm", None, shell.name, seconds);
        for artifact in artifacts.iter().step_by(HALF) {
            // Not removed: see `Scratch`.
            fs::rename(file(artifact), file(artifact).with_extension("before"))
                .map_err(|error| format!("{}: {error}", artifact.name))?;
        }
        let seconds = all(context, None, artifacts, &command)?;
        context.results.add("bootstrap.half", Some(link), shell.name, seconds);
    }
    Ok(())
}

fn by_mount(context: &mut Context, fs: &FileSystem, link: Link, artifacts: &[Artifact]) -> Result<()> {
    let url = context.url(link)?;
    let user = fs.user.as_ref();
    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    let seconds = through(context, user, &mounted, artifacts)?;
    context.results.add("bootstrap.cold", Some(link), fs.name, seconds);
    if !is_last(context, link) {
        return Ok(());
    }
    mounted.wait_until_idle()?;
    let seconds = through(context, user, &mounted, artifacts)?;
    context.results.add("bootstrap.warm", None, fs.name, seconds);
    drop(mounted);
    if fs.is_ours() {
        by_tar_alone(context, artifacts)?;
    }

    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    for artifact in artifacts.iter().skip(1).step_by(HALF) {
        mounted.read(&artifact.name, artifact.size)?;
    }
    mounted.wait_until_idle()?;
    let seconds = through(context, user, &mounted, artifacts)?;
    context.results.add("bootstrap.half", Some(link), fs.name, seconds);
    Ok(())
}

/// Our scripts, which a build calls once for each artifact.
fn by_scripts(context: &mut Context, name: &'static str, link: Link, artifacts: &[Artifact]) -> Result<()> {
    let url = context.url(link)?;
    let fs = context.own.clone();
    let place = context.work.scratch("scripts-", fs.user.as_ref())?;
    let unmounted = Setup::new(place.path(), &url, PREFIX, fs.user.as_ref())?;
    let mounted = match name {
        SCRIPTS_MOUNT => Some(Mounted::new(&fs, &context.work, &url, PREFIX)?),
        _ => None,
    };
    let setup = mounted.as_ref().map_or(&unmounted, Mounted::setup);
    let command = |artifact: &Artifact, into: &Path| {
        let mut command = fs.script(setup, "cache_download");
        command.arg(&artifact.name).arg(into);
        command
    };
    let seconds = all(context, fs.user.as_ref(), artifacts, &command)?;
    context.results.add("bootstrap.cold", Some(link), name, seconds);
    if is_last(context, link) {
        mounted.iter().try_for_each(Mounted::wait_until_idle)?;
        let seconds = all(context, fs.user.as_ref(), artifacts, &command)?;
        context.results.add("bootstrap.warm", None, name, seconds);
    }
    Ok(())
}

/// The plain copies, in turns with ours: the state of memory and disk makes a larger difference than the way to them.
fn by_tar_alone(context: &mut Context, artifacts: &[Artifact]) -> Result<()> {
    let seconds = all(context, None, artifacts, &|artifact, into| {
        tar(task::program("tar", None), &artifact.local, into)
    })?;
    context.results.add("bootstrap.warm", None, LOCAL, seconds);
    Ok(())
}

fn through(context: &Context, user: Option<&User>, mounted: &Mounted, artifacts: &[Artifact]) -> Result<f64> {
    all(context, user, artifacts, &|artifact, into| {
        tar(mounted.program("tar"), &mounted.path(&artifact.name), into)
    })
}

/// Unpacks all artifacts, each by a command into a directory of its own; the seconds that took.
fn all(
    context: &Context,
    user: Option<&User>,
    artifacts: &[Artifact],
    command: &(dyn Fn(&Artifact, &Path) -> Command + Sync),
) -> Result<f64> {
    let out = context.work.scratch("out-", user)?;
    let into = |index: usize| out.path().join(index.to_string());
    for index in 0..artifacts.len() {
        fs::create_dir(into(index)).map_err(|error| format!("{}: {error}", out.path().display()))?;
        give(&into(index), user)?;
    }
    process::settle_disk();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::SeqCst);
            let Some(artifact) = artifacts.get(index) else { return Ok(()) };
            process::run(&mut command(artifact, &into(index)))?;
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..JOBS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("jobs don't panic"))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let files: usize = artifacts.iter().map(|artifact| artifact.files).sum();
    match work_dir::count_files(out.path())? {
        found if found == files => Ok(seconds),
        found => Err(format!("{found} files instead of {files} were unpacked")),
    }
}
