//! The settings of a run: flag over environment over configuration file over default, all checked.

pub mod aws_params;
mod file;
mod mount_options;
mod patience;
mod remote;
mod remotes;
mod units;
mod write;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use mount_options::{KernelFlag, MountOptions};
pub use patience::Patience;
pub use remote::{Credentials, Remote};
pub use units::{Free, positive_duration, size};
pub use write::{Upload, WriteOptions};

use crate::cli::{CacheArgs, EngineArgs, FuseArgs, LocalArgs, LogArgs, MountArgs, PutArgs, RemoteArgs};
use crate::config::file::ConfigFile;
use crate::error::{Error, Result};

/// The environment, as a function so that tests need not change their own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Everything that a mount is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Stay in front.
    pub foreground: bool,
    /// How often each cached file is verified; None: never.
    pub scrub: Option<Duration>,
    /// How complete files show.
    pub expose: Expose,
    /// What shapes the mount itself.
    pub mount: MountOptions,
    /// What may be written, and where it goes.
    pub write: WriteOptions,
    /// What is read and where it is kept.
    pub engine: EngineConfig,
}

/// Everything that a command is told that writes an artifact.
#[derive(Clone, Debug)]
pub struct PutConfig {
    /// What may be written, and where it goes.
    pub write: WriteOptions,
    /// What is read and where it is kept.
    pub engine: EngineConfig,
}

/// What every command that reads artifacts is told.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where artifacts come from: asked in this order, at least one.
    pub remotes: Vec<Remote>,
    /// How to reach S3 remotes, and whose certificates to trust.
    pub s3: S3Options,
    /// Where fetched files stay; None: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// What the cache may use of the disk.
    pub space: SpaceLimits,
    /// Whether what a remote gives is uploaded to one that is asked before it.
    pub fill: bool,
    /// After what age a cached file is asked about again; None: never.
    pub revalidate: Option<Duration>,
    /// Where and how much to log.
    pub log: LogOptions,
    /// What the user should know and that stops nothing; to be printed once.
    pub warnings: Vec<String>,
}

/// Everything that a command is told that asks no remote.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Where fetched files stay; None: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// What the cache may use of the disk.
    pub space: SpaceLimits,
    /// Where and how much to log.
    pub log: LogOptions,
}

/// How to reach an S3 remote; None leaves the choice to the SDK's variables and profiles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct S3Options {
    /// The server, when it isn't AWS.
    pub endpoint_url: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// The profile in the AWS configuration files.
    pub profile: Option<String>,
    /// Don't sign.
    pub no_sign_request: bool,
    /// PEM certificates to trust instead of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Don't check certificates.
    pub no_verify_ssl: bool,
    /// Bucket in the path.
    pub force_path_style: bool,
    /// How long the remote is waited for.
    pub patience: Patience,
}

/// What the cache may use of the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpaceLimits {
    /// The cache's own cap in bytes.
    pub max_cache_size: Option<u64>,
    /// What stays free on the disk.
    pub min_free: Free,
}

/// How a file shows once it is complete in the local cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expose {
    /// As a file, read through the mount.
    #[default]
    File,
    /// As a symbolic link to the file in the cache directory.
    Symlink,
}

/// Where and how much to log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogOptions {
    /// The least severe level that is logged.
    pub level: log::LevelFilter,
    /// A file instead of stderr or syslog.
    pub file: Option<PathBuf>,
    /// No ready line.
    pub quiet: bool,
}

impl Config {
    /// Puts together what `args`, the environment and the configuration file say.
    ///
    /// # Errors
    /// Anything malformed, with exit code 2, naming the setting and the remedy.
    pub fn new(args: &MountArgs, env: Env) -> Result<Config> {
        let file = config_file(args.engine.config.as_ref(), env)?;
        Ok(Config {
            mountpoint: mountpoint(args.mountpoint.as_deref(), env)?,
            foreground: args.foreground,
            engine: EngineConfig::with_file(&args.engine, env, &file)?,
            scrub: period(&args.fuse.scrub, "--scrub", env, "AZTEC_CACHE_SCRUB", &file.scrub)?,
            expose: expose(&args.fuse, env, &file)?,
            mount: mount_options(&args.fuse, &file)?,
            write: WriteOptions::of_mount(&args.write, &args.fuse, env, &file)?,
        })
    }
}

