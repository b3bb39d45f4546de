//! What an operation says: the answer itself, or that it has to wait.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;

use crate::error::{Error, Kind, Result};

/// An operation's answer. Only [`Answer::Later`] may wait, and never on the thread that asked.
pub enum Answer<T> {
    /// Known without the network.
    Now(Result<T>),
    /// Known when this resolves.
    Later(BoxFuture<'static, Result<T>>),
}

impl<T: Send + 'static> Answer<T> {
    /// An answer that waits for `future`.
    pub fn later(future: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
        Answer::Later(future.boxed())
    }

    /// Passes a good answer through `f`, which must not block.
    pub fn map<U: Send + 'static>(self, f: impl FnOnce(T) -> U + Send + 'static) -> Answer<U> {
        match self {
            Answer::Now(result) => Answer::Now(result.map(f)),
            Answer::Later(future) => Answer::later(future.map(|result| result.map(f))),
        }
    }

    /// The answer, waited for.
    pub async fn wait(self) -> Result<T> {
        match self {
            Answer::Now(result) => result,
            Answer::Later(future) => future.await,
        }
    }
}

/// Runs `work`, which may wait for the disk, off the threads that must not wait.
///
/// # Errors
/// It panicked, or the program is ending.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(|e| Error::new(Kind::Internal, format!("a disk task failed: {e}")))
}
