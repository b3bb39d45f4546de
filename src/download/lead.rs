//! A download that this process drives: workers fetch parts and write them to the file.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::uio::pwritev;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::blocking;
use crate::cache::{Partial, Record};
use crate::checksum::{Checksum, extend_crc64nvme};
use crate::download::parts::Lease;
use crate::download::retry::RangeFetch;
use crate::download::{Download, Resources, unread};
use crate::error::{Error, Kind, Result};

/// Ranged GETs at once for one object.
const WORKERS: u64 = 24;
/// Workers beyond those, each for a reader far from what is being fetched.
const URGENT_WORKERS: usize = 4;
/// How long the others wait for the first one's first bytes, which a reader most likely waits for, too: many requests at
/// once keep each other, the machine and the server busy.
const HEAD_START: Duration = Duration::from_millis(5);
/// Bytes gathered before a write, unless a reader waits for no more than these or no more come for a while: each write costs
/// two changes of threads.
const WRITE: usize = 512 << 10;
/// That while.
const GATHER: Duration = Duration::from_millis(2);
/// Chunks written at once, as many as the kernel takes (`IOV_MAX`).
const SLICES: usize = 1024;
/// What is freed at least when the disk is found to be full.
const RELIEF: u64 = 16 << 20;

impl Download {
    /// Fetches what is missing in `partial` and publishes it.
    pub(super) async fn lead(self: Arc<Download>, partial: Partial, resources: &Resources) {
        let _ = self.file.set(partial.file());
        for Record { start, filled, crc } in partial.arrived() {
            self.map().insert(*start, *filled, *crc);
        }
        let (partial, missing) = (Arc::new(partial), self.map().missing());
        if missing < self.object.size {
            log::info!("{}: going on with {missing} of {} bytes missing", self.object.key, self.object.size);
        }
        *self.partial() = Some(partial.clone());
        self.keep();
        self.work_all(&resources.budget).await;
        // From now on nobody writes.
        self.partial().take();
        let crc = match self.crc() {
            Ok(crc) => crc,
            Err(kind) => {
                let in_vain = self.map().missing() == self.object.size;
                let useless = matches!(kind, Kind::Changed | Kind::NoSpace | Kind::Local | Kind::Internal);
                if in_vain || useless {
                    let _ = blocking(move || partial.discard()).await;
                }
                // Else whoever comes next goes on with the file.
                return;
            }
        };
        match self.check(crc, resources).await {
            Ok(()) => {
                self.publish(partial, crc, resources).await;
                self.finish();
            }
            Err(error) => {
                // First, so that who opens it again begins anew.
                let _ = blocking(move || partial.discard()).await;
                self.condemn(error, resources);
            }
        }
    }

    /// Fetches everything for those who read now.
    pub(super) async fn spool(self: Arc<Download>, resources: &Resources) {
        self.leads.store(true, Ordering::Relaxed);
        self.work_all(&resources.budget).await;
        let Ok(crc) = self.crc() else { return };
        match self.check(crc, resources).await {
            Ok(()) => {
                self.finish();
                self.wait_until_unread().await;
            }
            Err(error) => self.condemn(error, resources),
        }
    }

    /// The download goes on without readers.
    fn keep(&self) {
        self.leads.store(true, Ordering::Relaxed);
        let mut readers = self.readers();
        (readers.kept, readers.abandoned) = (true, false);
    }

    async fn work_all(self: &Arc<Download>, budget: &Arc<Semaphore>) {
        let mut workers = JoinSet::new();
        workers.spawn(self.clone().work(None));
        let parts = self.map().missing().div_ceil(self.sizes.other);
        if parts > 1 {
            let _ = timeout(HEAD_START, self.begun.wait()).await;
        }
        for _ in 1..parts.min(WORKERS) {
            workers.spawn(self.clone().work(Some(budget.clone())));
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(e) = ended {
                self.fail(self.internal(&format!("a worker failed: {e}")));
            }
        }
        self.wait_until_complete().await;
    }

    /// The last parts may be with urgent workers.
    async fn wait_until_complete(&self) {
        let woken = self.map().wait(0..self.object.size);
        if !self.map().is_complete() {
            let _ = woken.await;
        }
    }

    /// The CRC64NVME of all bytes, or what kept them from coming.
    fn crc(&self) -> Result<u64, Kind> {
        let map = self.map();
        match (map.failure(), map.checksum()) {
            (Some(error), _) => Err(error.kind()),
            (None, crc) => crc.ok_or(Kind::Internal),
        }
    }

    /// Compares the bytes, which have this CRC64NVME, with what the remote says it has.
    async fn check(&self, crc: u64, resources: &Resources) -> Result<()> {
        let Some(file) = self.file.get() else { return Err(self.internal("no file")) };
        resources.doubts.check(&self.object, crc, file, &*self.store).await
    }