impl PutConfig {
    /// Puts together what `args`, the environment and the configuration file say.
    ///
    /// # Errors
    /// Anything malformed, with exit code 2, naming the setting and the remedy.
    pub fn new(args: &PutArgs, env: Env) -> Result<PutConfig> {
        let file = config_file(args.engine.config.as_ref(), env)?;
        Ok(PutConfig {
            write: WriteOptions::new(&args.write, env, &file)?,
            engine: EngineConfig::with_file(&args.engine, env, &file)?,
        })
    }
}

impl EngineConfig {
    /// Puts together what `args`, the environment and the configuration file say.
    ///
    /// # Errors
    /// Anything malformed, with exit code 2, naming the setting and the remedy.
    pub fn new(args: &EngineArgs, env: Env) -> Result<EngineConfig> {
        EngineConfig::with_file(args, env, &config_file(args.config.as_ref(), env)?)
    }

    fn with_file(args: &EngineArgs, env: Env, file: &ConfigFile) -> Result<EngineConfig> {
        let mut warnings = Vec::new();
        Ok(EngineConfig {
            remotes: remotes::remotes(&args.remote, env, file, &mut warnings)?,
            s3: s3_options(&args.remote, env, file, &mut warnings)?,
            cache_dir: cache_dir(args.cache.cache_dir.as_deref(), env, file),
            space: space_limits(&args.cache, env, file)?,
            fill: args.remote.fill || switch(env, "AZTEC_CACHE_FILL")?.or(file.fill).unwrap_or(false),
            revalidate: period(
                &args.cache.revalidate,
                "--revalidate",
                env,
                "AZTEC_CACHE_REVALIDATE",
                &file.revalidate,
            )?,
            log: log_options(&args.log, env, file)?,
            warnings,
        })
    }
}

impl LocalConfig {
    /// Puts together what `args`, the environment and the configuration file say.
    ///
    /// # Errors
    /// Anything malformed, with exit code 2, naming the setting and the remedy.
    pub fn new(args: &LocalArgs, env: Env) -> Result<LocalConfig> {
        let file = config_file(args.config.as_ref(), env)?;
        Ok(LocalConfig {
            cache_dir: cache_dir(args.cache_dir.as_deref(), env, &file),
            space: space_limits(&CacheArgs::default(), env, &file)?,
            log: log_options(&args.log, env, &file)?,
        })
    }
}

impl LogOptions {
    /// Puts together what `args`, the environment and the configuration file say.
    ///
    /// # Errors
    /// Anything malformed, with exit code 2, naming the setting and the remedy.
    pub fn new(args: &EngineArgs, env: Env) -> Result<LogOptions> {
        log_options(&args.log, env, &config_file(args.config.as_ref(), env)?)
    }
}

fn cache_dir(arg: Option<&Path>, env: Env, file: &ConfigFile) -> Option<PathBuf> {
    let dir = arg.map(Path::to_owned).or_else(|| env("CACHE_LOCAL_DIR").map(PathBuf::from));
    dir.or(file.cache_dir.clone()).filter(|dir| !dir.as_os_str().is_empty()).map(absolute)
}

fn config_file(arg: Option<&PathBuf>, env: Env) -> Result<ConfigFile> {
    let path = arg.cloned().or_else(|| path_var(env, "AZTEC_CACHE_CONFIG"));
    file::read(path.as_deref(), default_config_path(env).as_deref())
}

/// The directory named on the command line, else `$HOME/.aztec-cache/remote`; always absolute.
///
/// # Errors
/// No directory given and no `HOME`.
pub fn mountpoint(arg: Option<&Path>, env: Env) -> Result<PathBuf> {
    let path = match arg {
        Some(path) => path.to_owned(),
        None => match (path_var(env, "AZTEC_CACHE_MOUNTPOINT"), path_var(env, "HOME")) {
            (Some(path), _) => path,
            (None, Some(home)) => home.join(".aztec-cache/remote"),
            (None, None) => {
                return Err(Error::usage("MOUNTPOINT: HOME is not set; name the directory to mount on"));
            }
        },
    };
    std::path::absolute(&path)
        .map_err(|e| Error::usage(format!("MOUNTPOINT: {}: {e}; name a directory", path.display())))
}

/// A variable that is set and not empty.
fn var(env: Env, name: &str) -> Result<Option<String>> {
    match env(name) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => value
            .into_string()
            .map(Some)
            .map_err(|_| Error::usage(format!("{name}: not UTF-8; set it to text or unset it"))),
    }
}

