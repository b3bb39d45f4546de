//! Mounts for tests: the real binary, in a home of its own, unmounted when the guard goes.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aztec_cache_test_support::s3::S3Server;
use aztec_cache_test_support::user::{User, ordinary_user};
use tempfile::TempDir;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_aztec-cache");

/// What a test waits at most for something that happens at once on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; says `what` it was when it never does.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether mounts can be made here; says so aloud when not. With `AZTEC_CACHE_REQUIRE_FUSE` set that is a failure.
pub fn can_mount() -> bool {
    let found = Path::new("/dev/fuse").exists();
    if !found {
        eprintln!("SKIPPED: no /dev/fuse on this machine (modprobe fuse, or --device /dev/fuse)");
        assert!(std::env::var_os("AZTEC_CACHE_REQUIRE_FUSE").is_none(), "mounts are required here");
    }
    found
}

/// Leaves the test when mounts can't be made here.
macro_rules! needs_fuse {
    () => {
        if !crate::common::can_mount() {
            return;
        }
    };
}
pub(crate) use needs_fuse;

/// Whether the tester is root; says aloud what is skipped when not.
pub fn is_root(for_what: &str) -> bool {
    // SAFETY: geteuid takes nothing, changes nothing and can't fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED: only root can test {for_what}");
    }
    root
}

/// Leaves the test when the tester isn't root.
macro_rules! needs_root {
    ($for_what:literal) => {
        if !crate::common::is_root($for_what) {
            return;
        }
    };
}
pub(crate) use needs_root;

/// A home directory with a mountpoint and a cache directory in it, and the settings of the mounts made there.
pub struct Place {
    pub dir: TempDir,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub cache: Option<PathBuf>,
    pub user: Option<(User, BinaryForAll)>,
}

impl Place {
    /// A place that reads from `url` (an S3 server), signed with the test servers' keys.
    pub fn new(url: &str) -> Place {
        let dir =
            tempfile::Builder::new().prefix("aztec-cache-it-").tempdir().expect("a temporary directory");
        let cache = dir.path().join("cache");
        let mut place = Place { dir, args: Vec::new(), env: Vec::new(), cache: Some(cache), user: None };
        place.arg("--endpoint-url").arg(url);
        place.env("AZTEC_CACHE_REMOTE", "s3://aztec-ci-artifacts/build-cache/");
        place.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test-secret");
        place
    }

    pub fn of(server: &S3Server) -> Place {
        Place::new(&server.url())
    }

    /// A place that reads from `remotes`, in this order.
    pub fn reading(remotes: &[&str]) -> Place {
        let mut place = Place::new("");
        place.args.clear();
        place.env("AZTEC_CACHE_REMOTE", remotes.join(" "));
        place
    }

    pub fn arg(&mut self, arg: impl Into<OsString>) -> &mut Place {
        self.args.push(arg.into());
        self
    }

    pub fn env(&mut self, name: &str, value: impl Into<OsString>) -> &mut Place {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn unset(&mut self, name: &str) -> &mut Place {
        self.env.retain(|(n, _)| n != name);
        self
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The cache directory, which must be set.
    pub fn cache(&self) -> &Path {
        self.cache.as_deref().expect("a cache directory")
    }

    /// Waits until `name` lies complete in the cache directory.
    pub fn wait_until_cached(&self, name: &str) {
        let path = self.cache().join(name);
        wait_for(&format!("{name} in the cache directory"), || path.exists());
    }

    /// The files under way in the cache directory.
    pub fn partials(&self) -> Vec<String> {
        names_in(&self.cache().join(".aztec-cache/partial"))
    }

    /// Hands everything in the place to `user`, who makes the mounts from now on.
    pub fn owned_by(&mut self, user: User) -> &mut Place {
        std::os::unix::fs::chown(self.dir.path(), Some(user.uid), Some(user.gid)).expect("chown as root");
        self.user = Some((user, BinaryForAll::new()));
        self
    }

    /// Makes the mounts an ordinary user's from now on, who may use `/dev/fuse`; the tester's, if that is one.
    pub fn of_ordinary_user(&mut self) -> &mut Place {
        let Some(user) = ordinary_user() else { return self };
        // As udev has it; containers and small machines may not.
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).expect("chmod as root");
        self.owned_by(user)
    }

    /// `program`, run by whom the mounts are made by, in the place.
    pub fn program(&self, program: &str) -> Command {
        let mut command = match &self.user {
            Some((user, _)) => user.command(program),
            None => Command::new(program),
        };
        command.stdin(Stdio::null()).current_dir(self.dir.path());
        command
    }

    /// The binary with this place's environment and nothing of the tester's own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.user {
            Some((user, binary)) => user.command(binary.path()),
            None => Command::new(BINARY),
        };
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path());
        // Nothing outside this machine is asked for credentials.
        command.env("AWS_EC2_METADATA_DISABLED", "true").envs(self.env.iter().cloned());
        if let Some(cache) = &self.cache {
            command.env("CACHE_LOCAL_DIR", cache);
        }
        command.args(args).stdin(Stdio::null()).current_dir(self.dir.path());
        command
    }

    /// `mount`, in front.
    pub fn mount_command(&self) -> Command {
        let mut command = self.command(&["mount", "--foreground"]);
        command.arg(self.mountpoint()).args(&self.args);
        command
    }

    /// Mounts and waits until it is ready.
    pub fn mount(&self) -> Mount {
        self.try_mount().unwrap_or_else(|said| panic!("the mount failed:\n{said}"))
    }

    /// Mounts; what it said when it ended instead of getting ready.
    pub fn try_mount(&self) -> Result<Mount, String> {
        Mount::start(self.mount_command(), self.mountpoint())
    }

    /// Runs `mount` as a daemon; the guard unmounts, if it mounted.
    pub fn mount_daemon(&self, extra: &[&str]) -> (Output, Unmount) {
        let guard = Unmount(self.mountpoint());
        let mut command = self.command(&["mount"]);
        let output =
            command.arg(self.mountpoint()).args(&self.args).args(extra).output().expect("the binary runs");
        (output, guard)
    }
}

