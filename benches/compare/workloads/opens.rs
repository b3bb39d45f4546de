//! Warm files, opened, read a little and closed, as often as it goes.

use std::fs;

use aztec_cache_test_support::artifacts::random_bytes;

use crate::args::Link;
use crate::contenders::{FileSystem, LOCAL};
use crate::context::Context;
use crate::mounted::Mounted;
use crate::{Result, task};

const PREFIX: &str = "build-cache/opens/";
/// How many files.
const FILES: u64 = 100;
/// The size of each.
const SIZE: u64 = 16 << 10;

/// Runs the workload.
pub fn run(context: &mut Context) -> Result<()> {
    let bytes = random_bytes(5, SIZE as usize);
    let keys: Vec<String> = (0..FILES).map(|index| format!("{PREFIX}{}", name(index))).collect();
    context.stage()?.put_small(&keys, &bytes)?;
    let local = context.work.scratch("opens-", None)?;
    for index in 0..FILES {
        let path = local.path().join(name(index));
        fs::write(&path, &bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let time = context.scale.opens.to_string();
    for run in 0..context.runs {
        let what = format!("opens, run {}", run + 1);
        context.attempt(LOCAL, &what, |context| {
            let outcome = task::run(&[&"opens", &local.path(), &time], None)?;
            context.results.add("opens.warm", None, LOCAL, outcome.count() as f64 / outcome.seconds());
            Ok(())
        })?;
        for fs in Context::turn(&context.file_systems, run) {
            context.attempt(fs.name, &what, |context| open(context, &fs, &time))?;
        }
    }
    Ok(())
}

fn name(index: u64) -> String {
    format!("vk-{index:016x}.tar.gz")
}

fn open(context: &mut Context, fs: &FileSystem, time: &str) -> Result<()> {
    let url = context.url(Link::Raw)?;
    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    for index in 0..FILES {
        mounted.read(&name(index), SIZE)?;
    }
    mounted.wait_until_idle()?;
    let outcome = mounted.task(&[&"opens", &mounted.root(), &time])?;
    context.results.add("opens.warm", None, fs.name, outcome.count() as f64 / outcome.seconds());
    Ok(())
}
