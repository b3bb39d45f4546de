//! Room for files: the disk's free space, the cache's cap, and what goes when they are reached. All processes that share the
//! directory take turns here, under one lock, so that together they keep the limits.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, Metadata, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::sys::statvfs::fstatvfs;
use serde::{Deserialize, Serialize};

use crate::cache::beneath;
use crate::cache::dirs::{Dirs, allocated, mtime_ns};
use crate::cache::evict::{self, Candidate};
use crate::cache::turns::{TurnOfThread, Turns};
use crate::config::SpaceLimits;
use crate::object::Key;

/// The file that processes lock to take turns, and that holds what they know of the space in use.
const LEDGER: &str = "space";
/// After so long the space in use is counted anew: shell scripts and people come and go without telling us.
const RECOUNT: Duration = Duration::from_secs(60);
/// A process whose turn takes longer is not waited for: it may have been stopped.
const TURN: Duration = Duration::from_secs(5);
/// How often to look whether it is our turn.
const PAUSE: Duration = Duration::from_millis(1);

/// The limits, and how to keep them.
#[derive(Debug)]
pub struct Space {
    dirs: Arc<Dirs>,
    limits: SpaceLimits,
    /// Only one of our threads at a time looks whether other processes have theirs.
    turns: Turns,
    /// What may go, as counted last, first to go first. Guards only the list.
    ranking: Mutex<VecDeque<Candidate>>,
    evicted: AtomicU64,
    said_full: AtomicBool,
}

/// A limit that keeps a file out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The file alone is larger than the cap.
    Cap,
    /// The cap, with what is there and can't go.
    Used,
    /// The disk's space that is to stay free.
    Free,
}

impl Limit {
    /// Whether it may be another matter once files in use are closed.
    pub fn may_pass(self) -> bool {
        self != Limit::Cap
    }
}

/// What is known of the space in use, shared by all processes.
#[derive(Debug, Serialize, Deserialize)]
struct Ledger {
    /// The disk space of artifacts, files under way (as long as they will be) and quarantined files.
    bytes: u64,
    /// When it was counted, in seconds since 1970.
    counted: u64,
    /// The cache directory's modification time after our last change, in nanoseconds: with another one, someone else has
    /// added or removed files.
    root_mtime_ns: i64,
}

/// A turn at the ledger; ends on drop.
struct Turn<'a> {
    dirs: &'a Dirs,
    // Dropped in this order: the lock goes before the next of our threads looks at it.
    file: File,
    _thread: TurnOfThread<'a>,
}

impl Turn<'_> {
    fn read(&mut self) -> io::Result<Option<Ledger>> {
        let mut text = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text).ok())
    }

    fn write(&mut self, mut ledger: Ledger) -> io::Result<()> {
        ledger.root_mtime_ns = root_mtime_ns(self.dirs)?;
        let text = serde_json::to_vec(&ledger).map_err(io::Error::other)?;
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(&text)
    }

    /// Adds `change` to the bytes in use, if they are counted at all. To be called after the change.
    fn note(&mut self, known: Option<Ledger>, change: i64) -> io::Result<()> {
        match known {
            Some(ledger) => {
                let bytes = ledger.bytes.saturating_add_signed(change);
                self.write(Ledger { bytes, ..ledger })
            }
            None => Ok(()),
        }
    }

    /// The same of a change that can't be undone: a ledger that is wrong is counted anew in the end.
    fn note_done(&mut self, known: Option<Ledger>, change: i64) {
        if let Err(e) = self.note(known, change) {
            log::debug!("can't note the space in use: {e}");
        }
    }
}

