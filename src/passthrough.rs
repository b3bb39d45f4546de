//! Reads that the kernel does itself, from the local file behind an inode (Linux 6.9, `fs/fuse/passthrough.c`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use fuser::BackingId;

/// Which open inodes the kernel reads by itself. An inode is in passthrough mode with one backing file, or in cached
/// mode, for as long as any handle on it is open: the kernel refuses to mix them (`fs/fuse/iomode.c`).
#[derive(Debug, Default)]
pub struct Passthrough {
    enabled: AtomicBool,
    /// Guards the table. Held while a file is registered, which never blocks: two opens of one inode must agree.
    inodes: Mutex<HashMap<u64, Open>>,
}

#[derive(Debug)]
struct Open {
    /// None: cached mode.
    backing: Option<Arc<BackingId>>,
    handles: u64,
}

impl Passthrough {
    /// From now on inodes are opened in passthrough mode.
    pub fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }

    /// Whether inodes are opened in passthrough mode.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Notes that `inode` is opened once more; the backing file to open it with, registered by `register` if it is the
    /// first. None when it has to be opened in cached mode.
    pub fn open(
        &self,
        inode: u64,
        register: impl FnOnce() -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if !self.is_enabled() {
            return None;
        }
        let mut inodes = self.inodes.lock().unwrap_or_else(|e| e.into_inner());
        let open = match inodes.entry(inode) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => {
                let backing =
                    register().inspect_err(|e| log::info!("no passthrough for inode {inode}: {e}")).ok();
                vacant.insert(Open { backing: backing.map(Arc::new), handles: 0 })
            }
        };
        open.handles += 1;
        open.backing.clone()
    }

    /// Notes that a handle on `inode` was closed; with the last one its backing file is let go.
    pub fn release(&self, inode: u64) {
        let mut inodes = self.inodes.lock().unwrap_or_else(|e| e.into_inner());
        if let Entry::Occupied(mut open) = inodes.entry(inode) {
            open.get_mut().handles -= 1;
            if open.get().handles == 0 {
                open.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_registration_holds_until_the_last_close() {
        let passthrough = Passthrough::default();
        passthrough.enable();
        let fail = || Err(io::Error::from_raw_os_error(libc::EPERM));
        assert!(passthrough.open(7, fail).is_none());
        assert!(passthrough.open(7, || unreachable!("the inode is in cached mode")).is_none());
        passthrough.release(7);
        passthrough.release(7);
        let mut asked = false;
        passthrough.open(7, || {
            asked = true;
            Err(io::Error::from_raw_os_error(libc::EPERM))
        });
        assert!(asked, "the mode ended with the last handle");
    }

    #[test]
    fn nothing_is_registered_unless_enabled() {
        assert!(Passthrough::default().open(7, || unreachable!("it is not enabled")).is_none());
    }
}
