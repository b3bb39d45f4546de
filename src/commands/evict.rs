//! `aztec-cache evict` and `aztec-cache prune`

use std::io::{self, Write};
use std::time::SystemTime;

use bytesize::ByteSize;

use crate::cli::{EvictArgs, PruneArgs};
use crate::commands::engine::local;
use crate::config::{positive_duration, size};
use crate::engine::key;
use crate::error::{Error, Kind, Result};

/// Removes local copies; 1 when there is none of one of them.
///
/// # Errors
/// Wrong settings, or no local cache that can be written.
pub fn evict(args: &EvictArgs) -> Result<u8> {
    let cache = local(&args.local)?;
    let mut worst = 0;
    for name in &args.names {
        match cache.remove(&key(name)?) {
            Ok(true) => {}
            Ok(false) => {
                worst = worst.max(1);
                eprintln!("aztec-cache: {}: not in the local cache", name.escape_debug());
            }
            Err(e) => {
                let error = Error::local(name.escape_debug(), &e);
                worst = worst.max(error.exit_code());
                eprintln!("aztec-cache: {error}");
            }
        }
    }
    Ok(worst)
}

/// Removes local copies, least recently used first, until the cache is small and young enough.
///
/// # Errors
/// Wrong settings, or no local cache that can be written.
pub fn prune(args: &PruneArgs) -> Result<()> {
    let max = args.max_size.as_ref().map(|text| size("--max-size", text)).transpose()?;
    let age = args.older_than.as_ref().map(|text| positive_duration("--older-than", text)).transpose()?;
    if max.is_none() && age.is_none() {
        return Err(Error::usage("prune: say what may go: --max-size SIZE, --older-than DURATION or both"));
    }
    let cache = local(&args.local)?;
    let oldest = age.map(|age| SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
    let (mut files, mut failure) = (0, None);
    let freed = cache.space().prune(max, oldest, args.dry_run, &mut |candidate| {
        files += 1;
        if let Err(e) = writeln!(io::stdout(), "{candidate}") {
            failure.get_or_insert(e);
        }
    });
    let freed = freed.map_err(|e| Error::local(cache.path().display(), &e))?;
    let done = if args.dry_run { "would be removed" } else { "removed" };
    eprintln!("aztec-cache: {files} {done}, {}", ByteSize(freed));
    match failure {
        Some(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Local, format!("stdout: {e}")))
        }
        _ => Ok(()),
    }
}
