//! One directory's entries as they arrive, page by page.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::coherence::Served;
use crate::error::{Error, Result};

/// How long a listing answers that something doesn't exist, from before its first request on: what appeared after
/// that may be missing from it.
pub const MISS_TTL: Duration = Duration::from_secs(1);

/// A name in a directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A directory, by its name.
    Dir(Box<str>),
    /// A file.
    File(Served),
}

impl Entry {
    /// The name.
    pub fn name(&self) -> &str {
        match self {
            Entry::Dir(name) => name,
            Entry::File(served) => served.version().key.name(),
        }
    }
}

/// A directory's entries at one time, each name once, in the order they came. Entries keep their index, so readers can
/// follow while it grows.
#[derive(Debug)]
pub struct Listing {
    began: Instant,
    /// Guards the pages; never held across a wait.
    state: Mutex<State>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct State {
    pages: Vec<Page>,
    /// Where a name's entry is: page and position in it.
    index: HashMap<Box<str>, (u32, u32)>,
    end: Option<End>,
}

#[derive(Debug)]
struct Page {
    /// The index of its first entry.
    start: usize,
    entries: Arc<[Entry]>,
}

#[derive(Debug)]
struct End {
    at: Instant,
    /// Whether the remote's names are all there.
    whole: bool,
    failure: Option<Error>,
}

/// Entries of a listing from some index on, up to the end of a page.
#[derive(Debug)]
pub struct Slice {
    entries: Arc<[Entry]>,
    skip: usize,
}

impl Slice {
    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        self.entries.get(self.skip..).unwrap_or_default()
    }
}

impl Listing {
    /// An empty one, about to be filled.
    pub fn begin() -> Listing {
        Listing { began: Instant::now(), state: Mutex::default(), grown: Notify::new() }
    }

    /// When it was begun.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Adds entries whose names are not in it yet. A directory takes the place of a file of its name.
    pub fn add(&self, entries: impl IntoIterator<Item = Entry>) {
        let mut state = self.state();
        let (number, start) = (state.pages.len() as u32, state.len());
        let mut page: Vec<Entry> = Vec::new();
        for entry in entries {
            match state.index.get(entry.name()).copied() {
                None => {
                    state.index.insert(entry.name().into(), (number, page.len() as u32));
                    page.push(entry);
                }
                Some((earlier, position)) if matches!(entry, Entry::Dir(_)) => {
                    if earlier == number {
                        page[position as usize] = entry;
                    } else {
                        state.replace(earlier, position, entry);
                    }
                }
                Some(_) => {}
            }
        }
        if !page.is_empty() {
            state.pages.push(Page { start, entries: page.into() });
        }
        drop(state);
        self.grown.notify_waiters();
    }

    /// The entries that are here, page by page.
    pub fn pages(&self) -> Vec<Arc<[Entry]>> {
        self.state().pages.iter().map(|page| page.entries.clone()).collect()
    }

    /// Ends it: nothing will be added. `whole` says whether the remote's names are all there; readers get `failure`
    /// after the last entry.
    pub fn end(&self, whole: bool, failure: Option<Error>) {
        self.state().end = Some(End { at: Instant::now(), whole, failure });
        self.grown.notify_waiters();
    }

    /// Whether it is being loaded, or was loaded whole in the last `ttl`. One that shows only what is local is made anew
    /// each time: that costs no request, and what is local changes with every read.
    pub fn is_fresh(&self, ttl: Duration) -> bool {
        self.state().end.as_ref().is_none_or(|end| end.whole && end.at.elapsed() < ttl)
    }

    /// The entries from the `index`th on that are here; None while it isn't known whether there is one. Empty at the end.
    ///
    /// # Errors
    /// What ended the listing early.
    pub fn get(&self, index: usize) -> Option<Result<Slice>> {
        let state = self.state();
        if index < state.len() {
            let page = state.pages.partition_point(|page| page.start <= index) - 1;
            let Page { start, entries } = &state.pages[page];
            return Some(Ok(Slice { entries: entries.clone(), skip: index - start }));
        }
        let end = state.end.as_ref()?;
        Some(match &end.failure {
            Some(error) => Err(error.clone()),
            None => Ok(Slice { entries: Arc::new([]), skip: 0 }),
        })
    }

