//! Several remotes in order: the first that has a key gives it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures_util::future::join_all;

use crate::config::Patience;
use crate::error::{Error, Kind, Result};
use crate::object::{Key, ObjectVersion};
use crate::store::{Body, Existing, ObjectStore, Page, Payload, Put, RemoteState, takes_no_uploads};

/// Remotes that are asked one after the other. A key is missing only when every one of them says so.
pub struct Chain {
    url: String,
    links: Vec<Link>,
}

struct Link {
    store: Arc<dyn ObjectStore>,
    /// That it fails was said, and it hasn't answered since.
    said: AtomicBool,
}

impl Chain {
    /// The chain of `stores`.
    pub fn new(stores: Vec<Arc<dyn ObjectStore>>) -> Chain {
        let urls: Vec<&str> = stores.iter().map(|store| store.url()).collect();
        let url = urls.join(" ");
        let links = stores.into_iter().map(|store| Link { store, said: AtomicBool::new(false) });
        Chain { url, links: links.collect() }
    }

    /// The remote that vouched for `object`: no other's bytes will do.
    fn vouching(&self, object: &ObjectVersion) -> Option<&Link> {
        self.links.iter().find(|link| link.store.url() == &*object.source)
    }

    /// The remote that uploads go to and are deleted from: the first that takes any.
    async fn writable(&self) -> Option<&dyn ObjectStore> {
        for link in &self.links {
            if link.store.accepts_uploads().await {
                return Some(&*link.store);
            }
        }
        None
    }
}

impl Link {
    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        let result = self.store.head(key).await;
        self.note(result.as_ref().err());
        result
    }

    async fn probe(&self) {
        self.note(self.store.probe().await.err().as_ref());
    }

    /// Says what is wrong, once.
    fn note(&self, failure: Option<&Error>) {
        match failure.map(|error| (error, error.kind())) {
            // Said by the breaker.
            Some((_, Kind::Unreachable | Kind::TimedOut)) => {}
            None | Some((_, Kind::NotFound | Kind::ListDenied)) => self.said.store(false, Ordering::Relaxed),
            Some((error, _)) => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    log::warn!("{error}; the other remotes are asked");
                }
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Chain {
    /// All URLs, in order, with a space between them.
    fn url(&self) -> &str {
        &self.url
    }

    fn remotes(&self) -> Vec<RemoteState> {
        self.links.iter().flat_map(|link| link.store.remotes()).collect()
    }

    fn patience(&self) -> Patience {
        self.links.first().map_or_else(Patience::default, |link| link.store.patience())
    }

    fn check(&self, object: &ObjectVersion) -> Result<()> {
        self.vouching(object).map_or(Ok(()), |link| link.store.check(object))
    }

    async fn part_size(&self, object: &ObjectVersion) -> Result<Option<u64>> {
        match self.vouching(object) {
            Some(link) => link.store.part_size(object).await,
            None => Ok(None),
        }
    }

    /// Asks all at a time and says what is wrong with any.
    async fn probe(&self) -> Result<()> {
        join_all(self.links.iter().map(Link::probe)).await;
        Ok(())
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        let mut failure: Option<Error> = None;
        for link in &self.links {
            match link.head(key).await {
                Ok(version) => return Ok(version),
                // A remote that couldn't tell may have it: its failure outweighs that others don't.
                Err(error) if failure.as_ref().is_none_or(|f| f.kind() == Kind::NotFound) => {
                    failure = Some(error)
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or_else(|| Error::new(Kind::NotFound, format!("{key}: no remote has it"))))
    }

    /// One remote's page after the other's: who reads them takes the first of each name.
    async fn list(&self, dir: &str, token: Option<String>, limit: u16) -> Result<Page> {
        let (begun, mut token) = match token {
            Some(token) => parse_position(&token)?,
            None => (0, None),
        };
        let (mut gap, mut answered) = (None::<Error>, begun > 0);
        for (index, link) in self.links.iter().enumerate().skip(begun) {
            match link.store.list(dir, token.take(), limit).await {
                Ok(page) => {
                    answered = true;
                    let is_empty = page.objects.is_empty() && page.dirs.is_empty();
                    let next = match &page.next {
                        Some(token) => Some(position(index, token)),
                        None if is_empty => continue,
                        None => (index + 1 < self.links.len()).then(|| position(index + 1, "")),
                    };
                    return Ok(Page { next, gap, ..page });
                }
                // What is worse than a missing right to list is what is said.
                Err(error) if gap.as_ref().is_none_or(|g| g.kind() == Kind::ListDenied) => gap = Some(error),
                Err(_) => {}
            }
        }
        match gap {
            Some(error) if !answered => Err(error),
            gap => Ok(Page { gap, ..Page::default() }),
        }
    }

    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body> {
        match self.vouching(object) {
            Some(link) => link.store.get(object, range).await,
            None => {
                let what =
                    format!("{}: {} isn't a remote any more; open it again", object.key, object.source);
                Err(Error::new(Kind::Changed, what))
            }
        }
    }

    fn serves_ranges(&self, object: &ObjectVersion) -> bool {
        self.vouching(object).is_some_and(|link| link.store.serves_ranges(object))
    }

    async fn accepts_uploads(&self) -> bool {
        self.writable().await.is_some()
    }

    async fn upload_url(&self) -> String {
        self.writable().await.map_or(&*self.url, |store| store.url()).to_owned()
    }

    async fn nearby(&self) -> Option<(Arc<dyn ObjectStore>, Vec<String>)> {
        for (index, link) in self.links.iter().enumerate() {
            if link.store.url().starts_with("s3://") && link.store.accepts_uploads().await {
                let (before, behind) = self.links.split_at(index + 1);
                let is_before = |url: &str| before.iter().any(|link| link.store.url() == url);
                let urls = behind.iter().map(|link| link.store.url());
                let behind = urls.filter(|url| !is_before(url)).map(str::to_owned).collect();
                return Some((link.store.clone(), behind));
            }
        }
        None
    }

    async fn put(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        match self.writable().await {
            Some(store) => store.put(key, payload, existing).await,
            None => Err(takes_no_uploads(self.url(), key)),
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        match self.writable().await {
            Some(store) => store.delete(key).await,
            None => Err(takes_no_uploads(self.url(), key)),
        }
    }
}

/// Where a listing goes on: at which remote, and by which token of that remote's (empty: from its start).
fn position(index: usize, token: &str) -> String {
    format!("{index} {token}")
}

fn parse_position(text: &str) -> Result<(usize, Option<String>)> {
    let parsed = text.split_once(' ').and_then(|(index, token)| Some((index.parse().ok()?, token)));
    let (index, token) =
        parsed.ok_or_else(|| Error::new(Kind::Internal, "a listing's position that isn't one"))?;
    Ok((index, (!token.is_empty()).then(|| token.to_owned())))
}
