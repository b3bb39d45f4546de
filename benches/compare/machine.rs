//! What the benchmark ran on.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::process;

/// The machine, as a person would describe it.
pub struct Machine {
    processor: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    file_system: String,
    load: String,
}

impl Machine {
    /// Describes this machine, and the disk that `work` is on.
    pub fn here(work: &Path) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib = memory.trim_end_matches(" kB").parse::<f64>().unwrap_or_default();
        Machine {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system_of(work, &read("/proc/self/mounts")),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }

    /// In a line.
    pub fn line(&self) -> String {
        format!(
            "{} cores ({}), {:.0} GiB of memory, {}, Linux {}; load when it ended: {}",
            self.cores, self.processor, self.memory_gib, self.file_system, self.kernel, self.load
        )
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "processor": self.processor, "cores": self.cores, "memory_gib": self.memory_gib,
            "kernel": self.kernel, "file_system": self.file_system, "load": self.load,
        })
    }
}

/// The versions of programs that everything goes through.
pub fn versions() -> Vec<(&'static str, String)> {
    let programs = [
        ("tar", "--version"),
        ("gzip", "--version"),
        ("zstd", "--version"),
        ("curl", "--version"),
        ("aws", "--version"),
    ];
    programs.into_iter().filter_map(|(name, flag)| Some((name, process::find(name, flag)?))).collect()
}

/// The type of the file system that `path` is on.
fn file_system_of(path: &Path, mounts: &str) -> String {
    let rows = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let below = rows.filter(|(mountpoint, _)| path.starts_with(mountpoint));
    below.max_by_key(|(mountpoint, _)| mountpoint.len()).map_or(String::new(), |(_, kind)| kind.to_owned())
}
