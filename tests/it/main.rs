//! The program as its users meet it: the real binary, real mounts, real S3 servers on loopback.

mod bad_input;
mod cache_dir;
mod commands;
mod common;
mod daemon;
mod engine;
mod expose;
mod fault_store;
mod fetching;
mod independent_server;
mod layers;
mod listing;
mod missing;
mod names;
mod offline;
mod passthrough;
mod reading;
mod remotes;
mod trust;
mod uploads;
