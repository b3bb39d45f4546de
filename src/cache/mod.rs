//! The cache directory on disk: complete files under their own names, ours alone below `.aztec-cache/`.
//! Knows nothing of remotes.

mod beneath;
mod dir;
mod dirs;
mod evict;
mod format;
mod meta;
mod notes;
mod partial;
mod progress;
mod quarantine;
mod space;
mod sweep;
mod turns;

pub use dir::{CacheDir, CachedFile, FileId, Origin, Verdict};
pub use dirs::LocalNames;
pub use evict::Candidate;
pub use partial::{Begun, Follower, Leader, Partial};
pub use progress::Record;
pub use space::Space;
