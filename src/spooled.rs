//! Files that are being written through the mount: whom they show to, and when they are complete.
//!
//! Each opening for a new file has a spool of its own, which only its writer sees under its name. It becomes the artifact of
//! that name when it is complete: at its last close, or at a close of which nothing can come after. If its writer fails it
//! never does.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::answer::Answer;
use crate::error::{Error, Kind, Result};
use crate::listing::Entry;
use crate::lookup::Lookup;
use crate::object::Key;
use crate::process::{self, Asked, FileIdentity, Stage};
use crate::upload::{NewFile, Uploads};

/// Between the last close of a process that ends and the word that the file is closed for good lie microseconds, unless
/// another process has it open, too.
const LEAVING: Duration = Duration::from_millis(200);
/// How long a name that is to be truncated is remembered while the kernel looks it up again, and a new file that is never
/// opened.
const UNOPENED: Duration = Duration::from_secs(60);

/// All of a mount's.
pub struct SpooledFiles {
    uploads: Arc<Uploads>,
    runtime: Handle,
    lookup: Arc<Lookup>,
    /// Guards only the list.
    files: Mutex<Vec<Arc<SpooledFile>>>,
    /// Openings that are to begin anew, each by key and process. Guards only the list.
    truncations: Mutex<Vec<(Key, u32, Instant)>>,
    next: AtomicU64,
}

/// One of them.
pub struct SpooledFile {
    id: u64,
    /// The process that began it; None when that can't be told.
    writer: Option<u32>,
    created: Instant,
    /// Guards only the values.
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

struct State {
    /// None once nothing more can be asked of it: the kernel may remember the inode for long.
    file: Option<Arc<NewFile>>,
    key: Key,
    modified: SystemTime,
    handles: u32,
    stage: SpoolStage,
    /// Why it will never be published.
    failure: Option<Error>,
}

/// How far it is from being an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpoolStage {
    /// It can be written.
    Open,
    /// It is complete, and being published or published.
    Complete,
    /// It was removed.
    Removed,
}

/// What the close of a handle leaves.
enum Released {
    /// A file that is not complete yet, or has been so before.
    Open,
    /// One whose writer failed.
    Failed(Error),
    /// One that was removed.
    Removed,
    /// A complete one.
    Complete,
}

/// What others wait for.
#[derive(Clone, Debug)]
enum Progress {
    Open,
    /// A process that had it open ends now.
    Leaving,
    /// It is complete, and about to be published here.
    Complete,
    /// Its name shows what was published.
    Shown,
    /// It is done.
    Done(Result<()>),
}

