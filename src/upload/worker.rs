//! The journal's worker: uploads what is pending, also what other processes left, until there is nothing more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::answer::blocking;
use crate::cache::PendingUpload;
use crate::config::Upload;
use crate::error::{Error, Kind, Result};
use crate::object::{ETag, Key, ObjectVersion};
use crate::upload::send::{Sent, is_final};
use crate::upload::{CLAIM_PAUSE, Target, Uploads};

/// Uploads at a time.
const PARALLEL: usize = 4;
/// What has just been written may be about to be renamed: it is left alone for so long.
const SETTLE: Duration = Duration::from_millis(500);
/// The pause after the first failure, doubled after each other, up to the longest; a random part of it is waited.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// How often to look for what others have left.
const RESCAN: Duration = Duration::from_secs(30);
/// An upload of which so many bytes are left to be sent isn't complete before it is broken off.
const UNSENT: u64 = 1 << 20;
/// How often to look whether the remote is back, or another process done.
const LOOK: Duration = Duration::from_millis(500);

/// What this process is to upload.
#[derive(Default)]
pub struct Jobs {
    /// Guards only the table.
    table: Mutex<HashMap<Key, Job>>,
    /// Wakes the worker.
    wake: Notify,
    /// Wakes those who wait for uploads, at the end of each.
    ended: Notify,
    works: AtomicBool,
    /// What was refused has been tried again.
    retried_refused: AtomicBool,
}

#[derive(Clone)]
struct Job {
    due: Instant,
    failures: u32,
    /// None while it doesn't run.
    running: Option<Running>,
}

/// An upload under way.
#[derive(Clone, Default)]
pub struct Running {
    /// The bytes sent.
    pub sent: Arc<AtomicU64>,
    /// Told when it isn't wanted any more.
    unwanted: Arc<Notify>,
}

impl Running {
    /// Waits until it isn't wanted any more and can be broken off: of `size` bytes some have been sent, so that it has begun, and some
    /// haven't, so that the remote can't have it.
    pub async fn is_to_stop(&self, size: u64) {
        self.unwanted.notified().await;
        while !(1..size.saturating_sub(UNSENT)).contains(&self.sent.load(Ordering::Relaxed)) {
            sleep(CLAIM_PAUSE).await;
        }
    }
}

impl Uploads {
    /// Uploads what is pending, also what other processes left, again and again until it is done. What a remote refused is
    /// tried again, once.
    pub fn resume(self: &Arc<Uploads>) {
        if self.cache.is_some() && !self.jobs.works.swap(true, Ordering::Relaxed) {
            self.runtime.spawn(self.clone().work());
        }
    }

    /// Returns at once unless `key`'s upload is pending. Where uploads go through, waits until the remote has it.
    ///
    /// # Errors
    /// Why the remote refused it.
    pub async fn wait_uploaded(&self, key: &Key) -> Result<()> {
        loop {
            let ended = self.jobs.ended.notified();
            match self.pending_upload(key).await? {
                None => return Ok(()),
                Some(entry) if entry.refused => {
                    let why = entry.error.unwrap_or_else(|| format!("{key}: refused by the remote"));
                    return Err(Error::new(Kind::Refused, why));
                }
                Some(_) if self.mode().await != Upload::Through => return Ok(()),
                // Another process may be the one that uploads it.
                Some(_) => drop(timeout_at(Instant::now() + LOOK, ended).await),
            }
        }
    }

    async fn pending_upload(&self, key: &Key) -> Result<Option<PendingUpload>> {
        let Some(cache) = self.cache.clone() else { return Ok(None) };
        let key = key.clone();
        blocking(move || cache.pending_upload(&key)).await
    }

    /// What is still to be uploaded, oldest first. Blocks on the disk, briefly.
    pub fn pending(&self) -> Vec<PendingUpload> {
        self.cache.as_ref().map(|cache| cache.pending()).unwrap_or_default()
    }

    /// How many uploads there are that this process is to do, as far as it knows. Blocks on the disk, briefly.
    pub fn count_unfinished(&self) -> usize {
        let Some(Target { mode, remote }) = self.target.get() else { return 0 };
        if *mode == Upload::Never || self.options.read_only {
            return 0;
        }
        let is_tried = |name: &str| Key::new(name).is_ok_and(|key| self.jobs.table().contains_key(&key));
        let is_due =
            |entry: &&PendingUpload| entry.remote == **remote && (!entry.refused || is_tried(&entry.name));
        self.pending().iter().filter(is_due).count()
    }

