//! Names that don't exist, one after another.

use crate::args::Link;
use crate::contenders::FileSystem;
use crate::context::Context;
use crate::mounted::Mounted;
use crate::shell::{CURL, curl_heads};
use crate::{Result, process, task};

const PREFIX: &str = "build-cache/missing/";

/// Runs the workload.
pub fn run(context: &mut Context) -> Result<()> {
    context.stage()?.put(&format!("{PREFIX}present-0123456789abcdef.tar.gz"), || b"x".to_vec())?;
    for run in 0..context.runs {
        for link in context.links.clone() {
            let what = format!("missing, {}, run {}", link.name(), run + 1);
            if context.shells.iter().any(|shell| shell.name == CURL) {
                context.attempt(CURL, &what, |context| by_curl(context, link))?;
            }
            for fs in Context::turn(&context.file_systems, run) {
                context.attempt(fs.name, &what, |context| by_mount(context, &fs, link))?;
            }
        }
    }
    Ok(())
}

fn by_curl(context: &mut Context, link: Link) -> Result<()> {
    let url = context.url(link)?;
    let keys = (0..context.scale.missing).map(|index| format!("{PREFIX}{}", task::missing_name(index)));
    let ran = process::run(&mut curl_heads(&url, keys))?;
    context.results.add("missing.first", Some(link), CURL, ran.wall);
    Ok(())
}

fn by_mount(context: &mut Context, fs: &FileSystem, link: Link) -> Result<()> {
    let url = context.url(link)?;
    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    let count = context.scale.missing.to_string();
    let outcome = mounted.task(&[&"missing", &mounted.root(), &count])?;
    context.results.add("missing.first", Some(link), fs.name, outcome.seconds());
    Ok(())
}
