//! `mount.sh`, `unmount.sh`, and mount(8)'s helper.

use std::fs;
use std::path::Path;
use std::process::Command;

use aztec_cache_test_support::s3::S3Server;

use super::{Said, Shell, Way, path, scripts};
use crate::common::{BINARY, Place, Unmount, key, mounted, needs_fuse, needs_root};

/// A home in which nothing is mounted, and what unmounts it in the end.
fn home(server: &S3Server) -> (Unmount, Shell) {
    server.put(&key("noir-1.tar.gz"), "bytes");
    let mut shell = Shell::anonymous(server, Way::Program);
    shell.place.unset("AZTEC_CACHE_MOUNTPOINT");
    shell.place.cache = None;
    (Unmount(shell.place.dir.path().join(".aztec-cache/remote")), shell)
}

#[test]
fn it_is_mounted_once_and_unmounted_once() {
    needs_fuse!();
    let server = S3Server::start();
    let (mountpoint, shell) = home(&server);
    let said = shell.run("mount.sh", &[]);
    assert_eq!(said.code, Some(0), "{}", said.text);
    let cache = shell.place.dir.path().join(".aztec-cache");
    assert!(said.text.contains(&format!(
        "mounted at {}: local cache {}",
        mountpoint.0.display(),
        cache.display()
    )));
    assert_eq!(fs::read(mountpoint.0.join("noir-1.tar.gz")).unwrap(), b"bytes");
    assert_eq!(shell.run("mount.sh", &[]), Said::new(0, &[]));
    for _ in 0..2 {
        assert_eq!(shell.run("unmount.sh", &[]), Said::new(0, &[]));
        assert_eq!(mounted(&mountpoint.0), None);
    }
    assert_eq!(fs::read(cache.join("noir-1.tar.gz")).unwrap(), b"bytes");
}