    /// How many bytes of `key` have been sent, while it is being uploaded by this process.
    pub fn sent(&self, key: &Key) -> Option<u64> {
        let table = self.jobs.table();
        table.get(key)?.running.as_ref().map(|running| running.sent.load(Ordering::Relaxed))
    }

    /// Waits until nothing is pending that can be uploaded now, at most for `limit`.
    pub async fn drain(self: &Arc<Uploads>, limit: Duration) {
        let deadline = Instant::now() + limit;
        let Target { mode, remote } = self.target().await;
        if *mode == Upload::Never || self.options.read_only {
            return;
        }
        self.resume();
        self.scan(remote).await;
        self.jobs.hurry();
        loop {
            let ended = self.jobs.ended.notified();
            let is_idle = self.jobs.table().is_empty() || self.outage(remote).is_some();
            if is_idle || timeout_at(deadline, ended).await.is_err() {
                return;
            }
        }
    }

    /// Has the worker upload `key`, which has just been written.
    pub(super) fn enqueue(self: &Arc<Uploads>, key: &Key) {
        self.jobs.add(key, Job { due: Instant::now() + SETTLE, failures: 0, running: None });
        self.resume();
    }

    /// Notes that an upload of `key` begins outside of the worker, which somebody waits for: nobody else stops it.
    pub(super) fn begin(&self, key: &Key) -> Running {
        let running = Running::default();
        let shown = Running { sent: running.sent.clone(), ..Running::default() };
        let job = Job { due: Instant::now(), failures: 0, running: Some(shown) };
        self.jobs.table().insert(key.clone(), job);
        running
    }

    /// Has the worker break off an upload of `key`, if the remote can't have it yet.
    pub(super) fn stop(&self, key: &Key) {
        if let Some(running) = self.jobs.table().get(key).and_then(|job| job.running.as_ref()) {
            running.unwanted.notify_one();
        }
    }

    /// Notes how an upload of `key` ended, and says it. If it may go through later, the worker tries it again.
    pub(super) fn end(self: &Arc<Uploads>, key: &Key, result: &Result<Sent>) {
        match result {
            Ok(Sent::Stored) => log::info!("{key}: uploaded"),
            Ok(Sent::Kept) => log::warn!("{key}: there is such an artifact already; it stays"),
            Ok(Sent::Gone) => {}
            Err(error) if is_final(error) => log::info!("{error}; {key} is kept here and not uploaded"),
            Err(error) => {
                let failures = self.jobs.failed(key);
                let level = match error.kind() {
                    // The program is ending.
                    Kind::Internal => log::Level::Debug,
                    _ if failures == 1 => log::Level::Warn,
                    _ => log::Level::Info,
                };
                say_later(level, key, error);
                return self.resume();
            }
        }
        self.jobs.remove(key);
    }

    async fn work(self: Arc<Uploads>) {
        let Target { mode, remote } = self.target().await.clone();
        if mode == Upload::Never || self.options.read_only {
            return;
        }
        let slots = Arc::new(Semaphore::new(PARALLEL));
        let (mut next_scan, mut was_down) = (Instant::now(), false);
        loop {
            if next_scan <= Instant::now() {
                self.scan(&remote).await;
                next_scan = Instant::now() + RESCAN;
            }
            let outage = self.outage(&remote);
            let down = outage.is_some();
            if was_down && !down {
                self.jobs.hurry();
            }
            was_down = down;
            match outage {
                None => self.begin_due(&slots),
                Some(error) => self.put_off_due(&error),
            }
            let next = self.jobs.next_due().map(|due| if down { Instant::now() + LOOK } else { due });
            tokio::select! {
                () = self.jobs.wake.notified() => {}
                () = sleep_until(next.unwrap_or(next_scan).min(next_scan)) => {}
            }
        }
    }

    /// Why the remote is known to be out of reach, if it is.
    fn outage(&self, remote: &str) -> Option<Error> {
        let key = Key::new("any").ok()?;
        let (etag, modified) = (ETag::of_length(0), SystemTime::UNIX_EPOCH);
        let source = remote.into();
        self.store.check(&ObjectVersion { key, etag, size: 0, modified, checksum: None, source }).err()
    }

    /// Says of what would be uploaded now that it waits for the remote; once, as after a first attempt that failed.
    fn put_off_due(&self, error: &Error) {
        for key in self.jobs.put_off_due() {
            say_later(log::Level::Warn, &key, error);
        }
    }