/// A variable that is 1 or 0.
fn switch(env: Env, name: &str) -> Result<Option<bool>> {
    match var(env, name)?.as_deref() {
        None => Ok(None),
        Some("0") => Ok(Some(false)),
        Some("1") => Ok(Some(true)),
        Some(other) => Err(Error::usage(format!("{name}: '{other}'; set it to 1 or 0"))),
    }
}

fn path_var(env: Env, name: &str) -> Option<PathBuf> {
    env(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A daemon works in `/`: what is relative is so to where it was started.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn default_config_path(env: Env) -> Option<PathBuf> {
    let base = path_var(env, "XDG_CONFIG_HOME").or_else(|| Some(path_var(env, "HOME")?.join(".config")))?;
    Some(base.join("aztec-cache/config.toml"))
}

/// The value in force with the name of the place that set it.
fn setting(
    flag: &Option<String>,
    flag_name: &str,
    env: Env,
    variable: &str,
    file: &Option<String>,
) -> Option<(String, String)> {
    let from_env = || env(variable).filter(|v| !v.is_empty()).map(|v| v.to_string_lossy().into_owned());
    flag.clone()
        .map(|value| (flag_name.to_owned(), value))
        .or_else(|| from_env().map(|value| (variable.to_owned(), value)))
        .or_else(|| {
            file.clone().map(|value| (format!("{} in the configuration file", &flag_name[2..]), value))
        })
}

/// `never` or a duration; never is the default.
fn period(
    flag: &Option<String>,
    flag_name: &str,
    env: Env,
    variable: &str,
    file: &Option<String>,
) -> Result<Option<Duration>> {
    match setting(flag, flag_name, env, variable, file) {
        Some((name, text)) => units::never_or_duration(&name, &text),
        None => Ok(None),
    }
}

fn s3_options(
    args: &RemoteArgs,
    env: Env,
    file: &ConfigFile,
    warnings: &mut Vec<String>,
) -> Result<S3Options> {
    let params = match var(env, aws_params::VARIABLE)? {
        Some(text) => aws_params::parse(&text)?,
        None => aws_params::AwsParams::default(),
    };
    for option in &params.meaningless {
        warnings.push(format!("{}: {option} has no meaning here and does nothing", aws_params::VARIABLE));
    }
    let patience = Patience::new(args, &params, file)?;
    let endpoint_url = first_given([
        ("--endpoint-url", args.endpoint_url.clone()),
        ("S3_BUILD_CACHE_AWS_PARAMS: --endpoint-url", params.endpoint_url),
        ("endpoint-url in the configuration file", file.endpoint_url.clone()),
    ]);
    if let Some((name, url)) = &endpoint_url {
        check_endpoint(name, url)?;
    }
    let ca_bundle = first_given([
        ("--ca-bundle", args.ca_bundle.clone()),
        ("S3_BUILD_CACHE_AWS_PARAMS: --ca-bundle", params.ca_bundle.map(PathBuf::from)),
        ("ca-bundle in the configuration file", file.ca_bundle.clone()),
        ("AWS_CA_BUNDLE", path_var(env, "AWS_CA_BUNDLE")),
    ]);
    if let Some((name, path)) = &ca_bundle
        && let Err(e) = std::fs::File::open(path)
    {
        return Err(Error::usage(format!(
            "{name}: can't read {}: {e}; name a readable PEM file",
            path.display()
        )));
    }
    Ok(S3Options {
        endpoint_url: endpoint_url.map(|(_, url)| url),
        region: args.region.clone().or(params.region).or(file.region.clone()),
        profile: args.profile.clone().or(params.profile).or(file.profile.clone()),
        no_sign_request: args.no_sign_request
            || params.no_sign_request
            || file.no_sign_request.unwrap_or(false),
        ca_bundle: ca_bundle.map(|(_, path)| absolute(path)),
        no_verify_ssl: args.no_verify_ssl || params.no_verify_ssl || file.no_verify_ssl.unwrap_or(false),
        force_path_style: args.force_path_style || file.force_path_style.unwrap_or(false),
        patience,
    })
}

/// The first of `choices` that was given, with the name of the place where.
fn first_given<T, const N: usize>(choices: [(&'static str, Option<T>); N]) -> Option<(&'static str, T)> {
    choices.into_iter().find_map(|(name, value)| Some((name, value?)))
}

fn check_endpoint(setting: &str, url: &str) -> Result<()> {
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.starts_with('/') && !host.contains(char::is_whitespace) => {
            Ok(())
        }
        _ => Err(Error::usage(format!(
            "{setting}: '{url}' is not a URL; write http://HOST:PORT or https://HOST"
        ))),
    }
}

fn space_limits(args: &CacheArgs, env: Env, file: &ConfigFile) -> Result<SpaceLimits> {
    let cap =
        setting(&args.max_cache_size, "--max-cache-size", env, "AZTEC_CACHE_MAX_SIZE", &file.max_cache_size);
    let free = setting(&args.min_free, "--min-free", env, "AZTEC_CACHE_MIN_FREE", &file.min_free);
    Ok(SpaceLimits {
        max_cache_size: cap.map(|(name, text)| units::size(&name, &text)).transpose()?,
        min_free: free.map(|(name, text)| units::free(&name, &text)).transpose()?.unwrap_or(Free::Percent(5)),
    })
}

fn expose(args: &FuseArgs, env: Env, file: &ConfigFile) -> Result<Expose> {
    match setting(&args.expose, "--expose", env, "AZTEC_CACHE_EXPOSE", &file.expose) {
        None => Ok(Expose::default()),
        Some((_, text)) if text == "file" => Ok(Expose::File),
        Some((_, text)) if text == "symlink" => Ok(Expose::Symlink),
        Some((name, text)) => Err(Error::usage(format!("{name}: '{text}'; write file or symlink"))),
    }
}

fn mount_options(args: &FuseArgs, file: &ConfigFile) -> Result<MountOptions> {
    let mut options = MountOptions {
        allow_other: file.allow_other.unwrap_or(false),
        auto_unmount: file.auto_unmount.unwrap_or(false),
        uid: file.uid,
        gid: file.gid,
        umask: file
            .umask
            .as_deref()
            .map_or(Ok(0), |text| mount_options::umask("umask in the configuration file", text))?,
        ..MountOptions::default()
    };
    for option in args.options.iter().filter(|option| write::access(option).is_none()) {
        options.apply(option)?;
    }
    options.allow_other |= args.allow_other;
    options.auto_unmount |= args.auto_unmount;
    options.uid = args.uid.or(options.uid);
    options.gid = args.gid.or(options.gid);
    if let Some(text) = &args.umask {
        options.umask = mount_options::umask("--umask", text)?;
    }
    if options.auto_unmount && !options.allow_other {
        return Err(Error::usage(
            "--auto-unmount: fusermount3 allows it only with --allow-other; add that or leave it out",
        ));
    }
    Ok(options)
}

fn log_options(args: &LogArgs, env: Env, file: &ConfigFile) -> Result<LogOptions> {
    let level = match (args.quiet, args.verbose) {
        (true, _) => log::LevelFilter::Error,
        (_, 1) => log::LevelFilter::Info,
        (_, 2) => log::LevelFilter::Debug,
        (_, 3..) => log::LevelFilter::Trace,
        (_, 0) => match setting(&args.log_level, "--log-level", env, "AZTEC_CACHE_LOG", &file.log_level) {
            None => log::LevelFilter::Warn,
            Some((name, text)) => text.parse().map_err(|_| {
                Error::usage(format!(
                    "{name}: '{text}' is not a level; write off, error, warn, info, debug or trace"
                ))
            })?,
        },
    };
    Ok(LogOptions {
        level,
        file: args.log_file.clone().or(file.log_file.clone()).map(absolute),
        quiet: args.quiet,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str], vars: &[(&str, &str)]) -> Result<EngineConfig> {
        use clap::Parser;
        let cli =
            crate::cli::Cli::try_parse_from([&["aztec-cache", "mount", "/mnt/x"], args].concat()).unwrap();
        let crate::cli::Command::Mount(args) = cli.command else { unreachable!("asked for mount") };
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Config::new(&args, &env).map(|config| config.engine)
    }

    #[test]
    fn flag_over_environment_over_file_over_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "remote = 's3://from-file/'\nregion = 'file-region'\ncache-dir = '/file'\n")
            .unwrap();
        let file = file.to_str().unwrap();

        let config_ = config(&[], &[]).unwrap();
        let public = "https://build-cache.aztec-labs.com/".to_owned();
        assert_eq!(config_.remotes, [Remote::Http { url: public, credentials: None, writable: false }]);
        assert_eq!((config_.cache_dir, config_.space.min_free), (None, Free::Percent(5)));

        let vars = [("AZTEC_CACHE_CONFIG", file)];
        let config_ = config(&[], &vars).unwrap();
        assert_eq!(config_.remotes, [Remote::S3 { bucket: "from-file".into(), prefix: String::new() }]);
        assert_eq!(config_.s3.region.as_deref(), Some("file-region"));
        assert_eq!(config_.cache_dir, Some("/file".into()));

        let vars =
            [&vars[..], &[("CACHE_LOCAL_DIR", "/env"), ("S3_BUILD_CACHE_AWS_PARAMS", "--region env-region")]]
                .concat();
        let config_ = config(&[], &vars).unwrap();
        assert_eq!(
            (config_.cache_dir, config_.s3.region.as_deref()),
            (Some("/env".into()), Some("env-region"))
        );

        let config_ = config(&["--cache-dir", "/flag", "--region", "flag-region"], &vars).unwrap();
        assert_eq!(
            (config_.cache_dir, config_.s3.region.as_deref()),
            (Some("/flag".into()), Some("flag-region"))
        );
    }

    #[test]
    fn nothing_is_filled_unless_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "fill = true\n").unwrap();
        let filed = ("AZTEC_CACHE_CONFIG", file.to_str().unwrap());
        let fills = |args: &[&str], vars: &[(&str, &str)]| config(args, vars).unwrap().fill;
        assert!(!fills(&[], &[]));
        assert!(fills(&[], &[filed]));
        assert!(!fills(&[], &[filed, ("AZTEC_CACHE_FILL", "0")]));
        assert!(fills(&[], &[("AZTEC_CACHE_FILL", "1")]));
        assert!(fills(&["--fill"], &[("AZTEC_CACHE_FILL", "0")]));
    }

    #[test]
    fn an_empty_cache_dir_means_none() {
        assert_eq!(config(&[], &[("CACHE_LOCAL_DIR", "")]).unwrap().cache_dir, None);
        assert_eq!(config(&["--cache-dir", ""], &[("CACHE_LOCAL_DIR", "/x")]).unwrap().cache_dir, None);
    }

    #[test]
    fn malformed_values_are_usage_errors_that_name_the_setting() {
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
        let cases: &[Case] = &[
            (&["--max-cache-size", "10Q"], &[], "--max-cache-size"),
            (&[], &[("AZTEC_CACHE_MAX_SIZE", "lots")], "AZTEC_CACHE_MAX_SIZE"),
            (&["--min-free", "120%"], &[], "--min-free"),
            (&["--revalidate", "soon"], &[], "--revalidate"),
            (&["--umask", "9"], &[], "--umask"),
            (&["--expose", "hardlink"], &[], "--expose"),
            (&[], &[("AZTEC_CACHE_EXPOSE", "yes")], "AZTEC_CACHE_EXPOSE"),
            (&["--endpoint-url", "localhost:1"], &[], "--endpoint-url"),
            (&["--ca-bundle", "/nonexistent.pem"], &[], "/nonexistent.pem"),
            (&["--log-level", "loud"], &[], "--log-level"),
            (&["--auto-unmount"], &[], "--auto-unmount"),
            (&["--remote", "s3://a-bucket/", "--remote", "https://"], &[], "--remote: 'https://'"),
            (&[], &[("AZTEC_CACHE_READ_ONLY", "yes")], "AZTEC_CACHE_READ_ONLY"),
            (&[], &[("AZTEC_CACHE_FILL", "yes")], "AZTEC_CACHE_FILL"),
            (&["--upload", "soon"], &[], "--upload"),
            (&[], &[("AZTEC_CACHE_UPLOAD", "yes")], "AZTEC_CACHE_UPLOAD"),
            (&[], &[("S3_BUILD_CACHE_AWS_PARAMS", "--region 'x")], "S3_BUILD_CACHE_AWS_PARAMS"),
        ];
        for (args, vars, name) in cases {
            let error = config(args, vars).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn meaningless_options_are_warned_about() {
        let config = config(&[], &[("S3_BUILD_CACHE_AWS_PARAMS", "--output json")]).unwrap();
        assert!(config.warnings[0].contains("--output"));
    }
}
