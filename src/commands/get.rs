//! `aztec-cache get`

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::dup2_stdout;

use crate::cli::GetArgs;
use crate::commands::engine::{hand_over, refuse_disabled, start};
use crate::engine::{Engine, key};
use crate::error::{Error, Result};
use crate::handles::OpenFile;

/// Writes the artifact to stdout or to a file.
///
/// # Errors
/// It isn't there or can't be had whole; the last part has not been written then.
pub fn run(args: &GetArgs) -> Result<()> {
    let key = key(&args.name)?;
    refuse_disabled(&key)?;
    let engine = start(&args.engine)?;
    let file = engine.wait(engine.open(&key))?;
    match &args.output {
        Some(path) if is_replaceable(path) => to_file(&engine, &file, path),
        Some(path) => {
            let opened = File::options().write(true).open(path).map_err(|e| output_error(path, &e))?;
            copy(&engine, &file, &opened, path)
        }
        None => {
            let path = Path::new("stdout");
            let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|e| output_error(path, &e))?;
            copy(&engine, &file, &stdout.into(), path)?;
            release_stdout();
            Ok(())
        }
    }
}

/// Lets the consumer see the end before what was fetched is filled into another remote.
fn release_stdout() {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = dup2_stdout(null);
    }
}

/// Whether `path` is, or may become, a plain file. A device or a pipe is written to as it is.
fn is_replaceable(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |meta| meta.is_file() || meta.is_dir())
}

/// Writes beside `path`, and puts what is whole in its place.
fn to_file(engine: &Engine, file: &OpenFile, path: &Path) -> Result<()> {
    let error = |e: &io::Error| output_error(path, e);
    if path.is_dir() {
        return Err(error(&io::Error::from_raw_os_error(libc::EISDIR)));
    }
    // Of a link its target is replaced.
    let target: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".aztec-cache-")
        // As the user's umask has it.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(|e| error(&e))?;
    copy(engine, file, temporary.as_file(), path)?;
    temporary.persist(&target).map(drop).map_err(|e| error(&e.error))
}

/// Copies all bytes. A reader that goes before the end has had what it wanted.
fn copy(engine: &Engine, file: &OpenFile, mut to: &File, path: &Path) -> Result<()> {
    hand_over(engine, file, &mut |chunk| match to.write_all(&chunk) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(output_error(path, &e)),
    })
}

fn output_error(path: &Path, error: &io::Error) -> Error {
    Error::local(format!("can't write {}", path.display()), error)
}
