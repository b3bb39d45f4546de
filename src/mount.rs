//! Wires a file system together, mounts it, and serves it until it is unmounted or told to end.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackingId, MountOption, Session, SessionACL};
use futures_util::future::join;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::cache::CacheDir;
use crate::config::{Config, KernelFlag};
use crate::engine;
use crate::error::{Error, Kind, Result};
use crate::fetch::Fetcher;
use crate::filesystem::{Filesystem, Reports};
use crate::fill::Filler;
use crate::fuse::Fuse;
use crate::mountpoint::{self, Mountpoint, OwnMount};
use crate::passthrough::Passthrough;
use crate::privilege;
use crate::spooled::SpooledFiles;
use crate::status::Mounted;
use crate::store::{self, ObjectStore};
use crate::streams::Streams;
use crate::upload::Uploads;
use crate::verify::scrub;

/// How long a mount waits to hear about its remote, only to be able to say that something is wrong with it.
const PROBE_WAIT: Duration = Duration::from_secs(1);
const READAHEAD_KIB: u32 = 512;
/// Threads that wait for the network.
const WORKERS: usize = 2;
/// How long open files stay readable after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// How long uploads may take once it is unmounted. What is left then is in the journal, for the next mount.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How long tasks under way may take to clean up.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Mounts what `config` says and serves it. `ready` gets the ready line once the mount answers.
///
/// # Errors
/// It can't be mounted. What is wrong with the remote or the local cache is said and does not keep it from mounting.
pub fn run(config: &Config, ready: impl FnOnce(&str)) -> Result<()> {
    check_fuse()?;
    let store = store::open(&config.engine.remotes, &config.engine.s3)?;
    // First the cache directory: the mountpoint may lie in it.
    let cache =
        engine::open_cache(config.engine.cache_dir.as_deref(), config.engine.space, Some(&config.mountpoint));
    let mountpoint = Mountpoint::prepare(&config.mountpoint)?;
    let path = mountpoint.path().to_owned();
    let cache = cache.map(Arc::new);
    let runtime = engine::runtime(WORKERS)?;
    let probe = runtime.spawn(probe(store.clone()));
    if let Some(cache) = cache.clone() {
        if let Some(period) = config.scrub {
            runtime.spawn(scrub(cache.clone(), period));
        }
        runtime.spawn_blocking(move || cache.sweep());
    }
    let uploads = Uploads::new(store.clone(), cache.clone(), config.write, runtime.handle().clone());
    let fill = || Filler::new(store.clone(), cache.clone(), runtime.handle().clone());
    let filler = config.engine.fill.then(fill);
    if let Some(filler) = &filler {
        filler.start();
    }
    let fetcher = Fetcher::new(cache.clone(), store.clone(), filler.clone(), runtime.handle().clone());
    let filesystem = Filesystem::new(
        store.clone(),
        fetcher.clone(),
        uploads.clone(),
        config.engine.revalidate,
        config.expose,
        &config.mount,
        runtime.handle().clone(),
    );
    let passthrough = Arc::new(Passthrough::default());
    let backing_depth = if cache.as_ref().is_some_and(|cache| cache.is_stacked()) { 2 } else { 1 };
    let filesystem = Arc::new(filesystem);
    let streams = Streams::new(runtime.handle().clone());
    let fuse = Fuse::new(
        filesystem.clone(),
        passthrough.clone(),
        streams.clone(),
        backing_depth,
        runtime.handle().clone(),
    );
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let session = Session::new(fuse, &path, &session_config(config, store.url()))
        .map_err(|e| mount_error(&path, &e))?;
    let mount = OwnMount::made_on(&path)?;
    drop(mountpoint);
    let ended = privilege::with_right(|| {
        if let Some(cache) = &cache
            && can_pass_through(&session, cache)
        {
            filesystem.separate_complete_files();
            passthrough.enable();
            streams.enable(session.notifier());
        }
        serve(session)
    })?;
    if let Err(e) = std::fs::metadata(&path) {
        let _ = mount.unmount();
        return Err(Error::new(Kind::Mount, format!("{}: the mount doesn't answer: {e}", path.display())));
    }
    if let Ok(meta) = std::fs::metadata(&path) {
        filesystem.set_device(device_number(&meta));
        raise_readahead(device_number(&meta));
    }
    let mounted = Mounted {
        mountpoint: path.clone(),
        store: store.clone(),
        fetcher,
        uploads: uploads.clone(),
        spooled: filesystem.spooled().clone(),
        passthrough: passthrough.is_enabled(),
    };
    let mounted = Arc::new(mounted);
    let same = mounted.clone();
    filesystem.show_reports(Reports {
        status: Arc::new(move || mounted.report().to_json()),
        unfinished: Arc::new(move || same.unfinished().to_json()),
    });
    uploads.resume();
    runtime.block_on(report_probe(probe));
    ready(&ready_line(config, store.url(), &path, cache.as_deref(), passthrough.is_enabled()));
    let result = runtime.block_on(until_unmounted(&mount, ended, &mut signals));
    if result.is_err() {
        // A session that failed has left it there; one that ended well has not, and may not look for it again: its
        // device number may be another mount's by now.
        let _ = mount.unmount();
    }
    runtime.block_on(finish(filesystem.spooled(), &uploads, filler.as_deref(), &mut signals));
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

fn check_fuse() -> Result<()> {
    match std::fs::metadata("/dev/fuse") {
        Err(e) => Err(Error::new(
            Kind::Mount,
            format!(
                "/dev/fuse: {e}; load the module with 'modprobe fuse', or give the container --device /dev/fuse"
            ),
        )),
        Ok(_) if nix::unistd::geteuid().is_root() => Ok(()),
        Ok(_) if !may_open_fuse() => {
            let message = "/dev/fuse: Permission denied; let everyone open it, as udev does: 'chmod 0666 /dev/fuse' as root";
            Err(Error::new(Kind::Mount, message))
        }
        Ok(_) => match Command::new("fusermount3").arg("-V").output() {
            Ok(_) => Ok(()),
            Err(e) => Err(mountpoint::no_fusermount(&e)),
        },
    }
}

fn may_open_fuse() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

fn session_config(config: &Config, url: &str) -> fuser::Config {
    let options = &config.mount;
    let mut session = fuser::Config::default();
    session.mount_options = vec![
        if config.write.read_only { MountOption::RO } else { MountOption::RW },
        // Modes that are shown are modes that hold.
        MountOption::DefaultPermissions,
        // A comma would end the option.
        MountOption::FSName(url.replace(',', "_")),
        MountOption::CUSTOM("subtype=aztec-cache".to_owned()),
    ];
    if options.auto_unmount {
        session.mount_options.push(MountOption::AutoUnmount);
    }
    session.mount_options.extend(options.flags.iter().map(kernel_flag));
    session.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    session.n_threads = Some(std::thread::available_parallelism().map_or(4, |n| n.get().clamp(4, 16)));
    // Each thread with its own descriptor; needs the right to open the device.
    session.clone_fd = may_open_fuse();
    session
}

/// Finds out whether the kernel may read local files by itself (Linux 6.9, and the right to tell it to: CAP_SYS_ADMIN in the
/// initial user namespace), by registering one.
fn can_pass_through(session: &Session<Fuse>, cache: &CacheDir) -> bool {
    // The registration stays: one small file for the life of the mount.
    let registered = cache.sample().and_then(|file| BackingId::create_raw(session, file));
    if let Err(e) = &registered {
        log::info!("no passthrough ({e}): cached files are read through the kernel's page cache");
    }
    registered.is_ok()
}

fn kernel_flag(flag: &KernelFlag) -> MountOption {
    match flag {
        KernelFlag::Dev => MountOption::Dev,
        KernelFlag::NoDev => MountOption::NoDev,
        KernelFlag::Suid => MountOption::Suid,
        KernelFlag::NoSuid => MountOption::NoSuid,
        KernelFlag::Exec => MountOption::Exec,
        KernelFlag::NoExec => MountOption::NoExec,
        KernelFlag::Atime => MountOption::Atime,
        KernelFlag::NoAtime => MountOption::NoAtime,
        KernelFlag::Sync => MountOption::Sync,
        KernelFlag::Async => MountOption::Async,
        KernelFlag::DirSync => MountOption::DirSync,
    }
}

fn mount_error(path: &Path, error: &io::Error) -> Error {
    let cause = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let remedy = if cause.contains("allow_other") {
        "add user_allow_other to /etc/fuse.conf or leave --allow-other out"
    } else {
        "check that you own the directory and may use /dev/fuse"
    };
    Error::new(Kind::Mount, format!("{}: can't mount: {cause}; {remedy}", path.display()))
}

/// Serves requests on threads of their own; the receiver resolves when the session has ended.
fn serve(session: Session<Fuse>) -> Result<oneshot::Receiver<io::Result<()>>> {
    let error = |e| Error::new(Kind::Mount, format!("can't start a thread: {e}"));
    let (tell, ended) = oneshot::channel();
    let mut session = session.spawn().map_err(error)?;
    let guard = std::mem::replace(&mut session.guard, std::thread::spawn(|| Ok(())));
    // Never dropped: what fuser 0.18.0 does then is to unmount the path even when our mount has gone from it, and so
    // whatever else is mounted there by now (fixed by https://github.com/cberner/fuser/pull/703).
    std::mem::forget(session);
    let wait = move || tell.send(guard.join().unwrap_or_else(|_| Err(io::Error::other("its thread died"))));
    std::thread::Builder::new().name("fuse".to_owned()).spawn(wait).map_err(error)?;
    Ok(ended)
}

/// The number of the file system that a file is on, major and minor.
fn device_number(meta: &Metadata) -> (u32, u32) {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (number(nix::sys::stat::major(meta.dev())), number(nix::sys::stat::minor(meta.dev())))
}

/// Lets the kernel read further ahead than its default of 128 KiB, where we have the right to: fewer, larger requests for
/// files that are not read past us.
fn raise_readahead((major, minor): (u32, u32)) {
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(e) = std::fs::write(&setting, READAHEAD_KIB.to_string()) {
        log::debug!("{setting}: {e}: readahead stays as it is");
    }
}

async fn probe(store: Arc<dyn ObjectStore>) {
    match store.probe().await {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), Kind::ListDenied | Kind::Unreachable | Kind::TimedOut) => {
            // Unreachable: the store itself says so, once.
            log::info!("{error}");
        }
        Err(error) => log::warn!("{error}; mounted all the same: files in the local cache are served"),
    }
}

