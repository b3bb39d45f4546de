//! Names of entries: paths below the directory that is unpacked into, or refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::extract::{Failure, Result};

/// A path below the directory, without `.`, `..` and empty components; empty for the directory itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    path: PathBuf,
    /// Slashes at the begin were cut off.
    pub was_absolute: bool,
}

impl Name {
    /// Takes what an archive says. A slash at the begin is cut off, as tar does.
    ///
    /// # Errors
    /// It leads upwards, or isn't a path.
    pub fn new(bytes: &[u8]) -> Result<Name> {
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(Failure::Archive(format!("'{}' is no file's name", bytes.escape_ascii())));
        }
        let mut path = PathBuf::new();
        for component in bytes.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(leaves(bytes)),
                component => path.push(OsStr::from_bytes(component)),
            }
        }
        Ok(Name { path, was_absolute: bytes[0] == b'/' })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that it lies in, and its name there; None for the directory that is unpacked into.
    pub fn split(&self) -> Option<(&Path, &OsStr)> {
        Some((self.path.parent()?, self.path.file_name()?))
    }
}

fn leaves(name: &[u8]) -> Failure {
    Failure::Archive(format!("'{}' leads out of the directory: refused", name.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_leads_nowhere_is_left_out_and_what_leads_up_is_refused() {
        for (bytes, path, absolute) in [
            (&b"a/b"[..], "a/b", false),
            (b"./a//b/.", "a/b", false),
            (b"a/", "a", false),
            (b"///etc/passwd", "etc/passwd", true),
            (b".", "", false),
            (b"./", "", false),
            (b"/", "", true),
            (b"..a/b../...", "..a/b../...", false),
        ] {
            let name = Name::new(bytes).unwrap();
            assert_eq!((name.path(), name.was_absolute), (Path::new(path), absolute), "{bytes:?}");
        }
        for bytes in
            [&b""[..], b"a\0b", b"..", "../a".as_bytes(), b"a/..", b"/../a", b"a/b/../../../c", b"./.."]
        {
            assert!(Name::new(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_refused_or_stays_below(
            odd in vec(prop::sample::select(b"aa./\0\xff".to_vec()), 0..16),
            any in vec(any::<u8>(), 0..40),
        ) {
            check(&odd)?;
            check(&any)?;
        }
    }

    fn check(bytes: &[u8]) -> std::result::Result<(), TestCaseError> {
        let components = || bytes.split(|byte| *byte == b'/');
        let sound =
            !bytes.is_empty() && !bytes.contains(&0) && components().all(|component| component != b"..");
        let Ok(name) = Name::new(bytes) else {
            prop_assert!(!sound);
            return Ok(());
        };
        prop_assert!(sound);
        prop_assert!(name.path().components().all(|c| matches!(c, Component::Normal(_))));
        let kept: Vec<&[u8]> = components().filter(|c| !c.is_empty() && *c != b".").collect();
        prop_assert_eq!(name.path().as_os_str().as_bytes(), kept.join(&b'/'));
        prop_assert_eq!(name.split().is_none(), kept.is_empty());
        Ok(())
    }
}
