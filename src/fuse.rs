//! FUSE requests to operations and answers to replies, and nothing else.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::answer::Answer;
use crate::errno::{errno, log_level};
use crate::error::{Error, Kind, Result};
use crate::filesystem::{Access, Attributes, Change, FileKind, Filesystem, Opened};
use crate::metrics::count_error;
use crate::passthrough::Passthrough;
use crate::streams::Streams;

/// A process that looks up a name can't be killed until it has its answer.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(45);
/// A listing may take many pages.
const LIST_DEADLINE: Duration = Duration::from_secs(120);
/// A read waits for its turn on a slow link; one that stalls is ended by the download, much earlier.
const READ_DEADLINE: Duration = Duration::from_secs(300);
/// A close, or what else waits for an upload, lasts as long as that gets on, or is tried again. This is only a backstop.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Bytes that come with one write. Each thread's buffer grows to that.
const MAX_WRITE: u32 = 512 << 10;
/// Requests the kernel may have under way for readahead. Its default of 12 stops readers of other files too
/// while that many cold reads wait.
const MAX_BACKGROUND: u16 = 512;

/// The FUSE side of a [`Filesystem`].
pub struct Fuse {
    filesystem: Arc<Filesystem>,
    passthrough: Arc<Passthrough>,
    streams: Arc<Streams>,
    /// The number of file systems below the backing files, themselves included.
    backing_depth: u32,
    /// Whether files that are being written bypass the kernel's page cache: their bytes are copied and kept once less. Only where the
    /// kernel lets programs map such files all the same (since Linux 6.6).
    written_directly: bool,
    runtime: Handle,
}

impl Fuse {
    /// Serves `filesystem`; answers that wait do so on `runtime`. `backing_depth` is 2 when the local cache lies on a file
    /// system that is itself stacked on another, as overlayfs is, else 1.
    pub fn new(
        filesystem: Arc<Filesystem>,
        passthrough: Arc<Passthrough>,
        streams: Arc<Streams>,
        backing_depth: u32,
        runtime: Handle,
    ) -> Fuse {
        Fuse { filesystem, passthrough, streams, backing_depth, written_directly: false, runtime }
    }

    /// Hands the answer to `reply`: here and now, or on the runtime when it is known, at the deadline at the latest.
    fn answer<T: Send + 'static>(
        &self,
        operation: &'static str,
        deadline: Duration,
        answer: Answer<T>,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        match answer {
            Answer::Now(result) => reply(result.map_err(|error| to_errno(operation, &error))),
            Answer::Later(future) => {
                self.runtime.spawn(async move {
                    let result = timeout(deadline, future).await.unwrap_or_else(|_| {
                        Err(Error::new(Kind::TimedOut, format!("no answer within {} s", deadline.as_secs())))
                    });
                    reply(result.map_err(|error| to_errno(operation, &error)));
                });
            }
        }
    }
}

fn to_errno(operation: &str, error: &Error) -> Errno {
    log::log!(log_level(error.kind()), "{operation}: {error}");
    let errno = errno(error.kind());
    count_error(errno);
    Errno::from_i32(errno)
}

/// Runs a request's code so that a defect in it costs one request, not the session: the reply it drops answers EIO.
fn shielded(operation: &str, code: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(code)).is_err() {
        log::error!("{operation}: a defect in aztec-cache; the request was answered with EIO");
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let Attributes { number, kind, size, modified, mode, uid, gid, .. } = *attributes;
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: file_type(kind),
        perm: mode,
        // 1 for a directory: tools then don't count its subdirectories.
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        // What `cp` reads and writes at a time.
        blksize: MAX_WRITE,
        flags: 0,
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
    }
}

