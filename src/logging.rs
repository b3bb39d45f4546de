//! Where the log goes: stderr in front, syslog or a file as a daemon; until a daemon is ready, warnings also go to the
//! terminal it was started from.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use env_logger::{Builder, Target};
use log::{LevelFilter, Log, Metadata, Record};
use syslog::{BasicLogger, Facility, Formatter3164};

use crate::config::LogOptions;
use crate::error::{Error, Result};

static STARTED: AtomicBool = AtomicBool::new(false);

/// Begins to log as `options` say.
///
/// # Errors
/// A log file that can't be opened.
pub fn start(options: &LogOptions, foreground: bool) -> Result<()> {
    let logger: Box<dyn Log> = match (&options.file, foreground) {
        (Some(path), _) => {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
                Error::usage(format!(
                    "--log-file: can't write {}: {e}; name a file that you may write",
                    path.display()
                ))
            })?;
            Box::new(builder(options.level).target(Target::Pipe(Box::new(file))).format(stamped).build())
        }
        (None, true) => Box::new(builder(options.level).format(plain).build()),
        (None, false) => match syslog_logger() {
            Some(logger) => logger,
            // No syslog on this machine, as in a container: nowhere to log to once the terminal is gone.
            None => Box::new(builder(LevelFilter::Off).build()),
        },
    };
    let to_terminal = !(foreground && options.file.is_none());
    let logger = StartUp { logger, level: options.level, to_terminal };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(options.level);
    }
    Ok(())
}

/// The start is over: the terminal belongs to others now.
pub fn started() {
    STARTED.store(true, Ordering::Relaxed);
}

fn builder(level: LevelFilter) -> Builder {
    let mut builder = Builder::new();
    // fuser reports what we report ourselves, with a name and a remedy.
    builder
        .filter_level(level)
        .filter_module("fuser", if level < LevelFilter::Debug { LevelFilter::Off } else { level });
    builder
}

fn plain(out: &mut env_logger::fmt::Formatter, record: &Record) -> std::io::Result<()> {
    writeln!(out, "aztec-cache: {}: {}", level_name(record), record.args())
}

fn stamped(out: &mut env_logger::fmt::Formatter, record: &Record) -> std::io::Result<()> {
    let now = out.timestamp_millis();
    writeln!(out, "{now} aztec-cache[{}]: {}: {}", std::process::id(), level_name(record), record.args())
}

fn level_name(record: &Record) -> &'static str {
    match record.level() {
        log::Level::Error => "error",
        log::Level::Warn => "warning",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    }
}

fn syslog_logger() -> Option<Box<dyn Log>> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_USER,
        hostname: None,
        process: "aztec-cache".into(),
        pid: std::process::id(),
    };
    Some(Box::new(BasicLogger::new(syslog::unix(formatter).ok()?)))
}

/// Passes records on, and warnings to stderr as well until the start is over.
struct StartUp {
    logger: Box<dyn Log>,
    level: LevelFilter,
    to_terminal: bool,
}

impl Log for StartUp {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record) {
        if record.target().starts_with("fuser") && self.level < LevelFilter::Debug {
            return;
        }
        let starting = self.to_terminal && !STARTED.load(Ordering::Relaxed);
        if starting && record.level() <= log::Level::Warn && self.enabled(record.metadata()) {
            eprintln!("aztec-cache: {}: {}", level_name(record), record.args());
        }
        self.logger.log(record);
    }

    fn flush(&self) {
        self.logger.flush();
    }
}