    /// The entries from the `index`th on, waited for.
    pub async fn wait(&self, index: usize) -> Result<Slice> {
        loop {
            // Registered before the look, so that no growth is missed between the two.
            let grown = self.grown.notified();
            if let Some(result) = self.get(index) {
                return result;
            }
            grown.await;
        }
    }

    /// The entry called `name`, once loaded; `Some(None)` when it is known that there is none.
    pub fn find(&self, name: &str, ttl: Duration) -> Option<Option<Entry>> {
        let state = self.state();
        let end = state.end.as_ref().filter(|end| end.at.elapsed() < ttl)?;
        match state.index.get(name) {
            Some((page, position)) => {
                Some(state.pages.get(*page as usize)?.entries.get(*position as usize).cloned())
            }
            None if end.whole && self.began.elapsed() < MISS_TTL => Some(None),
            None => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    fn len(&self) -> usize {
        self.pages.last().map_or(0, |page| page.start + page.entries.len())
    }

    fn replace(&mut self, page: u32, position: u32, entry: Entry) {
        if let Some(page) = self.pages.get_mut(page as usize) {
            let mut entries = page.entries.to_vec();
            entries[position as usize] = entry;
            page.entries = entries.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::error::Kind;
    use crate::object::{ETag, Key, ObjectVersion};

    const LONG: Duration = Duration::from_secs(60);

    fn file(name: &str) -> Entry {
        let (key, etag) = (Key::new(name).unwrap(), ETag::new("x"));
        let (modified, source) = (SystemTime::UNIX_EPOCH, "s3://b/".into());
        Entry::File(Served::Remote(ObjectVersion { key, etag, size: 1, modified, checksum: None, source }))
    }

    fn names(listing: &Listing) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(Ok(slice)) = listing.get(names.len()) {
            if slice.entries().is_empty() {
                break;
            }
            names.extend(slice.entries().iter().map(|entry| entry.name().to_owned()));
        }
        names
    }

    #[test]
    fn entries_keep_their_index_while_it_grows() {
        let listing = Listing::begin();
        listing.add([file("b"), file("a")]);
        assert!(listing.get(2).is_none(), "more may come");
        listing.add([file("c"), file("a")]);
        listing.end(true, None);
        assert_eq!(names(&listing), ["b", "a", "c"]);
        assert_eq!(listing.get(1).unwrap().unwrap().entries(), [file("a")]);
        assert_eq!(listing.find("c", LONG), Some(Some(file("c"))));
        assert_eq!(listing.find("d", LONG), Some(None));
    }

    #[test]
    fn a_directory_takes_the_place_of_a_file() {
        let listing = Listing::begin();
        let dir = |name: &str| Entry::Dir(name.into());
        listing.add([file("a"), file("b"), dir("b")]);
        listing.add([dir("a"), file("b")]);
        listing.end(true, None);
        assert_eq!(names(&listing), ["a", "b"]);
        assert_eq!(
            (listing.find("a", LONG), listing.find("b", LONG)),
            (Some(Some(dir("a"))), Some(Some(dir("b"))))
        );
    }

    #[test]
    fn a_failure_comes_after_what_is_there() {
        let listing = Listing::begin();
        listing.add([file("a")]);
        listing.end(false, Some(Error::new(Kind::Remote, "x")));
        assert!(listing.get(0).unwrap().is_ok() && listing.get(1).unwrap().is_err());
        assert!(!listing.is_fresh(LONG));
        assert_eq!(listing.find("b", LONG), None, "it may be in what is missing");
    }

    #[tokio::test]
    async fn readers_wait_for_what_comes() {
        let listing = Arc::new(Listing::begin());
        let reader = tokio::spawn({
            let listing = listing.clone();
            async move { listing.wait(0).await.unwrap().entries().len() }
        });
        tokio::task::yield_now().await;
        listing.add([file("a")]);
        assert_eq!(reader.await.unwrap(), 1);
    }
}
