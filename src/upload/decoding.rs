//! An archive that is decoded while it is written, so that little of that is left to do once it is complete.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use crate::archive::{self, ArchiveError};

/// A thread that reads after the writer. Dropped, it ends.
pub struct Decoding {
    name: String,
    written: Arc<Written>,
    thread: Option<JoinHandle<Result<(), ArchiveError>>>,
}

/// How much there is to read.
#[derive(Default)]
struct Written {
    /// Guards only the state.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// The bytes before this one are in the file and stay what they are.
    end: u64,
    /// There will be no more.
    complete: bool,
    /// Nobody wants to know any more.
    given_up: bool,
}

impl Decoding {
    /// Begins with `file`, which holds nothing yet and will be called `name`. None when the system gives no thread.
    pub fn begin(name: &str, file: Arc<File>) -> Option<Decoding> {
        let written = Arc::<Written>::default();
        let reader = Tail { file, at: 0, written: written.clone() };
        let own_name = name.to_owned();
        let thread =
            thread::Builder::new().name("decode".to_owned()).spawn(move || archive::check(&own_name, reader));
        match thread {
            Ok(thread) => Some(Decoding { name: name.to_owned(), written, thread: Some(thread) }),
            Err(e) => {
                log::debug!("no thread to decode with: {e}");
                None
            }
        }
    }

    /// The name that the file was checked under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes before `end` are there, and stay what they are.
    pub fn advance(&self, end: u64) {
        self.written.state().end = end;
        self.written.changed.notify_one();
    }

    /// What the whole file turns out to be. Waits until all of it has been decoded: blocks.
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        self.written.state().complete = true;
        self.written.changed.notify_one();
        let result = self.thread.take().map(JoinHandle::join);
        result
            .and_then(Result::ok)
            .unwrap_or_else(|| Err(ArchiveError::Io(io::Error::other("its decoder failed"))))
    }
}

impl Drop for Decoding {
    fn drop(&mut self) {
        self.written.state().given_up = true;
        self.written.changed.notify_one();
    }
}

impl Written {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How far can be read, which is beyond `at`, unless that is the end.
    fn wait_beyond(&self, at: u64) -> io::Result<u64> {
        let mut state = self.state();
        while state.end <= at && !state.complete && !state.given_up {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        if state.given_up { Err(io::Error::other("given up")) } else { Ok(state.end) }
    }
}

/// A file that grows, read from its start.
struct Tail {
    file: Arc<File>,
    at: u64,
    written: Arc<Written>,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.written.wait_beyond(self.at)?;
        let length = buffer.len().min(usize::try_from(end - self.at).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
