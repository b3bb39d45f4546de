//! The measures that aztec-cache set itself, and whether the results reach them.

use crate::args::Link;
use crate::contenders::{CACHE_FILE, LOCAL, OURS, OURS_USER, SCRIPTS, SCRIPTS_MOUNT};
use crate::results::{Results, Row};
use crate::shell::{CURL, CURL_DIR};
use crate::workloads::ROUND_TRIPS;

/// Other mounts.
const RIVALS: &[&str] = &["rclone", "s3fs", "mount-s3"];
/// A rival that is ahead by less than this is not.
const NOISE: f64 = 1.05;

/// One measure.
#[derive(Debug)]
pub struct Measure {
    /// What is compared.
    pub what: &'static str,
    /// What must be reached.
    pub target: Target,
    /// What was.
    pub value: f64,
}

/// What a value must be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl Measure {
    /// Whether it is reached.
    pub fn is_met(&self) -> bool {
        match self.target {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::AtLeast(least) => write!(f, "≥ {least}"),
            Target::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// All measures for which there are results.
pub fn judge(results: &Results) -> Vec<Measure> {
    let found = Found(results);
    let at_least = |what, value: Option<f64>, least| (what, Target::AtLeast(least), value);
    let at_most = |what, value: Option<f64>, most| (what, Target::AtMost(most), value);
    let (raw, slow) = (Some(Link::Raw), Some(Link::S3Like));
    let all = [
        at_least(
            "warm read, passthrough: throughput / the cache file's",
            found.ratio(("read.warm", None, CACHE_FILE), ("read.warm", None, OURS)),
            0.95,
        ),
        at_least(
            "second read, ordinary user: throughput / the cache file's",
            found.ratio(("read.second", None, CACHE_FILE), ("read.second", None, OURS_USER)),
            0.6,
        ),
        at_most(
            "warm tar -xf of .tar.gz, passthrough: time / the local file's",
            found.warm_tar("tar.gz.warm", OURS),
            1.03,
        ),
        at_most(
            "warm tar -xf of .zst, passthrough: time / the local file's",
            found.warm_tar("tar.zst.warm", OURS),
            1.03,
        ),
        at_most(
            "warm tar -xf of .tar.gz, ordinary user: time / the local file's",
            found.warm_tar("tar.gz.warm", OURS_USER),
            1.10,
        ),
        at_most(
            "warm tar -xf of .zst, ordinary user: time / the local file's",
            found.warm_tar("tar.zst.warm", OURS_USER),
            1.10,
        ),
        at_least(
            "cold read, S3-like: throughput / one curl stream's",
            found.ratio(("read.cold", slow, CURL), ("read.cold", slow, OURS)),
            8.0,
        ),
        at_least(
            "cold read, raw: throughput / that of curl to a file",
            found.ratio(("read.cold", raw, CURL_DIR), ("read.cold", raw, OURS)),
            0.8,
        ),
        at_most(
            "cold tar -xf of .tar.gz, S3-like: time / max(our download, extraction)",
            found.cold_tar("tar.gz.cold", "tar.gz.fetch", "tar.gz.warm"),
            1.1,
        ),
        at_most(
            "cold tar -xf of .zst, S3-like: time / max(our download, extraction)",
            found.cold_tar("tar.zst.cold", "tar.zst.fetch", "tar.zst.warm"),
            1.1,
        ),
        at_most(
            "first byte, S3-like: time / that of a HEAD and a GET's first byte",
            found.ratio(("read.first", slow, OURS), ("read.first", slow, ROUND_TRIPS)),
            1.3,
        ),
        at_most(
            "bootstrap, S3-like: warm / cold",
            found.ratio(("bootstrap.warm", None, OURS), ("bootstrap.cold", slow, OURS)),
            0.3,
        ),
        at_most(
            "bootstrap cold, S3-like: time / the shell layer's with its directory",
            found.ratio(("bootstrap.cold", slow, OURS), ("bootstrap.cold", slow, CURL_DIR)),
            1.0,
        ),
        at_most(
            "bootstrap warm by our scripts: time / the shell layer's with its directory",
            found.ratio(("bootstrap.warm", None, SCRIPTS_MOUNT), ("bootstrap.warm", None, CURL_DIR)),
            1.0,
        ),
        at_most(
            "bootstrap cold by our scripts, S3-like: time / the shell layer's with its directory",
            found.ratio(("bootstrap.cold", slow, SCRIPTS_MOUNT), ("bootstrap.cold", slow, CURL_DIR)),
            0.5,
        ),
        at_most(
            "bootstrap cold by our scripts from a web server, S3-like: time / the shell layer's",
            found.ratio(("web.cold", slow, SCRIPTS), ("web.cold", slow, CURL_DIR)),
            0.5,
        ),
        at_most(
            "the same with our mount: time / the shell layer's",
            found.ratio(("web.cold", slow, SCRIPTS_MOUNT), ("web.cold", slow, CURL_DIR)),
            0.5,
        ),
        at_most("requests for a cold small file", found.one("requests.cold", None, OURS), 2.0),
        at_most("requests for a warm one", found.one("requests.warm", None, OURS), 0.0),
        // Heads of answers are counted with the bytes.
        at_most(
            "8 processes open one cold file: fetched / needed",
            found.one("share.8.bytes", slow, OURS),
            1.004,
        ),
        at_least(
            "open + read 4 KiB + close per second, warm / the local file's",
            found.ratio(("opens.warm", None, OURS), ("opens.warm", None, LOCAL)),
            0.2,
        ),
        at_most("peak RSS, one very large file, MiB", found.one("memory.huge", None, OURS), 64.0),
        at_most(
            "peak RSS, many files at once and a long listing, MiB",
            found.one("memory.many", None, OURS),
            128.0,
        ),
        at_most(
            "CPU of a cold read, raw: the daemon's / curl's",
            found.ratio(("read.cpu", raw, OURS), ("read.cpu", raw, CURL_DIR)),
            2.5,
        ),
        at_least(
            "upload, S3-like: throughput / one curl -T's",
            found.ratio(("upload.time", slow, CURL), ("upload.time", slow, OURS)),
            5.0,
        ),
        at_most("memory that an upload adds, MiB", found.one("upload.memory", slow, OURS), 64.0),
        at_most(
            "cp of 10 MB in background mode: time / cp to the disk with fsync",
            found.ratio(("copy.plain", None, OURS), ("copy.plain", None, LOCAL)),
            1.5,
        ),
        at_most("rows where another mount is ahead of ours", Some(ahead(results).len() as f64), 0.0),
    ];
    let measured = |(what, target, value): (_, _, Option<f64>)| Some(Measure { what, target, value: value? });
    all.into_iter().filter_map(measured).collect()
}

/// A row's id, its link, and a contender.
type Cell = (&'static str, Option<Link>, &'static str);

struct Found<'a>(&'a Results);

impl Found<'_> {
    fn one(&self, id: &str, link: Option<Link>, contender: &str) -> Option<f64> {
        self.0.median(id, link, contender)
    }

    fn ratio(&self, (id, link, name): Cell, of: Cell) -> Option<f64> {
        Some(self.one(id, link, name)? / self.one(of.0, of.1, of.2)?)
    }

    fn warm_tar(&self, id: &'static str, name: &'static str) -> Option<f64> {
        self.ratio((id, None, name), (id, None, LOCAL))
    }

    fn cold_tar(&self, cold: &str, fetch: &str, warm: &str) -> Option<f64> {
        let slow = Some(Link::S3Like);
        let bound = self.one(fetch, slow, OURS)?.max(self.one(warm, None, LOCAL)?);
        Some(self.one(cold, slow, OURS)? / bound)
    }
}

/// The rows where a rival's median is better than ours by more than noise: than our best sample, and by a twentieth.
pub fn ahead(results: &Results) -> Vec<(&Row, &'static str)> {
    let rows = results.rows();
    rows.into_iter()
        .flat_map(|row| RIVALS.iter().filter(|rival| is_ahead(row, rival)).map(move |rival| (row, *rival)))
        .collect()
}

fn is_ahead(row: &Row, rival: &str) -> bool {
    let less = row.kind().1.less_is_better();
    let better = |a: f64, b: f64| if less { a * NOISE < b } else { a > b * NOISE };
    let Some((ours, theirs)) = row.median(OURS).zip(row.median(rival)) else { return false };
    let best = |samples: &[f64]| {
        let samples = samples.iter().copied();
        if less { samples.fold(f64::INFINITY, f64::min) } else { samples.fold(0.0, f64::max) }
    };
    let ours_at_best = row.samples(OURS).map_or(ours, best);
    better(theirs, ours) && (if less { theirs < ours_at_best } else { theirs > ours_at_best })
}
