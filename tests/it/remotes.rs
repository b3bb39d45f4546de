//! The kinds of remote and the ways to ask them.

mod directory;
mod https;
mod s3;
