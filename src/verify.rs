//! A look at all bytes of cached files: are they still what was fetched?

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::answer::blocking;
use crate::archive;
use crate::cache::{CacheDir, Verdict};
use crate::object::Key;

/// What a look at a file has shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// All bytes are right.
    Right,
    /// They are not, and why that is known.
    Damaged(String),
    /// There is nothing to compare them with.
    Unknown,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Right => f.write_str("ok"),
            Finding::Damaged(why) => write!(f, "damaged: {why}"),
            Finding::Unknown => f.write_str("nothing to compare it with"),
        }
    }
}

/// Reads all of `key`'s file. One that has no checksum recorded, since someone else put it there, is decoded if it is an
/// archive. `pace` is told of each chunk's length and may wait. Blocks on the disk for long.
///
/// # Errors
/// The file is gone or can't be read.
pub fn examine(cache: &CacheDir, key: &Key, pace: &mut dyn FnMut(u64)) -> io::Result<Finding> {
    match cache.verify(key, pace)? {
        Verdict::Right => Ok(Finding::Right),
        Verdict::Damaged => Ok(Finding::Damaged("its checksum or size is not the recorded one".to_owned())),
        Verdict::Unknown if !archive::is_checked(key.name()) => Ok(Finding::Unknown),
        Verdict::Unknown => {
            let file = Paced { reader: cache.open_unnoticed(key)?, pace };
            match archive::check(key.name(), file) {
                Ok(()) => Ok(Finding::Right),
                Err(archive::ArchiveError::Io(e)) => Err(e),
                Err(e) => Ok(Finding::Damaged(e.to_string())),
            }
        }
    }
}

struct Paced<'a, R> {
    reader: R,
    pace: &'a mut dyn FnMut(u64),
}

impl<R: io::Read> io::Read for Paced<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        (self.pace)(length as u64);
        Ok(length)
    }
}

/// Waits between chunks so that at most half of a disk's time is taken, and no more than `rate` bytes a second; what the
/// page cache gives costs the disk nothing and is not waited for, without a rate.
#[derive(Debug)]
pub struct Politeness {
    rate: Option<u64>,
    last: Instant,
}

impl Politeness {
    /// Begins now.
    pub fn new(rate: Option<u64>) -> Politeness {
        Politeness { rate, last: Instant::now() }
    }

    /// Waits after `bytes` were read.
    pub fn wait(&mut self, bytes: u64) {
        /// A read that is faster came from memory.
        const DISK: Duration = Duration::from_millis(1);
        let took = self.last.elapsed();
        let slow = if took > DISK { took.min(Duration::from_secs(1)) } else { Duration::ZERO };
        let due = self.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64).saturating_sub(took)
        });
        let pause = slow.max(due);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        self.last = Instant::now();
    }
}

/// Looks at each cached file once per `period`, slowly, for as long as it is not dropped. Damaged ones are moved out of the
/// way: they are fetched again when they are opened next.
pub async fn scrub(cache: Arc<CacheDir>, period: Duration) {
    /// No faster than this within a file, in bytes a second.
    const RATE: u64 = 32 << 20;
    loop {
        let round = Instant::now();
        let listed = cache.clone();
        let keys = blocking(move || {
            let mut keys = Vec::new();
            listed.for_each(&mut |key| keys.push(key));
            keys
        });
        let Ok(mut keys) = keys.await else { return };
        fastrand::shuffle(&mut keys);
        let pause = period / u32::try_from(keys.len().max(1)).unwrap_or(u32::MAX);
        for key in keys {
            sleep(pause).await;
            let cache = cache.clone();
            let looked = blocking(move || {
                let mut politeness = Politeness::new(Some(RATE));
                match examine(&cache, &key, &mut |bytes| politeness.wait(bytes)) {
                    Ok(Finding::Damaged(why)) => drop(cache.quarantine(&key, &why)),
                    Ok(_) => {}
                    Err(e) => log::debug!("{key}: not verified: {e}"),
                }
            });
            if looked.await.is_err() {
                return;
            }
        }
        sleep(period.saturating_sub(round.elapsed())).await;
    }
}
