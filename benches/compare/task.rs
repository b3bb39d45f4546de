//! What a user's programs do with files, timed from inside, in a process of its own: this binary, started again with
//! [`ROLE`]. So it can be an ordinary user's, who alone may look into a mount of theirs.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aztec_cache_test_support::user::User;
use serde_json::{Value, json};

use crate::{Result, process, workloads};

/// The first argument of a task's process.
pub const ROLE: &str = "__task";
/// What is read first, and by the tasks that read little.
const LITTLE: usize = 4096;
/// What is read at a time then, as `cat` does.
const CHUNK: usize = 128 << 10;

/// What a task found.
pub struct Outcome(Value);

impl Outcome {
    /// Seconds that it took as a whole.
    pub fn seconds(&self) -> f64 {
        self.number("seconds")
    }

    /// Seconds until the first bytes or name.
    pub fn first(&self) -> f64 {
        self.number("first")
    }

    /// Bytes or names found.
    pub fn count(&self) -> u64 {
        self.0["count"].as_u64().unwrap_or_default()
    }

    fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or(f64::NAN)
    }
}

/// A program run by `user`, or by whom the benchmark is run.
pub fn program(program: impl AsRef<std::ffi::OsStr>, user: Option<&User>) -> Command {
    user.map_or_else(|| Command::new(&program), |user| user.command(&program))
}

/// Performs a task in a process of `user`'s.
pub fn run(args: &[&dyn AsRef<std::ffi::OsStr>], user: Option<&User>) -> Result<Outcome> {
    let mut command = program(process::OWN_BINARY, user);
    command.arg(ROLE).args(args.iter().map(AsRef::as_ref)).process_group(0);
    let said = process::run(&mut command)?.stdout;
    let value = serde_json::from_slice(&said).map_err(|error| format!("a task said: {error}"))?;
    Ok(Outcome(value))
}

/// The task's side: does what the arguments say and prints what it found.
pub fn perform(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let found = match args.as_slice() {
        ["read", path] => read(Path::new(path))?,
        ["names", dir] => names(Path::new(dir))?,
        ["missing", dir, count] => missing(Path::new(dir), number(count)?)?,
        ["put", url, path] => workloads::perform_upload(url, Path::new(path))?,
        ["opens", dir, millis] => opens(Path::new(dir), Duration::from_millis(number(millis)?))?,
        _ => return Err(format!("no such task: {args:?}")),
    };
    println!("{found}");
    Ok(())
}

/// Reads a file to its end.
fn read(path: &Path) -> Result<Value> {
    let error = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut buffer = vec![0; CHUNK];
    let start = Instant::now();
    let mut file = File::open(path).map_err(error)?;
    let mut count = file.read(&mut buffer[..LITTLE]).map_err(error)?;
    let first = start.elapsed().as_secs_f64();
    loop {
        match file.read(&mut buffer).map_err(error)? {
            0 => break,
            length => count += length,
        }
    }
    Ok(json!({ "first": first, "seconds": start.elapsed().as_secs_f64(), "count": count }))
}

/// Reads the names in a directory.
fn names(dir: &Path) -> Result<Value> {
    let error = |error: std::io::Error| format!("{}: {error}", dir.display());
    let start = Instant::now();
    let mut entries = fs::read_dir(dir).map_err(error)?;
    let mut count = u64::from(entries.next().transpose().map_err(error)?.is_some());
    let first = start.elapsed().as_secs_f64();
    for entry in entries {
        entry.map_err(error)?;
        count += 1;
    }
    Ok(json!({ "first": first, "seconds": start.elapsed().as_secs_f64(), "count": count }))
}

/// Asks for names that aren't there.
fn missing(dir: &Path, count: u64) -> Result<Value> {
    let start = Instant::now();
    for index in 0..count {
        let path = dir.join(missing_name(index));
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => (),
            found => return Err(format!("{}: {found:?}", path.display())),
        }
    }
    Ok(json!({ "seconds": start.elapsed().as_secs_f64(), "count": count }))
}

/// A name as builds have them, of an artifact that nobody made.
pub fn missing_name(index: u64) -> String {
    format!("nobody-made-{index:016x}.tar.gz")
}

/// Opens files one after another for so long, over and over, and reads a little of each.
fn opens(dir: &Path, time: Duration) -> Result<Value> {
    let error = |error: std::io::Error| format!("{}: {error}", dir.display());
    let entries = fs::read_dir(dir).map_err(error)?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let paths = paths.map_err(error)?;
    let mut buffer = [0; LITTLE];
    let mut pass = || paths.iter().try_for_each(|path| File::open(path)?.read_exact(&mut buffer));
    // Once for what the kernel remembers of each.
    pass().map_err(error)?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time {
        pass().map_err(error)?;
        count += paths.len();
    }
    Ok(json!({ "seconds": start.elapsed().as_secs_f64(), "count": count }))
}
