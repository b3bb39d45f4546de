//! Inodes of files that were being fetched: what the kernel keeps of them is of no use once the complete file is read under
//! a number of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use crate::fetch::State;

/// How long after its last open an inode is left alone: until then the entry that led to it is valid, and others may, too.
const LINGER: Duration = Duration::from_secs(1);
/// How often to look whether its file is complete, after that.
const PAUSE: Duration = Duration::from_millis(100);

/// Frees the kernel's pages of such inodes. The kernel would do so by itself, but only in the next open of the file,
/// which takes as long as that does.
#[derive(Debug)]
pub struct Streams {
    runtime: Handle,
    notifier: OnceLock<Notifier>,
    /// Guards only the table.
    inodes: Mutex<HashMap<u64, Stream>>,
}

#[derive(Debug)]
struct Stream {
    handles: u64,
    opened: Instant,
    /// A task waits to free its pages.
    awaited: bool,
}

impl Streams {
    /// Waits on `runtime`.
    pub fn new(runtime: Handle) -> Arc<Streams> {
        Arc::new(Streams { runtime, notifier: OnceLock::new(), inodes: Mutex::default() })
    }

    /// From now on pages are freed, by way of `notifier`. To be called before the first open, and only if complete files have
    /// numbers of their own.
    pub fn enable(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Notes that `inode`, a file to be fetched, was opened.
    pub fn open(&self, inode: u64) {
        if self.notifier.get().is_some() {
            let (mut inodes, opened) = (self.inodes(), Instant::now());
            let stream = inodes.entry(inode).or_insert(Stream { handles: 0, opened, awaited: false });
            (stream.handles, stream.opened) = (stream.handles + 1, opened);
        }
    }

    /// Notes that a handle on `inode` was closed, if [`Streams::open`] was told of it. After the last close, once
    /// `state`, which may block on the disk, says that the file is complete, its pages are freed.
    pub fn release(
        self: &Arc<Streams>,
        inode: u64,
        state: impl Fn() -> Option<State> + Clone + Send + 'static,
    ) {
        let Some(notifier) = self.notifier.get().cloned() else { return };
        let mut inodes = self.inodes();
        let Some(stream) = inodes.get_mut(&inode) else { return };
        stream.handles -= 1;
        if stream.handles > 0 || stream.awaited {
            return;
        }
        stream.awaited = true;
        let (streams, left_alone_until) = (self.clone(), stream.opened + LINGER);
        self.runtime.spawn(async move {
            sleep_until(left_alone_until).await;
            let complete = loop {
                match spawn_blocking(state.clone()).await {
                    Ok(Some(State::Partial)) if !streams.is_reopened(inode) => sleep(PAUSE).await,
                    state => break matches!(state, Ok(Some(State::Cached))),
                }
            };
            if streams.end(inode) && complete {
                // Waits for pages that are being read, so not on a thread that others need. The directory entry is left
                // to expire: to invalidate that, the kernel takes the directory's lock, which a slow lookup may hold.
                let freed = spawn_blocking(move || notifier.inval_inode(INodeNo(inode), 0, 0)).await;
                if let Ok(Err(e)) = freed {
                    log::debug!("inode {inode}: its pages were not freed: {e}");
                }
            }
        });
    }

    fn is_reopened(&self, inode: u64) -> bool {
        self.inodes().get(&inode).is_some_and(|stream| stream.handles > 0)
    }

    /// Ends the wait for `inode`. False when it was opened again: its last close will come back to it.
    fn end(&self, inode: u64) -> bool {
        let mut inodes = self.inodes();
        if let Some(stream) = inodes.get_mut(&inode)
            && stream.handles > 0
        {
            stream.awaited = false;
            return false;
        }
        inodes.remove(&inode);
        true
    }

    fn inodes(&self) -> MutexGuard<'_, HashMap<u64, Stream>> {
        self.inodes.lock().unwrap_or_else(|e| e.into_inner())
    }
}
