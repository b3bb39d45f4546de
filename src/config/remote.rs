//! Remote URLs.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The public bucket of the project, read unsigned when there are no credentials.
pub const DEFAULT_REMOTE: &str = "s3://aztec-ci-artifacts/build-cache/";

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
    /// `file:///DIR/`: a directory of artifacts, e.g. on a network share.
    File(PathBuf),
}

impl Remote {
    /// Parses a remote's URL; `setting` names where it stood.
    pub fn parse(setting: &str, url: &str) -> Result<Remote> {
        let error = |why: &str| Error::usage(format!("{setting}: '{url}': {why}"));
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| error("not a URL; write s3://BUCKET/PREFIX/ or file:///DIR/"))?;
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
            "file" if rest.starts_with('/') => Ok(Remote::File(PathBuf::from(rest))),
            "file" => Err(error("a file remote needs an absolute path; write file:///DIR/")),
            _ => Err(error("unknown kind of remote; write s3://BUCKET/PREFIX/ or file:///DIR/")),
        }
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
        ] {
            let error = Remote::parse("--remote", url).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.starts_with("--remote: ") && text.contains("write "), "{text}");
        }
    }
}
