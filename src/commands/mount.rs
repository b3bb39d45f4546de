//! `aztec-cache mount`

use crate::cli::MountArgs;
use crate::config::Config;
use crate::daemon::{Side, fork_daemon};
use crate::error::Result;
use crate::{logging, mount};

/// Mounts, in front or as a daemon; returns the exit code.
pub fn run(args: &MountArgs) -> Result<u8> {
    let config = Config::new(args, &|name| std::env::var_os(name))?;
    if config.foreground {
        serve(&config, || {})?;
        return Ok(0);
    }
    match fork_daemon()? {
        Side::Parent(code) => Ok(code),
        Side::Child(ready) => serve(&config, || ready.tell()).map(|()| 0),
    }
}

fn serve(config: &Config, tell: impl FnOnce()) -> Result<()> {
    logging::start(&config.engine.log, config.foreground)?;
    for warning in &config.engine.warnings {
        log::warn!("{warning}");
    }
    mount::run(config, |line| {
        if !config.engine.log.quiet {
            eprintln!("aztec-cache: {line}");
        }
        logging::started();
        tell();
    })
}
