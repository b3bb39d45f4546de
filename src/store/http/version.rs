//! What an answer's headers say about the version it is of.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use hyper::header::{self, AsHeaderName, HeaderMap, HeaderName};

use crate::error::{Error, Kind, Result};
use crate::object::{ETag, Key, ObjectVersion};

/// The version that headers speak of, of an object of `size` bytes.
pub fn version(key: &Key, headers: &HeaderMap, size: u64, source: Arc<str>) -> ObjectVersion {
    let written = last_modified(headers);
    let etag = match (strong_etag(headers), written) {
        (Some(etag), _) => ETag::new(etag),
        (None, Some(written)) => ETag::of_date(written, size),
        (None, None) => ETag::of_length(size),
    };
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(written.unwrap_or(0));
    ObjectVersion { key: key.clone(), etag, size, modified, checksum: None, source }
}

/// The header that lets a server answer with no other version than `object`.
pub fn condition(object: &ObjectVersion) -> Option<(HeaderName, String)> {
    if object.etag.is_length() {
        return None;
    }
    if !object.etag.is_date() {
        return Some((header::IF_MATCH, object.etag.as_str().to_owned()));
    }
    let date = DateTime::from(object.modified).fmt(Format::HttpDate).ok()?;
    Some((header::IF_UNMODIFIED_SINCE, date))
}

/// Checks that the good answer to a GET of `range` is what was asked for; returns how many bytes of its body come before
/// the range: a server that ignores ranges sends the whole object (`is_partial` is false then).
pub fn check(
    headers: &HeaderMap,
    is_partial: bool,
    object: &ObjectVersion,
    range: &Range<u64>,
    what: &str,
) -> Result<u64> {
    let etag = object.etag.as_str();
    let is_same = match strong_etag(headers) {
        _ if object.etag.is_length() => true,
        _ if object.etag.is_date() => {
            last_modified(headers).is_some_and(|date| ETag::of_date(date, object.size) == object.etag)
        }
        found => found == Some(etag),
    };
    if !is_same {
        let found = strong_etag(headers).map(str::to_owned);
        let found = found.or_else(|| last_modified(headers).map(|date| format!("one of {date}")));
        let found = found.unwrap_or_else(|| "one without a tag".to_owned());
        return Err(Error::new(Kind::Changed, format!("{what}: asked for version {etag}, got {found}")));
    }
    if is_partial {
        check_range(headers, object, range, what).map(|()| 0)
    } else {
        check_whole(headers, object, what).map(|()| range.start)
    }
}

fn check_range(headers: &HeaderMap, object: &ObjectVersion, range: &Range<u64>, what: &str) -> Result<()> {
    let expected = (range.start..range.end, Some(object.size));
    match content_range(headers) {
        Some((got, total)) if got == expected.0 && (total.is_none() || total == expected.1) => Ok(()),
        Some((got, total)) if got == expected.0 => Err(Error::new(
            Kind::Changed,
            format!("{what}: had {} bytes, has {} now", object.size, total.unwrap_or(0)),
        )),
        _ => Err(Error::new(
            Kind::Damaged,
            format!("{what}: asked for bytes {}-{}, got others", range.start, range.end - 1),
        )),
    }
}

fn check_whole(headers: &HeaderMap, object: &ObjectVersion, what: &str) -> Result<()> {
    match content_length(headers) {
        Some(length) if length == object.size => Ok(()),
        // Sent in chunks: it is as long as it turns out to be, unless it was packed on the way.
        None if !headers.contains_key(header::CONTENT_ENCODING) => Ok(()),
        Some(length) => {
            Err(Error::new(Kind::Changed, format!("{what}: had {} bytes, has {length} now", object.size)))
        }
        None => Err(Error::new(
            Kind::Damaged,
            format!("{what}: the server encodes what it was asked to send as it is"),
        )),
    }
}

