//! The write path: what is written here becomes an artifact, whole or not at all, and goes to the remote, now or later.

mod engine;
