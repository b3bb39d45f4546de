//! Sizes, durations and shares of a disk as people write them.

use std::time::Duration;

use bytesize::ByteSize;

use crate::error::{Error, Result};

/// An amount of disk to keep free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Free {
    /// That many bytes.
    Bytes(u64),
    /// That many hundredths of the disk, 0 to 99.
    Percent(u8),
}

impl Free {
    /// The bytes to keep free on a disk of `total` bytes.
    pub fn bytes_of(self, total: u64) -> u64 {
        match self {
            Free::Bytes(bytes) => bytes,
            Free::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

/// Parses `500MB`, `10GiB`, `1234`; `setting` names where it stood.
pub fn size(setting: &str, text: &str) -> Result<u64> {
    text.trim().parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| {
        Error::usage(format!("{setting}: '{text}' is not a size; write it like 500MB, 10GiB or 1000000"))
    })
}

/// Parses a size or `0%` to `99%`.
pub fn free(setting: &str, text: &str) -> Result<Free> {
    let Some(number) = text.trim().strip_suffix('%') else { return size(setting, text).map(Free::Bytes) };
    match number.trim().parse::<u8>() {
        Ok(percent) if percent < 100 => Ok(Free::Percent(percent)),
        _ => Err(Error::usage(format!("{setting}: '{text}' is not a percentage from 0% to 99%"))),
    }
}

/// Parses `never` (None) or a duration such as `90s`, `15m`, `12h`, `7d`.
pub fn never_or_duration(setting: &str, text: &str) -> Result<Option<Duration>> {
    if text.trim() == "never" {
        return Ok(None);
    }
    humantime::parse_duration(text.trim()).map(Some).map_err(|_| {
        Error::usage(format!(
            "{setting}: '{text}' is not a duration; write never, or it like 90s, 15m, 12h or 7d"
        ))
    })
}

/// Parses a duration above zero.
pub fn positive_duration(setting: &str, text: &str) -> Result<Duration> {
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(Error::usage(format!(
            "{setting}: '{text}' is not a duration above zero; write it like 500ms, 3s or 1m"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("--x", "10GiB").unwrap(), 10 << 30);
        assert_eq!(size("--x", "500MB").unwrap(), 500_000_000);
        assert_eq!(size("--x", "12").unwrap(), 12);
        for bad in ["", "ten", "-1", "10Q", "GiB"] {
            let error = size("--max-cache-size", bad).unwrap_err().to_string();
            assert!(error.contains("--max-cache-size") && error.contains("10GiB"), "{error}");
        }
    }

    #[test]
    fn shares_of_the_disk() {
        assert_eq!(free("--x", "5%").unwrap(), Free::Percent(5));
        assert_eq!(Free::Percent(5).bytes_of(1000), 50);
        assert_eq!(free("--x", "1KiB").unwrap(), Free::Bytes(1024));
        for bad in ["100%", "-1%", "%", "5 percent"] {
            assert!(free("--x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(never_or_duration("--x", "never").unwrap(), None);
        assert_eq!(never_or_duration("--x", "90s").unwrap(), Some(Duration::from_secs(90)));
        assert_eq!(positive_duration("--x", "500ms").unwrap(), Duration::from_millis(500));
        assert!(positive_duration("--x", "0s").is_err() && positive_duration("--x", "never").is_err());
        for bad in ["", "soon", "10", "-5s"] {
            assert!(never_or_duration("--x", bad).is_err(), "{bad}");
        }
    }
}