impl SpooledFiles {
    /// None yet. What is complete is handed to `uploads`, and then seen by `lookup`.
    pub fn new(uploads: Arc<Uploads>, lookup: Arc<Lookup>, runtime: Handle) -> Arc<SpooledFiles> {
        Arc::new(SpooledFiles {
            uploads,
            runtime,
            lookup,
            files: Mutex::default(),
            truncations: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    /// A new file under `key`, for the process of the thread `tid`.
    ///
    /// # Errors
    /// `ReadOnly` when nothing can be written; `Exists` when it is to be `exclusive` and someone else is writing one.
    pub fn create(&self, key: &Key, tid: u32, exclusive: bool) -> Result<Arc<SpooledFile>> {
        if exclusive && self.files().iter().any(|file| file.is_called(key)) {
            return Err(Error::new(Kind::Exists, format!("{key}: being written by another process")));
        }
        let file = Arc::new(SpooledFile {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            writer: process::process_of(tid),
            created: Instant::now(),
            state: Mutex::new(State {
                file: Some(Arc::new(self.uploads.create(key)?)),
                key: key.clone(),
                modified: SystemTime::now(),
                handles: 0,
                stage: SpoolStage::Open,
                failure: None,
            }),
            progress: watch::Sender::new(Progress::Open),
        });
        let mut files = self.files();
        files.retain(|file| !file.is_abandoned());
        files.push(file.clone());
        Ok(file)
    }

    /// The file that `key` names for the process of the thread `tid`: one that it is writing, or one under a temporary name.
    pub fn find(&self, key: &Key, tid: u32) -> Option<Arc<SpooledFile>> {
        let mut process = None;
        let shown = |file: &&Arc<SpooledFile>| {
            file.is_called(key)
                && (key.is_temporary()
                    || file.writer.is_some()
                        && file.writer == *process.get_or_insert_with(|| process::process_of(tid)))
        };
        self.files().iter().rfind(shown).cloned()
    }

    /// The file that is about to be seen under `key` by everyone.
    pub fn find_complete(&self, key: &Key) -> Option<Arc<SpooledFile>> {
        let is_near = |file: &&Arc<SpooledFile>| match &*file.progress.borrow() {
            Progress::Leaving | Progress::Complete => file.state().key == *key,
            Progress::Open | Progress::Shown | Progress::Done(_) => false,
        };
        self.files().iter().find(is_near).cloned()
    }

    /// Notes that the process of the thread `tid` truncates what is under `key`'s name: it is to find a new file there. False
    /// when the process can't be told.
    pub fn truncate(&self, key: &Key, tid: u32) -> bool {
        let Some(process) = process::process_of(tid) else { return false };
        let mut truncations = self.truncations();
        truncations.retain(|(_, _, since)| since.elapsed() < UNOPENED);
        truncations.push((key.clone(), process, Instant::now()));
        true
    }

    /// Whether [`SpooledFiles::truncate`] was told so, and not asked since.
    pub fn is_truncated(&self, key: &Key, tid: u32) -> bool {
        let mut truncations = self.truncations();
        let Some(at) = truncations.iter().position(|(name, _, _)| name == key) else { return false };
        let found = process::process_of(tid).is_some_and(|process| process == truncations[at].1);
        if found {
            truncations.swap_remove(at);
        }
        found
    }

    /// A close of `file` by the thread `tid`; the file is `identity` to processes. Completes it if nothing can come after: its
    /// writer goes on, and neither it nor a child of its has the file open any more. Fails it if the process is failing.
    pub fn flush(
        self: &Arc<SpooledFiles>,
        file: &Arc<SpooledFile>,
        tid: u32,
        identity: Option<FileIdentity>,
    ) -> Answer<()> {
        let (files, file) = (self.clone(), file.clone());
        Answer::later(async move {
            match process::ask(move || process::stage(tid)).await? {
                Asked::Answer(Stage::Running) => {}
                Asked::Answer(stage) => {
                    file.note_stage(stage);
                    return Ok(());
                }
                Asked::Waits(answer) => return files.note_later(file, answer),
            }
            if !file.may_be_complete()? {
                return Ok(());
            }
            let (Some(writer), Some(identity)) = (file.writer, identity) else { return Ok(()) };
            let is_unused =
                move || process::process_of(tid) == Some(writer) && !process::holds(writer, identity);
            match process::ask(is_unused).await? {
                Asked::Answer(true) => {}
                Asked::Answer(false) | Asked::Waits(_) => return Ok(()),
            }
            files.begin(&file);
            file.done().await
        })
    }

    /// Keeps `file` open until it is known how far a process of its has got that goes on when its close is answered.
    fn note_later(self: &Arc<SpooledFiles>, file: Arc<SpooledFile>, stage: JoinHandle<Stage>) -> Result<()> {
        if file.open().is_ok() {
            let files = self.clone();
            self.runtime.spawn(async move {
                if let Ok(stage) = stage.await {
                    file.note_stage(stage);
                }
                files.release(&file);
            });
        }
        Ok(())
    }

    /// A handle of `file` is closed for good. The last one completes the file.
    pub fn release(self: &Arc<SpooledFiles>, file: &Arc<SpooledFile>) {
        match file.release() {
            Released::Open => {}
            Released::Removed => file.let_go(),
            Released::Failed(failure) => {
                log::warn!("{failure}");
                self.drop_file(file);
                file.let_go();
            }
            Released::Complete => {
                self.begin(file);
                let file = file.clone();
                self.runtime.spawn(async move {
                    if let Err(error) = file.done().await {
                        log::warn!("{error}");
                    }
                });
            }
        }
    }

    /// Publishes `file`, unless that was begun before. Goes on by itself.
    fn begin(self: &Arc<SpooledFiles>, file: &Arc<SpooledFile>) {
        if file.end_writing() {
            self.runtime.spawn(self.clone().publish(file.clone()));
        }
    }

    async fn publish(self: Arc<SpooledFiles>, file: Arc<SpooledFile>) {
        let key = file.key();
        let (files, shown, name) = (self.clone(), file.clone(), key.clone());
        let placed = move || {
            files.drop_file(&shown);
            files.lookup.forget(&name);
            shown.progress.send_replace(Progress::Shown);
        };
        let result = match file.file() {
            Ok(_) if self.stays(&key).await => {
                log::warn!("{key}: there is such an artifact already; it stays");
                Ok(())
            }
            Ok(new) => self.uploads.publish_telling(new, &key, placed).await.map(drop),
            Err(error) => Err(error),
        };
        self.drop_file(&file);
        file.let_go();
        self.lookup.forget(&key);
        file.progress.send_replace(Progress::Done(result));
    }

    /// Whether a remote has `key`, and that is to stay. Where nothing is uploaded nobody else would notice.
    async fn stays(&self, key: &Key) -> bool {
        if self.uploads.may_overwrite() {
            return false;
        }
        let found = self.lookup.find(key).wait().await;
        matches!(found, Ok(Entry::File(served)) if !served.version().etag.is_local())
    }

    /// Gives `file` the name `to`. One that is closed already, under a temporary name, is complete once it has another.
    pub fn rename(self: &Arc<SpooledFiles>, file: &Arc<SpooledFile>, to: &Key) -> Answer<()> {
        let complete = {
            let mut state = file.state();
            if state.stage != SpoolStage::Open {
                return Answer::Now(Err(gone(&state.key)));
            }
            state.key = to.clone();
            state.handles == 0 && !to.is_temporary()
        };
        if !complete {
            return Answer::Now(Ok(()));
        }
        let (files, file) = (self.clone(), file.clone());
        Answer::later(async move {
            files.begin(&file);
            file.done().await
        })
    }

    /// Removes `file`. Whoever has it open goes on with it, and nothing comes of it.
    pub fn remove(&self, file: &Arc<SpooledFile>) {
        let mut state = file.state();
        if state.stage == SpoolStage::Open {
            state.stage = SpoolStage::Removed;
        }
        let is_open = state.handles > 0;
        drop(state);
        self.drop_file(file);
        if !is_open {
            file.let_go();
        }
    }

    /// Whether one is being written in the directory `dir`.
    pub fn is_any_in(&self, dir: &Key) -> bool {
        self.files().iter().any(|file| file.state().key.dir() == dir.as_str())
    }

    /// How many there are that may still become artifacts.
    pub fn count(&self) -> usize {
        self.files().iter().filter(|file| !file.is_put_aside()).count()
    }

    /// Waits until those that are complete are done.
    pub async fn finish(&self) {
        let is_complete = |file: &&Arc<SpooledFile>| file.state().stage == SpoolStage::Complete;
        loop {
            let complete = self.files().iter().find(is_complete).cloned();
            match complete {
                // How it went has been said.
                Some(file) => drop(file.done().await),
                None => return,
            }
        }
    }

    fn drop_file(&self, file: &Arc<SpooledFile>) {
        self.files().retain(|other| !Arc::ptr_eq(other, file));
    }

    fn files(&self) -> MutexGuard<'_, Vec<Arc<SpooledFile>>> {
        self.files.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn truncations(&self) -> MutexGuard<'_, Vec<(Key, u32, Instant)>> {
        self.truncations.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl SpooledFile {
    /// What tells it from all others of the mount.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its name.
    pub fn key(&self) -> Key {
        self.state().key.clone()
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.state().file.as_ref().map_or(0, |file| file.size())
    }

    /// When it was last written, or what it was told.
    pub fn modified(&self) -> SystemTime {
        self.state().modified
    }

    /// Sets what [`SpooledFile::modified`] says until the next write.
    pub fn set_modified(&self, time: SystemTime) {
        self.state().modified = time;
    }

    /// Notes that it is opened.
    ///
    /// # Errors
    /// `LookAgain` when it is complete or removed: the name shows something else by now.
    pub fn open(&self) -> Result<()> {
        let mut state = self.state();
        if state.stage != SpoolStage::Open {
            return Err(gone(&state.key));
        }
        state.handles += 1;
        Ok(())
    }

    /// Writes `bytes` at `offset`. Blocks on the disk.
    ///
    /// # Errors
    /// `NoSpace`, after which it is never published; `NotPermitted` once it is complete.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change(|file| file.write_at(bytes, offset))
    }

    /// Has the disk begin with what was written. May block on the disk, briefly.
    pub fn start_writeback(&self) {
        if let Ok(file) = self.file() {
            file.start_writeback();
        }
    }

    /// Makes it `size` bytes long.
    ///
    /// # Errors
    /// As for [`SpooledFile::write`].
    pub fn set_size(&self, size: u64) -> Result<()> {
        self.change(|file| file.truncate(size))
    }

    fn change(&self, change: impl FnOnce(&NewFile) -> Result<()>) -> Result<()> {
        change(&*self.file()?)?;
        self.state().modified = SystemTime::now();
        Ok(())
    }

    /// Up to `size` bytes from `offset` on, fewer only at the end.
    pub fn read(&self, offset: u64, size: u32) -> Result<Bytes> {
        self.file()?.read_at(offset, size)
    }

    /// Waits until what was written is on the disk. Blocks.
    pub fn sync(&self) -> Result<()> {
        self.file()?.sync()
    }

    /// Waits, not for long, until its name shows to everyone what was made of it.
    pub async fn shown(&self) {
        let mut progress = self.progress.subscribe();
        if timeout(LEAVING, progress.wait_for(|p| !matches!(p, Progress::Leaving))).await.is_err() {
            // Another process has it open, too.
            self.advance(Progress::Open, |p| matches!(p, Progress::Leaving));
            return;
        }
        let _ = progress.wait_for(|p| !matches!(p, Progress::Complete)).await;
    }

    /// Waits until it is done; how it went.
    async fn done(&self) -> Result<()> {
        let mut progress = self.progress.subscribe();
        match progress.wait_for(|p| matches!(p, Progress::Done(_))).await.as_deref() {
            Ok(Progress::Done(result)) => result.clone(),
            _ => Err(Error::new(Kind::Internal, format!("{}: its publication was given up", self.key()))),
        }
    }

    /// Takes note of how far a process has got that closes it.
    fn note_stage(&self, stage: Stage) {
        match stage {
            Stage::Failing(status) => {
                let mut state = self.state();
                let why = format!("{}: {}; nothing is published", state.key, describe(status));
                state.failure.get_or_insert_with(|| Error::new(Kind::Damaged, why));
            }
            // Its release follows, unless someone else has the file open.
            Stage::Succeeding => self.leave(),
            Stage::Running => {}
        }
    }

    /// Whether a close by its writer may complete it, as far as is known here.
    ///
    /// # Errors
    /// Why it will never be complete.
    fn may_be_complete(&self) -> Result<bool> {
        let state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let is_busy = state.handles != 1 || state.file.as_ref().is_some_and(|file| file.is_being_written());
        Ok(state.stage == SpoolStage::Complete
            || state.stage == SpoolStage::Open && !is_busy && !state.key.is_temporary())
    }

    /// Its only handle is about to be closed for good.
    fn leave(&self) {
        if self.state().handles == 1 {
            self.advance(Progress::Leaving, |p| matches!(p, Progress::Open));
        }
    }

    fn release(&self) -> Released {
        let mut state = self.state();
        state.handles = state.handles.saturating_sub(1);
        match &state.failure {
            _ if state.handles == 0 && state.stage == SpoolStage::Removed => Released::Removed,
            _ if state.handles > 0 || state.stage != SpoolStage::Open => Released::Open,
            Some(failure) => Released::Failed(failure.clone()),
            None if state.key.is_temporary() => {
                log::info!("{}: kept until it is renamed or the mount ends", state.key);
                Released::Open
            }
            None => Released::Complete,
        }
    }

    /// Nothing is written any more; false when that was so before.
    fn end_writing(&self) -> bool {
        let mut state = self.state();
        if state.stage != SpoolStage::Open {
            return false;
        }
        state.stage = SpoolStage::Complete;
        drop(state);
        self.progress.send_replace(Progress::Complete);
        true
    }

    fn advance(&self, to: Progress, from: fn(&Progress) -> bool) {
        self.progress.send_if_modified(|progress| {
            let advances = from(progress);
            if advances {
                *progress = to;
            }
            advances
        });
    }

    fn is_called(&self, key: &Key) -> bool {
        let state = self.state();
        state.key == *key && state.stage == SpoolStage::Open
    }

    /// Whether it was made to be opened, and wasn't.
    fn is_abandoned(&self) -> bool {
        let state = self.state();
        let is_unused = state.handles == 0 && state.stage == SpoolStage::Open && !state.key.is_temporary();
        is_unused && self.created.elapsed() > UNOPENED
    }

    /// Whether nobody writes it, and nothing comes of it before it is renamed.
    fn is_put_aside(&self) -> bool {
        let state = self.state();
        state.handles == 0 && state.stage == SpoolStage::Open && state.key.is_temporary()
    }

    fn file(&self) -> Result<Arc<NewFile>> {
        let state = self.state();
        state.file.clone().ok_or_else(|| gone(&state.key))
    }

    /// Lets go of what was written: it has been published, or never will be.
    fn let_go(&self) {
        let file = self.state().file.take();
        // Outside the lock: that may remove it from the disk.
        drop(file);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl PartialEq for SpooledFile {
    fn eq(&self, other: &SpooledFile) -> bool {
        self.id == other.id
    }
}

impl fmt::Debug for SpooledFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpooledFile").field("id", &self.id).finish_non_exhaustive()
    }
}

fn gone(key: &Key) -> Error {
    Error::new(Kind::LookAgain, format!("{key}: published or removed since it was looked up"))
}

/// A wait status in words (wait(2)).
fn describe(status: i32) -> String {
    match status & 0x7f {
        0 => format!("its writer failed with exit code {}", status >> 8),
        signal => format!("its writer was ended by signal {signal}"),
    }
}
