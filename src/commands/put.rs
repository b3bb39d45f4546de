//! `aztec-cache put`

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::time::interval;

use crate::cli::PutArgs;
use crate::commands::engine::start_with;
use crate::commands::progress::Progress;
use crate::config::{PutConfig, Upload};
use crate::engine::{Engine, key};
use crate::error::{Error, Kind, Result};
use crate::object::{DISABLED, Key};
use crate::upload::{NewFile, Published, Uploads};

/// What is read and written at a time, in bytes.
const CHUNK: usize = 1 << 20;
/// How long to wait for what others left to be uploaded.
const OTHERS: Duration = Duration::from_secs(30);
/// How often to show how far it is.
const SHOW: Duration = Duration::from_millis(200);

/// Makes a file, or what stdin brings, an artifact. The exit code: 1 when it isn't the archive that its name says.
///
/// # Errors
/// Wrong settings or names, trouble with the disk, a remote that refuses it; without a local cache, one that can't be
/// reached.
pub fn run(args: &PutArgs) -> Result<u8> {
    let name = args.name.escape_debug();
    if args.name.contains(DISABLED) {
        eprintln!("aztec-cache: Skipping upload of {name} due to uncommitted changes/files.");
        return Ok(0);
    }
    if std::env::var_os("NO_CACHE_UPLOAD").is_some_and(|value| value == "1") {
        eprintln!("aztec-cache: Skipping upload because NO_CACHE_UPLOAD=1.");
        return Ok(0);
    }
    let key = key(&args.name).map_err(|error| match error.kind() {
        Kind::NotFound => Error::usage(format!("{name}: reserved; choose another name")),
        _ => error,
    })?;
    let config = PutConfig::new(args, &|name| std::env::var_os(name))?;
    if config.write.read_only {
        return Err(Error::usage("put: nothing may be written; unset AZTEC_CACHE_READ_ONLY"));
    }
    let mut input = open(&args.file)?;
    let engine = start_with(config.engine)?;
    let unasked = config.write.upload.is_none();
    let uploads = engine.uploads(config.write)?;
    let mode = engine.wait(async { Ok(uploads.mode().await) })?;
    check_destination(&engine, mode)?;
    let put = Put { engine: &engine, uploads: &uploads, key: &key, progress: Progress::new() };
    match put.run(&mut input, &args.file) {
        Err(error) if error.kind() == Kind::Damaged => {
            put.progress.say(&format!("aztec-cache: {error}"));
            Ok(1)
        }
        Ok(()) if unasked && mode == Upload::Never => {
            put.progress.say(&format!("aztec-cache: {key}: saved here alone: no credentials to upload it"));
            Ok(0)
        }
        // A remote of a kind that takes none is a matter of the settings.
        Err(error) if error.kind() == Kind::Unsupported => Err(Error::usage(error.to_string())),
        result => result.map(|()| 0),
    }
}

/// Opens what is to be read, which is no directory.
fn open(path: &Path) -> Result<File> {
    let opened = match path.to_str() {
        Some("-") => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        _ => File::open(path),
    };
    let opened = opened.and_then(|file| match file.metadata()?.is_dir() {
        true => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        false => Ok(file),
    });
    opened.map_err(|e| Error::usage(format!("{}: can't be read: {e}; name a readable file", path.display())))
}

fn check_destination(engine: &Engine, mode: Upload) -> Result<()> {
    let is_kept = engine.cache.as_ref().is_some_and(|cache| cache.is_writable());
    if is_kept || mode != Upload::Never {
        return Ok(());
    }
    Err(Error::usage(
        "put: no local cache to save it in and no credentials, or no leave, to upload it; set CACHE_LOCAL_DIR or \
         --cache-dir, or give credentials and an s3:// remote",
    ))
}

/// A run of the command.
struct Put<'a> {
    engine: &'a Engine,
    uploads: &'a Arc<Uploads>,
    key: &'a Key,
    progress: Progress,
}

impl Put<'_> {
    fn run(&self, input: &mut File, path: &Path) -> Result<()> {
        let file = Arc::new(self.uploads.create(self.key)?);
        self.read(input, path, &file)?;
        let size = file.size();
        let published = self.shown(size, self.uploads.publish(file, self.key));
        self.progress.show("");
        if published? == Published::Kept {
            eprintln!("aztec-cache: Skipping S3 upload, already exists: {}", self.key);
        }
        // Also what others have left, and what is uploaded in the background.
        self.shown(size, async {
            self.uploads.drain(OTHERS).await;
            Ok(())
        })
    }

    fn read(&self, input: &mut File, path: &Path, file: &NewFile) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    file.write_at(&buffer[..length], file.size())?;
                    file.start_writeback();
                    self.progress.show(&format!("{}: read {}", self.key, ByteSize(file.size())));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::local(format!("{}: can't be read", path.display()), &e)),
            }
        }
    }

    /// Waits for `future`, and shows how much has been sent.
    fn shown<T>(&self, size: u64, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.engine.wait(async {
            let mut future = std::pin::pin!(future);
            let mut ticks = interval(SHOW);
            loop {
                tokio::select! {
                    result = &mut future => return result,
                    _ = ticks.tick() => {
                        if let Some(sent) = self.uploads.sent(self.key) {
                            self.progress.show(&format!("{}: sent {} of {}", self.key, ByteSize(sent), ByteSize(size)));
                        }
                    }
                }
            }
        })
    }
}
