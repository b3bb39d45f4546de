//! What has been written, on its way to being an artifact.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::archive::{self, ArchiveError};
use crate::cache::Spool;
use crate::checksum::{Checksum, extend_crc64nvme};
use crate::error::{Error, Kind, Result};
use crate::object::Key;
use crate::upload::decoding::Decoding;

/// So many bytes are given to the disk at a time, while more are being written.
const WRITEBACK: u64 = 2 << 20;
/// What is read at a time to compute a checksum, in bytes.
const CHUNK: usize = 1 << 20;

/// A file that is being written. Used from any thread; blocks on the disk only. It can be written until it is published;
/// dropped before that, it is gone.
pub struct NewFile {
    key: Key,
    storage: Storage,
    is_checked: bool,
    /// Guards what is known of the file's bytes; never held during I/O.
    state: Mutex<State>,
}

/// Where the bytes are.
enum Storage {
    /// In the cache directory.
    Spool(Spool),
    /// In an unlinked temporary file.
    Temporary(Arc<File>),
}

#[derive(Default)]
struct State {
    size: u64,
    /// The bytes that were written one after the other from the start; None once others were written over them.
    sequence: Option<Sequence>,
    /// Up to here the disk has been told to write.
    written_back: u64,
    /// Writes and truncations under way.
    writing: u32,
    /// It is being published, or has been.
    sealed: bool,
    /// Why not all bytes are in it that were to be.
    failure: Option<Error>,
}

#[derive(Default)]
struct Sequence {
    end: u64,
    crc: u64,
    decoding: Option<Decoding>,
}

/// A whole file.
pub struct Whole {
    /// Its length in bytes.
    pub size: u64,
    /// The checksum of all of them.
    pub checksum: Checksum,
}

impl NewFile {
    /// An empty file for `key`, in the cache directory.
    pub fn in_cache(key: &Key, spool: Spool, check_archive: bool) -> NewFile {
        NewFile::new(key, Storage::Spool(spool), check_archive)
    }

    /// An empty file for `key` that goes when it is dropped.
    pub fn temporary(key: &Key, file: File, check_archive: bool) -> NewFile {
        NewFile::new(key, Storage::Temporary(Arc::new(file)), check_archive)
    }

    fn new(key: &Key, storage: Storage, is_checked: bool) -> NewFile {
        let state = State { sequence: Some(Sequence::default()), ..State::default() };
        NewFile { key: key.clone(), storage, is_checked, state: Mutex::new(state) }
    }

