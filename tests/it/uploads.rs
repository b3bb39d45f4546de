//! The write path: what is written here becomes an artifact, whole or not at all, and goes to the remote, now or later.

mod engine;
mod journal;
mod model;
mod remotes;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aztec_cache::cache::CacheDir;
use aztec_cache::config::{Free, Patience, Remote, S3Options, SpaceLimits, Upload, WriteOptions};
use aztec_cache::object::Key;
use aztec_cache::store::{self, ObjectStore};
use aztec_cache::upload::{NewFile, Published, Uploads};
use aztec_cache_test_support::s3::{Access, Options, S3Server};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::common::names_in;

const NEVER: WriteOptions = uploading(Upload::Never);
const THROUGH: WriteOptions = uploading(Upload::Through);
const BACKGROUND: WriteOptions = uploading(Upload::Background);

const fn uploading(upload: Upload) -> WriteOptions {
    WriteOptions {
        read_only: false,
        upload: Some(upload),
        allow_overwrite: false,
        allow_delete: false,
        unchecked_archives: false,
    }
}

/// A cache directory, a remote, and what writes to them.
struct Engine {
    dir: TempDir,
    cache: Arc<CacheDir>,
    uploads: Arc<Uploads>,
}

impl Engine {
    /// An engine over an empty directory as its remote.
    fn new(options: WriteOptions) -> Engine {
        Engine::limited(options, None)
    }

    fn limited(options: WriteOptions, max_cache_size: Option<u64>) -> Engine {
        Engine::over(directory(&std::env::temp_dir()), options, max_cache_size)
    }

    fn over(store: Arc<dyn ObjectStore>, options: WriteOptions, max_cache_size: Option<u64>) -> Engine {
        Engine::at(tempfile::tempdir().unwrap(), store, options, max_cache_size)
    }

    fn at(
        dir: TempDir,
        store: Arc<dyn ObjectStore>,
        options: WriteOptions,
        max_cache_size: Option<u64>,
    ) -> Engine {
        let limits = SpaceLimits { max_cache_size, min_free: Free::Bytes(0) };
        let cache = CacheDir::open(&dir.path().join("cache"), Path::new("/elsewhere"), limits).unwrap();
        let cache = Arc::new(cache);
        let uploads = Uploads::new(store, Some(cache.clone()), options, Handle::current());
        Engine { dir, cache, uploads }
    }

    /// Another process, later, on the same cache directory.
    fn with(self, store: Arc<dyn ObjectStore>, options: WriteOptions) -> Engine {
        let uploads = Uploads::new(store, Some(self.cache.clone()), options, Handle::current());
        Engine { uploads, ..self }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("cache").join(name)
    }

    fn spooled(&self) -> Vec<String> {
        names_in(&self.path(".aztec-cache/spool"))
    }

    fn journal(&self) -> Vec<String> {
        names_in(&self.path(".aztec-cache/journal"))
    }

    fn write(&self, name: &str, body: &[u8]) -> Arc<NewFile> {
        let file = self.uploads.create(&key(name)).unwrap();
        for (n, chunk) in body.chunks(128 << 10).enumerate() {
            file.write_at(chunk, n as u64 * (128 << 10)).unwrap();
        }
        Arc::new(file)
    }

    async fn publish(&self, name: &str, body: &[u8]) -> aztec_cache::error::Result<Published> {
        self.uploads.publish(self.write(name, body), &key(name)).await
    }
}

fn directory(path: &Path) -> Arc<dyn ObjectStore> {
    store::open(&[Remote::File(path.to_owned())], &S3Options::default()).unwrap()
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// A server that takes uploads from anyone.
fn server() -> S3Server {
    S3Server::start_with(Options { anonymous: Access::ALL, ..Options::default() })
}

/// The server as a remote that is asked once only.
fn s3(server: &S3Server) -> Arc<dyn ObjectStore> {
    s3_asked(server, 1)
}

/// The server as a remote that is asked so often.
fn s3_asked(server: &S3Server, attempts: u32) -> Arc<dyn ObjectStore> {
    let remote = Remote::S3 { bucket: "aztec-ci-artifacts".to_owned(), prefix: "build-cache/".to_owned() };
    let options = S3Options {
        endpoint_url: Some(server.url()),
        no_sign_request: true,
        patience: Patience { attempts, ..Patience::default() },
        ..S3Options::default()
    };
    store::open(&[remote], &options).unwrap()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}
