//! Definitions of the commands and flags, and nothing else.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::error::{Error, Result};

/// The command line.
#[derive(Parser, Debug)]
#[command(subcommand_required = true, arg_required_else_help = false)]
#[command(name = "aztec-cache", version, about = "A team's build cache as a directory, or by command.", long_about = None)]
#[command(
    after_help = "Exit codes: 0 done; 1 no such artifact; 2 usage or configuration; 3 the remote can't be reached, \
fails, or refuses an upload; 4 access denied; 5 the local disk or cache directory; 6 the mount."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands. Each is defined in full only once it is named: a script starts the program for each artifact.
#[derive(Subcommand, Debug)]
#[command(defer = true)]
pub enum Command {
    /// Mount the remote as a directory; a file is fetched on first open and served from disk ever after
    Mount(Box<MountArgs>),
    /// Unmount, and wait up to 35 s for uploads, or repair a mount whose daemon died; quiet when nothing is mounted there
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Write an artifact to stdout or a file, through the local cache; needs no mount
    Get(Box<GetArgs>),
    /// Save a file as an artifact, in the local cache and in the remote; needs no mount
    Put(Box<PutArgs>),
    /// Fetch, check and unpack an archive in one pass, as tar -xf does; needs no mount
    Extract(Box<ExtractArgs>),
    /// What the script cache_download does where there is this program
    #[command(hide = true)]
    CacheDownload(Box<ExtractArgs>),
    /// Exit with 0 when each artifact exists, locally or remotely, with 1 when one doesn't
    Exists(Box<ExistsArgs>),
    /// List artifacts
    Ls(Box<LsArgs>),
    /// Fetch artifacts into the local cache, several at a time
    Prefetch(Box<PrefetchArgs>),
    /// Read cached files against their recorded checksums; exit with 1 when one is damaged
    Verify(Box<VerifyArgs>),
    /// Remove local copies by name; never touches the remote
    Evict(EvictArgs),
    /// Remove local copies by size and age, least recently used first; never touches the remote
    Prune(PruneArgs),
    /// Tell what a mount has done and is doing; without one, what is in the local cache
    Status(StatusArgs),
    /// Print the command that lets an ordinary user's mounts be read as fast as the disk
    SetupPassthrough(SetupPassthroughArgs),
}

/// `aztec-cache verify`
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The artifacts [default: all in the local cache]
    pub names: Vec<String>,

    /// Move damaged files out of the way, to .aztec-cache/quarantine/, and fetch them again
    #[arg(long)]
    pub repair: bool,

    /// Flags about what is read and where it is kept.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `aztec-cache evict`
#[derive(Args, Debug)]
pub struct EvictArgs {
    /// The artifacts
    #[arg(required = true)]
    pub names: Vec<String>,

    /// Flags about the local cache.
    #[command(flatten)]
    pub local: LocalArgs,
}

/// `aztec-cache prune`
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Remove files until at most SIZE (10GB, 500MiB) is in use; files in use stay
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<String>,

    /// Remove files last used longer ago than DURATION (12h, 30d)
    #[arg(long, value_name = "DURATION")]
    pub older_than: Option<String>,

    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,

    /// Flags about the local cache.
    #[command(flatten)]
    pub local: LocalArgs,
}

/// What commands that ask no remote have in common.
#[derive(Args, Debug, Default)]
pub struct LocalArgs {
    /// The local cache [env: CACHE_LOCAL_DIR]
    #[arg(long, value_name = "DIR", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub cache_dir: Option<PathBuf>,

    /// Flags about the log.
    #[command(flatten)]
    pub log: LogArgs,

    /// Read settings from FILE: TOML, keys named as the flags [env: AZTEC_CACHE_CONFIG]
    /// [default: $XDG_CONFIG_HOME/aztec-cache/config.toml when it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `aztec-cache status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Where it is mounted [default: $HOME/.aztec-cache/remote]
    pub mountpoint: Option<PathBuf>,

    /// A JSON object; what isn't known is null
    #[arg(long)]
    pub json: bool,

