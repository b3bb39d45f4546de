//! Uploads: what becomes of bytes that are handed to a remote.

mod store;
