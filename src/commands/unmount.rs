//! `aztec-cache unmount`

use crate::cli::UnmountArgs;
use crate::error::Result;
use crate::{config, mountpoint};

/// Unmounts; nothing mounted there is fine.
pub fn run(args: &UnmountArgs) -> Result<()> {
    let path = config::mountpoint(args.mountpoint.as_deref(), &|name| std::env::var_os(name))?;
    mountpoint::unmount(&path)
}
