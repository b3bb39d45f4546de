//! `aztec-cache cache-download`: what the script `cache_download` does where there is this program, in the shell layer's words
//! and exit codes. A bootstrap calls it hundreds of times, so that starting more than this, or reading more of a script, counts.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use crate::cache::metadata_of;
use crate::cli::ExtractArgs;
use crate::commands::engine::{Start, is_disabled};
use crate::commands::extract::{error, is_mended, unpack_artifact};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::extract::{Failure, extract_file};
use crate::mountpoint;
use crate::object::{DISABLED, InvalidKey, Key};

/// The variable that names the local directory.
const LOCAL_DIR: &str = "CACHE_LOCAL_DIR";

/// Unpacks the artifact from the first of these that has it: its complete file in the local directory, our mount, the remotes.
/// Everything that goes wrong is said. Must be called while the process has one thread.
pub fn run(args: &ExtractArgs) -> u8 {
    let began = Instant::now();
    let name = &args.name;
    let key = match Key::new(name) {
        Err(InvalidKey::NeverThere) if name.contains(DISABLED) => {
            say(format_args!("Not using cache for {name} due to uncommitted changes/files."));
            return 1;
        }
        Err(InvalidKey::NeverThere | InvalidKey::NotAPath) => {
            say(format_args!("'{name}': not an artifact's name"));
            return 2;
        }
        key => key.ok(),
    };
    if is_disabled() {
        say(format_args!("Not using cache for {name} because NO_CACHE=1."));
        return 1;
    }
    if let Err(e) = fs::create_dir_all(&args.dir) {
        complain(&Error::local(format!("can't unpack into {}", args.dir.display()), &e));
        return 1;
    }
    let local = LocalDir::from_env();
    let hit = local.as_ref().map(|dir| dir.file(name).is_file());
    match hit {
        Some(true) => say(format_args!("Local cache hit for {name}.")),
        Some(false) => say(format_args!("Local cache miss for {name}, downloading from remote.")),
        None => {}
    }
    let mut download = Download { args, local, mount: OnceCell::new(), mended: false };
    // A name that no file can have is nobody's.
    if !key.is_some_and(|key| download.run(&key)) {
        say(format_args!("Cache download of {name} failed."));
        return 1;
    }
    let seconds = began.elapsed().as_secs();
    if hit == Some(true) && !download.mended {
        say(format_args!("Cache extraction of {name} from local cache complete in {seconds}s."));
    } else {
        say(format_args!("Cache download and extraction of {name} complete in {seconds}s."));
    }
    0
}

/// Says it, if anybody listens.
fn say(what: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{what}");
}

fn complain(error: &Error) {
    say(format_args!("aztec-cache: {error}"));
}

/// The local directory.
struct LocalDir(PathBuf);

impl LocalDir {
    /// The one that the environment names, made when it is missing; none when that can't be.
    fn from_env() -> Option<LocalDir> {
        let dir = PathBuf::from(std::env::var_os(LOCAL_DIR).filter(|dir| !dir.is_empty())?);
        if fs::create_dir_all(&dir).is_err() && !dir.is_dir() {
            say(format_args!(
                "Warning: Cannot create local cache dir {}, skipping local cache.",
                dir.to_string_lossy()
            ));
            return None;
        }
        Some(LocalDir(dir))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The file of `key`, if it is known to be whole: metadata is written after the file, just before that gets its name. What
    /// another script has begun to write there since is newer.
    fn complete(&self, key: &Key) -> Option<File> {
        let file = File::open(self.file(key.as_str())).ok()?;
        let written = file.metadata().ok().filter(|meta| meta.is_file())?.modified().ok()?;
        let noted = fs::metadata(metadata_of(&self.0, key)).ok()?.modified().ok()?;
        (written <= noted).then_some(file)
    }
}

struct Download<'a> {
    args: &'a ExtractArgs,
    local: Option<LocalDir>,
    /// Our mount, if there is one that answers; found when it is needed.
    mount: OnceCell<Option<PathBuf>>,
    /// The local file was damaged and has been put out of the way.
    mended: bool,
}

/// How an attempt ended.
enum Outcome {
    Unpacked,
    /// The artifact can't be had, and why has been said: to try again is of no use.
    NotHad,
    /// What is here can't be unpacked.
    Failed(Failure),
}

impl Download<'_> {
    /// Whether it has been unpacked. A damaged local file is replaced, once.
    fn run(&mut self, key: &Key) -> bool {
        let mut outcome = self.unpack(key);
        if let Outcome::Failed(_) = outcome {
            self.mend(key);
            outcome = self.unpack(key);
        }
        if let Outcome::Failed(failure) = outcome {
            complain(&error(&self.args.name, failure));
            return false;
        }
        matches!(outcome, Outcome::Unpacked)
    }

    fn unpack(&self, key: &Key) -> Outcome {
        if let Some(file) = self.local.as_ref().and_then(|dir| dir.complete(key)) {
            return self.unpack_file(file);
        }
        let in_mount = self.mount.get_or_init(mount).as_ref().map(|mount| mount.join(key.as_str()));
        if let Some(path) = in_mount.as_ref().filter(|path| path.is_file()) {
            return match File::open(path) {
                Ok(file) => self.unpack_file(file),
                Err(e) => Outcome::Failed(Error::local(path.display(), &e).into()),
            };
        }
        let is_here = self.local.as_ref().is_some_and(|dir| dir.file(key.as_str()).is_file());
        if in_mount.is_some() && !is_here {
            return Outcome::NotHad;
        }
        // Of a local file that isn't known to be whole, the remote has to say whether it is.
        match self
            .start()
            .map_err(Failure::from)
            .and_then(|start| unpack_artifact(start, key, &self.args.dir))
        {
            Ok(()) => Outcome::Unpacked,
            Err(failure) => {
                let error = error(key.as_str(), failure);
                if error.kind() != Kind::NotFound {
                    complain(&error);
                }
                Outcome::NotHad
            }
        }
    }

    fn unpack_file(&self, file: File) -> Outcome {
        match extract_file(&self.args.dir, file, &self.args.name) {
            Ok(()) => Outcome::Unpacked,
            Err(failure) => Outcome::Failed(failure),
        }
    }

    /// Puts the local file out of the way if it is damaged.
    fn mend(&mut self, key: &Key) {
        let is_here = self.local.as_ref().is_some_and(|dir| dir.file(key.as_str()).is_file());
        let start = is_here.then(|| self.start().ok()).flatten();
        if start.is_some_and(|start| is_mended(start.cache.as_deref(), key)) {
            self.mended = true;
            say(format_args!("The local file of {key} is damaged, downloading from remote."));
        }
    }

    /// The start of what asks the remotes, without a local directory if there can't be one.
    fn start(&self) -> Result<Start> {
        let env = |name: &str| match name {
            LOCAL_DIR if self.local.is_none() => Some(OsString::new()),
            _ => std::env::var_os(name),
        };
        Start::with_env(&self.args.engine, &env)
    }
}

/// The mountpoint of our mount, if that answers.
fn mount() -> Option<PathBuf> {
    let path = config::mountpoint(None, &|name| std::env::var_os(name)).ok()?;
    (mountpoint::is_mounted(&path).unwrap_or(false) && mountpoint::answers(&path)).then_some(path)
}
