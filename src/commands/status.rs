//! `aztec-cache status`

use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;

use crate::cli::StatusArgs;
use crate::config::{self, LocalConfig};
use crate::engine::open_cache;
use crate::error::{Error, Kind, Result};
use crate::object::RESERVED;
use crate::status::{InFlight, Pending, Status};
use crate::store::RemoteState;
use crate::{logging, mountpoint};

/// A daemon that hasn't answered by then hangs; it may have a large cache directory to look at.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints what a mount reports, or what the local cache holds when nothing is mounted.
///
/// # Errors
/// Wrong settings; the mount is dead, hangs, or is another user's.
pub fn run(args: &StatusArgs) -> Result<()> {
    let env = |name: &str| std::env::var_os(name);
    let config = LocalConfig::new(&args.local, &env)?;
    logging::start(&config.log, true)?;
    // Without a home no mount is where one is by default.
    let path = match config::mountpoint(args.mountpoint.as_deref(), &env) {
        Err(error) if args.mountpoint.is_some() => return Err(error),
        path => path.ok(),
    };
    let status = match &path {
        Some(path) if mountpoint::is_mounted(path)? => of_mount(path)?,
        path => of_cache(&config, path.as_deref()),
    };
    let text = if args.json { status.to_json()? } else { render(&status).into_bytes() };
    match io::stdout().write_all(&text) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::local("can't write to stdout", &e)),
        _ => Ok(()),
    }
}

/// Asks the mount, on a thread that may be left behind.
fn of_mount(mountpoint: &Path) -> Result<Status> {
    let error = |what: String| Error::new(Kind::Mount, format!("{}: {what}", mountpoint.display()));
    let file = mountpoint.join(RESERVED).join("status.json");
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(fs::read(file)));
    match told.recv_timeout(PATIENCE) {
        Ok(Ok(text)) => serde_json::from_slice(&text)
            .map_err(|e| error(format!("a report that isn't understood ({e}); mounted by another version?"))),
        Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            Err(error("its daemon died; 'aztec-cache mount' mounts it anew".to_owned()))
        }
        Ok(Err(e)) => Err(error(format!("can't be asked: {e}; do it as the user who mounted it"))),
        Err(_) => Err(error("its daemon doesn't answer; look at its log".to_owned())),
    }
}

/// Looks at the cache directory; one that isn't there is not made.
fn of_cache(config: &LocalConfig, mountpoint: Option<&Path>) -> Status {
    match &config.cache_dir {
        Some(dir) if !dir.exists() => Status::of_missing_cache(dir),
        dir => Status::of_cache(open_cache(dir.as_deref(), config.space, mountpoint).as_ref()),
    }
}

/// The report for people: a line for each thing, what one wants to know first before the rest, and what is nothing left out.
fn render(status: &Status) -> String {
    let mut text = Text::default();
    text.mount(status);
    for remote in &status.remotes {
        text.line("remote", remote_line(remote));
    }
    text.cache(status);
    if status.opens.is_some() {
        text.counters(status);
    }
    for download in status.in_flight.iter().flatten() {
        text.line("fetching", download_line(download));
    }
    for upload in status.pending_uploads.iter().flatten() {
        text.line("to upload", upload_line(upload));
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, label: &str, what: impl fmt::Display) {
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "{label:<10} {what}");
    }

    fn mount(&mut self, status: &Status) {
        let Status { version, .. } = status;
        let (Some(mountpoint), Some(pid)) = (&status.mountpoint, status.pid) else {
            return self.line("mount", "none");
        };
        let how = if status.passthrough == Some(true) { "passthrough" } else { "no passthrough" };
        self.line("mount", format_args!("{mountpoint} (version {version}, process {pid}, {how})"));
    }

    fn cache(&mut self, status: &Status) {
        let cache = &status.cache;
        let Some(dir) = &cache.dir else { return self.line("cache", "none") };
        let bytes = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |bytes| ByteSize(bytes).to_string());
        let mut what = format!("{dir}: {} files, {}", number(cache.files), bytes(cache.bytes));
        if let Some(max) = cache.max_bytes {
            let _ = write!(what, " of {}", ByteSize(max));
        }
        if cache.pinned_bytes != Some(0) {
            let _ = write!(what, ", {} in use or to be uploaded", bytes(cache.pinned_bytes));
        }
        if let Some(evicted @ 1..) = cache.evicted_files {
            let _ = write!(what, ", {evicted} evicted");
        }
        self.line("cache", what);
    }

    fn counters(&mut self, status: &Status) {
        let Status { opens, hits, misses, coalesced, requests, .. } = status;
        let size = |bytes: Option<u64>| ByteSize(bytes.unwrap_or(0)).to_string();
        self.line(
            "opens",
            format_args!(
                "{}: {} hits, {} misses, {} shared a download",
                number(*opens),
                number(*hits),
                number(*misses),
                number(*coalesced)
            ),
        );
        let (cached, fetched) = (size(status.bytes_from_cache), size(status.bytes_from_remote));
        let note =
            if status.passthrough == Some(true) { " (but for what the kernel read by itself)" } else { "" };
        self.line("bytes", format_args!("{fetched} from remotes, {cached} from the cache{note}"));
        let kinds = [
            ("head", requests.head),
            ("get", requests.get),
            ("list", requests.list),
            ("put", requests.put),
            ("delete", requests.delete),
            ("retried", status.retries),
        ];
        let kinds = kinds.iter().filter(|(_, count)| *count != Some(0));
        let kinds: Vec<String> = kinds.map(|(kind, count)| format!("{} {kind}", number(*count))).collect();
        self.line("requests", if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") });
        let errors = status.errors.iter().flatten();
        let errors: Vec<String> = errors.map(|(errno, count)| format!("{count} {errno}")).collect();
        if !errors.is_empty() {
            self.line("errors", errors.join(", "));
        }
    }
}

fn number(number: Option<u64>) -> String {
    number.map_or("?".to_owned(), |number| number.to_string())
}

fn remote_line(remote: &RemoteState) -> String {
    let reachable = match remote.reachable {
        Some(true) => "reachable",
        Some(false) => "unreachable",
        None => "not asked yet",
    };
    let lists = match remote.can_list {
        Some(true) => ", can be listed",
        Some(false) => ", can't be listed",
        None => "",
    };
    format!("{} ({reachable}{lists})", remote.url)
}

fn download_line(download: &InFlight) -> String {
    let InFlight { name, bytes, size } = download;
    format!("{}: {} of {}", name.escape_debug(), ByteSize(*bytes), ByteSize(*size))
}

fn upload_line(pending: &Pending) -> String {
    let upload = &pending.upload;
    let mut line = format!("{}: ", upload.name.escape_debug());
    let _ = match pending.sent {
        Some(sent) => write!(line, "{} of {} sent", ByteSize(sent), ByteSize(upload.size)),
        None => write!(line, "{}", ByteSize(upload.size)),
    };
    if upload.refused {
        line.push_str(", refused");
    } else if upload.attempts > 0 {
        let _ = write!(line, ", tried {} times", upload.attempts);
    }
    if let Some(error) = &upload.error {
        let _ = write!(line, ": {error}");
    }
    line
}
