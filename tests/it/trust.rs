//! A cache that can be trusted: what happens to it when processes die, meet, and run out of room, and when bytes go bad.

mod checksums;
mod crashes;
mod disks;
mod integrity;
mod limits;
mod sharing;
mod takeover;

use aztec_cache_test_support::s3::S3Server;

use crate::common::{Mount, Place};

/// A place that shares `place`'s cache directory.
fn beside(place: &Place, server: &S3Server) -> Place {
    let mut other = Place::of(server);
    other.cache = place.cache.clone();
    other.args = place.args.clone();
    other
}

/// What `cat` gives whoever mounted it: nobody else may read an ordinary user's mount.
fn cat(place: &Place, mount: &Mount, name: &str) -> Result<Vec<u8>, String> {
    let output = place.program("cat").arg(mount.file(name)).output().expect("cat");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(output.stdout) } else { Err(said) }
}

/// A number for a long run from the environment.
fn count_of(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
