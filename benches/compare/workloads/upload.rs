//! One large file, uploaded.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use aztec_cache::checksum::{Algorithm, Checksum};
use aztec_cache::config::{Remote, S3Options};
use aztec_cache::object::Key;
use aztec_cache::store::{self, Existing, Payload, Put};
use aztec_cache_test_support::artifacts::random_bytes;
use serde_json::{Value, json};

use crate::args::Link;
use crate::contenders::OURS;
use crate::context::Context;
use crate::process::{self, peak_memory_of};
use crate::shell::{AWS, CURL, sign};
use crate::stage::{ACCESS_KEY, BUCKET, SECRET_KEY};
use crate::{Result, task};

const PREFIX: &str = "build-cache/upload/";
const NAME: &str = "large-0123456789abcdef.zst";

/// Runs the workload: our uploads, in a process of their own, against the commands that others would use.
pub fn run(context: &mut Context) -> Result<()> {
    let local = context.work.dir("upload")?.join(NAME);
    fs::write(&local, random_bytes(5, context.scale.large as usize))
        .map_err(|error| format!("{}: {error}", local.display()))?;
    let wanted = |name: &str| context.shells.iter().any(|shell| shell.name == name);
    let mut contenders: Vec<&'static str> = [CURL, AWS].into_iter().filter(|name| wanted(name)).collect();
    contenders.extend(context.file_systems.iter().map(|fs| fs.name).filter(|name| *name == OURS));
    for run in 0..context.runs {
        for link in context.links.clone() {
            let what = format!("upload, {}, run {}", link.name(), run + 1);
            for name in Context::turn(&contenders, run) {
                context.attempt(name, &what, |context| upload(context, name, link, &local))?;
            }
        }
    }
    let _ = fs::remove_file(&local);
    Ok(())
}

/// Uploads `local` and has it removed again.
fn upload(context: &mut Context, name: &'static str, link: Link, local: &Path) -> Result<()> {
    let url = context.url(link)?;
    // In memory already, as what was just written is.
    fs::read(local).map_err(|error| format!("{}: {error}", local.display()))?;
    process::settle_disk();
    let ran = process::run(&mut command(name, &url, local))?;
    context.results.add("upload.time", Some(link), name, ran.wall);
    context.results.add("upload.cpu", Some(link), name, ran.cpu);
    if name == OURS {
        let said: Value =
            serde_json::from_slice(&ran.stdout).map_err(|error| format!("a task said: {error}"))?;
        let grown = said["memory"].as_f64().unwrap_or(f64::NAN);
        context.results.add("upload.memory", Some(link), name, grown);
    }
    context.stage()?.remove(&format!("{PREFIX}{NAME}"), size_of(local)?)
}

fn size_of(local: &Path) -> Result<u64> {
    fs::metadata(local).map(|meta| meta.len()).map_err(|error| format!("{}: {error}", local.display()))
}

fn command(name: &str, url: &str, local: &Path) -> Command {
    let mut command = match name {
        CURL => {
            let mut curl = Command::new("curl");
            // Signed, without a look at all bytes beforehand.
            curl.args(["-sSf", "--aws-sigv4", "aws:amz:us-east-1:s3"]);
            curl.arg("--user").arg(format!("{ACCESS_KEY}:{SECRET_KEY}"));
            curl.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-o", "/dev/null", "-T"]);
            curl.arg(local).arg(format!("{url}/{BUCKET}/{PREFIX}{NAME}"));
            curl
        }
        AWS => {
            let mut aws = Command::new("aws");
            aws.args(["--endpoint-url", url, "s3", "cp", "--only-show-errors"]);
            aws.arg(local).arg(format!("s3://{BUCKET}/{PREFIX}{NAME}"));
            aws
        }
        _ => {
            let mut task = task::program(process::OWN_BINARY, None);
            task.args([task::ROLE, "put", url]).arg(local);
            task
        }
    };
    sign(&mut command);
    command
}

/// Our upload, as the process sees it: seconds, and the MiB that its peak memory grew by.
pub fn perform(url: &str, local: &Path) -> Result<Value> {
    let say = |error: &dyn std::fmt::Display| format!("{}: {error}", local.display());
    let file = fs::File::open(local).map_err(|error| say(&error))?;
    let size = file.metadata().map_err(|error| say(&error))?.len();
    let checksum = Checksum::of(Algorithm::Crc64Nvme, &file).map_err(|error| say(&error))?;
    let payload = Payload { file: Arc::new(file), size, checksum, sent: Arc::default() };
    let options = S3Options { endpoint_url: Some(url.to_owned()), ..S3Options::default() };
    let remote = Remote::parse("", &format!("s3://{BUCKET}/{PREFIX}")).map_err(|error| say(&error))?;
    let store = store::open(&[remote], &options).map_err(|error| say(&error))?;
    let runtime = aztec_cache::engine::runtime().map_err(|error| say(&error))?;
    let key = Key::new(NAME).map_err(|error| format!("{NAME}: {error:?}"))?;
    let before = peak_memory_of(std::process::id())?;
    let start = Instant::now();
    let put = runtime.block_on(store.put(&key, &payload, Existing::Keep)).map_err(|error| say(&error))?;
    let seconds = start.elapsed().as_secs_f64();
    match put {
        Put::Stored(version) if version.size == size => {
            Ok(json!({ "seconds": seconds, "memory": peak_memory_of(std::process::id())? - before }))
        }
        other => Err(format!("{NAME}: {other:?}")),
    }
}
