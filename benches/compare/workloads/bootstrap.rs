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
use crate::stage::WebStage;
use crate::work_dir::{self, give};
use crate::{Result, process, task};

const PREFIX: &str = "build-cache/bootstrap/";
/// Tarballs unpacked at a time.
const JOBS: usize = 16;
/// One in so many is there already when a bootstrap is half warm.
const HALF: usize = 2;

/// Where the shell layer and our scripts read from, and the rows of their figures.
struct Origin {
    url: String,
    /// Asked as a plain web server, not as one of S3.
    web: bool,
    link: Link,
    cold: &'static str,
    /// None when that is measured over another link.
    warm: Option<&'static str>,
}

/// Runs the workload.
pub fn run(context: &mut Context) -> Result<()> {
    let dir = context.work.scratch("bootstrap-", None)?;
    let artifacts = artifacts::bootstrap(dir.path(), &context.scale)?;
    for artifact in &artifacts {
        context.stage()?.put(&key(artifact), || artifact.bytes())?;
    }
    for run in 0..context.runs {
        for link in context.links.clone() {
            let what = format!("bootstrap, run {}, {}", run + 1, link.name());
            let warm = is_last(context, link).then_some("bootstrap.warm");
            let origin = Origin { url: context.url(link)?, web: false, link, cold: "bootstrap.cold", warm };
            for shell in context.shells_of(run) {
                if !(shell.is_aws() && context.scale.is_quick()) {
                    context.attempt(shell.name, &what, |context| {
                        by_shell(context, shell, &origin, &artifacts)
                    })?;
                }
            }
            for fs in Context::turn(&context.file_systems, run) {
                context.attempt(fs.name, &what, |context| by_mount(context, &fs, link, &artifacts))?;
            }
            for name in context.scripts.clone() {
                context.attempt(name, &what, |context| by_scripts(context, name, &origin, &artifacts))?;
            }
        }
    }
    Ok(())
}

/// The same from a plain web server, over the S3-like link, by those who read from one.
pub fn run_web(context: &mut Context) -> Result<()> {
    if !context.links.contains(&Link::S3Like) {
        return Ok(());
    }
    let dir = context.work.scratch("bootstrap-", None)?;
    let artifacts = artifacts::bootstrap(dir.path(), &context.scale)?;
    let mut stage = WebStage::start(context.work.path())?;
    for artifact in &artifacts {
        stage.put(&key(artifact), &artifact.local)?;
    }
    let (url, link) = (stage.url(), Link::S3Like);
    let origin = Origin { url, web: true, link, cold: "web.cold", warm: Some("web.warm") };
    for run in 0..context.runs {
        let what = format!("bootstrap from a web server, run {}", run + 1);
        for shell in context.shells_of(run).into_iter().filter(|shell| !shell.is_aws()) {
            context.attempt(shell.name, &what, |context| by_shell(context, shell, &origin, &artifacts))?;
        }
        for name in context.scripts.clone() {
            context.attempt(name, &what, |context| by_scripts(context, name, &origin, &artifacts))?;
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

fn by_shell(context: &mut Context, shell: Shell, origin: &Origin, artifacts: &[Artifact]) -> Result<()> {
    let kept = context.work.scratch("fetch-", None)?;
    let file = |artifact: &Artifact| -> PathBuf { kept.path().join(&artifact.name) };
    let command = |artifact: &Artifact, into: &Path| {
        let file = file(artifact);
        if shell.keeps && file.exists() {
            return tar(task::program("tar", None), &file, into);
        }
        shell.fetch_and_unpack(&origin.url, &key(artifact), &file, into)
    };
    let seconds = all(context, None, artifacts, &command)?;
    context.results.add(origin.cold, Some(origin.link), shell.name, seconds);
    let Some(warm) = origin.warm.filter(|_| shell.keeps) else { return Ok(()) };
    let seconds = all(context, None, artifacts, &command)?;
    context.results.add(warm, None, shell.name, seconds);
    if origin.web {
        return Ok(());
    }
    for artifact in artifacts.iter().step_by(HALF) {
        // Not removed: see `Scratch`.
        fs::rename(file(artifact), file(artifact).with_extension("before"))
            .map_err(|error| format!("{}: {error}", artifact.name))?;
    }
    let seconds = all(context, None, artifacts, &command)?;
    context.results.add("bootstrap.half", Some(origin.link), shell.name, seconds);
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
fn by_scripts(
    context: &mut Context,
    name: &'static str,
    origin: &Origin,
    artifacts: &[Artifact],
) -> Result<()> {
    let fs = context.own.clone();
    let place = context.work.scratch("scripts-", fs.user.as_ref())?;
    let setup = Setup::new(place.path(), &origin.url, PREFIX, fs.user.as_ref())?;
    let setup = Setup { web: origin.web, ..setup };
    let mounted = (name == SCRIPTS_MOUNT).then(|| Mounted::of(&fs, setup.clone())).transpose()?;
    let command = |artifact: &Artifact, into: &Path| {
        let mut command = fs.script(&setup, "cache_download");
        command.arg(&artifact.name).arg(into);
        command
    };
    let seconds = all(context, fs.user.as_ref(), artifacts, &command)?;
    context.results.add(origin.cold, Some(origin.link), name, seconds);
    if let Some(warm) = origin.warm {
        mounted.iter().try_for_each(Mounted::wait_until_idle)?;
        let seconds = all(context, fs.user.as_ref(), artifacts, &command)?;
        context.results.add(warm, None, name, seconds);
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
