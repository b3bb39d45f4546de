//! How many requests an open costs, counted by the proxy.

use aztec_cache_test_support::artifacts::random_bytes;

use crate::Result;
use crate::args::Link;
use crate::contenders::FileSystem;
use crate::context::Context;
use crate::mounted::Mounted;

const PREFIX: &str = "build-cache/requests/";
const NAME: &str = "contract-0123456789abcdef.tar.gz";
/// A small artifact.
const SIZE: u64 = 64 << 10;

/// Runs the workload: once, since numbers of requests don't vary.
pub fn run(context: &mut Context) -> Result<()> {
    context.stage()?.put(&format!("{PREFIX}{NAME}"), || random_bytes(4, SIZE as usize))?;
    for fs in context.file_systems.clone() {
        context.attempt(fs.name, "requests", |context| count(context, &fs))?;
    }
    Ok(())
}

fn count(context: &mut Context, fs: &FileSystem) -> Result<()> {
    let url = context.url(Link::S3Like)?;
    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    // What a mount asks when it starts isn't what an open costs.
    mounted.wait_until_idle()?;
    for id in ["requests.cold", "requests.warm"] {
        let before = context.stage()?.passed()?.requests;
        mounted.read(NAME, SIZE)?;
        mounted.wait_until_idle()?;
        let requests = context.stage()?.passed()?.requests - before;
        context.results.add(id, None, fs.name, requests as f64);
    }
    Ok(())
}