    /// Flags about the local cache, for when there is no mount.
    #[command(flatten)]
    pub local: LocalArgs,
}

/// `aztec-cache setup-passthrough`
#[derive(Args, Debug)]
pub struct SetupPassthroughArgs {
    /// Run it, through sudo unless you are root
    #[arg(long)]
    pub apply: bool,
}

/// `aztec-cache unmount`
#[derive(Args, Debug)]
pub struct UnmountArgs {
    /// The directory to unmount [env: AZTEC_CACHE_MOUNTPOINT] [default: $HOME/.aztec-cache/remote]
    pub mountpoint: Option<PathBuf>,
}

/// `aztec-cache mount`
#[derive(Args, Debug, Default)]
pub struct MountArgs {
    /// The directory to mount on, created when missing [env: AZTEC_CACHE_MOUNTPOINT] [default: $HOME/.aztec-cache/remote]
    pub mountpoint: Option<PathBuf>,

    /// Stay in front instead of becoming a daemon; log to stderr
    #[arg(short, long)]
    pub foreground: bool,

    /// Flags about what is read and where it is kept.
    #[command(flatten)]
    pub engine: EngineArgs,

    /// Flags about what is written and where it goes.
    #[command(flatten)]
    pub write: WriteArgs,

    /// Flags about the mount itself.
    #[command(flatten)]
    pub fuse: FuseArgs,
}

/// `aztec-cache put`
#[derive(Args, Debug)]
pub struct PutArgs {
    /// The artifact
    pub name: String,

    /// What becomes the artifact; '-' is stdin
    #[arg(default_value = "-", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub file: PathBuf,

    /// Flags about what is written and where it goes.
    #[command(flatten)]
    pub write: WriteArgs,

    /// Flags about the remote and the local cache.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `aztec-cache get`
#[derive(Args, Debug)]
pub struct GetArgs {
    /// The artifact
    pub name: String,

    /// Write to FILE instead of stdout: it appears whole, in place of what was there, or not at all
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Flags about what is read and where it is kept.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `aztec-cache extract`
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// The artifact: a tar archive, in gzip, in zstd or plain, whatever its name; `-` is one on stdin, from anywhere
    pub name: String,

    /// The directory to unpack into, made when missing; files that are there are replaced
    #[arg(default_value = ".", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub dir: PathBuf,

    /// Flags about what is read and where it is kept.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `aztec-cache exists`
#[derive(Args, Debug)]
pub struct ExistsArgs {
    /// The artifacts
    #[arg(required = true)]
    pub names: Vec<String>,

    /// Flags about what is read and where it is kept.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `aztec-cache ls`
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Only names that begin so; up to the last slash it names a directory
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,

    /// Only what is complete in the local cache; asks no remote
    #[arg(long)]
    pub cached: bool,

    /// Also size, time of the last write, and whether it is cached
    #[arg(short, long)]
    pub long: bool,

    /// A JSON array, with everything that is known
    #[arg(long, conflicts_with = "long")]
    pub json: bool,

    /// Flags about what is read and where it is kept.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `aztec-cache prefetch`
#[derive(Args, Debug)]
pub struct PrefetchArgs {
    /// The artifacts; '-' reads more names from stdin, separated by spaces or line ends
    #[arg(required = true)]
    pub names: Vec<String>,

    /// Flags about what is read and where it is kept.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Flags of every command that reads artifacts.
#[derive(Args, Debug, Default)]
pub struct EngineArgs {
    /// Flags about the remote.
    #[command(flatten)]
    pub remote: RemoteArgs,

    /// Flags about the local cache.
    #[command(flatten)]
    pub cache: CacheArgs,

    /// Flags about the log.
    #[command(flatten)]
    pub log: LogArgs,

