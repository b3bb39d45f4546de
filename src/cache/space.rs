//! Whether a file may be kept: the disk's free space, the cache's cap, and what downloads under way have reserved.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use nix::sys::statvfs::fstatvfs;

use crate::config::SpaceLimits;

/// The bytes that downloads under way will still need, and the limits.
#[derive(Debug)]
pub struct Space {
    limits: SpaceLimits,
    /// Guards only the sum; never held across I/O.
    reserved: Mutex<u64>,
}

/// A download's share of the disk; given back on drop.
#[derive(Debug)]
pub struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    pub fn new(limits: SpaceLimits) -> Arc<Space> {
        Arc::new(Space { limits, reserved: Mutex::new(0) })
    }

    /// Whether the cache has a cap, so that its use must be known.
    pub fn is_capped(&self) -> bool {
        self.limits.max_cache_size.is_some()
    }

    /// Reserves `bytes` on the disk that holds `dir`, of which the cache uses `used` now. None, with the reason
    /// in the log, when a limit would be passed.
    pub fn reserve(
        self: &Arc<Space>,
        dir: impl AsFd,
        bytes: u64,
        used: u64,
    ) -> io::Result<Option<Reservation>> {
        let disk = fstatvfs(dir)?;
        let available = disk.blocks_available() * disk.fragment_size();
        let keep_free = self.limits.min_free.bytes_of(disk.blocks() * disk.fragment_size());
        let mut reserved = self.reserved.lock().unwrap_or_else(|e| e.into_inner());
        let wanted = reserved.saturating_add(bytes);
        if available.saturating_sub(wanted) < keep_free {
            log::info!(
                "not kept: of {available} bytes available, {wanted} would be taken, and --min-free keeps {keep_free}"
            );
            return Ok(None);
        }
        if self.limits.max_cache_size.is_some_and(|max| used.saturating_add(wanted) > max) {
            log::info!("not kept: {bytes} bytes would pass --max-cache-size, with {used} bytes in use");
            return Ok(None);
        }
        *reserved = wanted;
        Ok(Some(Reservation { space: self.clone(), bytes }))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.space.reserved.lock().unwrap_or_else(|e| e.into_inner()) -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Free;

    #[test]
    fn reservations_count_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let space = Space::new(SpaceLimits { max_cache_size: Some(100), min_free: Free::Bytes(0) });
        let first = space.reserve(&fd, 60, 0).unwrap().unwrap();
        assert!(space.reserve(&fd, 60, 0).unwrap().is_none());
        assert!(space.reserve(&fd, 40, 1).unwrap().is_none());
        drop(first);
        assert!(space.reserve(&fd, 60, 0).unwrap().is_some());
        let space = Space::new(SpaceLimits { max_cache_size: None, min_free: Free::Bytes(u64::MAX) });
        assert!(space.reserve(&fd, 1, 0).unwrap().is_none());
    }
}