impl Space {
    /// Keeps `limits` in `dirs`.
    pub fn new(dirs: Arc<Dirs>, limits: SpaceLimits) -> Arc<Space> {
        let (evicted, said_full) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Space {
            dirs,
            limits,
            turns: Turns::default(),
            ranking: Mutex::default(),
            evicted,
            said_full,
        })
    }

    /// How many files this process has evicted.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// The cap in bytes, if there is one.
    pub fn cap(&self) -> Option<u64> {
        self.limits.max_cache_size
    }

    /// Makes `file`, one under way, `size` bytes long at least, which all processes take for its reservation. Evicts what it
    /// takes. The limit that would be passed even so, if one would.
    pub fn reserve(&self, file: &File, size: u64) -> io::Result<Option<Limit>> {
        let mut turn = self.turn()?;
        let length = file.metadata()?.len();
        let more = size.saturating_sub(length);
        let known = match self.limits.max_cache_size {
            None => turn.read()?.filter(|ledger| self.is_current(ledger)),
            Some(cap) if size > cap => return Ok(Some(Limit::Cap)),
            Some(cap) => {
                let ledger = self.ledger(&mut turn)?;
                let excess = ledger.bytes.saturating_add(more).saturating_sub(cap);
                match self.evict(ledger, excess)? {
                    Some(ledger) => Some(ledger),
                    None => return Ok(Some(Limit::Used)),
                }
            }
        };
        let missing = self.missing_on_disk(more)?;
        let known = match (known, missing) {
            (known, 0) => known,
            (Some(ledger), missing) => match self.evict(ledger, missing)? {
                Some(ledger) => Some(ledger),
                None => return Ok(Some(Limit::Free)),
            },
            (None, missing) => {
                let ledger = self.count()?;
                match self.evict(ledger, missing)? {
                    Some(_) => None,
                    None => return Ok(Some(Limit::Free)),
                }
            }
        };
        file.set_len(size.max(length))?;
        turn.note(known, signed(more))?;
        Ok(None)
    }

    /// Cuts `file`, one under way, to `size` bytes, and so gives back what was reserved beyond.
    pub fn cut(&self, file: &File, size: u64) -> io::Result<()> {
        let mut turn = self.turn()?;
        let known = turn.read()?.filter(|ledger| self.is_current(ledger));
        let before = reserved(&file.metadata()?);
        file.set_len(size)?;
        turn.note(known, signed(reserved(&file.metadata()?)) - signed(before))
    }

    /// Frees `bytes` on the disk, which was found to be full. False when that much can't go.
    pub fn relieve(&self, bytes: u64) -> io::Result<bool> {
        let mut turn = self.turn()?;
        let counted = turn.read()?.is_some();
        let ledger = self.count()?;
        let left = self.evict(ledger, bytes)?;
        match left {
            Some(ledger) if counted => turn.write(ledger).map(|()| true),
            left => Ok(left.is_some()),
        }
    }

    /// Runs `rename`, which puts `file`, one under way, under `key`'s name in place of any other.
    pub fn publish(&self, key: &Key, file: &File, rename: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut turn = self.turn()?;
        let known = turn.read()?.filter(|ledger| self.is_current(ledger));
        let replaced = self.dirs.stat(key).map_or(0, |stat| allocated(&stat));
        rename()?;
        let change =
            |meta: &Metadata| signed(meta.blocks() * 512) - signed(reserved(meta)) - signed(replaced);
        turn.note_done(known, file.metadata().as_ref().map_or(0, change));
        Ok(())
    }

    /// Runs `rename`, which puts a published file under `key`'s name in place of any other.
    pub fn rename(&self, key: &Key, rename: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut turn = self.turn()?;
        let known = turn.read()?.filter(|ledger| self.is_current(ledger));
        let replaced = self.dirs.stat(key).map_or(0, |stat| allocated(&stat));
        rename()?;
        turn.note_done(known, -signed(replaced));
        Ok(())
    }

    /// Runs `unlink`, which removes `file`, one under way.
    pub fn release(&self, file: &File, unlink: impl FnOnce()) {
        let turn = self.turn();
        unlink();
        let released = turn.and_then(|mut turn| {
            let known = turn.read()?.filter(|ledger| self.is_current(ledger));
            turn.note(known, -signed(reserved(&file.metadata()?)))
        });
        if let Err(e) = released {
            log::debug!("can't note that space was given back: {e}");
        }
    }

    /// Evicts files, least recently used first, until at most `max` bytes are in use and none is left that was last used
    /// before `oldest`. Tells `gone` of each; a dry run only tells. Returns the bytes freed.
    pub fn prune(
        &self,
        max: Option<u64>,
        oldest: Option<SystemTime>,
        dry_run: bool,
        gone: &mut dyn FnMut(&Candidate),
    ) -> io::Result<u64> {
        let mut turn = self.turn()?;
        let counted = turn.read()?.is_some();
        let mut ledger = self.count()?;
        let candidates = std::mem::take(&mut *self.ranking());
        let mut freed = 0;
        for candidate in candidates {
            let too_many = max.is_some_and(|max| ledger.bytes > max);
            let too_old = oldest.is_some_and(|oldest| candidate.used < oldest);
            if (too_many || too_old) && (dry_run || evict::evict(&self.dirs, &candidate)) {
                gone(&candidate);
                freed += candidate.bytes;
                ledger.bytes = ledger.bytes.saturating_sub(candidate.bytes);
            }
        }
        if counted && !dry_run {
            turn.write(ledger)?;
        }
        Ok(freed)
    }

    /// Removes an artifact's file, also one in use.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(&self, artifact: &Candidate) -> io::Result<()> {
        let mut turn = self.turn()?;
        let known = turn.read()?.filter(|ledger| self.is_current(ledger));
        evict::remove(&self.dirs, artifact)?;
        turn.note(known, -signed(artifact.bytes))
    }

    /// Evicts until `excess` bytes are free. None, with nothing evicted, when there isn't that much.
    fn evict(&self, mut ledger: Ledger, excess: u64) -> io::Result<Option<Ledger>> {
        let mut left = excess;
        // What was ranked earlier may have been used or removed since.
        for _ in 0..2 {
            if self.evictable() < left {
                ledger = self.count()?;
            }
            if self.evictable() < left {
                return Ok(None);
            }
            while left > 0 {
                let Some(candidate) = self.ranking().pop_front() else { break };
                if evict::evict(&self.dirs, &candidate) {
                    log::info!("evicted {candidate}: {} bytes", candidate.bytes);
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                    ledger.bytes = ledger.bytes.saturating_sub(candidate.bytes);
                    left = left.saturating_sub(candidate.bytes);
                }
            }
        }
        Ok((left == 0).then_some(ledger))
    }

    fn evictable(&self) -> u64 {
        self.ranking().iter().map(|candidate| candidate.bytes).sum()
    }

    /// How many bytes the disk lacks for `more` bytes to be written, with what is to stay free and what other partial files
    /// will still take.
    fn missing_on_disk(&self, more: u64) -> io::Result<u64> {
        let disk = fstatvfs(&self.dirs.root)?;
        let available = disk.blocks_available() * disk.fragment_size();
        let keep_free = self.limits.min_free.bytes_of(disk.blocks() * disk.fragment_size());
        let wanted = more.saturating_add(keep_free).saturating_add(evict::unwritten(&self.dirs));
        Ok(wanted.saturating_sub(available))
    }

    /// What is known of the space in use, counted anew if need be.
    fn ledger(&self, turn: &mut Turn) -> io::Result<Ledger> {
        let known = turn.read()?.filter(|ledger| {
            let counted = SystemTime::UNIX_EPOCH + Duration::from_secs(ledger.counted);
            self.is_current(ledger) && counted.elapsed().is_ok_and(|age| age < RECOUNT)
        });
        match known {
            Some(ledger) => Ok(ledger),
            None => self.count(),
        }
    }

    fn is_current(&self, ledger: &Ledger) -> bool {
        root_mtime_ns(&self.dirs).is_ok_and(|mtime| mtime == ledger.root_mtime_ns)
    }

    /// Counts the space in use, and ranks what may go.
    fn count(&self) -> io::Result<Ledger> {
        let (bytes, ranking) = evict::survey(&self.dirs);
        *self.ranking() = ranking;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Ledger { bytes, counted: now.as_secs(), root_mtime_ns: root_mtime_ns(&self.dirs)? })
    }

    fn turn(&self) -> io::Result<Turn<'_>> {
        let deadline = Instant::now() + TURN;
        let of_thread = self.turns.wait_until(deadline).ok_or_else(nobody_gets_on)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        let file = File::from(beneath::open(&self.dirs.state, Path::new(LEDGER), flags)?);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Turn { dirs: &self.dirs, file, _thread: of_thread }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Err(nobody_gets_on()),
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    /// Says that `size` bytes that are being fetched would pass `limit`.
    pub fn say_not_kept(&self, limit: Limit, size: u64) {
        let dir = self.dirs.path.display();
        if limit == Limit::Cap || self.said_full.swap(true, Ordering::Relaxed) {
            log::info!("{dir}: {size} bytes {limit}: not kept");
        } else {
            log::warn!(
                "{dir}: {size} bytes {limit}: read without being kept, as are others from now on; free space there or \
                 change the limit"
            );
        }
    }

    fn ranking(&self) -> MutexGuard<'_, VecDeque<Candidate>> {
        self.ranking.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Cap => "can never fit into --max-cache-size",
            Limit::Used => "would pass --max-cache-size and nothing more can be evicted",
            Limit::Free => "would pass --min-free and nothing more can be evicted",
        })
    }
}

/// What all processes take for the space of a file under way.
fn reserved(meta: &Metadata) -> u64 {
    meta.len().max(meta.blocks() * 512)
}

fn nobody_gets_on() -> io::Error {
    io::Error::other("another process that makes room there doesn't get on; has it been stopped?")
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn root_mtime_ns(dirs: &Dirs) -> io::Result<i64> {
    Ok(mtime_ns(&fstat(&dirs.root)?))
}
