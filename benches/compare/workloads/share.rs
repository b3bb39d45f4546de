//! Several processes that open one cold file.

use std::time::Instant;

use aztec_cache_test_support::artifacts::random_bytes;

use crate::Result;
use crate::args::Link;
use crate::contenders::FileSystem;
use crate::context::Context;
use crate::mounted::Mounted;

const PREFIX: &str = "build-cache/share/";
const NAME: &str = "shared-0123456789abcdef.zst";
/// How many processes, and their rows.
const READERS: &[(usize, &str, &str)] =
    &[(2, "share.2.bytes", "share.2.time"), (8, "share.8.bytes", "share.8.time")];

/// Runs the workload; over the proxy, which counts bytes.
pub fn run(context: &mut Context) -> Result<()> {
    let size = context.scale.shared;
    context.stage()?.put(&format!("{PREFIX}{NAME}"), || random_bytes(3, size as usize))?;
    for run in 0..context.runs {
        for (readers, bytes, time) in READERS {
            let what = format!("share, {readers} readers, run {}", run + 1);
            for fs in Context::turn(&context.file_systems, run) {
                context.attempt(fs.name, &what, |context| {
                    let (fetched, seconds) = read(context, &fs, *readers)?;
                    context.results.add(bytes, Some(Link::S3Like), fs.name, fetched as f64 / size as f64);
                    context.results.add(time, Some(Link::S3Like), fs.name, seconds);
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// Bytes fetched, and the seconds until the last reader was done.
fn read(context: &mut Context, fs: &FileSystem, readers: usize) -> Result<(u64, f64)> {
    let size = context.scale.shared;
    let url = context.url(Link::S3Like)?;
    context.stage()?.warm(&format!("{PREFIX}{NAME}"))?;
    let mounted = Mounted::new(fs, &context.work, &url, PREFIX)?;
    let before = context.stage()?.passed()?.bytes;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(|| mounted.read(NAME, size))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("readers don't panic").map(drop))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    mounted.wait_until_idle()?;
    Ok((context.stage()?.passed()?.bytes - before, seconds))
}
