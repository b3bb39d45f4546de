//! The one right beyond an ordinary user's that the binary may have been given (`setcap cap_sys_admin+ep`), used for the
//! one thing it was given for: telling the kernel to read a local file by itself. Mounting and unmounting go through
//! fusermount3, which checks what an ordinary user may; with the right in force they could be done anywhere.

use caps::{CapSet, Capability};

/// Puts the right aside, unless this is root. Threads made from here on begin without it.
pub fn lower() {
    if nix::unistd::geteuid().is_root() || !has_right() {
        return;
    }
    if let Err(e) = caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN) {
        // Going on with it would allow mounts where the user may not mount.
        eprintln!("aztec-cache: can't put CAP_SYS_ADMIN aside: {e}; remove it with 'setcap -r'");
        std::process::exit(6);
    }
}

/// Does `work` with the right in force, if there is one, on this thread and those that it starts.
pub fn with_right<T>(work: impl FnOnce() -> T) -> T {
    let raised = !nix::unistd::geteuid().is_root()
        && has_right()
        && caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_ok();
    let result = work();
    if raised {
        lower();
    }
    result
}

fn has_right() -> bool {
    caps::has_cap(None, CapSet::Permitted, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}
