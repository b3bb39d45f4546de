//! `tar -xf` of one large tarball.

use std::path::Path;
use std::process::Command;

use aztec_cache_test_support::user::User;

use crate::args::Link;
use crate::artifacts::{Artifact, Kind};
use crate::contenders::{EXTRACT, FileSystem, LOCAL, Setup};
use crate::context::Context;
use crate::mounted::Mounted;
use crate::process;
use crate::shell::Shell;
use crate::work_dir::{self, Scratch};
use crate::{Result, task};

const PREFIX: &str = "build-cache/tar/";

/// How often we and the local file take turns in each run.
const OUR_TURNS: u32 = 3;

/// A tarball and its rows.
#[derive(Clone)]
struct Subject {
    artifact: Artifact,
    cold: &'static str,
    warm: &'static str,
    fetch: &'static str,
}

/// Runs the workload.
pub fn run(context: &mut Context) -> Result<()> {
    let subjects = subjects(context)?;
    for run in 0..context.runs {
        for subject in &subjects {
            let what = format!("tar, {}, run {}", subject.artifact.name, run + 1);
            for link in context.links.clone() {
                let what = format!("{what}, {}", link.name());
                for shell in context.shells_of(run) {
                    context.attempt(shell.name, &what, |context| fetch(context, shell, link, subject))?;
                }
                for fs in Context::turn(&context.file_systems, run) {
                    context.attempt(fs.name, &what, |context| unpack(context, &fs, link, subject))?;
                }
                if context.extracts {
                    context.attempt(EXTRACT, &what, |context| extract(context, link, subject))?;
                }
            }
        }
    }
    for subject in subjects {
        let _ = std::fs::remove_file(subject.artifact.local);
    }
    Ok(())
}

fn subjects(context: &mut Context) -> Result<Vec<Subject>> {
    let dir = context.work.dir("local")?;
    let (size, files) = (context.scale.tarball, context.scale.tarball_files);
    let kinds = [
        ("tar.gz", "tar.gz.cold", "tar.gz.warm", "tar.gz.fetch"),
        ("zst", "tar.zst.cold", "tar.zst.warm", "tar.zst.fetch"),
    ];
    let mut subjects = Vec::new();
    for (ext, cold, warm, fetch) in kinds {
        let artifact = Artifact::make(&dir, &Kind { component: "noir", ext, size, files }, 7)?;
        context.stage()?.put(&format!("{PREFIX}{}", artifact.name), || artifact.bytes())?;
        subjects.push(Subject { artifact, cold, warm, fetch });
    }
    Ok(subjects)
}

fn fetch(context: &mut Context, shell: Shell, link: Link, subject: &Subject) -> Result<()> {
    let key = format!("{PREFIX}{}", subject.artifact.name);
    let url = context.url(link)?;
    let kept = context.work.scratch("fetch-", None)?;
    let file = kept.path().join(&subject.artifact.name);
    let out = context.work.scratch("out-", None)?;
    context.stage()?.warm(&key)?;
    let seconds = timed(&mut shell.fetch_and_unpack(&url, &key, &file, out.path()), out, subject)?;
    context.results.add(subject.cold, Some(link), shell.name, seconds);
    Ok(())
}

fn unpack_local(context: &mut Context, subject: &Subject) -> Result<()> {
    let out = context.work.scratch("out-", None)?;
    let command = task::program("tar", None);
    let seconds = timed(&mut tar(command, &subject.artifact.local, out.path()), out, subject)?;
    context.results.add(subject.warm, None, LOCAL, seconds);
    Ok(())
}

fn unpack(context: &mut Context, fs: &FileSystem, link: Link, subject: &Subject) -> Result<()> {
    let artifact = &subject.artifact;
    let url = context.url(link)?;
    context.stage()?.warm(&format!("{PREFIX}{}", artifact.name))?;
    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    let seconds = unpack_once(context, &mounted, fs.user.as_ref(), subject)?;
    context.results.add(subject.cold, Some(link), fs.name, seconds);
    mounted.wait_until_idle()?;
    // What is warm doesn't come over the link. Ours and the local file's time differ by little: in turns, and often.
    let turns = if Some(&link) != context.links.first() {
        0
    } else if fs.is_ours() {
        OUR_TURNS
    } else {
        1
    };
    for _ in 0..turns {
        let seconds = unpack_once(context, &mounted, fs.user.as_ref(), subject)?;
        context.results.add(subject.warm, None, fs.name, seconds);
        if fs.is_ours() {
            unpack_local(context, subject)?;
        }
    }
    drop(mounted);
    if fs.is_ours() {
        let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
        process::settle_disk();
        let seconds = mounted.read(&artifact.name, artifact.size)?.seconds();
        context.results.add(subject.fetch, Some(link), fs.name, seconds);
    }
    Ok(())
}

/// Our command, which needs no mount.
fn extract(context: &mut Context, link: Link, subject: &Subject) -> Result<()> {
    let url = context.url(link)?;
    let fs = context.own.clone();
    let place = context.work.scratch("extract-", fs.user.as_ref())?;
    let setup = Setup::new(place.path(), &url, PREFIX, fs.user.as_ref())?;
    context.stage()?.warm(&format!("{PREFIX}{}", subject.artifact.name))?;
    for (row, link) in [(subject.cold, Some(link)), (subject.warm, None)] {
        let out = context.work.scratch("out-", fs.user.as_ref())?;
        let mut command = fs.extract(&setup, &subject.artifact.name, out.path());
        let seconds = timed(&mut command, out, subject)?;
        context.results.add(row, link, EXTRACT, seconds);
    }
    Ok(())
}

fn unpack_once(context: &Context, mounted: &Mounted, user: Option<&User>, subject: &Subject) -> Result<f64> {
    let out = context.work.scratch("out-", user)?;
    let from = mounted.path(&subject.artifact.name);
    timed(&mut tar(mounted.program("tar"), &from, out.path()), out, subject)
}

/// Unpacks the tarball `from` into `into`.
pub fn tar(mut command: Command, from: &Path, into: &Path) -> Command {
    command.arg("-xf").arg(from).arg("-C").arg(into);
    command
}

fn timed(command: &mut Command, out: Scratch, subject: &Subject) -> Result<f64> {
    process::settle_disk();
    let wall = process::run(command)?.wall;
    let (found, files) = (work_dir::count_files(out.path())?, subject.artifact.files);
    if found != files {
        return Err(format!("{found} files instead of {files} were unpacked"));
    }
    Ok(wall)
}
