//! POSIX's extended headers: records of `LENGTH KEY=VALUE` that say what the fixed fields have no room for.

use std::str::FromStr;

use nix::sys::time::TimeSpec;

use crate::extract::sparse::Records;
use crate::extract::{Failure, Result};

/// What extended headers say; None where they are silent.
#[derive(Clone, Debug, Default)]
pub struct Pax {
    /// The name.
    pub path: Option<Vec<u8>>,
    /// What a link leads to.
    pub link: Option<Vec<u8>>,
    /// Bytes of data that follow.
    pub size: Option<u64>,
    /// The owner's number.
    pub uid: Option<i64>,
    /// The group's number.
    pub gid: Option<i64>,
    /// The owner's name.
    pub user: Option<Vec<u8>>,
    /// The group's name.
    pub group: Option<Vec<u8>>,
    /// The time of the last change.
    pub mtime: Option<TimeSpec>,
    /// Where the holes of a sparse file are.
    pub sparse: Records,
}

impl Pax {
    /// Takes over what `records` say. Other records (access lists, attributes, times that aren't kept) are passed over, as tar does
    /// unless told otherwise.
    ///
    /// # Errors
    /// They are malformed.
    pub fn read(&mut self, mut records: &[u8]) -> Result<()> {
        while !records.is_empty() {
            let (key, value, rest) = record(records).ok_or_else(malformed)?;
            self.set(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        // An empty value takes back what a global header said.
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"uname" => self.user = bytes(),
            b"gname" => self.group = bytes(),
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or_else(malformed)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// The first record's key and value, and the records behind it.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = decimal(&records[..space])?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn number<T: FromStr>(value: &[u8]) -> Result<Option<T>> {
    if value.is_empty() {
        return Ok(None);
    }
    decimal(value).map(Some).ok_or_else(malformed)
}

/// A number in decimal digits, without a plus sign.
pub fn decimal<T: FromStr>(text: &[u8]) -> Option<T> {
    let text = str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    text.parse().ok()
}

/// Seconds since 1970 with a fraction, cut to nanoseconds; negative before.
fn time(text: &[u8]) -> Option<TimeSpec> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let (negative, digits) = match whole.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, whole),
    };
    if digits.is_empty() || !digits.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let seconds: i64 = decimal(whole)?;
    let digit = |place| fraction.get(place).map_or(0, |digit| i64::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |value, place| value * 10 + digit(place));
    // The kernel counts nanoseconds forwards.
    match negative && nanoseconds > 0 {
        true => Some(TimeSpec::new(seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        false => Some(TimeSpec::new(seconds, nanoseconds)),
    }
}

fn malformed() -> Failure {
    Failure::Archive("damaged: an extended header is malformed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_one_after_another() {
        let mut pax = Pax::default();
        pax.read(b"9 path=a\n14 size=12345\n19 mtime=-1.500000\n20 SCHILY.x.y=a\nb\nc\n").unwrap();
        assert_eq!((pax.path.as_deref(), pax.size), (Some(&b"a"[..]), Some(12345)));
        assert_eq!(pax.mtime, Some(TimeSpec::new(-2, 500_000_000)));
        pax.read(b"8 path=\n").unwrap();
        assert_eq!(pax.path, None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for records in [
            &b"path=a\n"[..],
            b"8 path=a\n",
            b"11 path=a\n",
            b"9 path=ab",
            b"99999999999999999999 path=a\n",
            b"1 \n",
            b"8 patha\n",
            b"9 size=-\n",
            b"11 size=-1\n",
            b"12 mtime=1.x\n",
            b"11 mtime=.\n",
            b"\0\0\0\0",
        ] {
            assert!(Pax::default().read(records).is_err(), "{records:?}");
        }
    }

    #[test]
    fn times_have_nine_digits_behind_the_point() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1700000000.123456789123", 1_700_000_000, 123_456_789),
            ("-1", -1, 0),
            ("-0.25", -1, 750_000_000),
            ("1.", 1, 0),
        ] {
            assert_eq!(time(text.as_bytes()), Some(TimeSpec::new(seconds, nanoseconds)), "{text}");
        }
    }
}