    /// Read settings from FILE: TOML, keys named as the flags [env: AZTEC_CACHE_CONFIG]
    /// [default: $XDG_CONFIG_HOME/aztec-cache/config.toml when it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

// Not a comment of the flag's, which would have to mark the URLs as links.
const REMOTE_HELP: &str = "Where artifacts come from; given several times, each is asked in turn: s3://BUCKET/PREFIX/, \
https://HOST/PATH/, http://HOST/PATH/ or file:///DIR/ [env: AZTEC_CACHE_REMOTE, several with spaces between] [default: \
s3://aztec-ci-artifacts/build-cache/ with S3_BUILD_CACHE_AWS_PARAMS set, else with CI=1 \
http://aztec-ci-artifacts.s3.amazonaws.com/build-cache/, else https://build-cache.aztec-labs.com/; before it \
$CI3_SERVER/artifacts/ where that is set]";

/// Flags about the remote and how to sign its requests.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Remote")]
pub struct RemoteArgs {
    /// Where artifacts come from, in order.
    #[arg(long, value_name = "URL", help = REMOTE_HELP)]
    pub remote: Vec<String>,

    /// The S3 server, when it isn't AWS; implies path-style requests [env: S3_BUILD_CACHE_AWS_PARAMS, AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,

    /// The bucket's region [env: S3_BUILD_CACHE_AWS_PARAMS, AWS_REGION] [default: the profile's, else us-east-2]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// The profile in ~/.aws/config and ~/.aws/credentials [env: S3_BUILD_CACHE_AWS_PARAMS, AWS_PROFILE]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// Don't sign requests, even when there are credentials [env: S3_BUILD_CACHE_AWS_PARAMS]
    #[arg(long)]
    pub no_sign_request: bool,

    /// A PEM file with the certificates to trust instead of the system's [env: S3_BUILD_CACHE_AWS_PARAMS, AWS_CA_BUNDLE]
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,

    /// Don't check the server's certificate [env: S3_BUILD_CACHE_AWS_PARAMS]
    #[arg(long)]
    pub no_verify_ssl: bool,

    /// Name the bucket in the path instead of the host, also without an endpoint URL
    #[arg(long)]
    pub force_path_style: bool,

    /// Upload what a later remote gave to the first s3:// one that can be written, in the background, so that the next
    /// machine finds it there; takes a local cache [env: AZTEC_CACHE_FILL=1]
    #[arg(long)]
    pub fill: bool,

    /// How long a connection may take to be made; what is slower is down [env: S3_BUILD_CACHE_AWS_PARAMS] [default: 3s]
    #[arg(long, value_name = "DURATION")]
    pub connect_timeout: Option<String>,

    /// How long an answer may take to begin, each time it is asked for [env: S3_BUILD_CACHE_AWS_PARAMS] [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub first_byte_timeout: Option<String>,

    /// How long more bytes of an answer may take to come [env: S3_BUILD_CACHE_AWS_PARAMS] [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub stall_timeout: Option<String>,

    /// How often a request is made in a row that brings nothing, 1 to 20; the pauses between are random and grow
    /// [default: 7]
    #[arg(long, value_name = "N")]
    pub attempts: Option<u32>,
}

/// Flags about the local cache.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Local cache")]
pub struct CacheArgs {
    /// Where fetched files stay, each under its own name; unset or empty: nothing stays on disk [env: CACHE_LOCAL_DIR]
    #[arg(long, value_name = "DIR", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub cache_dir: Option<PathBuf>,

    /// Keep the cache below SIZE (10GB, 500MiB): what was used least recently goes; a file that can never fit is read
    /// without being kept [env: AZTEC_CACHE_MAX_SIZE] [default: no cap]
    #[arg(long, value_name = "SIZE")]
    pub max_cache_size: Option<String>,

    /// Keep SIZE or PERCENT of the disk free: what was used least recently goes, and if that isn't enough, files are read
    /// without being kept [env: AZTEC_CACHE_MIN_FREE] [default: 5%]
    #[arg(long, value_name = "SIZE|PERCENT")]
    pub min_free: Option<String>,

