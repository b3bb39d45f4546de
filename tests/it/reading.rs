//! The main job: read through the mount, keep a plain file, read it again without the server.

use std::fs;
use std::process::Command;

use aztec_cache_test_support::artifacts;
use aztec_cache_test_support::s3::S3Server;

use crate::common::{Place, needs_fuse, wait_for};

#[test]
fn tar_from_the_mount_cold_then_warm_with_the_server_gone() {
    needs_fuse!();
    let server = S3Server::start();
    let (gz, zst) = (artifacts::name("noir", 1, "tar.gz"), artifacts::name("barretenberg-clang20", 2, "zst"));
    let bodies = [(&gz, artifacts::tar_gz(1, 3_000_000, 20)), (&zst, artifacts::tar_zst(2, 3_000_000, 20))];
    for (name, body) in &bodies {
        server.put(&format!("build-cache/{name}"), body.clone());
    }
    let place = Place::of(&server);
    let mount = place.mount();
    let untar = |name: &str, to: &str| {
        let to = place.dir.path().join(to);
        fs::create_dir_all(&to).unwrap();
        let output =
            Command::new("tar").arg("-xf").arg(mount.file(name)).arg("-C").arg(&to).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (path, content) in artifacts::files_of(if name == gz { 1 } else { 2 }, 3_000_000, 20) {
            assert_eq!(fs::read(to.join(&path)).unwrap(), content, "{path}");
        }
    };
    untar(&gz, "cold-gz");
    untar(&zst, "cold-zst");
    for (name, body) in &bodies {
        let path = place.cache().join(name);
        wait_for("the plain file in the cache directory", || path.exists());
        assert_eq!(&fs::read(path).unwrap(), body);
    }
    let before = server.counts().requests();
    server.stop();
    untar(&gz, "warm-gz");
    untar(&zst, "warm-zst");
    mount.unmount();
    let mount = place.mount();
    assert_eq!(mount.read(&gz).unwrap(), bodies[0].1);
    assert_eq!(server.counts().requests(), before);
}
