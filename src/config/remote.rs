//! Remote URLs.

use std::fmt;
use std::path::PathBuf;

use hyper::http::uri::Authority;
use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};

/// Where artifacts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// `s3://BUCKET/PREFIX/`
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What stands before every key: empty, or ending in `/`.
        prefix: String,
    },
    /// `https://HOST/PATH/` or `http://…`: a plain web server.
    Http {
        /// Without credentials, ending in `/`.
        url: String,
        /// Who we say we are.
        credentials: Option<Credentials>,
        /// Whether it takes uploads, by PUT.
        writable: bool,
    },
    /// `file:///DIR/`: a directory of artifacts, e.g. on a network share.
    File(PathBuf),
}

/// A user and a password for a web server, which are shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// Their password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Remote {
    /// Parses a remote's URL; `setting` names where it stood.
    pub fn parse(setting: &str, url: &str) -> Result<Remote> {
        let error = |why: &str| Error::usage(format!("{setting}: '{}': {why}", without_user(url)));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            error(
                "not a URL; write s3://BUCKET/PREFIX/, https://HOST/PATH/, http://HOST/PATH/ or file:///DIR/",
            )
        })?;
        match scheme {
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if !is_bucket_name(bucket) {
                    return Err(error(
                        "not a bucket name (3 to 63 letters, digits, '.', '-' or '_'); write s3://BUCKET/PREFIX/",
                    ));
                }
                let mut prefix = prefix.to_owned();
                if !prefix.is_empty() && !prefix.ends_with('/') {
                    prefix.push('/');
                }
                if prefix.starts_with('/') || prefix.contains("//") {
                    return Err(error("an empty component in the prefix; write single slashes"));
                }
                Ok(Remote::S3 { bucket: bucket.to_owned(), prefix })
            }
            "http" | "https" => web(scheme, rest).map_err(error),
            "file" if rest.starts_with('/') => Ok(Remote::File(PathBuf::from(rest))),
            "file" => Err(error("a file remote needs an absolute path; write file:///DIR/")),
            _ => Err(error(
                "unknown kind of remote; write s3://BUCKET/PREFIX/, https://HOST/PATH/, http://HOST/PATH/ or file:///DIR/",
            )),
        }
    }
}

/// A web server's URL, cut in two; else what is wrong with it.
fn web(scheme: &str, rest: &str) -> Result<Remote, &'static str> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let is_host = host.parse::<Authority>().is_ok_and(|a| {
        let port = a.as_str().strip_prefix(a.host()).unwrap_or_default();
        !a.host().is_empty() && (port.is_empty() || a.port_u16().is_some())
    });
    if !is_host {
        return Err("no host in it; write https://HOST/PATH/");
    }
    if path.contains(['?', '#'])
        || path.contains(|c: char| c.is_whitespace() || c.is_control() || !c.is_ascii())
    {
        return Err(
            "a path that keys can't be put behind; write https://HOST/PATH/, encoded, without '?' and '#'",
        );
    }
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map(String::from).map_err(|_| "a user or password that isn't UTF-8; encode it as such")
    };
    let credentials = match user {
        Some(pair) => {
            let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
            Some(Credentials { user: decode(user)?, password: decode(password)? })
        }
        None => None,
    };
    let slash = if path.is_empty() || path.ends_with('/') { "" } else { "/" };
    Ok(Remote::Http { url: format!("{scheme}://{host}/{path}{slash}"), credentials, writable: false })
}

/// `url` as it may be shown: without a user and a password.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password with a slash in it is malformed, but a password all the same.
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}://{rest}"),
        None => url.to_owned(),
    }
}

/// Lenient about case and underscores, which other servers than AWS allow
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>).
fn is_bucket_name(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_in_a_slash() {
        let s3 = |bucket: &str, prefix: &str| Remote::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(Remote::parse("", "s3://bucket").unwrap(), s3("bucket", ""));
        assert_eq!(Remote::parse("", "s3://bucket/").unwrap(), s3("bucket", ""));
        assert_eq!(Remote::parse("", "s3://bucket/a/b").unwrap(), s3("bucket", "a/b/"));
        assert_eq!(Remote::parse("", "file:///srv/x/").unwrap(), Remote::File("/srv/x/".into()));
    }

    #[test]
    fn malformed_urls_name_the_setting_and_the_remedy() {
        for url in [
            "",
            "bucket",
            "s3:/bucket",
            "s3://",
            "s3:///x",
            "s3://b u/",
            "s3://bucket//x",
            "ftp://h/",
            "file://x",
            "https://",
            "https:///path",
            "http://h o/",
            "http://h/?x",
            "http://h/a b",
            "http://h:x/",
        ] {
            let error = Remote::parse("--remote", url).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.starts_with("--remote: ") && text.contains("write "), "{text}");
        }
    }

    #[test]
    fn a_web_server_s_user_and_password_are_taken_out_and_shown_nowhere() {
        let remote = Remote::parse("", "https://me:p%40ss@host:8443/a/b").unwrap();
        let credentials = Credentials { user: "me".into(), password: "p@ss".into() };
        assert_eq!(
            remote,
            Remote::Http {
                url: "https://host:8443/a/b/".into(),
                credentials: Some(credentials),
                writable: false
            }
        );
        assert!(!format!("{remote:?}").contains("p@ss"));
        assert_eq!(
            Remote::parse("", "http://host").unwrap(),
            Remote::Http { url: "http://host/".into(), credentials: None, writable: false }
        );
        for url in
            ["https://me:secret@h/?x", "https://me:sec/ret@h/", "ftp://me:secret@h/", "s3://me:secret@b/"]
        {
            if let Err(error) = Remote::parse("--remote", url) {
                assert!(!error.to_string().contains("ret"), "{error}");
            }
        }
    }
}
