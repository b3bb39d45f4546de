//! What the directory holds, for who wants to know.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::cache::CacheDir;
use crate::cache::dirs::allocated;
use crate::cache::evict::{self, Candidate};

/// What the directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Artifacts.
    pub files: u64,
    /// The disk space in use, in bytes: of artifacts, files under way (as long as they will be) and quarantined ones.
    pub bytes: u64,
    /// The disk space of artifacts that can't be evicted now, in bytes: some process has them open, or they are still to be
    /// uploaded. None when the system doesn't tell who has locked what.
    pub pinned: Option<u64>,
}

impl CacheDir {
    /// Counts what the directory holds. Walks directories: not for a session thread.
    pub fn usage(&self) -> Usage {
        let locked = self.locked_inodes().ok();
        let (bytes, ranking) = evict::survey(&self.dirs);
        let evictable: HashSet<_> = ranking.iter().filter_map(Candidate::key).collect();
        let (mut files, mut pinned) = (0, 0);
        self.dirs.walk("", &mut |key, stat| {
            files += 1;
            let is_locked = locked.as_ref().is_some_and(|locked| locked.contains(&stat.st_ino));
            if is_locked || !evictable.contains(&key) {
                pinned += allocated(stat);
            }
        });
        Usage { files, bytes, pinned: locked.map(|_| pinned) }
    }

    /// The inodes of locked files on the directory's file system, by proc_locks(5). Some file systems have a device number
    /// there that stat(2) doesn't tell, so that of a lock of our own is looked for.
    fn locked_inodes(&self) -> io::Result<HashSet<u64>> {
        let sample = self.sample()?;
        sample.try_lock_shared()?;
        let inode = sample.metadata()?.ino();
        let table = fs::read_to_string("/proc/locks")?;
        let own = locks(&table).find(|lock| lock.pid == std::process::id() && lock.inode == inode);
        let device = own.ok_or_else(|| io::Error::other("our own lock isn't in /proc/locks"))?.device;
        Ok(locks(&table).filter(|lock| lock.device == device).map(|lock| lock.inode).collect())
    }
}

struct Lock<'a> {
    pid: u32,
    device: &'a str,
    inode: u64,
}

/// Reads lines such as `1: FLOCK  ADVISORY  READ 4711 fe:00:131 0 EOF`. Those who wait for a lock have none.
fn locks(table: &str) -> impl Iterator<Item = Lock<'_>> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let kind = fields.next()?;
        let pid = fields.nth(2)?.parse().ok()?;
        let (device, inode) = fields.next()?.rsplit_once(':')?;
        (kind == "FLOCK").then_some(Lock { pid, device, inode: inode.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_locks() {
        let table = "1: FLOCK  ADVISORY  READ 4711 fe:00:131 0 EOF\n\
            1: -> FLOCK  ADVISORY  WRITE 4712 fe:00:131 0 EOF\n\
            2: POSIX  ADVISORY  WRITE 80 fe:00:132 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE -1 00:2b:7 0 EOF\n\
            4: FLOCK  ADVISORY  WRITE 99 00:2b:8 0 EOF\n";
        let found: Vec<_> = locks(table).map(|lock| (lock.pid, lock.device, lock.inode)).collect();
        assert_eq!(found, [(4711, "fe:00", 131), (99, "00:2b", 8)]);
    }
}