    /// Writes all of `bytes` at `offset`; what is between the end and `offset` becomes zeros.
    ///
    /// # Errors
    /// `NoSpace` when the disk is full or a limit would be passed. After a failure it can't be published.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.change(|| {
            let end = offset.saturating_add(bytes.len() as u64);
            self.write(bytes, offset, end)?;
            Ok(move |state: &mut State| state.note_written(bytes, offset, end, self))
        })
    }

    fn write(&self, bytes: &[u8], offset: u64, end: u64) -> io::Result<()> {
        let Storage::Spool(spool) = &self.storage else { return self.file().write_all_at(bytes, offset) };
        spool.reserve(end)?;
        match self.file().write_all_at(bytes, offset) {
            // Someone else took what was reserved.
            Err(e) if is_full(&e) && spool.relieve(bytes.len() as u64) => {
                self.file().write_all_at(bytes, offset)
            }
            written => written,
        }
    }

    /// Has the disk begin with what was written since, if that is enough to be worth it: less is left to wait for in the end.
    pub fn start_writeback(&self) {
        let range = {
            let mut state = self.state();
            let end = state.sequence.as_ref().map_or(0, |sequence| sequence.end);
            if end < state.written_back + WRITEBACK {
                return;
            }
            std::mem::replace(&mut state.written_back, end)..end
        };
        let (fd, length) = (self.file().as_raw_fd(), range.end - range.start);
        // Best effort: the disk is waited for before the file is published.
        // SAFETY: the descriptor is open for as long as `self` is; nothing else is passed but numbers.
        unsafe { libc::sync_file_range(fd, range.start as i64, length as i64, libc::SYNC_FILE_RANGE_WRITE) };
    }

    /// Makes it `size` bytes long: cuts it, or adds zeros.
    ///
    /// # Errors
    /// Those of [`NewFile::write_at`].
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.change(|| {
            match (&self.storage, size < self.size()) {
                (Storage::Spool(spool), true) => spool.cut(size)?,
                (Storage::Spool(spool), false) => spool.reserve(size)?,
                (Storage::Temporary(file), _) => file.set_len(size)?,
            }
            Ok(move |state: &mut State| state.note_truncated(size))
        })
    }

    /// Up to `size` bytes from `offset` on; fewer only at the end.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_at(&self, offset: u64, size: u32) -> Result<Bytes> {
        let length = self.size().saturating_sub(offset).min(size.into());
        let mut buffer = vec![0; length as usize];
        match self.file().read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(buffer.into()),
            // Cut at the same moment.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Bytes::new()),
            Err(e) => Err(self.error("can't be read", &e)),
        }
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Whether a write is under way.
    pub fn is_being_written(&self) -> bool {
        self.state().writing > 0
    }

    /// Returns once what has been written is on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> Result<()> {
        self.file().sync_data().map_err(|e| self.error("can't be written", &e))
    }

    /// The file that holds it, at least as long as it is.
    pub fn file(&self) -> &Arc<File> {
        match &self.storage {
            Storage::Spool(spool) => spool.file(),
            Storage::Temporary(file) => file,
        }
    }

    /// The file in the cache directory, if it is there.
    pub(super) fn spool(&self) -> Option<&Spool> {
        match &self.storage {
            Storage::Spool(spool) => Some(spool),
            Storage::Temporary(_) => None,
        }
    }

    /// Lets it be written no more, checks that it is fit to be `key` and computes its checksum. Waits for the disk, and for
    /// what is left to decode.
    ///
    /// # Errors
    /// `Damaged` for an archive that isn't whole; what a write failed with; `NotPermitted` while it is being written, or
    /// when it was published before. It can still be written then, except in the last case.
    pub(super) fn seal(&self, key: &Key) -> Result<Whole> {
        let (size, sequence) = self.begin_seal()?;
        let whole = self.examine(key, size, sequence);
        if whole.is_err() {
            self.unseal();
        }
        whole
    }

    /// Lets it be written again, unless it was published.
    pub(super) fn unseal(&self) {
        if !self.spool().is_some_and(Spool::is_published) {
            self.state().sealed = false;
        }
    }

    fn begin_seal(&self) -> Result<(u64, Option<Sequence>)> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        if state.writing > 0 {
            return Err(self.not_permitted("it is being written"));
        }
        if std::mem::replace(&mut state.sealed, true) {
            return Err(self.not_permitted("it has been published already"));
        }
        Ok((state.size, state.sequence.take()))
    }

    fn examine(&self, key: &Key, size: u64, sequence: Option<Sequence>) -> Result<Whole> {
        let Sequence { crc, decoding, .. } = match sequence.filter(|sequence| sequence.end == size) {
            Some(sequence) => sequence,
            None => {
                let crc = self.crc(size).map_err(|e| self.error("can't be read", &e))?;
                Sequence { end: size, crc, decoding: None }
            }
        };
        if self.is_checked {
            self.check(key, size, decoding).map_err(|e| match e {
                ArchiveError::Io(e) => self.error("can't be read", &e),
                why => Error::new(
                    Kind::Damaged,
                    format!("{key}: {why}: not saved; write it anew, or allow it by --no-check-archives"),
                ),
            })?;
        }
        Ok(Whole { size, checksum: Checksum::crc64nvme(crc) })
    }

    /// Decodes what is to be called `key` to its end, unless that has been done on the way.
    fn check(&self, key: &Key, size: u64, decoding: Option<Decoding>) -> Result<(), ArchiveError> {
        let name = key.name();
        match decoding
            .filter(|decoding| archive::Format::of_name(decoding.name()) == archive::Format::of_name(name))
        {
            Some(decoding) => decoding.finish(),
            None => archive::check(name, self.reader(size)),
        }
    }

    fn crc(&self, size: u64) -> io::Result<u64> {
        let (mut reader, mut buffer, mut crc) = (self.reader(size), vec![0; CHUNK], 0);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(crc),
                length => crc = extend_crc64nvme(crc, &buffer[..length]),
            }
        }
    }

    fn reader(&self, size: u64) -> impl Read {
        FromStart::of(self.file().clone()).take(size)
    }

    /// Does `io`, and then what it says to the state.
    fn change<F: FnOnce(&mut State)>(&self, io: impl FnOnce() -> io::Result<F>) -> Result<()> {
        {
            let mut state = self.state();
            if state.sealed {
                return Err(self
                    .not_permitted("it has been published; what is written now would change the artifact"));
            }
            state.writing += 1;
        }
        let done = io();
        let mut state = self.state();
        state.writing -= 1;
        match done {
            Ok(note) => {
                note(&mut state);
                Ok(())
            }
            Err(e) => {
                let error = self.error("can't be written", &e);
                state.failure.get_or_insert_with(|| error.clone());
                Err(error)
            }
        }
    }

    fn error(&self, what: &str, error: &io::Error) -> Error {
        let what = format!("{}: {what}", self.key);
        match error.kind() {
            io::ErrorKind::StorageFull => {
                Error::new(Kind::NoSpace, format!("{what}: {error}; free space or raise the limit"))
            }
            _ => Error::local(what, error),
        }
    }

    fn not_permitted(&self, why: &str) -> Error {
        Error::new(Kind::NotPermitted, format!("{}: {why}", self.key))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    fn note_written(&mut self, bytes: &[u8], offset: u64, end: u64, file: &NewFile) {
        self.size = self.size.max(end);
        let Some(sequence) = &mut self.sequence else { return };
        if offset < sequence.end {
            self.sequence = None;
        } else if offset == sequence.end {
            sequence.crc = extend_crc64nvme(sequence.crc, bytes);
            sequence.end = end;
            if offset == 0 && file.is_checked && archive::is_checked(file.key.name()) {
                sequence.decoding = Decoding::begin(file.key.name(), file.file().clone());
            }
            if let Some(decoding) = &sequence.decoding {
                decoding.advance(end);
            }
        }
    }

    fn note_truncated(&mut self, size: u64) {
        self.size = size;
        self.written_back = self.written_back.min(size);
        if size == 0 {
            // From the beginning.
            self.sequence = Some(Sequence::default());
        } else if self.sequence.as_ref().is_some_and(|sequence| size < sequence.end) {
            self.sequence = None;
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// A shared file, read from its start.
pub struct FromStart {
    file: Arc<File>,
    at: u64,
}

impl FromStart {
    /// A reader of `file`.
    pub fn of(file: Arc<File>) -> FromStart {
        FromStart { file, at: 0 }
    }
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}
