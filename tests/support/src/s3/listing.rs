//! One page of a ListObjectsV2, as a pure function of a sorted map.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Bound;

/// What a listing asks for.
#[derive(Debug, Default)]
pub(super) struct Query {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Groups keys up to and including this string after the prefix.
    pub delimiter: Option<String>,
    /// Only keys after this one.
    pub start_after: Option<String>,
    /// Where the page before ended.
    pub marker: Option<Marker>,
    /// Keys and groups in the page at most.
    pub max_keys: usize,
}

/// The last entry of a page. Its text form is the continuation token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// An object.
    Key(String),
    /// A common prefix: all its keys are done.
    Group(String),
}

impl Marker {
    /// A token that carries the marker; hexadecimal, so that any key survives XML and a query string.
    pub fn token(&self) -> String {
        let (tag, text) = match self {
            Marker::Key(text) => ('k', text),
            Marker::Group(text) => ('g', text),
        };
        let mut token = String::from(tag);
        for byte in text.bytes() {
            let _ = write!(token, "{byte:02x}");
        }
        token
    }

    /// The inverse of [`token`](Self::token).
    pub fn parse(token: &str) -> Option<Marker> {
        let (tag, hex) = token.split_at_checked(1)?;
        let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
        if !odd.is_empty() {
            return None;
        }
        let bytes = pairs.iter().map(|pair| hex_byte(*pair)).collect::<Option<Vec<u8>>>()?;
        let text = String::from_utf8(bytes).ok()?;
        match tag {
            "k" => Some(Marker::Key(text)),
            "g" => Some(Marker::Group(text)),
            _ => None,
        }
    }

    fn text(&self) -> &str {
        match self {
            Marker::Key(text) | Marker::Group(text) => text,
        }
    }
}

fn hex_byte(pair: [u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
}

/// One page.
#[derive(Debug)]
pub(super) struct Page<'a, V> {
    /// Objects in UTF-8 binary order.
    pub objects: Vec<(&'a str, &'a V)>,
    /// Common prefixes in the same order.
    pub groups: Vec<String>,
    /// Where the next page goes on, if there is one.
    pub next: Option<Marker>,
}

impl<V> Page<'_, V> {
    fn len(&self) -> usize {
        self.objects.len() + self.groups.len()
    }
}

/// Makes the page that `query` asks for. Keys come in UTF-8 binary order, as general purpose buckets of AWS have it.
pub(super) fn page<'a, V>(map: &'a BTreeMap<String, V>, query: &Query) -> Page<'a, V> {
    let mut page = Page { objects: Vec::new(), groups: Vec::new(), next: None };
    let mut last = query.marker.clone();
    if query.max_keys == 0 {
        return page;
    }
    for (key, value) in map.range::<str, _>((start(query), Bound::Unbounded)) {
        if !key.starts_with(&query.prefix) {
            break;
        }
        if matches!(&last, Some(Marker::Group(group)) if key.starts_with(group)) {
            continue;
        }
        if page.len() == query.max_keys {
            page.next = last;
            break;
        }
        last = Some(match group_of(key, query) {
            Some(group) => {
                page.groups.push(group.to_owned());
                Marker::Group(group.to_owned())
            }
            None => {
                page.objects.push((key, value));
                Marker::Key(key.clone())
            }
        });
    }
    page
}

/// The first key that can be in the page.
fn start(query: &Query) -> Bound<&str> {
    let after = query.marker.as_ref().map(Marker::text).or(query.start_after.as_deref());
    match after {
        Some(after) if after >= query.prefix.as_str() => Bound::Excluded(after),
        _ => Bound::Included(&query.prefix),
    }
}

fn group_of<'k>(key: &'k str, query: &Query) -> Option<&'k str> {
    let delimiter = query.delimiter.as_deref()?;
    let rest = &key[query.prefix.len()..];
    let at = rest.find(delimiter)?;
    Some(&key[..query.prefix.len() + at + delimiter.len()])
}

/// Encodes a key as S3 does for `encoding-type=url`: like an HTML form, but `/` stays as it is.
pub(super) fn url_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' | b'/' => {
                out.push(byte as char);
            }
            b' ' => out.push('+'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(keys: &[&str]) -> BTreeMap<String, ()> {
        keys.iter().map(|key| ((*key).to_owned(), ())).collect()
    }

    fn walk(map: &BTreeMap<String, ()>, mut query: Query) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let page = page(map, &query);
            assert!(page.len() <= query.max_keys);
            all.extend(page.objects.iter().map(|(key, ())| (*key).to_owned()));
            all.extend(page.groups);
            let Some(next) = page.next else { return all };
            query.marker = Marker::parse(&next.token());
            assert_eq!(query.marker.as_ref(), Some(&next));
        }
    }

    #[test]
    fn order_is_binary_and_pages_join_up() {
        let map = map(&["x/1", "x-y", "x0", "é", "z", "~", "\n"]);
        for max_keys in 1..8 {
            let got = walk(&map, Query { max_keys, ..Query::default() });
            assert_eq!(got, ["\n", "x-y", "x/1", "x0", "z", "~", "é"]);
        }
    }

    #[test]
    fn a_group_is_listed_once_over_pages() {
        let map = map(&["p/a/1", "p/a/2", "p/a/3", "p/b", "p/c/1", "q"]);
        for max_keys in 1..5 {
            let query =
                Query { prefix: "p/".into(), delimiter: Some("/".into()), max_keys, ..Query::default() };
            let mut got = walk(&map, query);
            got.sort();
            assert_eq!(got, ["p/a/", "p/b", "p/c/"]);
        }
    }

    #[test]
    fn start_after_and_empty_pages() {
        let map = map(&["a", "b", "c"]);
        let query =
            |after: &str, max_keys| Query { start_after: Some(after.into()), max_keys, ..Query::default() };
        assert_eq!(walk(&map, query("a", 1)), ["b", "c"]);
        assert_eq!(walk(&map, query("zz", 1)), [""; 0]);
        assert!(page(&map, &query("", 0)).next.is_none());
    }

    #[test]
    fn tokens_of_strangers_are_refused() {
        for token in ["", "k0", "kzz", "x61", "é", "kff"] {
            assert_eq!(Marker::parse(token), None, "{token}");
        }
    }

    #[test]
    fn url_encoding() {
        assert_eq!(url_encode("a/b c(3)\n+é"), "a/b+c%283%29%0A%2B%C3%A9");
    }
}
