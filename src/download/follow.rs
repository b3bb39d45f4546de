//! A download that another process drives: its file is read while it grows, and taken over when that process dies.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::answer::blocking;
use crate::cache::{Follower, Leader, Partial, Record};
use crate::download::{Download, Resources};
use crate::error::{Error, Kind, Result};

/// The shortest and the longest time between two looks at the file's progress.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(20)];
/// A process that brings nothing for so long is not waited for: it may have been stopped.
const STALL: Duration = Duration::from_secs(10);

impl Download {
    /// Reads along until the file is complete. A file whose process has died is returned, to be gone on with.
    ///
    /// # Errors
    /// The other process gave the file up or brings nothing: what is missing has to be read without being kept.
    pub(super) async fn follow(
        self: &Arc<Download>,
        mut follower: Follower,
        resources: &Resources,
    ) -> Result<Option<Partial>> {
        let _ = self.file.set(follower.file());
        // The other process keeps the file; here it is only read.
        self.forget_when_unread();
        log::debug!("{}: another process is fetching it", self.object.key);
        let mut pause = PAUSES[0];
        loop {
            let (back, leader, records) = blocking(move || look(follower))
                .await?
                .map_err(|e| Error::local(format!("{}: can't follow its download", self.object.key), &e))?;
            follower = back;
            pause = if records.is_empty() { (pause * 2).min(PAUSES[1]) } else { PAUSES[0] };
            for Record { start, filled, crc } in records {
                self.map().insert(start, filled, crc);
            }
            match leader {
                Leader::Lost(partial) => return Ok(Some(partial)),
                Leader::Done if self.is_published(resources).await => return Ok(None),
                Leader::Done => return Err(self.given_up("gave it up")),
                Leader::Alive if self.readers().abandoned => return Ok(None),
                Leader::Alive if follower.idle() > STALL => return Err(self.given_up("has stopped")),
                Leader::Alive => sleep(pause).await,
            }
        }
    }

    async fn is_published(&self, resources: &Resources) -> bool {
        let (cache, key) = (resources.cache.clone(), self.object.key.clone());
        let found = blocking(move || cache.and_then(|cache| cache.lookup(&key))).await;
        let is_it = found.ok().flatten().is_some_and(|file| file.version.is(&self.object));
        is_it && self.map().is_complete()
    }

    fn given_up(&self, what: &str) -> Error {
        Error::new(Kind::Local, format!("{}: the process that was fetching it {what}", self.object.key))
    }
}

fn look(mut follower: Follower) -> io::Result<(Follower, Leader, Vec<Record>)> {
    // In this order: what a process recorded before it ended is seen.
    let leader = follower.leader()?;
    let records = follower.read_new()?;
    Ok((follower, leader, records))
}
