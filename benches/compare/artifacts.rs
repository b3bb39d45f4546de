//! What is unpacked: tarballs as a build has them.

use std::fs;
use std::path::{Path, PathBuf};

use aztec_cache_test_support::artifacts::{name, tar_gz, tar_zst};

use crate::Result;
use crate::scale::Scale;

/// A tarball; its bytes are in a local file.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Under which it is in the cache.
    pub name: String,
    /// The local copy.
    pub local: PathBuf,
    /// Its size.
    pub size: u64,
    /// Files in it.
    pub files: usize,
}

impl Artifact {
    /// Makes one of about `size` bytes in `dir`.
    pub fn make(dir: &Path, kind: &Kind, seed: u64) -> Result<Artifact> {
        let bytes = match kind.ext {
            "zst" => tar_zst(seed, kind.size, kind.files),
            _ => tar_gz(seed, kind.size, kind.files),
        };
        let name = name(kind.component, seed, kind.ext);
        let local = dir.join(&name);
        fs::write(&local, &bytes).map_err(|error| format!("{}: {error}", local.display()))?;
        Ok(Artifact { name, local, size: bytes.len() as u64, files: kind.files })
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.local).unwrap_or_else(|error| panic!("{}: {error}", self.local.display()))
    }
}

/// Artifacts of one kind.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What is built.
    pub component: &'static str,
    /// `tar.gz` or `zst`.
    pub ext: &'static str,
    /// Bytes of each.
    pub size: usize,
    /// Files in each.
    pub files: usize,
}

/// A bootstrap of the protocol's repository: 200 artifacts of 570 MB in all, most of them small; number and kind.
const BOOTSTRAP: &[(usize, Kind)] = &[
    (1, Kind { component: "barretenberg-clang20", ext: "zst", size: 170_000_000, files: 300 }),
    (1, Kind { component: "barretenberg-wasm", ext: "zst", size: 100_000_000, files: 100 }),
    (1, Kind { component: "noir", ext: "tar.gz", size: 60_000_000, files: 60 }),
    (1, Kind { component: "yarn-project", ext: "tar.gz", size: 60_000_000, files: 3000 }),
    (12, Kind { component: "bb.js", ext: "tar.gz", size: 8_000_000, files: 200 }),
    (60, Kind { component: "circuit", ext: "tar.gz", size: 1_000_000, files: 4 }),
    (84, Kind { component: "contract", ext: "tar.gz", size: 300_000, files: 2 }),
    (40, Kind { component: "vk", ext: "tar.gz", size: 40_000, files: 1 }),
];

/// Makes the artifacts of a bootstrap in `dir`, in an order that mixes their sizes.
pub fn bootstrap(dir: &Path, scale: &Scale) -> Result<Vec<Artifact>> {
    let all = BOOTSTRAP.iter().flat_map(|(count, kind)| std::iter::repeat_n(kind, *count));
    let mut artifacts = Vec::new();
    for (seed, kind) in all.enumerate().step_by(scale.artifact_step) {
        let kind = Kind { size: kind.size / scale.artifact_divisor, ..kind.clone() };
        artifacts.push(Artifact::make(dir, &kind, seed as u64)?);
    }
    // Hashes know nothing of sizes.
    artifacts.sort_by(|a, b| hash_part(&a.name).cmp(hash_part(&b.name)));
    Ok(artifacts)
}

fn hash_part(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(_, hash)| hash)
}