    async fn publish(&self, partial: Arc<Partial>, crc: u64, resources: &Resources) {
        let source = self.object.source.clone();
        let committed = blocking(move || {
            partial.commit(&source, &Checksum::crc64nvme(crc)).inspect_err(|_| partial.discard())
        });
        let key = &self.object.key;
        match committed.await {
            Ok(Ok(())) => {
                log::debug!("{key}: fetched, {} bytes", self.object.size);
                if let Some(filler) = &resources.filler {
                    filler.offer(&self.object);
                }
            }
            Ok(Err(e)) => log::warn!("{key}: fetched, but can't be kept in the cache directory: {e}"),
            Err(e) => log::debug!("{key}: fetched, but not kept: {e}"),
        }
    }

    /// Fetches part after part until none is left, this download has failed, or nobody needs it. Takes a permit from
    /// `budget`, if there is one, for each part.
    async fn work(self: Arc<Download>, budget: Option<Arc<Semaphore>>) {
        loop {
            let _permit = match &budget {
                Some(budget) => budget.acquire().await.ok(),
                None => None,
            };
            if self.readers().abandoned {
                return self.fail(unread());
            }
            let Some(lease) = self.map().lease() else { return };
            if let Err(error) = self.fetch(lease).await {
                return self.fail(error);
            }
        }
    }

    async fn fetch(&self, mut lease: Lease) -> Result<()> {
        let mut fetch = RangeFetch::new(&*self.store, &self.object, lease.from..lease.end);
        while let Some(first) = fetch.next().await? {
            let mut length = first.len();
            let mut chunks = vec![first];
            while length < WRITE
                && let Some(chunk) = fetch.next_within(self.patience(&lease, length)).await
            {
                length += chunk.len();
                chunks.push(chunk);
            }
            lease.crc = self.write(chunks, &lease).await?;
            lease.from += length as u64;
            self.map().advance(lease.part, lease.from, lease.crc);
            let _ = self.begun.set(());
            if self.readers().abandoned {
                return Err(unread());
            }
            if self.map().failure().is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// How long more bytes of `lease` are waited for before the first `length`, which have come, are written: not at all if
    /// they are what a reader waits for.
    fn patience(&self, lease: &Lease, length: usize) -> Duration {
        let come = lease.from + length as u64;
        if self.map().is_awaited(lease.part, come) { Duration::ZERO } else { GATHER }
    }

    /// Writes `chunks` where `lease` begins; returns the CRC64NVME of the part so far, of the bytes as they were received.
    async fn write(&self, chunks: Vec<Bytes>, lease: &Lease) -> Result<u64> {
        let Some(file) = self.file.get().cloned() else { return Err(self.internal("no file")) };
        let (partial, lease) = (self.partial().clone(), lease.clone());
        let written = blocking(move || {
            write_at(&file, partial.as_deref(), &chunks, lease.from)?;
            let crc = chunks.iter().fold(lease.crc, |crc, chunk| extend_crc64nvme(crc, chunk));
            if let Some(partial) = partial {
                let length: usize = chunks.iter().map(Bytes::len).sum();
                let filled = lease.from + length as u64;
                partial.record(Record { start: lease.part, filled, crc })?;
            }
            io::Result::Ok(crc)
        });
        let error = |e| Error::local(format!("{}: can't write its local file", self.object.key), &e);
        written.await?.map_err(error)
    }

    /// Gives a reader who waits for bytes that nobody fetches a worker of its own, if there aren't too many and the file is
    /// ours to fill.
    pub(super) fn hurry(self: &Arc<Download>) {
        let one_more = |n: usize| (n < URGENT_WORKERS).then_some(n + 1);
        if !self.leads.load(Ordering::Relaxed) {
            return;
        }
        if self.urgent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
            let download = self.clone();
            self.runtime.spawn(async move {
                let lease = download.map().lease_wanted();
                if let Some(lease) = lease
                    && let Err(error) = download.fetch(lease).await
                {
                    download.fail(error);
                }
                download.urgent.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// Writes all of `chunks`, one behind the other; on a disk that is full, once more after others were evicted for them.
fn write_at(file: &File, partial: Option<&Partial>, chunks: &[Bytes], at: u64) -> io::Result<()> {
    match (write_all_at(file, chunks, at), partial) {
        (Err(e), Some(partial))
            if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
                && partial
                    .relieve(chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>().max(RELIEF)) =>
        {
            write_all_at(file, chunks, at)
        }
        (written, _) => written,
    }
}

fn write_all_at(file: &File, chunks: &[Bytes], at: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let (mut left, mut at) = (slices.as_mut_slice(), at);
    while !left.is_empty() {
        let position = at.try_into().map_err(io::Error::other)?;
        match pwritev(file, &left[..left.len().min(SLICES)], position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut left, written);
                at += written as u64;
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
