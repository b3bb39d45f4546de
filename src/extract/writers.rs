//! What is in the files is written: where it is read, or by threads of which each file's bytes all go to one, in order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::{io, mem};

use bytes::Bytes;

use crate::extract::attributes::{Attributes, Notes};
use crate::extract::{Result, internal, no_thread};

/// How many there are at most; no more than half of the processors, since others decode and make files.
const WRITERS_MAX: usize = 4;
/// Jobs that wait for each. Their bytes are the decoder's chunks, of which there are only so many.
const JOBS_AHEAD: usize = 64;

/// A file that is being written.
pub struct Output {
    /// Empty, and made with the attributes' first mode.
    pub file: File,
    /// Below the directory that is unpacked into.
    pub path: PathBuf,
    /// What it gets at the end.
    pub attributes: Attributes,
}

/// Bytes for a file.
pub struct Job {
    /// The file.
    pub output: Arc<Output>,
    /// Where they belong.
    pub at: u64,
    /// The bytes; none are fine.
    pub bytes: Bytes,
    /// Nothing follows.
    pub last: bool,
}

/// Who writes.
pub struct Writers {
    notes: Arc<Notes>,
    /// None: the calling thread.
    lanes: Vec<(SyncSender<Job>, JoinHandle<()>)>,
    next: usize,
    failures: Arc<Failures>,
}

/// Which file could not be written.
pub struct Unwritten {
    /// Below the directory that is unpacked into.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

#[derive(Default)]
struct Failures {
    any: AtomicBool,
    /// Guards only the list.
    list: Mutex<Vec<Unwritten>>,
}

impl Writers {
    /// The calling thread.
    pub fn here(notes: &Arc<Notes>) -> Writers {
        Writers { notes: notes.clone(), lanes: Vec::new(), next: 0, failures: Arc::default() }
    }

    /// Threads, which are started.
    ///
    /// # Errors
    /// The system gives none.
    pub fn start(notes: &Arc<Notes>) -> Result<Writers> {
        let failures = Arc::new(Failures::default());
        let lane = |_| {
            let (sender, jobs) = sync_channel(JOBS_AHEAD);
            let (notes, failures) = (notes.clone(), failures.clone());
            let work = move || jobs.into_iter().for_each(|job: Job| job.run(&notes, &failures));
            let handle = Builder::new().name("write".into()).spawn(work).map_err(no_thread)?;
            Ok((sender, handle))
        };
        let writers = (available_parallelism().map_or(1, usize::from) / 2).clamp(1, WRITERS_MAX);
        let lanes = (0..writers).map(lane).collect::<Result<_>>()?;
        Ok(Writers { notes: notes.clone(), lanes, next: 0, failures })
    }

    /// Where the next file goes.
    pub fn lane(&mut self) -> usize {
        self.next = (self.next + 1) % self.lanes.len().max(1);
        self.next
    }

    /// Has a job done by `lane`; waits when it has enough to do.
    ///
    /// # Errors
    /// It is gone.
    pub fn write(&self, lane: usize, job: Job) -> Result<()> {
        let Some((sender, _)) = self.lanes.get(lane) else {
            job.run(&self.notes, &self.failures);
            return Ok(());
        };
        sender.send(job).map_err(|_| internal("a writing thread panicked").into())
    }

    /// Whether something could not be written.
    pub fn have_failed(&self) -> bool {
        self.failures.any.load(Ordering::Relaxed)
    }

    /// Waits until all is written; what could not be.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn finish(self) -> Result<Vec<Unwritten>> {
        for (sender, handle) in self.lanes {
            drop(sender);
            handle.join().map_err(|_| internal("a writing thread panicked"))?;
        }
        Ok(mem::take(&mut self.failures.list()))
    }
}

impl Job {
    fn run(self, notes: &Notes, failures: &Failures) {
        if let Err(error) = self.write(notes) {
            failures.add(&self.output.path, error);
        }
    }

    fn write(&self, notes: &Notes) -> io::Result<()> {
        let Output { file, path, attributes } = &*self.output;
        file.write_all_at(&self.bytes, self.at)?;
        if self.last {
            attributes.set(file, path, notes)?;
        }
        Ok(())
    }
}

impl Failures {
    fn add(&self, path: &Path, error: io::Error) {
        self.list().push(Unwritten { path: path.to_owned(), error });
        self.any.store(true, Ordering::Relaxed);
    }

    fn list(&self) -> MutexGuard<'_, Vec<Unwritten>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
