//! `file:///DIR/`: artifacts in a directory, such as a network share.

mod put;

use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use nix::unistd::{AccessFlags, access};

use crate::answer::blocking;
use crate::error::{Error, Kind, Result};
use crate::metrics::REQUESTS;
use crate::object::{ETag, Key, ObjectVersion};
use crate::store::{Body, Existing, ListedObject, ObjectStore, Page, Payload, Put, RemoteState};

const CHUNK: u64 = 1 << 20;

/// A directory as a remote. A file's version is its inode, size and change time.
pub struct FileStore {
    dir: PathBuf,
    url: Arc<str>,
    swept: Arc<put::Swept>,
}

impl FileStore {
    /// The store of the files below `dir`.
    pub fn new(dir: &Path) -> FileStore {
        FileStore {
            dir: dir.to_owned(),
            url: format!("file://{}", dir.display()).into(),
            swept: Arc::default(),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.as_str())
    }
}

#[async_trait]
impl ObjectStore for FileStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn remotes(&self) -> Vec<RemoteState> {
        vec![RemoteState { url: self.url().to_owned(), reachable: None, can_list: Some(true) }]
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        REQUESTS.head.count();
        let (path, key, source) = (self.path(key), key.clone(), self.url.clone());
        blocking(move || {
            let meta = fs::metadata(&path).map_err(|e| io_error(&path, &e))?;
            if !meta.is_file() {
                return Err(Error::new(Kind::NotFound, format!("{}: not a file", path.display())));
            }
            Ok(version(key, &meta, source))
        })
        .await?
    }

    async fn list(&self, dir: &str, _token: Option<String>, limit: u16) -> Result<Page> {
        REQUESTS.list.count();
        let (root, path, source) = (self.dir.clone(), self.dir.join(dir), self.url.clone());
        blocking(move || match read_dir(&path, limit) {
            // A key is a file: there is no such thing as a directory that is missing, only an empty one.
            Err(e) if e.kind() == io::ErrorKind::NotFound && root.is_dir() => Ok(Page::default()),
            Err(e) => Err(io_error(&path, &e)),
            Ok(page) => Ok(Page { source, ..page }),
        })
        .await?
    }

    async fn get(&self, object: &ObjectVersion, range: Range<u64>) -> Result<Body> {
        REQUESTS.get.count();
        let (path, object) = (self.path(&object.key), object.clone());
        let file = blocking(move || {
            let file = File::open(&path).map_err(|e| io_error(&path, &e))?;
            Ok(Arc::new(Source { file, path, etag: object.etag }))
        })
        .await?
        .map_err(|e: Error| {
            if e.kind() == Kind::NotFound { Error::new(Kind::Changed, e.to_string()) } else { e }
        })?;
        Ok(Body::new(stream::try_unfold((file, range), |(file, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + CHUNK);
            let source = file.clone();
            let chunk = blocking(move || source.read(range.start..end)).await??;
            Ok(Some((chunk, (file, end..range.end))))
        })))
    }

    /// Whether files can be made in the directory.
    async fn accepts_uploads(&self) -> bool {
        let dir = self.dir.clone();
        blocking(move || access(&dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()).await.unwrap_or(false)
    }

    async fn put(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        REQUESTS.put.count();
        put::put(self, key, payload, existing).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        REQUESTS.delete.count();
        put::delete(self, key).await
    }
}

struct Source {
    file: File,
    path: PathBuf,
    etag: ETag,
}

impl Source {
    /// Reads a chunk and only then checks that the file is still the pinned version, so that no byte of
    /// another one gets through.
    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let mut buffer = vec![0; (range.end - range.start) as usize];
        let read = self.file.read_exact_at(&mut buffer, range.start);
        let meta = self.file.metadata().map_err(|e| io_error(&self.path, &e))?;
        if etag(&meta) != self.etag {
            return Err(Error::new(
                Kind::Changed,
                format!("{}: replaced while being read", self.path.display()),
            ));
        }
        read.map_err(|e| io_error(&self.path, &e))?;
        Ok(buffer.into())
    }
}

fn read_dir(path: &Path, limit: u16) -> io::Result<Page> {
    let mut page = Page::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            log::warn!("{}: left out, its name is not UTF-8", entry.path().display());
            continue;
        };
        if name.starts_with(put::TEMPORARY) {
            continue;
        }
        // An entry that vanished since, or a dangling link, is simply not there.
        let Ok(meta) = fs::metadata(entry.path()) else { continue };
        if meta.is_dir() {
            page.dirs.push(name);
        } else if meta.is_file() {
            page.objects.push(ListedObject {
                name,
                etag: etag(&meta),
                size: meta.len(),
                modified: modified(&meta),
            });
        }
        // Whoever asks for one entry wants to know whether there is any; else there is only one page.
        if limit == 1 && page.dirs.len() + page.objects.len() == 1 {
            break;
        }
    }
    Ok(page)
}

fn version(key: Key, meta: &Metadata, source: Arc<str>) -> ObjectVersion {
    let (etag, modified) = (etag(meta), modified(meta));
    ObjectVersion { key, etag, size: meta.len(), modified, checksum: None, source }
}

fn etag(meta: &Metadata) -> ETag {
    ETag::new(&format!("{:x}-{:x}-{:x}.{:09}", meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}

fn modified(meta: &Metadata) -> SystemTime {
    meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn io_error(path: &Path, error: &io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Kind::NotFound,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => Kind::AccessDenied,
        Some(libc::EHOSTDOWN | libc::EHOSTUNREACH | libc::ENOTCONN | libc::ESTALE) => Kind::Unreachable,
        Some(libc::ETIMEDOUT) => Kind::TimedOut,
        _ => Kind::Remote,
    };
    Error::new(kind, format!("{}: {error}", path.display()))
}