/// The binary where any user may run it: the tester's checkout may lie in a home that is closed to others.
pub struct BinaryForAll(TempDir);

impl BinaryForAll {
    pub fn new() -> BinaryForAll {
        let dir =
            tempfile::Builder::new().prefix("aztec-cache-it-bin-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let copy = dir.path().join("aztec-cache");
        // A link costs nothing, where both are on one disk. Else `cp`: a file that this process itself had open for writing
        // might still be so in a child of another thread, and could not be run then.
        if fs::hard_link(BINARY, &copy).is_err() {
            let status = Command::new("cp").arg(BINARY).arg(&copy).status().expect("cp runs");
            assert!(status.success(), "a copy of the binary");
        }
        BinaryForAll(dir)
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("aztec-cache")
    }
}

/// Unmounts on drop.
pub struct Unmount(pub PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new(BINARY).arg("unmount").arg(&self.0).output();
    }
}

/// A mount in front, and what it says.
pub struct Mount {
    pub path: PathBuf,
    child: Child,
    said: Arc<Mutex<String>>,
    _unmount: Unmount,
}

impl Mount {
    /// Runs a `mount --foreground` on `path`; what it said when it ended instead of getting ready.
    pub fn start(mut command: Command, path: PathBuf) -> Result<Mount, String> {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        let listener = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut heard = heard.lock().expect("no panics under this lock");
                heard.push_str(&line);
                heard.push('\n');
            }
        });
        let mut mount = Mount { _unmount: Unmount(path.clone()), path, child, said };
        let start = Instant::now();
        loop {
            if mount.said().contains(" mounted at ") {
                return Ok(mount);
            }
            if mount.child.try_wait().expect("it is our child").is_some() {
                listener.join().expect("it only listens");
                return Err(mount.said());
            }
            assert!(start.elapsed() < PATIENCE, "not ready: {}", mount.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Everything it wrote to stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().expect("no panics under this lock").clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        fs::read(self.file(name))
    }

    /// What it reports of itself.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.read(".aztec-cache/status.json").unwrap()).unwrap()
    }

    /// How many bytes of the one file under way have been recorded, so that whoever goes on with it finds them.
    pub fn recorded(&self) -> u64 {
        self.status()["in_flight"][0]["bytes"].as_u64().unwrap_or(0)
    }

    /// The names in the directory `dir` below the mount, sorted.
    pub fn list(&self, dir: &str) -> std::io::Result<Vec<String>> {
        let entries = fs::read_dir(self.path.join(dir))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect::<std::io::Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// Sends `signal` to the daemon.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill(2) of our own child takes no pointers.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0);
    }

    /// Waits for the daemon to end; its exit code, None after a signal.
    pub fn wait(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let mut status = None;
        wait_for("the daemon to end", || {
            status = child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// Unmounts as a user would, and waits for the daemon to end.
    pub fn unmount(mut self) {
        let output = Command::new(BINARY).arg("unmount").arg(&self.path).output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(self.wait(), Some(0), "{}", self.said());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It may wait longer for uploads than we do.
        let unmounting = Command::new(BINARY).arg("unmount").arg(&self.path).stderr(Stdio::null()).spawn();
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.said());
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = unmounting.and_then(|mut child| child.wait());
    }
}

/// Checks that a command refused as the contract has it: with exit code `code`, nothing on stdout, and one line on
/// stderr that names each of `parts`.
#[track_caller]
pub fn assert_refused(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(said.starts_with("aztec-cache: ") && said.ends_with('\n') && said.lines().count() == 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing: {said}");
    }
}

/// Source and type of the file system mounted last on `path`, as `/proc/mounts` has them.
pub fn mounted(path: &Path) -> Option<(String, String)> {
    let table = fs::read_to_string("/proc/mounts").expect("the mount table");
    let path = path.to_str().expect("UTF-8").replace(' ', "\\040");
    let line = table.lines().rfind(|line| line.split(' ').nth(1) == Some(&path))?;
    let mut fields = line.split(' ');
    Some((fields.next()?.to_owned(), fields.nth(1)?.to_owned()))
}

/// A small file system in memory, mounted by root; unmounted on drop.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts it on `path`, which is made, with the options of `mount -o`.
    pub fn at(path: &Path, options: &str) -> Tmpfs {
        fs::create_dir_all(path).expect("a directory to mount on");
        let tmpfs = Tmpfs(path.to_owned());
        tmpfs.run("mount", &["-t", "tmpfs", "-o", options, "tmpfs"]);
        tmpfs
    }

    /// Allows no more writes.
    pub fn make_read_only(&self) {
        self.run("mount", &["-o", "remount,ro"]);
    }

    /// Leaves no room in it.
    pub fn fill(&self) {
        let file = fs::File::create(self.0.join("filler")).expect("a file");
        let zeros = vec![0; 64 << 10];
        while (&file).write_all(&zeros).is_ok() {}
    }

    fn run(&self, program: &str, args: &[&str]) {
        let output = Command::new(program).args(args).arg(&self.0).output().expect("util-linux");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A server on loopback that isn't S3: each connection gets the same bytes and is closed.
pub struct RawServer {
    addr: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl RawServer {
    /// Sends `answer` once a request's head has come.
    pub fn answering(answer: &'static [u8]) -> RawServer {
        RawServer::start(answer, false)
    }

    /// Sends `answer` at once, as SSH and mail servers greet, and closes the connection when the client does.
    pub fn greeting(answer: &'static [u8]) -> RawServer {
        RawServer::start(answer, true)
    }

    fn start(answer: &'static [u8], greets: bool) -> RawServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let addr = listener.local_addr().expect("an address");
        let (heads, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (heard, stopped) = (heads.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().take_while(|_| !stopped.load(Ordering::SeqCst)).flatten() {
                let heard = heard.clone();
                // Clients may go before they have the whole answer.
                std::thread::spawn(move || drop(converse(stream, answer, greets, &heard)));
            }
        });
        RawServer { addr, heads, stop }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The request heads that came so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panics under this lock").clone()
    }
}

fn converse(
    mut stream: TcpStream,
    answer: &[u8],
    greets: bool,
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    if greets {
        stream.write_all(answer)?;
    }
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut head = String::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        head.push_str(&line);
        head.push('\n');
    }
    heads.lock().expect("no panics under this lock").push(head);
    if greets { Ok(()) } else { stream.write_all(answer) }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept loop.
        let _ = TcpStream::connect(self.addr);
    }
}

/// The remote's full key of the file `name` in a mount.
pub fn key(name: &str) -> String {
    format!("build-cache/{name}")
}

/// The names in a directory, sorted; none when it doesn't exist.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map(|entries| entries.map(|entry| entry.expect("a readable entry")));
    let mut names: Vec<String> = entries
        .map(|entries| entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

/// The bytes `range` of the file at `path`.
pub fn read_range(path: &Path, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    fs::File::open(path)?.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// Fails at the first byte where `found` differs from `expected`, without printing megabytes.
pub fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    if found == expected {
        return;
    }
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: the first wrong byte");
    assert_eq!(found.len(), expected.len(), "{what}: its length");
}

/// What `work` gives, done on a thread of its own; fails when that takes longer than `limit`.
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(work()));
    told.recv_timeout(limit).unwrap_or_else(|e| panic!("{what} within {limit:?}: {e}"))
}

/// The errno of a failure.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("a failure").raw_os_error().expect("an errno")
}

/// The value of an extended attribute; None when there is none.
pub fn xattr(path: &Path, name: &str) -> Option<String> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL in the path");
    let name = std::ffi::CString::new(name).expect("no NUL in the name");
    let mut value = vec![0u8; 4096];
    // SAFETY: both strings end in NUL and the buffer is as long as is said.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    (length >= 0).then(|| String::from_utf8_lossy(&value[..length as usize]).into_owned())
}
