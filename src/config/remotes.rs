//! Which remotes are asked, in which order.

use crate::cli::RemoteArgs;
use crate::config::file::{ConfigFile, OneOrMany};
use crate::config::remote::{Credentials, Remote};
use crate::config::{Env, aws_params, var};
use crate::error::{Error, Result};

/// The project's bucket, for who has the right to it.
const BUCKET: &str = "s3://aztec-ci-artifacts/build-cache/";
/// The same for everyone, in CI.
const PUBLIC_BUCKET: &str = "http://aztec-ci-artifacts.s3.amazonaws.com/build-cache/";
/// The same for everyone, elsewhere.
const PUBLIC: &str = "https://build-cache.aztec-labs.com/";

const CI_SERVER: &str = "CI3_SERVER";
const CI_USER: &str = "aztec";
const CI_PASSWORD: &str = "CI3_PASSWORD";

const HTTP_USER: &str = "AZTEC_CACHE_HTTP_USER";
const HTTP_PASSWORD: &str = "AZTEC_CACHE_HTTP_PASSWORD";

/// The remotes that the flags name, else the environment, else the configuration file, else the project's own. At least
/// one.
pub fn remotes(
    args: &RemoteArgs,
    env: Env,
    file: &ConfigFile,
    warnings: &mut Vec<String>,
) -> Result<Vec<Remote>> {
    let user = http_user(env)?;
    let (setting, urls) = named(args, env, file)?;
    let mut user_is_for_someone = false;
    let mut remotes = Vec::new();
    for url in &urls {
        let mut remote = Remote::parse(setting, url)?;
        if let (Remote::Http { credentials: own @ None, .. }, Some(_)) = (&mut remote, &user) {
            *own = user.clone();
            user_is_for_someone = true;
        }
        remotes.push(remote);
    }
    if user.is_some() && !user_is_for_someone {
        warnings.push(format!(
            "{HTTP_USER}: does nothing, since no web server is named as a remote without a user"
        ));
    }
    if remotes.is_empty() {
        remotes = defaults(env)?;
    }
    if args.endpoint_url.is_some() && !remotes.iter().any(|remote| matches!(remote, Remote::S3 { .. })) {
        warnings.push(
            "--endpoint-url: does nothing, since no remote is an s3:// one; name one by --remote".to_owned(),
        );
    }
    Ok(remotes)
}

/// The URLs that the user named, and where.
fn named(args: &RemoteArgs, env: Env, file: &ConfigFile) -> Result<(&'static str, Vec<String>)> {
    if !args.remote.is_empty() {
        return Ok(("--remote", args.remote.clone()));
    }
    if let Some(text) = var(env, "AZTEC_CACHE_REMOTE")? {
        return Ok(("AZTEC_CACHE_REMOTE", text.split_whitespace().map(str::to_owned).collect()));
    }
    let urls = match &file.remote {
        Some(OneOrMany::One(url)) => vec![url.clone()],
        Some(OneOrMany::Many(urls)) => urls.clone(),
        None => Vec::new(),
    };
    Ok(("remote in the configuration file", urls))
}

/// The project's remotes: its CI server where that is set, and what the shell layer would ask.
fn defaults(env: Env) -> Result<Vec<Remote>> {
    let bucket = if var(env, aws_params::VARIABLE)?.is_some() {
        BUCKET
    } else if var(env, "CI")?.as_deref() == Some("1") {
        PUBLIC_BUCKET
    } else {
        PUBLIC
    };
    let mut remotes = Vec::new();
    remotes.extend(ci_server(env)?);
    remotes.push(Remote::parse("default", bucket)?);
    Ok(remotes)
}

fn ci_server(env: Env) -> Result<Option<Remote>> {
    let Some(server) = var(env, CI_SERVER)? else { return Ok(None) };
    let server = Remote::parse(CI_SERVER, &server)?;
    let Remote::Http { url, credentials, .. } = server else {
        return Err(Error::usage(format!("{CI_SERVER}: not a web server; write https://HOST")));
    };
    let password = var(env, CI_PASSWORD)?;
    let credentials =
        credentials.or_else(|| password.map(|password| Credentials { user: CI_USER.to_owned(), password }));
    // Who doesn't say who they are may only read.
    let writable = credentials.is_some();
    Ok(Some(Remote::Http { url: format!("{url}artifacts/"), credentials, writable }))
}

