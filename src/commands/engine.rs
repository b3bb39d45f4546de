//! The start that commands without a mount have in common.

use crate::cli::EngineArgs;
use crate::config::{self, EngineConfig};
use crate::engine::Engine;
use crate::error::Result;
use crate::logging;

/// Names that are asked about, or fetched, at a time.
pub const AT_ONCE: usize = 16;

/// Reads the settings, begins to log and wires up the rest. Asks nothing yet.
///
/// # Errors
/// Wrong settings.
pub fn start(args: &EngineArgs) -> Result<Engine> {
    let env = |name: &str| std::env::var_os(name);
    let config = EngineConfig::new(args, &env)?;
    logging::start(&config.log, true)?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    // Without a home no mount is where one is by default.
    Engine::new(&config, config::mountpoint(None, &env).ok().as_deref())
}

/// Whether the shell layer was told to do without caches.
pub fn is_disabled() -> bool {
    std::env::var_os("NO_CACHE").is_some_and(|value| value == "1")
}
