//! The one error type: what failed, on which object or path, and the remedy.

use std::fmt;
use std::io;
use std::sync::Arc;

/// What kind of failure: decides the errno ([`crate::errno`]) and the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such key, bucket or directory.
    NotFound,
    /// The remote refuses: no right, expired or wrong credentials.
    AccessDenied,
    /// The remote is fine, but what it grants does not include listing.
    ListDenied,
    /// No route, refused, DNS, TLS.
    Unreachable,
    /// Timed out after bounded retries.
    TimedOut,
    /// The object was replaced while it was being read.
    Changed,
    /// The remote fails: 5xx or an answer that isn't S3's.
    Remote,
    /// The name stands for something else by now: the kernel is to look it up again, which nobody notices.
    LookAgain,
    /// A body that isn't what its headers promised.
    Damaged,
    /// The local disk is full.
    NoSpace,
    /// Any other trouble with the local disk or cache directory.
    Local,
    /// A name longer than the file system takes.
    NameTooLong,
    /// A directory where a file is wanted.
    IsDirectory,
    /// A file where a directory is wanted.
    NotDirectory,
    /// An inode or handle that is not known, or an argument out of range.
    Invalid,
    /// An extended attribute that is not there.
    NoAttribute,
    /// What this file system doesn't have at all.
    Unsupported,
    /// A write to a read-only mount.
    ReadOnly,
    /// What the settings, or the rules for artifacts, don't allow: overwriting, removing, renaming.
    NotPermitted,
    /// It is there already.
    Exists,
    /// A directory that holds something.
    NotEmpty,
    /// The remote won't have it: a refusal for good that isn't about rights.
    Refused,
    /// Wrong usage or configuration.
    Usage,
    /// Mounting or unmounting failed.
    Mount,
    /// A defect in this program.
    Internal,
}

/// A failure, cheap to clone since every waiter of a shared request gets it.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: Arc<str>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` names the object and the remedy, and is one line.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into().into() }
    }

    /// Wrong usage or configuration (exit code 2).
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(Kind::Usage, message)
    }

    /// A failed operation on the local disk: [`Kind::NoSpace`] for ENOSPC and EDQUOT, else [`Kind::Local`].
    pub fn local(what: impl fmt::Display, error: &io::Error) -> Error {
        let kind = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Kind::NoSpace,
            _ => Kind::Local,
        };
        Error::new(kind, format!("{what}: {error}"))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether trying again may help: connection trouble, time-outs, 5xx and cut bodies, never a refusal.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::TimedOut | Kind::Remote | Kind::Damaged)
    }

    /// The process's exit code, as the interface contract has them.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::NotFound => 1,
            Kind::Usage | Kind::Invalid | Kind::NameTooLong => 2,
            Kind::Unreachable
            | Kind::TimedOut
            | Kind::Changed
            | Kind::LookAgain
            | Kind::Remote
            | Kind::Damaged
            | Kind::Refused => 3,
            Kind::AccessDenied | Kind::ListDenied | Kind::NotPermitted => 4,
            Kind::NoSpace
            | Kind::Local
            | Kind::IsDirectory
            | Kind::NotDirectory
            | Kind::Exists
            | Kind::NotEmpty => 5,
            Kind::Mount | Kind::ReadOnly | Kind::NoAttribute | Kind::Unsupported | Kind::Internal => 6,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `error` and what caused it, outermost first.
pub fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> + Clone {
    std::iter::successors(Some(error), |e: &&'a (dyn std::error::Error + 'static)| {
        let e: &'a (dyn std::error::Error + 'static) = *e;
        e.source()
    })
}

/// `error` and what caused it in one line, outermost first.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    one_line(&causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// `text` without line breaks.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
