//! The kinds of remote and the ways to ask them.

mod chain;
mod directory;
mod fill;
mod http;
mod http_odd;
mod https;
mod s3;