impl fuser::Filesystem for Fuse {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            // There are no set-user-id bits and capabilities to be taken off, so they needn't be asked for before each write.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_PASSTHROUGH;
        // A kernel without one of them works, only slower.
        if let Err(missing) = config.add_capabilities(wanted) {
            let _ = config.add_capabilities(wanted - missing);
        }
        self.written_directly = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_stack_depth(self.backing_depth);
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        shielded("lookup", || {
            let answer = self.filesystem.lookup(parent.0, name, request.pid());
            self.answer("lookup", LOOKUP_DEADLINE, answer, |result| match result {
                Ok(attributes) => reply.entry(&attributes.ttl, &file_attr(&attributes), Generation(0)),
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        shielded("forget", || self.filesystem.forget(ino.0, nlookup));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        shielded("getattr", || match self.filesystem.attributes(ino.0) {
            Ok(attributes) => reply.attr(&attributes.ttl, &file_attr(&attributes)),
            Err(error) => reply.error(to_errno("getattr", &error)),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        shielded("readlink", || match self.filesystem.read_link(ino.0) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(to_errno("readlink", &error)),
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        shielded("open", || match self.filesystem.open(ino.0, access(flags), request.pid()) {
            Ok(Opened { handle, backing, keep, written, direct }) => {
                if backing.is_none() && !written {
                    self.streams.open(ino.0);
                }
                let register = |file: Arc<File>| self.passthrough.open(ino.0, || reply.open_backing(&*file));
                // Nobody need hear of the close of a file that was only read.
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_NOFLUSH, !written);
                flags.set(FopenFlags::FOPEN_DIRECT_IO, direct || written && self.written_directly);
                match backing.and_then(register) {
                    Some(id) => reply.opened_passthrough(FileHandle(handle), flags, &id),
                    None => {
                        // An inode number is one version of an object: the kernel's pages of it stay right.
                        flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep);
                        reply.opened(FileHandle(handle), flags);
                    }
                }
            }
            Err(error) => reply.error(to_errno("open", &error)),
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        shielded("read", || {
            let answer = self.filesystem.read(fh.0, offset, size);
            self.answer("read", READ_DEADLINE, answer, |result| match result {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let exclusive = flags & libc::O_EXCL != 0;
        shielded("create", || match self.filesystem.create(parent.0, name, exclusive, request.pid()) {
            Ok((attributes, handle)) => {
                let (ttl, attr) = (attributes.ttl, file_attr(&attributes));
                let mut flags = FopenFlags::FOPEN_KEEP_CACHE;
                flags.set(FopenFlags::FOPEN_DIRECT_IO, self.written_directly);
                reply.created(&ttl, &attr, Generation(0), FileHandle(handle), flags);
            }
            Err(error) => reply.error(to_errno("create", &error)),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        shielded("write", || match self.filesystem.write(fh.0, offset, data) {
            Ok(()) => {
                reply.written(data.len() as u32);
                self.filesystem.wrote(fh.0);
            }
            Err(error) => reply.error(to_errno("write", &error)),
        });
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        shielded("flush", || {
            let answer = self.filesystem.flush(ino.0, fh.0, request.pid());
            self.answer("flush", UPLOAD_DEADLINE, answer, |result| empty(result, reply));
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        shielded("fsync", || {
            let answer = self.filesystem.sync(fh.0);
            self.answer("fsync", UPLOAD_DEADLINE, answer, |result| empty(result, reply));
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let modified = modified.map(|time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        });
        shielded("setattr", || match self.filesystem.change(ino.0, Change { size, modified }) {
            Ok(attributes) => reply.attr(&attributes.ttl, &file_attr(&attributes)),
            Err(error) => reply.error(to_errno("setattr", &error)),
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        shielded("unlink", || {
            let answer = self.filesystem.unlink(parent.0, name, request.pid());
            self.answer("unlink", LOOKUP_DEADLINE, answer, |result| empty(result, reply));
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // That nothing is replaced is what the kernel looks after. It has no way to swap two, and nor have we.
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        shielded("rename", || {
            let answer = self.filesystem.rename(parent.0, name, new_parent.0, new_name, request.pid());
            self.answer("rename", UPLOAD_DEADLINE, answer, |result| empty(result, reply));
        });
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        shielded("mkdir", || match self.filesystem.make_dir(parent.0, name) {
            Ok(attributes) => reply.entry(&attributes.ttl, &file_attr(&attributes), Generation(0)),
            Err(error) => reply.error(to_errno("mkdir", &error)),
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        shielded("rmdir", || {
            let answer = self.filesystem.remove_dir(parent.0, name);
            self.answer("rmdir", LIST_DEADLINE, answer, |result| empty(result, reply));
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        shielded("release", || {
            self.passthrough.release(ino.0);
            self.filesystem.release(fh.0);
            let filesystem = self.filesystem.clone();
            self.streams.release(ino.0, move || filesystem.fetched_state(ino.0));
        });
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        shielded("opendir", || match self.filesystem.open_dir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(to_errno("opendir", &error)),
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        /// "Not known": the number of an inode that has not been looked up (`FUSE_UNKNOWN_INO` in fs/fuse).
        const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);
        shielded("readdir", || {
            let answer = self.filesystem.read_dir(fh.0, offset);
            self.answer("readdir", LIST_DEADLINE, answer, move |result| match result {
                Err(errno) => reply.error(errno),
                Ok(page) => {
                    for entry in page.entries() {
                        if reply.add(UNKNOWN, entry.next, file_type(entry.kind), entry.name) {
                            break;
                        }
                    }
                    reply.ok();
                }
            });
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        shielded("readdirplus", || {
            let answer = self.filesystem.read_dir(fh.0, offset);
            let filesystem = self.filesystem.clone();
            self.answer("readdirplus", LIST_DEADLINE, answer, move |result| match result {
                Err(errno) => reply.error(errno),
                Ok(page) => {
                    for item in page.entries() {
                        let attributes = match item.entry {
                            Some(entry) => filesystem.look_up_entry(&page, entry),
                            None => filesystem.dot_attributes(&page, item.name),
                        };
                        let attr = file_attr(&attributes);
                        if reply.add(attr.ino, item.next, item.name, &attributes.ttl, &attr, Generation(0)) {
                            // It didn't fit, so the kernel wasn't told of it.
                            if item.entry.is_some() {
                                filesystem.forget(attributes.number, 1);
                            }
                            break;
                        }
                    }
                    reply.ok();
                }
            });
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        shielded("releasedir", || self.filesystem.release_dir(fh.0));
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        shielded("statfs", || match self.filesystem.statfs() {
            Ok(disk) => reply.statfs(
                disk.blocks(),
                disk.blocks_free(),
                disk.blocks_available(),
                disk.files(),
                disk.files_free(),
                disk.block_size() as u32,
                255,
                disk.fragment_size() as u32,
            ),
            Err(error) => reply.error(to_errno("statfs", &error)),
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        shielded("getxattr", || match self.filesystem.xattr(ino.0, name) {
            Ok(value) => reply_xattr(value.as_bytes(), size, reply),
            Err(error) => reply.error(to_errno("getxattr", &error)),
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        shielded("listxattr", || match self.filesystem.xattr_names(ino.0) {
            Ok(names) => {
                let list: String = names.iter().flat_map(|name| [name, "\0"]).collect();
                reply_xattr(list.as_bytes(), size, reply);
            }
            Err(error) => reply.error(to_errno("listxattr", &error)),
        });
    }

    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        shielded("access", || match self.filesystem.attributes(ino.0) {
            Ok(attributes) if mask.contains(AccessFlags::X_OK) && attributes.kind == FileKind::Regular => {
                reply.error(Errno::EACCES)
            }
            Ok(_) => reply.ok(),
            Err(error) => reply.error(to_errno("access", &error)),
        });
    }
}

/// What a file is opened for.
fn access(flags: OpenFlags) -> Access {
    let truncate = flags.0 & libc::O_TRUNC != 0;
    match flags.acc_mode() {
        OpenAccMode::O_RDONLY if !truncate => Access::Read,
        _ => Access::Write { truncate },
    }
}

fn empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// The two-step protocol of getxattr(2) and listxattr(2): size 0 asks for the size.
fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match (size as usize, value.len()) {
        (0, length) => reply.size(length as u32),
        (size, length) if length > size => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
