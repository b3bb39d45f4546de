//! The shell layer: a command that fetches, and `tar`.

use std::path::Path;
use std::process::Command;

use crate::process;
use crate::stage::{ACCESS_KEY, BUCKET, SECRET_KEY};

/// A way without a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shell {
    /// In tables.
    pub name: &'static str,
    /// Whether what is fetched is kept in a local directory.
    pub keeps: bool,
    tool: Tool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Curl,
    Aws,
}

/// `curl URL | tar`.
pub const CURL: &str = "curl";
/// `curl -o DIR/NAME URL`, then `tar` of that: the shell layer with its local directory.
pub const CURL_DIR: &str = "curl+dir";
/// `aws s3 cp S3-URL - | tar`.
pub const AWS: &str = "aws";

impl Shell {
    /// Those found on this machine.
    pub fn all() -> Vec<Shell> {
        let mut all = Vec::new();
        if process::find("curl", "--version").is_some() {
            all.push(Shell { name: CURL, keeps: false, tool: Tool::Curl });
            all.push(Shell { name: CURL_DIR, keeps: true, tool: Tool::Curl });
        }
        if process::find("aws", "--version").is_some() {
            all.push(Shell { name: AWS, keeps: false, tool: Tool::Aws });
            all.push(Shell { name: "aws+dir", keeps: true, tool: Tool::Aws });
        }
        all
    }

    /// Whether it is the AWS CLI, which starts a Python interpreter and reads from S3 servers alone.
    pub fn is_aws(self) -> bool {
        self.tool == Tool::Aws
    }

    /// Whether it takes part in this run: what is far behind need not be measured more than once.
    pub fn takes_part(self, run: u32) -> bool {
        run == 0 || !self.is_aws()
    }

    /// Fetches an object into `file`, or, if it doesn't keep, into nothing.
    pub fn fetch(&self, endpoint: &str, key: &str, file: &Path) -> Command {
        // `exec`: no shell stands between, whose time would count.
        let script = if self.keeps {
            format!("exec {}", self.to_file())
        } else {
            format!("exec {} > /dev/null", self.to_stdout())
        };
        let mut command = self.script(endpoint, key, &script);
        command.arg(file);
        command
    }

    /// Fetches a tarball and unpacks it into `dir`, by way of `file` if it keeps.
    pub fn fetch_and_unpack(&self, endpoint: &str, key: &str, file: &Path, dir: &Path) -> Command {
        let unpack = if key.ends_with(".zst") { "--zstd" } else { "-z" };
        let script = if self.keeps {
            format!("{} && tar -xf \"$3\" -C \"$4\"", self.to_file())
        } else {
            format!("{} | tar -x {unpack} -f - -C \"$4\"", self.to_stdout())
        };
        let mut command = self.script(endpoint, key, &script);
        command.arg(file).arg(dir);
        command
    }

    fn to_stdout(self) -> &'static str {
        match self.tool {
            Tool::Curl => "curl -sSf \"$1/$2\"",
            Tool::Aws => "aws --endpoint-url \"$1\" s3 cp --only-show-errors \"s3:/$2\" -",
        }
    }

    fn to_file(self) -> &'static str {
        match self.tool {
            Tool::Curl => "curl -sSf -o \"$3\" \"$1/$2\"",
            Tool::Aws => "aws --endpoint-url \"$1\" s3 cp --only-show-errors \"s3:/$2\" \"$3\"",
        }
    }

    /// A script whose `$1/$2` is the object's URL.
    fn script(self, endpoint: &str, key: &str, script: &str) -> Command {
        let mut command = bash(script);
        command.arg(endpoint);
        match self.tool {
            Tool::Curl => command.arg(format!("{BUCKET}/{key}")),
            // `s3:/$2` is `s3://BUCKET/KEY` then.
            Tool::Aws => command.arg(format!("/{BUCKET}/{key}")),
        };
        sign(&mut command);
        command
    }
}

/// Gives a command the server's keys.
pub fn sign(command: &mut Command) {
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_REGION", "us-east-1");
}

/// Asks for names one by one, as the shell layer does; fails when one is there.
pub fn curl_heads(endpoint: &str, keys: impl Iterator<Item = String>) -> Command {
    let script = "url=$1; shift; for key; do if curl -sfI -o /dev/null \"$url/$key\"; then exit 1; fi; done";
    let mut command = bash(script);
    command.arg(format!("{endpoint}/{BUCKET}")).args(keys);
    command
}

fn bash(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("set -o pipefail; {script}"), "bash"]);
    command
}
