//! The story, step by step, with what each step costs.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use aztec_cache_test_support::s3::Counts;

use crate::Failure;
use crate::fuse::is_in_path;
use crate::interrupts::Interrupts;
use crate::stage::{LATENCY, RATE, Stage};

/// How long a file may take from its last byte to its place in the cache directory.
const KEPT_WITHIN: Duration = Duration::from_secs(30);
/// How often the server is looked at while the mount is kept.
const LOOK: Duration = Duration::from_millis(300);

/// Cold reads, warm reads, and warm reads in a new mount without the server.
pub fn tell(stage: &Stage) -> Result<(), Failure> {
    println!(
        "An S3 server in this process stands for the team's bucket: {} ms away, {} MB/s per connection.\n\
         ~ is {}, which is removed at the end.",
        LATENCY.as_millis(),
        RATE / 1_000_000,
        stage.home().display()
    );
    let read = archives(stage);
    mount(stage)?;
    look(stage)?;
    let cold = cold(stage, &read)?;
    kept(stage)?;
    let warm = warm(stage, &read)?;
    remounted(stage, &read)?;
    stage.shell.remark(format_args!(
        "In all: {:.2} s cold, {:.2} s warm; each byte came over the network once.",
        cold.as_secs_f64(),
        warm.as_secs_f64()
    ))
}

/// What is unpacked: a `.zst` and a `.tar.gz`, as far as tar can.
fn archives(stage: &Stage) -> Vec<&str> {
    let can_unpack = |name: &&String| !name.ends_with(".zst") || is_in_path("zstd");
    stage.names.iter().filter(can_unpack).take(2).map(String::as_str).collect()
}

fn mount(stage: &Stage) -> Result<(), Failure> {
    let shell = &stage.shell;
    let params = format!("--endpoint-url {}", stage.server.url());
    shell.remark("Mount the bucket. What is read will stay in CACHE_LOCAL_DIR.")?;
    shell.export("CACHE_LOCAL_DIR", stage.cache(), "~/.aztec-cache")?;
    shell.export("S3_BUILD_CACHE_AWS_PARAMS", &params, &format!("'{params}'"))?;
    shell.run_whole("aztec-cache mount").map(drop)
}

fn look(stage: &Stage) -> Result<(), Failure> {
    stage.shell.remark("The bucket is a directory. Looking downloads nothing.")?;
    measured(stage, "ls -l ~/.aztec-cache/remote", || Ok(())).map(drop)
}

fn cold(stage: &Stage, names: &[&str]) -> Result<Duration, Failure> {
    stage.shell.remark("Cold: fetched on first open, in parallel, and unpacked as it arrives.")?;
    names.iter().map(|name| measured(stage, &untar(name, "cold"), || wait_until_kept(stage, name))).sum()
}
