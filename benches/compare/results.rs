//! What was measured: samples by row and contender.

use crate::args::Link;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds; less is better.
    Seconds,
    /// How often in a second; more is better.
    PerSecond,
    /// Bytes fetched per byte needed; less is better.
    Times,
    /// Requests; fewer are better.
    Requests,
    /// MiB of memory; less is better.
    MiB,
}

impl Unit {
    /// Whether less is better.
    pub fn less_is_better(self) -> bool {
        self != Unit::PerSecond
    }

    /// In JSON.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::PerSecond => "1/s",
            Unit::Times => "x",
            Unit::Requests => "requests",
            Unit::MiB => "MiB",
        }
    }
}

/// Every row: its id, `WORKLOAD.WHAT`, its text, where sizes stand in braces, and its unit.
pub const ROWS: &[(&str, &str, Unit)] = &[
    ("read.first", "first byte of a cold {large} file", Unit::Seconds),
    ("read.cold", "{large} read cold", Unit::Seconds),
    ("read.second", "{large} read a second time", Unit::Seconds),
    ("read.warm", "{large} read again and again", Unit::Seconds),
    ("read.restart", "{large} read after a restart of the daemon", Unit::Seconds),
    ("read.dropped", "{large} read warm, page cache dropped", Unit::Seconds),
    ("read.cpu", "CPU of the daemon or command, {large} cold", Unit::Seconds),
    ("read.memory", "peak RSS of the daemon, {large} cold", Unit::MiB),
    ("tar.gz.cold", "tar -xf of {tarball} .tar.gz cold", Unit::Seconds),
    ("tar.zst.cold", "tar -xf of {tarball} .zst cold", Unit::Seconds),
    ("tar.gz.fetch", "the .tar.gz read cold, not unpacked", Unit::Seconds),
    ("tar.zst.fetch", "the .zst read cold, not unpacked", Unit::Seconds),
    ("tar.gz.warm", "tar -xf of {tarball} .tar.gz warm", Unit::Seconds),
    ("tar.zst.warm", "tar -xf of {tarball} .zst warm", Unit::Seconds),
    ("bootstrap.cold", "bootstrap cold", Unit::Seconds),
    ("bootstrap.half", "bootstrap half warm", Unit::Seconds),
    ("bootstrap.warm", "bootstrap warm", Unit::Seconds),
    ("web.cold", "bootstrap from a web server cold", Unit::Seconds),
    ("web.warm", "bootstrap from a web server warm", Unit::Seconds),
    ("ls.first", "ls -l of {names} names, first", Unit::Seconds),
    ("ls.again", "ls -l of {names} names, again", Unit::Seconds),
    ("missing.first", "stat of {missing} names that don't exist", Unit::Seconds),
    ("share.2.bytes", "2 processes open one cold {shared} file: fetched / needed", Unit::Times),
    ("share.2.time", "2 processes read one cold {shared} file", Unit::Seconds),
    ("share.8.bytes", "8 processes open one cold {shared} file: fetched / needed", Unit::Times),
    ("share.8.time", "8 processes read one cold {shared} file", Unit::Seconds),
    ("requests.cold", "requests for a cold small file", Unit::Requests),
    ("requests.warm", "requests for the same file again", Unit::Requests),
    ("opens.warm", "open + read 4 KiB + close per second, warm", Unit::PerSecond),
    ("memory.huge", "peak RSS, {huge} read cold", Unit::MiB),
    ("memory.huge.time", "{huge} read cold", Unit::Seconds),
    ("memory.huge.cpu", "CPU, {huge} read cold", Unit::Seconds),
    ("memory.many", "peak RSS, {at_once} cold reads at once and {many} listed", Unit::MiB),
    ("memory.many.first", "first name of {many}", Unit::Seconds),
    ("memory.many.all", "all of {many}", Unit::Seconds),
    ("memory.many.cpu", "CPU of those reads and that listing", Unit::Seconds),
    ("upload.time", "{large} uploaded", Unit::Seconds),
    ("upload.cpu", "CPU, {large} uploaded", Unit::Seconds),
    ("upload.memory", "memory that an upload of {large} adds at its peak", Unit::MiB),
    ("copy.plain", "cp of 10 MB, safe on the disk", Unit::Seconds),
    ("copy.gz", "cp of a 10 MB .tar.gz, safe on the disk", Unit::Seconds),
];

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// `WORKLOAD.WHAT`.
    pub id: &'static str,
    /// None where it doesn't matter.
    pub link: Option<Link>,
    /// Contenders and their samples, in the order they came.
    pub cells: Vec<(String, Vec<f64>)>,
}

impl Row {
    /// The row's text and unit.
    pub fn kind(&self) -> (&'static str, Unit) {
        let found = ROWS.iter().find(|(id, ..)| *id == self.id);
        found.map_or((self.id, Unit::Seconds), |(_, text, unit)| (text, *unit))
    }

    /// A contender's samples.
    pub fn samples(&self, contender: &str) -> Option<&[f64]> {
        self.cells.iter().find(|(name, _)| name == contender).map(|(_, samples)| samples.as_slice())
    }

    /// The median of a contender's samples.
    pub fn median(&self, contender: &str) -> Option<f64> {
        self.samples(contender).and_then(median)
    }
}

/// All rows.
#[derive(Debug, Default)]
pub struct Results(Vec<Row>);

impl Results {
    /// Adds a sample.
    pub fn add(&mut self, id: &'static str, link: Option<Link>, contender: &str, value: f64) {
        let found = self.0.iter().position(|row| row.id == id && row.link == link);
        let row = found.unwrap_or_else(|| {
            self.0.push(Row { id, link, cells: Vec::new() });
            self.0.len() - 1
        });
        let cells = &mut self.0[row].cells;
        match cells.iter_mut().find(|(name, _)| name == contender) {
            Some((_, samples)) => samples.push(value),
            None => cells.push((contender.to_owned(), vec![value])),
        }
    }

    /// The rows, sorted as [`ROWS`] are, and by link.
    pub fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.0.iter().collect();
        rows.sort_by_key(|row| (ROWS.iter().position(|(id, ..)| *id == row.id), row.link));
        rows
    }

    /// The median of a contender's samples.
    pub fn median(&self, id: &str, link: Option<Link>, contender: &str) -> Option<f64> {
        self.0.iter().find(|row| row.id == id && row.link == link)?.median(contender)
    }
}

/// The middle one, or the mean of the two.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}