/// Who web servers that the user named are told we are.
fn http_user(env: Env) -> Result<Option<Credentials>> {
    let password = var(env, HTTP_PASSWORD)?;
    match var(env, HTTP_USER)? {
        Some(user) => Ok(Some(Credentials { user, password: password.unwrap_or_default() })),
        None if password.is_some() => {
            Err(Error::usage(format!("{HTTP_PASSWORD}: whose? Set {HTTP_USER}, too")))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn of(flags: &[&str], vars: &[(&str, &str)]) -> Result<(Vec<Remote>, Vec<String>)> {
        let args =
            RemoteArgs { remote: flags.iter().map(|f| f.to_string()).collect(), ..RemoteArgs::default() };
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        let mut warnings = Vec::new();
        let remotes = remotes(&args, &env, &ConfigFile::default(), &mut warnings)?;
        Ok((remotes, warnings))
    }

    fn web(url: &str, user: Option<(&str, &str)>) -> Remote {
        let credentials = user.map(|(user, pw)| Credentials { user: user.into(), password: pw.into() });
        Remote::Http { url: url.into(), credentials, writable: false }
    }

    fn bucket() -> Remote {
        Remote::S3 { bucket: "aztec-ci-artifacts".into(), prefix: "build-cache/".into() }
    }

    #[test]
    fn the_defaults_are_what_the_shell_layer_would_ask() {
        let params = ("S3_BUILD_CACHE_AWS_PARAMS", "--region x");
        let public = web("https://build-cache.aztec-labs.com/", None);
        let public_bucket = web("http://aztec-ci-artifacts.s3.amazonaws.com/build-cache/", None);
        assert_eq!(of(&[], &[]).unwrap().0, vec![public.clone()]);
        assert_eq!(of(&[], &[("CI", "0")]).unwrap().0, vec![public.clone()]);
        assert_eq!(of(&[], &[("CI", "1")]).unwrap().0, [public_bucket]);
        assert_eq!(of(&[], &[params]).unwrap().0, [bucket()]);
        assert_eq!(of(&[], &[params, ("CI", "1")]).unwrap().0, [bucket()]);
        let server = ("CI3_SERVER", "https://ci.example:8443");
        let artifacts = "https://ci.example:8443/artifacts/";
        assert_eq!(of(&[], &[server]).unwrap().0, [web(artifacts, None), public.clone()]);
        let credentials = Some(Credentials { user: "aztec".into(), password: "pw".into() });
        let ours = Remote::Http { url: artifacts.into(), credentials, writable: true };
        assert_eq!(of(&[], &[server, ("CI3_PASSWORD", "pw"), params]).unwrap().0, [ours, bucket()]);
        assert_eq!(of(&[], &[("CI3_PASSWORD", "pw")]).unwrap().0, [public]);
        assert!(of(&[], &[("CI3_SERVER", "s3://bucket/")]).is_err());
    }

    #[test]
    fn several_are_kept_in_order_and_take_the_place_of_the_defaults() {
        let env =
            [("AZTEC_CACHE_REMOTE", " http://near/x \n s3://far-bucket "), ("CI3_SERVER", "https://ci")];
        let far = Remote::S3 { bucket: "far-bucket".into(), prefix: String::new() };
        assert_eq!(of(&[], &env).unwrap().0, [web("http://near/x/", None), far]);
        assert_eq!(of(&["http://flag/"], &env).unwrap().0, [web("http://flag/", None)]);
    }

    #[test]
    fn the_environment_s_user_is_for_servers_that_were_named_alone() {
        let user = [("AZTEC_CACHE_HTTP_USER", "me"), ("AZTEC_CACHE_HTTP_PASSWORD", "pw")];
        let (remotes, warnings) = of(&["http://a/", "http://you:x@b/"], &user).unwrap();
        assert_eq!(remotes, [web("http://a/", Some(("me", "pw"))), web("http://b/", Some(("you", "x")))]);
        assert!(warnings.is_empty());
        let (remotes, warnings) = of(&[], &user).unwrap();
        assert_eq!(remotes, [web("https://build-cache.aztec-labs.com/", None)]);
        assert!(warnings[0].contains("AZTEC_CACHE_HTTP_USER") && !warnings[0].contains("pw"));
        assert!(of(&["http://a/"], &user[1..]).unwrap_err().to_string().contains("AZTEC_CACHE_HTTP_USER"));
    }
}