    /// Ask the remote again about a cached file when it was last asked longer ago than DURATION (90s, 12h); names
    /// carry content hashes, so there is no need [env: AZTEC_CACHE_REVALIDATE] [default: never]
    #[arg(long, value_name = "never|DURATION")]
    pub revalidate: Option<String>,
}

/// Flags about what is written and where it goes.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Writing")]
pub struct WriteArgs {
    /// When a written file is done: once the remote has it, once it is durable here, to be uploaded afterwards, or once it
    /// is here, never to be uploaded [env: AZTEC_CACHE_UPLOAD] [default: through when requests are signed, else never]
    #[arg(long, value_name = "through|background|never")]
    pub upload: Option<String>,

    /// Replace artifacts that are there already; else the first writer wins [env: S3_FORCE_UPLOAD, if not empty]
    #[arg(long)]
    pub allow_overwrite: bool,

    /// Take .gz, .tgz, .zst and .tzst files as they are; else those that aren't whole archives are refused
    #[arg(long)]
    pub no_check_archives: bool,
}

/// Flags about the mount itself, as mount(8) and FUSE users know them.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Mount")]
pub struct FuseArgs {
    /// Mount read-only: every write gets EROFS [env: AZTEC_CACHE_READ_ONLY=1]
    #[arg(long, overrides_with = "read_write")]
    pub read_only: bool,

    /// Let files be written, whatever the environment and the configuration file say: the default
    #[arg(long, overrides_with = "read_only")]
    pub read_write: bool,

    /// Let rm remove artifacts from the remote, too; else those that a remote has can't be removed (EPERM)
    #[arg(long)]
    pub allow_delete: bool,

    /// How a file shows once it is complete in the local cache: as a file, or as a symbolic link to it there, which is as
    /// fast as the disk without any rights [env: AZTEC_CACHE_EXPOSE] [default: file]
    #[arg(long, value_name = "file|symlink")]
    pub expose: Option<String>,

    /// Look at all bytes of each cached file once per DURATION (7d), slowly, and move damaged ones out of the way
    /// [env: AZTEC_CACHE_SCRUB] [default: never]
    #[arg(long, value_name = "never|DURATION")]
    pub scrub: Option<String>,

    /// Let other users read the mount (an ordinary user needs user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    pub allow_other: bool,

    /// Let fusermount3 unmount when the daemon dies (needs --allow-other)
    #[arg(long)]
    pub auto_unmount: bool,

    /// The owner that files show [default: the mounting user]
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,

    /// The group that files show [default: the mounting user's]
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,

    /// Permission bits taken away from 0644 (files) and 0755 (directories), in octal [default: 0]
    #[arg(long, value_name = "OCTAL")]
    pub umask: Option<String>,

    /// Mount options as in mount(8): ro, rw, allow_other, auto_unmount, default_permissions, uid=, gid=, umask=, dev, suid,
    /// exec, atime, sync and their opposites
    #[arg(short = 'o', value_name = "OPT[,OPT]", value_delimiter = ',')]
    pub options: Vec<String>,
}

/// Flags about the log.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// off, error, warn, info, debug or trace [env: AZTEC_CACHE_LOG] [default: warn]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Log more: -v info, -vv debug, -vvv trace
    #[arg(short, action = ArgAction::Count)]
    pub verbose: u8,

    /// Log errors only; print no ready line, and say nothing of an artifact that 'get' doesn't find
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Log to FILE instead of stderr (in front) or syslog (as a daemon)
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// Reads the command line; None when it asked for help or the version, which has been printed.
///
/// # Errors
/// Wrong usage, in one line.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Cli>> {
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(Some(cli)),
        Err(e) if !e.use_stderr() => {
            // A closed pipe, as in `aztec-cache --help | head -1`, is no failure.
            let _ = e.print();
            Ok(None)
        }
        Err(e) => {
            // The first paragraph says what is wrong; tips and usage follow.
            let text = e.render().to_string();
            let what =
                text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
            let what = what.strip_prefix("error: ").unwrap_or(&what);
            Err(Error::usage(format!("{what}; see 'aztec-cache --help'")))
        }
    }
}
