//! One large file, uploaded.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use aztec_cache::checksum::{Algorithm, Checksum};
use aztec_cache::config::{Remote, S3Options};
use aztec_cache::object::Key;
use aztec_cache::store::{self, Existing, Multipart, Payload, Put};
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

/// The file in pieces, each an object, sent by 16 `curl -T` at a time over loopback as it is: what the server takes at best.
const CURLS: &str = "16 curls";
/// How many pieces.
const PIECES: usize = 32;

/// Runs the workload: our uploads, in a process of their own, against the commands that others would use.
pub fn run(context: &mut Context) -> Result<()> {
    let local = context.work.dir("upload")?.join(NAME);
    fs::write(&local, random_bytes(5, context.scale.large as usize))
        .map_err(|error| format!("{}: {error}", local.display()))?;
    let wanted = |name: &str| context.shells.iter().any(|shell| shell.name == name);
    let mut contenders: Vec<&'static str> = [CURL, AWS].into_iter().filter(|name| wanted(name)).collect();
    contenders.extend(context.file_systems.iter().map(|fs| fs.name).filter(|name| *name == OURS));
    if context.shells.iter().any(|shell| shell.name == CURL) {
        let pieces = local.parent().ok_or("no directory")?.join("pieces");
        for run in 0..context.runs {
            let what = format!("upload by pieces, run {}", run + 1);
            context.attempt(CURLS, &what, |context| upload_pieces(context, &local, &pieces))?;
        }
        let _ = fs::remove_dir_all(&pieces);
    }
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

/// Uploads `local` in pieces, made in the directory `dir`, and has them removed again.
fn upload_pieces(context: &mut Context, local: &Path, dir: &Path) -> Result<()> {
    let url = format!("{}/{BUCKET}/{PREFIX}", context.url(Link::Raw)?);
    let bytes = fs::read(local).map_err(|error| format!("{}: {error}", local.display()))?;
    let error = |error: std::io::Error| format!("{}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(error)?;
    let pieces: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(PIECES)).collect();
    for (index, piece) in pieces.iter().enumerate() {
        fs::write(dir.join(index.to_string()), piece).map_err(error)?;
    }
    process::settle_disk();
    let mut command = Command::new("sh");
    // The words are the script's, and then curl's.
    command
        .args(["-c", "ls | xargs -P 16 -I{} \"$@\" -T {} \"$0\"{}", &url])
        .args(curl_put())
        .current_dir(dir);
    sign(&mut command);
    let ran = process::run(&mut command)?;
    context.results.add("upload.time", Some(Link::Raw), CURLS, ran.wall);
    let stage = context.stage()?;
    let named =
        |(index, piece): (usize, &&[u8])| stage.remove(&format!("{PREFIX}{index}"), piece.len() as u64);
    pieces.iter().enumerate().try_for_each(named)
}

fn size_of(local: &Path) -> Result<u64> {
    fs::metadata(local).map(|meta| meta.len()).map_err(|error| format!("{}: {error}", local.display()))
}

fn command(name: &str, url: &str, local: &Path) -> Command {
    let mut command = match name {
        CURL => {
            let mut curl = Command::new(CURL);
            curl.args(&curl_put()[1..]).arg("-T").arg(local).arg(format!("{url}/{BUCKET}/{PREFIX}{NAME}"));
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

/// A `curl` that is told no more than the file and its URL: signed, without a look at all bytes beforehand.
fn curl_put() -> Vec<String> {
    let user = format!("{ACCESS_KEY}:{SECRET_KEY}");
    let unsigned = "x-amz-content-sha256: UNSIGNED-PAYLOAD";
    let words = [
        CURL,
        "-sSf",
        "--aws-sigv4",
        "aws:amz:us-east-1:s3",
        "--user",
        &user,
        "-H",
        unsigned,
        "-o",
        "/dev/null",
    ];
    words.map(str::to_owned).to_vec()
}

/// Our upload, as the process sees it: seconds, and the MiB that its peak memory grew by.
pub fn perform(url: &str, local: &Path) -> Result<Value> {
    let say = |error: &dyn std::fmt::Display| format!("{}: {error}", local.display());
    let file = fs::File::open(local).map_err(|error| say(&error))?;
    let size = file.metadata().map_err(|error| say(&error))?.len();
    let checksum = Checksum::of(Algorithm::Crc64Nvme, &file).map_err(|error| say(&error))?;
    let payload = Payload {
        file: Arc::new(file),
        size,
        checksum,
        sent: Arc::default(),
        multipart: Multipart::default(),
    };
    let options = S3Options { endpoint_url: Some(url.to_owned()), ..S3Options::default() };
    let remote = Remote::parse("", &format!("s3://{BUCKET}/{PREFIX}")).map_err(|error| say(&error))?;
    let store = store::open(&[remote], &options).map_err(|error| say(&error))?;
    let runtime = aztec_cache::engine::runtime(2).map_err(|error| say(&error))?;
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
