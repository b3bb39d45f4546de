//! `S3_BUILD_CACHE_AWS_PARAMS`: the AWS CLI's global options, which the shell layer puts after `aws`.

use std::time::Duration;

use crate::error::{Error, Result};

/// The variable's name.
pub const VARIABLE: &str = "S3_BUILD_CACHE_AWS_PARAMS";

/// Options of the CLI that steer its own output or terminal, with whether they take a value
/// (<https://docs.aws.amazon.com/cli/latest/reference/#global-options>).
const MEANINGLESS: &[(&str, bool)] = &[
    ("--debug", false),
    ("--output", true),
    ("--query", true),
    ("--no-paginate", false),
    ("--color", true),
    ("--version", false),
    ("--cli-binary-format", true),
    ("--cli-error-format", true),
    ("--no-cli-pager", false),
    ("--cli-auto-prompt", false),
    ("--no-cli-auto-prompt", false),
];

/// What the variable said.
#[derive(Debug, Default, PartialEq)]
pub struct AwsParams {
    /// `--endpoint-url`
    pub endpoint_url: Option<String>,
    /// `--region`
    pub region: Option<String>,
    /// `--profile`
    pub profile: Option<String>,
    /// `--ca-bundle`
    pub ca_bundle: Option<String>,
    /// `--no-sign-request`
    pub no_sign_request: bool,
    /// `--no-verify-ssl`
    pub no_verify_ssl: bool,
    /// `--cli-connect-timeout`
    pub connect_timeout: Option<Duration>,
    /// `--cli-read-timeout`
    pub read_timeout: Option<Duration>,
    /// The options that have no meaning here, to be named in a warning.
    pub meaningless: Vec<String>,
}

/// Splits `text` as a shell splits words and reads the options, `--opt value` and `--opt=value` alike.
///
/// # Errors
/// An unbalanced quote, an option that the AWS CLI doesn't have, a missing value or a stray word.
pub fn parse(text: &str) -> Result<AwsParams> {
    let words = shell_words::split(text)
        .map_err(|_| Error::usage(format!("{VARIABLE}: unbalanced quote in '{text}'; close it")))?;
    let mut params = AwsParams::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let mut value = || {
            let value = inline.clone().or_else(|| words.next());
            value.ok_or_else(|| Error::usage(format!("{VARIABLE}: {name} needs a value; write {name} VALUE")))
        };
        match name.as_str() {
            "--endpoint-url" => params.endpoint_url = Some(value()?),
            "--region" => params.region = Some(value()?),
            "--profile" => params.profile = Some(value()?),
            "--ca-bundle" => params.ca_bundle = Some(value()?),
            "--cli-connect-timeout" => params.connect_timeout = Some(seconds(&name, &value()?)?),
            "--cli-read-timeout" => params.read_timeout = Some(seconds(&name, &value()?)?),
            "--no-sign-request" => params.no_sign_request = true,
            "--no-verify-ssl" => params.no_verify_ssl = true,
            "--sign-request" => params.no_sign_request = false,
            "--verify-ssl" => params.no_verify_ssl = false,
            _ => match MEANINGLESS.iter().find(|(option, _)| *option == name) {
                Some((_, takes_value)) => {
                    if *takes_value {
                        value()?;
                    }
                    params.meaningless.push(name);
                }
                None => {
                    return Err(Error::usage(format!(
                        "{VARIABLE}: unknown option '{name}'; give the AWS CLI's global options only \
                         (--endpoint-url, --region, --profile, --no-sign-request, --ca-bundle, --no-verify-ssl)"
                    )));
                }
            },
        }
    }
    Ok(params)
}

/// The CLI takes whole seconds, 0 for ever: that is as long as it gets here.
fn seconds(name: &str, text: &str) -> Result<Duration> {
    match text.parse() {
        Ok(0) => Ok(Duration::from_secs(3600)),
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(Error::usage(format!("{VARIABLE}: {name} '{text}'; write whole seconds, 3600 at most"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_quotes() {
        let params =
            parse("--endpoint-url http://localhost:9447 --region='eu west' --no-sign-request").unwrap();
        assert_eq!(params.endpoint_url.as_deref(), Some("http://localhost:9447"));
        assert_eq!(params.region.as_deref(), Some("eu west"));
        assert!(params.no_sign_request && !params.no_verify_ssl);
        assert_eq!(parse("").unwrap(), AwsParams::default());
        let params = parse("--cli-connect-timeout 2 --cli-read-timeout=0").unwrap();
        assert_eq!(params.connect_timeout, Some(Duration::from_secs(2)));
        assert_eq!(params.read_timeout, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn options_without_meaning_are_named() {
        let params = parse("--output json --debug --color=off --profile p").unwrap();
        assert_eq!(params.meaningless, ["--output", "--debug", "--color"]);
        assert_eq!(params.profile.as_deref(), Some("p"));
    }

    #[test]
    fn bad_input_names_the_variable() {
        for (text, part) in [
            ("--endpoint-url 'http://x", "unbalanced quote"),
            ("--frobnicate", "--frobnicate"),
            ("--region", "needs a value"),
            ("--cli-read-timeout soon", "whole seconds"),
            ("s3", "'s3'"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part) && error.to_string().contains(VARIABLE), "{error}");
        }
    }
}
