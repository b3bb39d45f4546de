//! Where names are missed again and again, and so a listing takes fewer requests than a question about each name.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::listing::pages::MISS_TTL;

/// Misses after which another name is probably missing, too, and a listing worth while, for each page that it takes.
const PER_PAGE: u32 = 1;
/// How close together they have to be.
const WINDOW: Duration = Duration::from_secs(2);
/// How long a directory is left alone that couldn't be listed, or not fast enough.
const BACK_OFF: Duration = Duration::from_secs(300);
/// Directories kept in mind.
const TRACKED: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// The misses of the last moments, by directory.
#[derive(Debug)]
pub struct Misses {
    /// Guards only the table.
    table: Mutex<LruCache<String, Recent>>,
    /// Wakes those who wait for a listing, at the end of each.
    listed: Notify,
}

#[derive(Debug)]
struct Recent {
    since: Instant,
    count: u32,
    /// How many pages the directory had when it was last listed.
    pages: u32,
    /// When it may be listed again.
    next: Instant,
}

impl Default for Misses {
    fn default() -> Misses {
        Misses { table: Mutex::new(LruCache::new(TRACKED)), listed: Notify::new() }
    }
}

impl Misses {
    /// Notes that a name was missed in `dir`.
    pub fn note(&self, dir: &str) {
        let now = Instant::now();
        let mut table = self.table();
        if table.get(dir).is_none() {
            table.put(dir.to_owned(), Recent { since: now, count: 0, pages: 1, next: now });
        }
        let Some(recent) = table.get_mut(dir) else { return };
        if now.duration_since(recent.since) > WINDOW {
            (recent.since, recent.count) = (now, 0);
        }
        recent.count = recent.count.saturating_add(1);
    }

    /// Whether `dir` should be listed now that another of its names is asked for. It won't be again for a long while, unless
    /// [`Misses::listed`] says that it could be.
    pub fn call_for_listing(&self, dir: &str) -> bool {
        let now = Instant::now();
        let mut table = self.table();
        let Some(recent) = table.get_mut(dir) else { return false };
        let is_due = now.duration_since(recent.since) <= WINDOW
            && recent.count >= PER_PAGE * recent.pages
            && now >= recent.next;
        if is_due {
            recent.next = now + BACK_OFF;
        }
        is_due
    }

    /// Notes that listing `dir`, begun at `began`, took `pages`: there may be another once it answers no misses any more.
    pub fn listed(&self, dir: &str, began: Instant, pages: u32) {
        if let Some(recent) = self.table().get_mut(dir) {
            (recent.pages, recent.next) = (pages.max(1), began + MISS_TTL);
        }
        self.listed.notify_waiters();
    }

    /// Waits until [`Misses::listed`] is called, for any directory.
    pub fn wait_listed(&self) -> Notified<'_> {
        self.listed.notified()
    }

    fn table(&self) -> MutexGuard<'_, LruCache<String, Recent>> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misses_until_due(misses: &Misses, most: u32) -> Option<u32> {
        (1..=most).find(|_| {
            misses.note("dir");
            misses.call_for_listing("dir")
        })
    }

    #[test]
    fn a_name_asked_for_after_a_miss_makes_one_listing() {
        let misses = Misses::default();
        misses.note("other");
        assert!(!misses.call_for_listing("dir"), "nothing was missed there");
        assert_eq!(misses_until_due(&misses, 100), Some(PER_PAGE));
        assert_eq!(misses_until_due(&misses, 1000), None, "one is under way, or it failed");
    }

    #[test]
    fn long_directories_take_more_misses_and_none_is_listed_while_its_listing_is_good() {
        let misses = Misses::default();
        misses_until_due(&misses, PER_PAGE);
        misses.listed("dir", Instant::now(), 5);
        assert_eq!(misses_until_due(&misses, 1000), None);
        let old = Misses::default();
        misses_until_due(&old, PER_PAGE);
        old.listed("dir", Instant::now() - MISS_TTL, 5);
        assert_eq!(misses_until_due(&old, 1000), Some(5 * PER_PAGE - PER_PAGE));
    }
}
