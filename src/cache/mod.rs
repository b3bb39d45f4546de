//! The cache directory on disk: complete files under their own names, ours alone below `.aztec-cache/`.
//! Knows nothing of remotes.

mod beneath;
mod dir;
mod meta;
mod partial;
mod space;

pub use dir::{CacheDir, CachedFile, FileId, LocalNames, Origin};
pub use partial::Partial;