    /// Takes up what the journal has for `remote`, ours.
    async fn scan(&self, remote: &str) {
        let Some(cache) = self.cache.clone() else { return };
        let Ok(entries) = blocking(move || cache.pending()).await else { return };
        let refused_too = !self.jobs.retried_refused.swap(true, Ordering::Relaxed);
        for entry in entries.iter().filter(|entry| entry.remote == remote) {
            if let Ok(key) = Key::new(&entry.name)
                && (refused_too || !entry.refused)
            {
                // Failed before, most likely: said then.
                self.jobs.add(&key, Job { due: Instant::now(), failures: 1, running: None });
            }
        }
    }

    fn begin_due(self: &Arc<Uploads>, slots: &Arc<Semaphore>) {
        while let Ok(slot) = slots.clone().try_acquire_owned() {
            let Some((key, running)) = self.jobs.begin_one() else { return };
            self.runtime.spawn(self.clone().attempt(key, running, slot));
        }
    }

    async fn attempt(self: Arc<Uploads>, key: Key, running: Running, slot: OwnedSemaphorePermit) {
        match self.send_pending(&key, running).await {
            Ok(None) => self.jobs.remove(&key),
            Ok(Some(sent)) => self.end(&key, &Ok(sent)),
            Err(error) => {
                if is_final(&error) {
                    log::warn!("{error}; {key} is kept here and not uploaded");
                }
                self.end(&key, &Err(error));
            }
        }
        drop(slot);
        self.jobs.wake.notify_one();
    }

    /// Uploads `key` if it is still pending and nobody else is at it.
    async fn send_pending(&self, key: &Key, running: Running) -> Result<Option<Sent>> {
        let Some(cache) = self.cache.clone() else { return Ok(None) };
        let own_key = key.clone();
        let claimed = blocking(move || {
            let claim = cache.claim(&own_key)?;
            std::io::Result::Ok(claim.and_then(|claim| claim.entry().map(|entry| (claim, entry))))
        });
        let claimed = claimed.await?.map_err(|e| Error::local(format!("{key}: can't be claimed"), &e))?;
        match claimed {
            Some((claim, entry)) => self.send(claim, entry, running).await.map(Some),
            None => Ok(None),
        }
    }
}

impl Jobs {
    /// Adds a job, unless there is one for its key.
    fn add(&self, key: &Key, job: Job) {
        self.table().entry(key.clone()).or_insert(job);
        self.wake.notify_one();
    }

    fn remove(&self, key: &Key) {
        self.table().remove(key);
        self.ended.notify_waiters();
    }

    /// All are due now.
    fn hurry(&self) {
        let now = Instant::now();
        self.table().values_mut().for_each(|job| job.due = job.due.min(now));
        self.wake.notify_one();
    }

    /// Notes that a job failed that will be tried again; how often it has.
    fn failed(&self, key: &Key) -> u32 {
        let mut table = self.table();
        let fresh = Job { due: Instant::now(), failures: 0, running: None };
        let job = table.entry(key.clone()).or_insert(fresh);
        job.failures += 1;
        job.due = Instant::now() + pause(job.failures);
        job.running = None;
        self.wake.notify_one();
        self.ended.notify_waiters();
        job.failures
    }

    /// The jobs that are due for the first time; from now on they count as failed.
    fn put_off_due(&self) -> Vec<Key> {
        let (mut table, now) = (self.table(), Instant::now());
        let due =
            table.iter_mut().filter(|(_, job)| job.running.is_none() && job.failures == 0 && job.due <= now);
        let put_off = due.map(|(key, job)| {
            job.failures = 1;
            key.clone()
        });
        put_off.collect()
    }

    /// When the next job is due that doesn't run.
    fn next_due(&self) -> Option<Instant> {
        self.table().values().filter(|job| job.running.is_none()).map(|job| job.due).min()
    }

    /// Begins with the job that has been due longest, if one is.
    fn begin_one(&self) -> Option<(Key, Running)> {
        let (mut table, now) = (self.table(), Instant::now());
        let waiting = table.iter_mut().filter(|(_, job)| job.running.is_none() && job.due <= now);
        let (key, job) = waiting.min_by_key(|(_, job)| job.due)?;
        let running = job.running.insert(Running::default()).clone();
        Some((key.clone(), running))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Job>> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn say_later(level: log::Level, key: &Key, why: &Error) {
    log::log!(level, "{why}; {key} is kept here and uploaded later");
}

/// How long to wait after so many failures in a row: full jitter above a floor, so that a busy remote is left in peace.
fn pause(failures: u32) -> Duration {
    let longest = PAUSES[1].min(PAUSES[0] * 2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    longest.mul_f64(0.25 + 0.75 * fastrand::f64())
}
