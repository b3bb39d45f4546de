//! Servers in processes of their own: this binary, started again with [`ROLE`]. They take commands on stdin, a line
//! each, answer each with a line on stdout, and end when stdin does, so that none outlives the benchmark.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use aztec_cache_test_support::nginx::Nginx;
use aztec_cache_test_support::proxy::{Profile, Proxy};
use aztec_cache_test_support::s3::S3Server;
use aztec_cache_test_support::seaweed::Seaweed;
use serde_json::{Value, json};

use crate::{Result, process};

/// The first argument of a server's process.
pub const ROLE: &str = "__server";
/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The benchmark's side: a server that ends on drop.
pub struct Helper {
    child: Child,
    /// Present until drop.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    addr: SocketAddr,
}

impl Helper {
    /// Starts a server and waits until it listens. It puts its files below `dir`.
    pub fn start(args: &[&str], dir: &Path) -> Result<Helper> {
        let mut command = Command::new(process::OWN_BINARY);
        // A group of its own, so that Ctrl-C doesn't end it before the mounts that read from it.
        command.arg(ROLE).args(args).env("TMPDIR", dir).process_group(0);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("starting {args:?}: {error}"))?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut helper = Helper { child, commands, answers, addr };
        let said = helper.answer()?;
        helper.addr = said.parse().map_err(|_| format!("{args:?} says {said:?}"))?;
        Ok(helper)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Gives a command; its answer.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        let commands = self.commands.as_mut().expect("present until drop");
        writeln!(commands, "{command}").map_err(|error| format!("asking {command:?}: {error}"))?;
        let said = self.answer()?;
        serde_json::from_str(&said).map_err(|error| format!("{command:?} is answered {said:?}: {error}"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).map_err(|error| error.to_string())?;
        if read == 0 {
            return Err("the server's process ended".to_owned());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.commands = None;
        process::end(&mut self.child, PATIENCE);
    }
}

/// The server's side.
pub fn serve(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["seaweed"] => {
            let server = Seaweed::start()?;
            obey(server.addr(), |_| None)
        }
        ["memory"] => {
            let server = S3Server::start();
            obey(server.addr(), |words| command_of_memory(&server, words))
        }
        ["nginx"] => {
            let server = Nginx::start()?;
            obey(server.addr(), |words| command_of_nginx(&server, words))
        }
        ["proxy", upstream, latency, rate] => {
            let upstream = upstream.parse().map_err(|error| format!("{upstream}: {error}"))?;
            let latency =
                Duration::from_millis(latency.parse().map_err(|error| format!("{latency}: {error}"))?);
            let rate = rate.parse().map_err(|error| format!("{rate}: {error}"))?;
            let proxy = Proxy::start(upstream, Profile { latency, rate: Some(rate), ..Profile::default() });
            obey(proxy.addr(), |words| command_of_proxy(&proxy, words))
        }
        _ => Err(format!("no such server: {args:?}")),
    }
}

/// Says where the server listens, then carries out commands until there are no more.
fn obey(addr: SocketAddr, mut command: impl FnMut(&[&str]) -> Option<Value>) -> Result<()> {
    println!("{addr}");
    for line in std::io::stdin().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let words: Vec<&str> = line.split(' ').collect();
        println!("{}", command(&words).ok_or_else(|| format!("not understood: {line}"))?);
    }
    Ok(())
}

fn command_of_memory(server: &S3Server, words: &[&str]) -> Option<Value> {
    match words {
        ["sparse", key, size, seed] => {
            server.put_sparse(key, size.parse().ok()?, seed.parse().ok()?);
        }
        ["many", prefix, count] => {
            for index in 0..count.parse::<u64>().ok()? {
                server.put(&format!("{prefix}{index:06}.tar.gz"), "x");
            }
        }
        _ => return None,
    }
    Some(Value::Null)
}

fn command_of_nginx(server: &Nginx, words: &[&str]) -> Option<Value> {
    match words {
        ["put", path, file @ ..] => server.put(path, &std::fs::read(file.join(" ")).ok()?),
        _ => return None,
    }
    Some(Value::Null)
}

fn command_of_proxy(proxy: &Proxy, words: &[&str]) -> Option<Value> {
    match words {
        ["counts"] => {
            let counts = proxy.counts();
            Some(json!({ "bytes": counts.down, "requests": counts.answers }))
        }
        _ => None,
    }
}
