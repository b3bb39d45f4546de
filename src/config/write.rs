//! What may be written, and where it goes.

use crate::cli::{FuseArgs, WriteArgs};
use crate::config::file::ConfigFile;
use crate::config::{Env, setting, switch};
use crate::error::{Error, Result};

/// What may be written, and where it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Every write is refused (EROFS in a mount).
    pub read_only: bool,
    /// What a finished write does with the remote; None: `Through` where the remote accepts uploads
    /// ([`crate::store::ObjectStore::accepts_uploads`]), else `Never`.
    pub upload: Option<Upload>,
    /// An artifact that is there already may be replaced.
    pub allow_overwrite: bool,
    /// Artifacts may be removed from the remote.
    pub allow_delete: bool,
    /// `.gz` and `.zst` files are taken as they are, whole archives or not.
    pub unchecked_archives: bool,
}

/// What a finished write does with the remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// It is done when the remote has it.
    Through,
    /// It is done when it is durable here; it is uploaded afterwards.
    Background,
    /// It stays here.
    Never,
}

impl WriteOptions {
    /// What a command without a mount is told.
    ///
    /// # Errors
    /// Anything malformed, with exit code 2, naming the setting and the remedy.
    pub fn new(args: &WriteArgs, env: Env, file: &ConfigFile) -> Result<WriteOptions> {
        let forced = env("S3_FORCE_UPLOAD").is_some_and(|value| !value.is_empty());
        Ok(WriteOptions {
            read_only: switch(env, "AZTEC_CACHE_READ_ONLY")?.or(file.read_only).unwrap_or(false),
            upload: upload(args, env, file)?,
            allow_overwrite: args.allow_overwrite || forced || file.allow_overwrite.unwrap_or(false),
            allow_delete: false,
            unchecked_archives: args.no_check_archives || file.no_check_archives.unwrap_or(false),
        })
    }

    /// What a mount is told.
    ///
    /// # Errors
    /// Those of [`WriteOptions::new`].
    pub fn of_mount(args: &WriteArgs, fuse: &FuseArgs, env: Env, file: &ConfigFile) -> Result<WriteOptions> {
        let options = WriteOptions::new(args, env, file)?;
        let flag = match (fuse.read_only, fuse.read_write) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        // As with mount(8), the last one counts.
        let asked = flag.or_else(|| fuse.options.iter().rev().find_map(|option| access(option)));
        Ok(WriteOptions {
            read_only: asked.unwrap_or(options.read_only),
            allow_delete: fuse.allow_delete || file.allow_delete.unwrap_or(false),
            ..options
        })
    }
}

/// Whether an option of `-o` asks for read-only, or for the opposite; None when it is another.
pub fn access(option: &str) -> Option<bool> {
    match option {
        "ro" => Some(true),
        "rw" => Some(false),
        _ => None,
    }
}

fn upload(args: &WriteArgs, env: Env, file: &ConfigFile) -> Result<Option<Upload>> {
    let upload = match setting(&args.upload, "--upload", env, "AZTEC_CACHE_UPLOAD", &file.upload) {
        None => return Ok(None),
        Some((_, text)) if text == "through" => Upload::Through,
        Some((_, text)) if text == "background" => Upload::Background,
        Some((_, text)) if text == "never" => Upload::Never,
        Some((name, text)) => {
            return Err(Error::usage(format!("{name}: '{text}'; write through, background or never")));
        }
    };
    Ok(Some(upload))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn of_mount(write: WriteArgs, fuse: FuseArgs, vars: &[(&str, &str)], file: &ConfigFile) -> WriteOptions {
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        WriteOptions::of_mount(&write, &fuse, &env, file).unwrap()
    }

    #[test]
    fn read_only_by_flag_over_option_over_environment_over_file() {
        let read_only = |flags: [bool; 2], options: &[&str], vars: &[(&str, &str)], filed| {
            let options = options.iter().map(|option| option.to_string()).collect();
            let fuse = FuseArgs { read_only: flags[0], read_write: flags[1], options, ..FuseArgs::default() };
            let file = ConfigFile { read_only: filed, ..ConfigFile::default() };
            of_mount(WriteArgs::default(), fuse, vars, &file).read_only
        };
        let set = [("AZTEC_CACHE_READ_ONLY", "1")];
        assert!(!read_only([false, false], &[], &[], None));
        assert!(read_only([false, false], &[], &[], Some(true)));
        assert!(read_only([false, false], &[], &set, Some(false)));
        assert!(!read_only([false, false], &["rw"], &set, None));
        assert!(read_only([false, false], &["rw", "ro"], &[], None));
        assert!(!read_only([false, true], &["ro"], &set, None));
        assert!(read_only([true, false], &["rw"], &[], None));
    }

    #[test]
    fn the_others() {
        let file: ConfigFile =
            toml::from_str("upload = 'never'\nallow-delete = true\nno-check-archives = true").unwrap();
        let filed = of_mount(WriteArgs::default(), FuseArgs::default(), &[], &file);
        assert_eq!((filed.upload, filed.allow_delete), (Some(Upload::Never), true));
        assert_eq!((filed.unchecked_archives, filed.allow_overwrite), (true, false));
        let args = WriteArgs { upload: Some("through".into()), ..WriteArgs::default() };
        let vars = [("AZTEC_CACHE_UPLOAD", "background"), ("S3_FORCE_UPLOAD", "1")];
        let flagged = of_mount(args, FuseArgs::default(), &vars, &file);
        assert_eq!((flagged.upload, flagged.allow_overwrite), (Some(Upload::Through), true));
        let set = of_mount(WriteArgs::default(), FuseArgs::default(), &vars, &file);
        assert_eq!(set.upload, Some(Upload::Background));
        let vars = [("S3_FORCE_UPLOAD", "")];
        let none = of_mount(WriteArgs::default(), FuseArgs::default(), &vars, &ConfigFile::default());
        assert_eq!(none, WriteOptions::default());
    }
}