/// The entity tag, if it stands for these very bytes.
fn strong_etag(headers: &HeaderMap) -> Option<&str> {
    text(headers, header::ETAG).filter(|etag| etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'))
}

/// When the object was last written, in seconds since 1970.
fn last_modified(headers: &HeaderMap) -> Option<u64> {
    let date = DateTime::from_str(text(headers, header::LAST_MODIFIED)?, Format::HttpDate).ok()?;
    u64::try_from(date.secs()).ok()
}

/// The length of the body.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH)?.parse().ok()
}

/// The bytes that a partial answer holds, and how many there are in all where the server says so.
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = text(headers, header::CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    Some((first.parse().ok()?..end, total.parse().ok()))
}

/// How long the object is, by an answer that holds a part of it or says that it has no such part.
pub fn total_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?.1.parse().ok()
}

/// A header's text.
pub fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn of(pairs: &[(&'static str, &str)]) -> ObjectVersion {
        version(&Key::new("a.zst").unwrap(), &headers(pairs), 10, "http://h/".into())
    }

    #[test]
    fn a_version_is_a_strong_tag_or_a_date_or_only_a_length() {
        let strong = of(&[("etag", "\"x\""), ("last-modified", DATE)]);
        assert_eq!(condition(&strong), Some((header::IF_MATCH, "\"x\"".to_owned())));
        for weak in ["W/\"x\"", "x", "\"\""] {
            let dated = of(&[("etag", weak), ("last-modified", DATE)]);
            assert_eq!(dated.etag, ETag::of_date(1_700_000_000, 10));
            assert_eq!(condition(&dated), Some((header::IF_UNMODIFIED_SINCE, DATE.to_owned())));
        }
        assert_eq!(condition(&of(&[])), None);
    }

    #[test]
    fn every_answer_is_compared_with_what_was_asked() {
        let strong = of(&[("etag", "\"x\"")]);
        let kind = |object: &ObjectVersion, partial, pairs: &[(&'static str, &str)]| {
            check(&headers(pairs), partial, object, &(2..5), "it").map_err(|e| e.kind())
        };
        let range = ("content-range", "bytes 2-4/10");
        assert_eq!(kind(&strong, true, &[("etag", "\"x\""), range]), Ok(0));
        assert_eq!(kind(&strong, true, &[("etag", "\"x\""), ("content-range", "bytes 2-4/*")]), Ok(0));
        assert_eq!(kind(&strong, true, &[("etag", "\"y\""), range]), Err(Kind::Changed));
        assert_eq!(kind(&strong, true, &[range]), Err(Kind::Changed));
        assert_eq!(
            kind(&strong, true, &[("etag", "\"x\""), ("content-range", "bytes 2-4/11")]),
            Err(Kind::Changed)
        );
        assert_eq!(
            kind(&strong, true, &[("etag", "\"x\""), ("content-range", "bytes 2-5/10")]),
            Err(Kind::Damaged)
        );
        assert_eq!(kind(&strong, true, &[("etag", "\"x\"")]), Err(Kind::Damaged));
        assert_eq!(kind(&strong, false, &[("etag", "\"x\""), ("content-length", "10")]), Ok(2));
        assert_eq!(kind(&strong, false, &[("etag", "\"x\"")]), Ok(2), "sent in chunks");
        let packed = [("etag", "\"x\""), ("content-encoding", "gzip")];
        assert_eq!(kind(&strong, false, &packed), Err(Kind::Damaged));
        let dated = of(&[("last-modified", DATE)]);
        assert_eq!(kind(&dated, true, &[("last-modified", DATE), range]), Ok(0));
        assert_eq!(
            kind(&dated, false, &[("last-modified", DATE), ("content-length", "11")]),
            Err(Kind::Changed)
        );
        let later = ("last-modified", "Tue, 14 Nov 2023 22:13:21 GMT");
        assert_eq!(kind(&dated, true, &[later, range]), Err(Kind::Changed));
        assert_eq!(kind(&dated, true, &[range]), Err(Kind::Changed));
    }
}
