//! A file of 10 MB, copied by `cp` into the mount, where a close returns once the artifact is safe on this disk, and, as a
//! measure, to the disk itself, with fsync.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use aztec_cache_test_support::artifacts::{random_bytes, tar_gz};
use serde_json::Value;

use crate::args::Link;
use crate::contenders::{FileSystem, LOCAL};
use crate::context::Context;
use crate::mounted::Mounted;
use crate::process::{self, wait_for};
use crate::{Result, task};

const PREFIX: &str = "build-cache/copy/";
const SIZE: usize = 10_000_000;
/// How many files are in the tarball.
const FILES: usize = 50;

/// Runs the workload: with bytes that nobody looks into, and with a tarball, which is decoded to its end.
pub fn run(context: &mut Context) -> Result<()> {
    let dir = context.work.dir("copy")?;
    let sources = [("copy.plain", dir.join("plain.bin")), ("copy.gz", dir.join("tarball.tar.gz"))];
    for ((_, path), bytes) in sources.iter().zip([random_bytes(9, SIZE), tar_gz(9, SIZE, FILES)]) {
        fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    for run in 0..context.runs {
        let what = format!("copy, run {}", run + 1);
        for fs in Context::turn(&context.ours(), run) {
            context.attempt(fs.name, &what, |context| copy(context, &fs, &sources, run))?;
        }
    }
    Ok(())
}

/// Copies each of `sources` by turns to the disk and into a mount.
fn copy(context: &mut Context, fs: &FileSystem, sources: &[(&'static str, PathBuf)], run: u32) -> Result<()> {
    let url = context.url(Link::Raw)?;
    let mounted = Mounted::with_flags(fs, &context.work, &url, PREFIX, &["--upload=background"])?;
    let local = context.work.scratch("copy-", fs.user.as_ref())?;
    for round in 0..context.scale.copies {
        for (id, source) in sources {
            let ext = source.extension().unwrap_or_default().display();
            let name = format!("noir-{run}{round}{:08x}.{ext}", fs.name.len());
            settle(&mounted)?;
            let time = timed(mounted.program("cp"), source, &mounted.path(&name), false)?;
            context.results.add(id, None, fs.name, time);
            settle(&mounted)?;
            let program = task::program("cp", fs.user.as_ref());
            let time = timed(program, source, &local.path().join(&name), true)?;
            context.results.add(id, None, LOCAL, time);
        }
    }
    Ok(())
}

/// Seconds for a copy, the fsync included where it is wanted.
fn timed(mut program: Command, from: &Path, to: &Path, sync: bool) -> Result<f64> {
    let start = Instant::now();
    process::run(program.arg(from).arg(to))?;
    if sync {
        let synced = File::open(to).and_then(|file| file.sync_all());
        synced.map_err(|error| format!("{}: {error}", to.display()))?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Waits until what was copied before is on the server, and nothing is left for the disk to write.
fn settle(mounted: &Mounted) -> Result<()> {
    let report = mounted.path(".aztec-cache/status.json");
    wait_for("uploads to be done", || {
        let mut cat = mounted.program("cat");
        let said = process::run(cat.arg(&report))?.stdout;
        let status: Value = serde_json::from_slice(&said).map_err(|error| format!("status.json: {error}"))?;
        Ok(status["pending_uploads"].as_array().is_some_and(Vec::is_empty))
    })?;
    process::settle_disk();
    Ok(())
}
