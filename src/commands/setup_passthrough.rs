//! `aztec-cache setup-passthrough`

use std::path::Path;
use std::process::Command;

use crate::cli::SetupPassthroughArgs;
use crate::error::{Error, Kind, Result};

/// Prints, or runs, the command that lets an ordinary user's mounts be read by the kernel itself.
///
/// # Errors
/// The command can't be run or fails.
pub fn run(args: &SetupPassthroughArgs) -> Result<()> {
    let binary = std::env::current_exe()
        .map_err(|e| Error::new(Kind::Internal, format!("can't find this program's own file: {e}")))?;
    let command = command(&binary, nix::unistd::geteuid().is_root());
    if !args.apply {
        println!(
            "# Lets this program tell the kernel to read complete local files by itself (Linux 6.9 and later):"
        );
        println!(
            "# warm reads as fast as the disk. To be done again when the program is replaced; undone by 'setcap -r'."
        );
        println!("{}", shell_words::join(&command));
        return Ok(());
    }
    let shown = shell_words::join(&command);
    let status = Command::new(&command[0]).args(&command[1..]).status().map_err(|e| {
        Error::new(
            Kind::Mount,
            format!("{shown}: {e}; install it with 'apt-get install libcap2-bin', or run it as root"),
        )
    })?;
    if status.success() {
        eprintln!("aztec-cache: done: mounts made from now on use passthrough");
        return Ok(());
    }
    Err(Error::new(
        Kind::Mount,
        format!("{shown}: failed ({status}); run it as root, on a file system that keeps capabilities"),
    ))
}

fn command(binary: &Path, is_root: bool) -> Vec<String> {
    let setcap = ["setcap".to_owned(), "cap_sys_admin+ep".to_owned(), binary.to_string_lossy().into_owned()];
    let sudo = (!is_root).then(|| "sudo".to_owned());
    sudo.into_iter().chain(setcap).collect()
}
