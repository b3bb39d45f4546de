//! The commands that need no mount.

mod evict;
mod exists;
mod extract;
mod get;
mod ls;
mod prefetch;
mod put;
mod status;
mod verify;

use std::process::{Command, Output};

use aztec_cache_test_support::s3::S3Server;

use crate::common::Place;

/// The command `args` on the place's settings.
fn command(place: &Place, args: &[&str]) -> Command {
    let mut command = place.command(args);
    command.args(&place.args);
    command
}

fn run(place: &Place, args: &[&str]) -> Output {
    command(place, args).output().expect("the binary runs")
}

/// What a command wrote to stdout; it must have succeeded without a word.
#[track_caller]
fn quiet_output(place: &Place, args: &[&str]) -> Vec<u8> {
    let output = run(place, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{:?}: {said}", output.status);
    output.stdout
}

/// A place whose remote is gone.
fn offline() -> Place {
    let server = S3Server::start();
    let place = Place::of(&server);
    server.stop();
    place
}
