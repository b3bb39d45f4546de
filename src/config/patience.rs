//! How long a remote is waited for, and how often it is asked again.

use std::time::Duration;

use crate::cli::RemoteArgs;
use crate::config::aws_params::AwsParams;
use crate::config::file::ConfigFile;
use crate::config::units;
use crate::error::{Error, Result};

/// Bounds on a request. What is slower than that is treated as down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// For a connection to be made.
    pub connect: Duration,
    /// For an answer to begin, each time it is asked for.
    pub first_byte: Duration,
    /// For more bytes of a body to come.
    pub stall: Duration,
    /// How often a request is made in a row that brings nothing, at least 1. There is a pause of random length between
    /// two, up to 0.2 s after the first and twice as much after each other.
    pub attempts: u32,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(3),
            first_byte: Duration::from_secs(10),
            stall: Duration::from_secs(10),
            attempts: 7,
        }
    }
}

/// The longest first pause between two attempts, and the longest of all.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];

impl Patience {
    /// A pause before another attempt, when `failed` (from 1 on) have failed in a row: full jitter
    /// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
    pub fn pause(&self, failed: u32) -> Duration {
        let longest = PAUSES[0] * 2u32.saturating_pow(failed.saturating_sub(1).min(16));
        longest.min(PAUSES[1]).mul_f64(fastrand::f64())
    }

    /// What the flags, the AWS CLI's options and the configuration file say.
    ///
    /// # Errors
    /// Something that isn't a duration above zero, or a number from 1 to 20.
    pub fn new(args: &RemoteArgs, params: &AwsParams, file: &ConfigFile) -> Result<Patience> {
        let duration = |flag: &str,
                        flagged: &Option<String>,
                        param: Option<Duration>,
                        filed: &Option<String>,
                        default| {
            match (flagged, param, filed) {
                (Some(text), ..) => units::positive_duration(flag, text),
                (None, Some(duration), _) => Ok(duration),
                (None, None, Some(text)) => {
                    units::positive_duration(&format!("{} in the configuration file", &flag[2..]), text)
                }
                (None, None, None) => Ok(default),
            }
        };
        let default = Patience::default();
        let attempts = args.attempts.or(file.attempts).unwrap_or(default.attempts);
        if !(1..=20).contains(&attempts) {
            return Err(Error::usage(format!("--attempts: {attempts}; write a number from 1 to 20")));
        }
        let (connect, read) = (params.connect_timeout, params.read_timeout);
        Ok(Patience {
            connect: duration(
                "--connect-timeout",
                &args.connect_timeout,
                connect,
                &file.connect_timeout,
                default.connect,
            )?,
            first_byte: duration(
                "--first-byte-timeout",
                &args.first_byte_timeout,
                read,
                &file.first_byte_timeout,
                default.first_byte,
            )?,
            stall: duration(
                "--stall-timeout",
                &args.stall_timeout,
                read,
                &file.stall_timeout,
                default.stall,
            )?,
            attempts,
        })
    }
}
