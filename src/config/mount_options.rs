//! `-o OPT[,OPT]`, as mount(8) and /etc/fstab write them.

use crate::error::{Error, Result};

/// What shapes the mount itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MountOptions {
    /// Other users may use the mount.
    pub allow_other: bool,
    /// fusermount3 unmounts when the daemon dies.
    pub auto_unmount: bool,
    /// The kernel checks permission bits.
    pub default_permissions: bool,
    /// The owner that files show; None: the mounting user.
    pub uid: Option<u32>,
    /// The group that files show; None: the mounting user's.
    pub gid: Option<u32>,
    /// Permission bits taken away.
    pub umask: u16,
    /// Flags handed to the kernel as they are.
    pub flags: Vec<KernelFlag>,
}

/// mount(8)'s file-system-independent flags that FUSE knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are mount(8)'s")]
pub enum KernelFlag {
    Dev,
    NoDev,
    Suid,
    NoSuid,
    Exec,
    NoExec,
    Atime,
    NoAtime,
    Sync,
    Async,
    DirSync,
}

/// Options that mount(8), fstab and systemd act on before a file system sees them.
const FOR_OTHERS: &[&str] = &[
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail",
    "relatime",
];

impl MountOptions {
    /// Applies one option of `-o` other than `ro` and `rw`.
    ///
    /// # Errors
    /// An option that doesn't exist or has a bad value, named (exit code 2).
    pub fn apply(&mut self, option: &str) -> Result<()> {
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        match (name, value) {
            ("allow_other", None) => self.allow_other = true,
            ("auto_unmount", None) => self.auto_unmount = true,
            ("default_permissions", None) => self.default_permissions = true,
            ("uid", Some(value)) => self.uid = Some(id(option, value)?),
            ("gid", Some(value)) => self.gid = Some(id(option, value)?),
            ("umask", Some(value)) => self.umask = umask("-o umask", value)?,
            (name, None) if flag(name).is_some() => self.flags.extend(flag(name)),
            (name, None) if FOR_OTHERS.contains(&name) => {}
            (name, _) if name.starts_with("x-") || name.starts_with("comment") => {}
            ("", None) => {}
            _ => {
                return Err(Error::usage(format!(
                    "-o: unknown mount option '{option}'; see 'aztec-cache mount --help'"
                )));
            }
        }
        Ok(())
    }
}

fn flag(name: &str) -> Option<KernelFlag> {
    Some(match name {
        "dev" => KernelFlag::Dev,
        "nodev" => KernelFlag::NoDev,
        "suid" => KernelFlag::Suid,
        "nosuid" => KernelFlag::NoSuid,
        "exec" => KernelFlag::Exec,
        "noexec" => KernelFlag::NoExec,
        "atime" => KernelFlag::Atime,
        "noatime" => KernelFlag::NoAtime,
        "sync" => KernelFlag::Sync,
        "async" => KernelFlag::Async,
        "dirsync" => KernelFlag::DirSync,
        _ => return None,
    })
}

fn id(option: &str, value: &str) -> Result<u32> {
    value
        .parse()
        .map_err(|_| Error::usage(format!("-o: '{option}' is not a number; write uid=1000 or gid=1000")))
}

/// Parses permission bits in octal, 0 to 777.
pub fn umask(setting: &str, text: &str) -> Result<u16> {
    match u16::from_str_radix(text, 8) {
        Ok(umask) if umask <= 0o777 => Ok(umask),
        _ => Err(Error::usage(format!("{setting}: '{text}' is not a mask in octal; write it like 022"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fstab_lines_work() {
        let mut options = MountOptions::default();
        for option in "nosuid,_netdev,x-systemd.automount,uid=1000,umask=022,allow_other".split(',') {
            options.apply(option).unwrap();
        }
        assert!(options.allow_other);
        assert_eq!(
            (options.uid, options.umask, &*options.flags),
            (Some(1000), 0o022, &[KernelFlag::NoSuid][..])
        );
    }

    #[test]
    fn unknown_options_are_named() {
        for bad in ["frobnicate", "uid=me", "umask=9", "dev=1"] {
            let error = MountOptions::default().apply(bad).unwrap_err().to_string();
            assert!(error.contains(bad.rsplit('=').next().unwrap()), "{error}");
        }
    }
}