/// Gives the probe a moment to find something to warn about while the terminal is still there; then it goes on alone.
async fn report_probe(probe: JoinHandle<()>) {
    let _ = timeout(PROBE_WAIT, probe).await;
}

fn ready_line(
    config: &Config,
    url: &str,
    path: &Path,
    cache: Option<&CacheDir>,
    passthrough: bool,
) -> String {
    let cache = match cache {
        Some(cache) if cache.is_writable() => format!("local cache {}", cache.path().display()),
        Some(cache) => format!("local cache {} (not writable)", cache.path().display()),
        None => "no local cache".to_owned(),
    };
    let access = if config.write.read_only { "read-only" } else { "read-write" };
    let passthrough = if passthrough { "passthrough" } else { "no passthrough" };
    let in_front = if config.foreground { ", in the foreground" } else { "" };
    format!("{url} mounted at {}: {cache}, {access}, {passthrough}{in_front}", path.display())
}

/// SIGTERM, SIGINT and SIGHUP, which all mean: unmount.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Signals> {
        let install =
            |kind| signal(kind).map_err(|e| Error::new(Kind::Mount, format!("can't handle signals: {e}")));
        Ok(Signals([
            install(SignalKind::terminate())?,
            install(SignalKind::interrupt())?,
            install(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

async fn until_unmounted(
    mount: &OwnMount,
    mut ended: oneshot::Receiver<io::Result<()>>,
    signals: &mut Signals,
) -> Result<()> {
    tokio::select! {
        // First, so that a mount that is gone is not looked for.
        biased;
        result = &mut ended => return session_result(result),
        () = signals.next() => {}
    }
    let mount = mount.clone();
    let unmounted = tokio::task::spawn_blocking(move || mount.unmount()).await;
    if let Ok(Err(error)) = unmounted {
        log::warn!("{error}");
    }
    // Detached lazily, the session goes on while files are open: for a while, or until told again.
    tokio::select! {
        result = &mut ended => session_result(result),
        () = sleep(GRACE) => {
            log::info!("files are still open: their readers get an error now");
            Ok(())
        }
        () = signals.next() => Ok(()),
    }
}

/// Lets what was written be published and uploads come to their end, for a while, or until told again to end.
async fn finish(
    spooled: &SpooledFiles,
    uploads: &Arc<Uploads>,
    filler: Option<&Filler>,
    signals: &mut Signals,
) {
    let uploaded = async {
        spooled.finish().await;
        uploads.drain(DRAIN).await;
    };
    let filled = async {
        if let Some(filler) = filler {
            filler.drain(DRAIN).await;
        }
    };
    tokio::select! {
        (_, ()) = join(timeout(DRAIN, uploaded), filled) => {}
        () = signals.next() => {}
    }
    match uploads.pending().len() {
        0 => {}
        left => log::warn!("{left} uploads are left to the next mount"),
    }
}

fn session_result(result: Result<io::Result<()>, oneshot::error::RecvError>) -> Result<()> {
    let error =
        |what: String| Error::new(Kind::Mount, format!("the FUSE session failed: {what}; mount again"));
    match result {
        Ok(Ok(())) => Ok(()),
        // The unmount came while a request, such as a last file's release, was being handed over (fs/fuse/dev.c).
        Ok(Err(e)) if e.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        Ok(Err(e)) => Err(error(e.to_string())),
        Err(_) => Err(error("its thread died".to_owned())),
    }
}
