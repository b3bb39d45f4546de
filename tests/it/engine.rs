//! The file system without a kernel: operations on a store with faults.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aztec_cache::cache::CacheDir;
use aztec_cache::config::{Expose, Free, MountOptions, Remote, S3Options, SpaceLimits, WriteOptions};
use aztec_cache::error::Kind;
use aztec_cache::fetch::Fetcher;
use aztec_cache::filesystem::{Access, Filesystem};
use aztec_cache::nodes::ROOT;
use aztec_cache::store;
use aztec_cache::upload::Uploads;
use aztec_cache_test_support::artifacts;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::common::wait_for;
use crate::fault_store::FaultStore;

struct Engine {
    dir: TempDir,
    store: Arc<FaultStore>,
    filesystem: Arc<Filesystem>,
}

impl Engine {
    fn remote(&self) -> std::path::PathBuf {
        self.dir.path().join("remote")
    }

    fn cached(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("cache").join(name)
    }

    fn put(&self, name: &str, body: &[u8]) {
        fs::write(self.remote().join(name), body).unwrap();
    }

    fn open(&self, number: u64) -> u64 {
        self.filesystem.open(number, Access::Read, 0).unwrap().handle
    }

    async fn read(&self, name: &str) -> aztec_cache::error::Result<Vec<u8>> {
        let file = self.filesystem.lookup(ROOT, OsStr::new(name), 0).wait().await?;
        let handle = self.filesystem.open(file.number, Access::Read, 0)?.handle;
        let mut bytes = Vec::new();
        loop {
            let chunk = self.filesystem.read(handle, bytes.len() as u64, 128 << 10).wait().await?;
            if chunk.is_empty() {
                self.filesystem.release(handle);
                return Ok(bytes);
            }
            bytes.extend_from_slice(&chunk);
        }
    }
}

/// A file system over a directory as its remote, with or without a cache.
fn engine(with_cache: bool) -> Engine {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("remote")).unwrap();
    let inner = store::open(&[Remote::File(dir.path().join("remote"))], &S3Options::default()).unwrap();
    let store = FaultStore::new(inner);
    let limits = SpaceLimits { max_cache_size: None, min_free: Free::Bytes(0) };
    let cache = with_cache
        .then(|| CacheDir::open(&dir.path().join("cache"), Path::new("/elsewhere"), limits).unwrap());
    let cache = cache.map(Arc::new);
    let runtime = Handle::current();
    let uploads = Uploads::new(store.clone(), cache.clone(), WriteOptions::default(), runtime.clone());
    let fetcher = Fetcher::new(cache, store.clone(), None, runtime.clone());
    let options = MountOptions::default();
    let filesystem = Filesystem::new(store.clone(), fetcher, uploads, None, Expose::File, &options, runtime);
    Engine { dir, store, filesystem: Arc::new(filesystem) }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_readers_one_download() {
    let engine = Arc::new(engine(true));
    let body = artifacts::random_bytes(1, 3_000_000);
    engine.put("a.zst", &body);
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.read("a.zst").await.unwrap() })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), body);
    }
    let gets = engine.store.gets.load(Ordering::SeqCst);
    assert!(gets <= 2, "one object of two parts took {gets} gets");
    assert_eq!(engine.store.heads.load(Ordering::SeqCst), 1);
    wait_for("publication", || engine.cached("a.zst").exists());
    engine.read("a.zst").await.unwrap();
    assert_eq!(engine.store.gets.load(Ordering::SeqCst), gets, "a hit asks for nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_bodies_are_taken_up_where_they_broke() {
    let engine = engine(true);
    let body = artifacts::random_bytes(2, 5_000_000);
    engine.put("a.zst", &body);
    engine.store.fail_gets(2);
    engine.store.truncate_gets(3);
    assert_eq!(engine.read("a.zst").await.unwrap(), body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_gives_up_in_the_end_and_the_next_open_tries_again() {
    let engine = engine(true);
    engine.put("a.zst", b"content");
    engine.store.fail_gets(7);
    assert_eq!(engine.read("a.zst").await.unwrap_err().kind(), Kind::Unreachable);
    assert!(!engine.cached("a.zst").exists());
    assert_eq!(engine.read("a.zst").await.unwrap(), b"content");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_the_last_reader_ends_the_download() {
    let engine = engine(false);
    let body = artifacts::random_bytes(3, 2_000_000);
    engine.put("a.zst", &body);
    let file = engine.filesystem.lookup(ROOT, OsStr::new("a.zst"), 0).wait().await.unwrap();
    let (first, second) = (engine.open(file.number), engine.open(file.number));
    let end = engine.filesystem.read(first, 1_999_000, 4096).wait().await.unwrap();
    assert_eq!(&end[..], &body[1_999_000..]);
    assert_eq!(engine.filesystem.read(second, 0, 10).wait().await.unwrap(), &body[..10]);
    let gets = engine.store.gets.load(Ordering::SeqCst);
    engine.filesystem.release(first);
    engine.filesystem.release(second);
    assert_eq!(engine.read("a.zst").await.unwrap(), body);
    assert!(engine.store.gets.load(Ordering::SeqCst) > gets, "nothing was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_question_is_not_remembered_as_an_answer() {
    let engine = engine(true);
    engine.put("a.zst", b"content");
    engine.store.fail_heads(1);
    assert_eq!(engine.read("a.zst").await.unwrap_err().kind(), Kind::Unreachable);
    assert_eq!(engine.read("a.zst").await.unwrap(), b"content");
}

#[tokio::test(flavor = "multi_thread")]
async fn inode_numbers_and_handles_of_nothing_are_refused() {
    let engine = engine(true);
    assert_eq!(engine.filesystem.attributes(99).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(engine.filesystem.open(99, Access::Read, 0).err().map(|e| e.kind()), Some(Kind::Invalid));
    assert_eq!(engine.filesystem.read(99, 0, 1).wait().await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(
        engine.filesystem.open(ROOT, Access::Read, 0).err().map(|e| e.kind()),
        Some(Kind::IsDirectory)
    );
    engine.filesystem.forget(99, 1);
}
