//! Test tools of aztec-cache: S3 and web servers, a bad network, real artifacts and an ordinary user.
//!
//! Everything listens on loopback only, on ports the kernel chooses, and is stopped by `Drop`. The servers own
//! their threads, so that plain `#[test]` functions can use them; none of the waiting calls may be made from
//! inside an async runtime's worker that other work depends on.

pub mod artifacts;
pub mod client;
mod loopback;
pub mod nginx;
pub mod pattern;
pub mod proxy;
pub mod s3;
pub mod seaweed;
pub mod user;
pub mod web;