#[test]
fn several_at_once_make_one_mount() {
    needs_fuse!();
    let server = S3Server::start();
    let (mountpoint, shell) = home(&server);
    let children: Vec<_> = (0..4).map(|_| shell.command("mount.sh", &[]).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(shell.run("unmount.sh", &[]), Said::new(0, &[]));
    assert_eq!(mounted(&mountpoint.0), None);
}

#[test]
fn an_empty_local_directory_means_none_and_other_arguments_are_passed_on() {
    needs_fuse!();
    let server = S3Server::start();
    let (_, mut shell) = home(&server);
    let mountpoint = Unmount(shell.place.dir.path().join("else where"));
    shell.place.env("CACHE_LOCAL_DIR", "");
    let said = shell.run("mount.sh", &["else where", "--umask", "077"]);
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert!(said.text.contains("no local cache"), "{}", said.text);
    assert_eq!(shell.run("mount.sh", &["else where"]), Said::new(0, &[]));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(mountpoint.0.join("noir-1.tar.gz")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(shell.run("unmount.sh", &["else where"]), Said::new(0, &[]));
    assert_eq!(mounted(&mountpoint.0), None);
    let said = shell.run("mount.sh", &["--frobnicate"]);
    assert_eq!(said.code, Some(2), "{}", said.text);
}

#[test]
fn a_dead_mount_is_replaced() {
    needs_fuse!();
    let server = S3Server::start();
    let mut shell = Shell::anonymous(&server, Way::Mount);
    server.put(&key("noir-1.tar.gz"), "bytes");
    let mut mount = shell.mount.take().expect("it is mounted");
    mount.signal(libc::SIGKILL);
    mount.wait();
    let said = shell.run("mount.sh", &[]);
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    assert_eq!(shell.run("unmount.sh", &[]), Said::new(0, &[]));
    assert_eq!(mounted(&mount.path), None);
}

/// Runs in a mount namespace of its own, where the helper lies in `/sbin`, and the program in `/usr/local/bin`.
const NAMESPACE: &str = r#"set -e
mount -t tmpfs tmpfs layers
mkdir layers/upper layers/work
mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=layers/upper,workdir=layers/work /usr/sbin
cp "$HELPER" /sbin/mount.aztec-cache
mount --bind "$PROGRAMS" /usr/local/bin
"#;

/// What a script says that runs where mount(8) knows the helper.
fn with_helper(place: &Place, script: &str) -> (Option<i32>, String) {
    let dir = place.dir.path();
    fs::create_dir_all(dir.join("layers")).unwrap();
    fs::create_dir_all(dir.join("mnt")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", &format!("{NAMESPACE}{script}")]).current_dir(dir);
    command.env("HELPER", scripts().join("mount.aztec-cache"));
    command.env("PROGRAMS", Path::new(BINARY).parent().expect("a directory")).env("PATH", path(false));
    let output = command.output().expect("unshare runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn mount_8_and_fstab_work() {
    needs_fuse!();
    needs_root!("mount(8)");
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    let place = Place::of(&server);
    let remote = format!("{}/aztec-ci-artifacts/build-cache/", server.url());
    let options = format!("nosuid,umask=027,cache_dir={},min_free=1%", place.cache().display());
    let by_hand = format!(
        "mount -t aztec-cache {remote} mnt -o ro,{options}\ncat mnt/noir-1.tar.gz; stat -c ' %a' mnt/noir-1.tar.gz\n\
         grep -o 'ro,nosuid.*fuse.aztec-cache' /proc/self/mountinfo\numount mnt"
    );
    let (code, said) = with_helper(&place, &by_hand);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("bytes 640\nro,nosuid"), "{said}");
    assert_eq!(fs::read(place.cache().join("noir-1.tar.gz")).unwrap(), b"bytes");

    // Two remotes, the first of which doesn't have it.
    let line = format!(
        "file:///usr/\\040{remote} {} aztec-cache {options},x-systemd.automount,_netdev,nofail,allow_other 0 0\n",
        place.mountpoint().display()
    );
    fs::write(place.dir.path().join("fstab"), line).unwrap();
    let (code, said) = with_helper(&place, "mount --fstab fstab mnt\ncat mnt/noir-1.tar.gz; umount mnt");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("bytes"), "{said}");
}

#[test]
fn a_mount_is_read_only_where_the_settings_say_so_and_mount_8_isn_t_told_otherwise() {
    needs_fuse!();
    needs_root!("mount(8)");
    let place = Place::reading(&[]);
    fs::write(place.dir.path().join("config"), "read-only = true\n").unwrap();
    for (option, shown) in
        [("defaults", "ro,"), ("rw", "ro,"), ("read_write", "rw,"), ("ro,read_write", "rw,")]
    {
        let options = format!("{option},config=$PWD/config,cache_dir={}", place.cache().display());
        let script = format!(
            "mount -t aztec-cache file:///usr/ mnt -o {options}\n\
             awk '$5 ~ /mnt$/ {{ print $6 }}' /proc/self/mountinfo\numount mnt"
        );
        let (code, said) = with_helper(&place, &script);
        assert_eq!(code, Some(0), "{option}: {said}");
        assert!(said.lines().any(|line| line.starts_with(shown)), "{option}: {said}");
    }
}

#[test]
fn the_helper_s_exit_codes_are_mount_s() {
    needs_fuse!();
    needs_root!("mount(8)");
    let place = Place::reading(&[]);
    fs::write(place.dir.path().join("file"), "in the way").unwrap();
    for (arguments, code, text) in [
        ("file:///usr/ mnt -o frobnicate=1", 1, "--frobnicate"),
        ("gopher://x/ mnt", 1, "gopher"),
        ("file:///usr/ file", 32, "file"),
        ("-f file:///usr/ mnt", 0, ""),
    ] {
        let (found, said) = with_helper(&place, &format!("mount -t aztec-cache {arguments}"));
        assert_eq!(found, Some(code), "{arguments}: {said}");
        assert!(said.contains(text), "{arguments}: {said}");
    }
}

#[test]
fn the_units_are_what_systemd_takes() {
    let runtime = tempfile::tempdir().expect("a directory");
    let verify = |args: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.arg("verify").args(args).current_dir(scripts()).env("XDG_RUNTIME_DIR", runtime.path());
        command.output()
    };
    for args in [&["--user", "./aztec-cache.service"][..], &["./mnt-aztec.mount", "./mnt-aztec.automount"]] {
        let Ok(output) = verify(args) else {
            eprintln!("SKIPPED: no systemd-analyze (apt-get install systemd)");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("aztec"), "{said}");
    }
}
