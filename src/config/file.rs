//! The optional configuration file: TOML, keys named as the flags.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// The file's keys; an unknown key is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[allow(missing_docs, reason = "each field is the flag of the same name")]
pub struct ConfigFile {
    pub cache_dir: Option<PathBuf>,
    pub remote: Option<OneOrMany>,
    pub endpoint_url: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    pub no_sign_request: Option<bool>,
    pub ca_bundle: Option<PathBuf>,
    pub no_verify_ssl: Option<bool>,
    pub force_path_style: Option<bool>,
    pub connect_timeout: Option<String>,
    pub first_byte_timeout: Option<String>,
    pub stall_timeout: Option<String>,
    pub attempts: Option<u32>,
    pub read_only: Option<bool>,
    pub upload: Option<String>,
    pub allow_overwrite: Option<bool>,
    pub allow_delete: Option<bool>,
    pub no_check_archives: Option<bool>,
    pub fill: Option<bool>,
    pub max_cache_size: Option<String>,
    pub min_free: Option<String>,
    pub revalidate: Option<String>,
    pub scrub: Option<String>,
    pub expose: Option<String>,
    pub allow_other: Option<bool>,
    pub auto_unmount: Option<bool>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub umask: Option<String>,
    pub log_level: Option<String>,
    pub log_file: Option<PathBuf>,
}

/// A list, or its only element.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// `remote = "…"`
    One(String),
    /// `remote = ["…"]`
    Many(Vec<String>),
}

/// Reads `path`, or `default` when that exists.
///
/// # Errors
/// A file that can't be read or isn't right (exit code 2), naming the line.
pub fn read(path: Option<&Path>, default: Option<&Path>) -> Result<ConfigFile> {
    let path = match (path, default) {
        (Some(path), _) => path,
        (None, Some(default)) if default.exists() => default,
        _ => return Ok(ConfigFile::default()),
    };
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("--config: can't read {}: {e}; name a readable file", path.display()))
    })?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        let what = e.message().replace('\n', " ");
        Error::usage(format!("{}: line {line}: {what}; mend or remove the line", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        read(Some(&path), None)
    }

    #[test]
    fn keys_are_the_flags() {
        let file = parse("cache-dir = '/x'\nremote = 's3://bucket/'\nread-only = true\n").unwrap();
        assert_eq!(file.cache_dir.as_deref(), Some(Path::new("/x")));
        assert!(matches!(file.remote, Some(OneOrMany::One(url)) if url == "s3://bucket/"));
    }

    #[test]
    fn unknown_keys_and_bad_toml_name_the_line() {
        let error = parse("region = 'x'\ncach-dir = '/x'\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("cach-dir"), "{error}");
        assert!(parse("region = ").is_err());
        assert!(read(Some(Path::new("/nonexistent/config.toml")), None).is_err());
    }
}
