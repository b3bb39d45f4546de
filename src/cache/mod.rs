//! The cache directory on disk: complete files under their own names, ours alone below `.aztec-cache/`.
//! Knows nothing of remotes.

mod beneath;
mod dir;
mod dirs;
mod evict;
mod format;
mod journal;
mod meta;
mod notes;
mod partial;
mod progress;
mod quarantine;
mod space;
mod spool;
mod sweep;
mod turns;
mod usage;
mod written;

pub use dir::{CacheDir, CachedFile, FileId, Origin, Verdict};
pub use dirs::LocalNames;
pub use evict::Candidate;
pub use journal::{Claim, PendingUpload};
pub use meta::metadata_of;
pub use partial::{Begun, Follower, Leader, Partial};
pub use progress::Record;
pub use space::Space;
pub use spool::Spool;
pub use usage::Usage;
