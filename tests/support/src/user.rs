//! An ordinary user, for what root alone can't show: permissions, mounts without privileges.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The name of the test user.
const NAME: &str = "aztec-test";

/// A user without privileges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The id of the user's own group.
    pub gid: u32,
    /// A directory that belongs to the user, below the system's directory for temporary files.
    pub home: PathBuf,
}

impl User {
    /// A command that runs as this user, with none of root's groups. `USER`, `LOGNAME` and `HOME` are the user's, the
    /// XDG directories are unset, and the working directory is the user's home.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        // Setting a uid as root also clears the supplementary groups.
        command.uid(self.uid).gid(self.gid).current_dir(&self.home);
        command.env("HOME", &self.home).env("USER", &self.name).env("LOGNAME", &self.name);
        for name in
            ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"]
        {
            command.env_remove(name);
        }
        command
    }
}

/// Finds or creates a user for tests. `None` when the caller isn't root, and so is an ordinary user already.
///
/// # Panics
/// When root can't create the user.
pub fn ordinary_user() -> Option<User> {
    // SAFETY: geteuid takes nothing, changes nothing and can't fail.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    Some(find_or_create().unwrap_or_else(|error| panic!("no test user: {error}")))
}

fn find_or_create() -> io::Result<User> {
    let home = std::env::temp_dir().join(format!("{NAME}-home"));
    let lock = File::create(std::env::temp_dir().join(format!("{NAME}.lock")))?;
    // Test processes run in parallel; the lock ends with the file.
    lock.lock()?;
    let (uid, gid) = match ids()? {
        Some(ids) => ids,
        None => {
            create(&home)?;
            ids()?.ok_or_else(|| io::Error::other("useradd made no user"))?
        }
    };
    fs::create_dir_all(&home)?;
    fs::set_permissions(&home, Permissions::from_mode(0o700))?;
    chown(&home, Some(uid), Some(gid))?;
    Ok(User { name: NAME.into(), uid, gid, home })
}

/// The user's ids, if there is such a user.
fn ids() -> io::Result<Option<(u32, u32)>> {
    let output = Command::new("getent").args(["passwd", NAME]).stdin(Stdio::null()).output()?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut fields = line.split(':').skip(2);
    let mut next = || fields.next().and_then(|field| field.parse().ok());
    Ok(next().zip(next()))
}

fn create(home: &Path) -> io::Result<()> {
    let mut useradd = Command::new("useradd");
    useradd.args(["--system", "--user-group", "--no-create-home", "--shell", "/bin/sh", "--home-dir"]);
    let output = useradd.arg(home).arg(NAME).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_run_as_the_user() {
        let Some(user) = ordinary_user() else { return };
        assert_eq!(ordinary_user().as_ref(), Some(&user));
        let script = "id -u; id -G; echo $HOME; echo $USER; touch mine && stat -c %u mine; rm mine";
        let output = user.command("sh").args(["-c", script]).output().expect("a shell");
        let (uid, gid) = (user.uid, user.gid);
        let expected = format!("{uid}\n{gid}\n{}\n{}\n{uid}\n", user.home.display(), user.name);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        assert!(!user.command("cat").arg("/etc/shadow").output().expect("cat").status.success());
    }
}
