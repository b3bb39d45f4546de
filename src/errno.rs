//! The one table from failures to errno values.

use crate::error::Kind;

/// The errno that a process sees for a failure of `kind`.
pub fn errno(kind: Kind) -> i32 {
    match kind {
        Kind::NotFound => libc::ENOENT,
        Kind::AccessDenied | Kind::ListDenied => libc::EACCES,
        Kind::Unreachable => libc::EHOSTUNREACH,
        Kind::TimedOut => libc::ETIMEDOUT,
        Kind::Changed | Kind::LookAgain => libc::ESTALE,
        Kind::Remote | Kind::Damaged | Kind::Refused => libc::EIO,
        Kind::NoSpace => libc::ENOSPC,
        // A reader can do nothing about our disk but read again: EIO, with the cause in the log.
        Kind::Local | Kind::Mount | Kind::Internal => libc::EIO,
        Kind::NameTooLong => libc::ENAMETOOLONG,
        Kind::IsDirectory => libc::EISDIR,
        Kind::NotDirectory => libc::ENOTDIR,
        Kind::Invalid | Kind::Usage => libc::EINVAL,
        Kind::NoAttribute => libc::ENODATA,
        Kind::Unsupported => libc::ENOTSUP,
        Kind::ReadOnly => libc::EROFS,
        Kind::NotPermitted => libc::EPERM,
        Kind::Exists => libc::EEXIST,
        Kind::NotEmpty => libc::ENOTEMPTY,
    }
}

/// How loudly the daemon logs a failure of `kind`: an absent file is no news.
pub fn log_level(kind: Kind) -> log::Level {
    match kind {
        Kind::NotFound
        | Kind::LookAgain
        | Kind::NameTooLong
        | Kind::IsDirectory
        | Kind::NotDirectory
        | Kind::Invalid
        | Kind::NoAttribute
        | Kind::Unsupported
        | Kind::ReadOnly
        | Kind::Exists
        | Kind::NotEmpty => log::Level::Debug,
        Kind::Internal => log::Level::Error,
        _ => log::Level::Warn,
    }
}
