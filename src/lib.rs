//! aztec-cache: a team's S3 build cache as a directory. See `ARCHITECTURE.md` for the map.

#![warn(missing_docs)]

pub mod answer;
pub mod archive;
pub mod cache;
pub mod checksum;
pub mod cli;
pub mod coherence;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod download;
pub mod engine;
pub mod errno;
pub mod error;
pub mod extract;
pub mod fetch;
pub mod filesystem;
pub mod fill;
pub mod fuse;
pub mod handles;
pub mod listing;
pub mod logging;
pub mod lookup;
pub mod metrics;
pub mod mount;
pub mod mountpoint;
pub mod nodes;
pub mod object;
pub mod passthrough;
pub mod privilege;
pub mod process;
pub mod single_flight;
pub mod spooled;
pub mod status;
pub mod store;
mod streams;
pub mod upload;
pub mod verify;
