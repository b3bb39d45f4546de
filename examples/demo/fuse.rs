//! Whether this machine and user can mount, said before anything is set up.

use std::fs::File;
use std::path::Path;

use crate::Failure;

/// # Errors
/// No FUSE here, with the remedy.
pub fn check() -> Result<(), Failure> {
    let is_root = nix::unistd::geteuid().is_root();
    let remedy = |text: &str| Err(Failure::Broken(text.to_owned()));
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => remedy(
                "no /dev/fuse here; run 'modprobe fuse' as root, or give the container --device /dev/fuse",
            ),
            Some(libc::EACCES) => remedy(
                "you may not open /dev/fuse; run 'chmod 0666 /dev/fuse' as root (udev does it elsewhere)",
            ),
            _ => Err(Failure::new("/dev/fuse", &error, "give the container --device /dev/fuse")),
        };
    }
    if !is_root && !is_in_path("fusermount3") {
        return remedy(
            "fusermount3 is not in PATH, which an ordinary user needs to mount; apt-get install fuse3",
        );
    }
    Ok(())
}

/// Whether PATH has a program of this name.
pub fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| is_executable(&dir.join(program)))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
