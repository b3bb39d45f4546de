//! Files written and published, without a kernel.

use std::fs;
use std::sync::Arc;

use aztec_cache::cache::Verdict;
use aztec_cache::config::{Remote, S3Options, WriteOptions};
use aztec_cache::error::Kind;
use aztec_cache::store;
use aztec_cache::upload::{Published, Uploads};
use aztec_cache_test_support::artifacts::random_bytes;
use tokio::runtime::Handle;

use super::{Engine, NEVER, THROUGH, directory, gzip, key, s3, server};
use crate::common::{Tmpfs, assert_same, needs_root};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_appears_whole_under_its_name() {
    let engine = Engine::new(NEVER);
    let body = random_bytes(1, 3_000_001);
    let file = engine.write("deep/er/a.bin", &body);
    assert!(!engine.path("deep/er/a.bin").exists(), "seen before it is published");
    assert_same("its writer reads it", &file.read_at(1_000_000, 5_000_000).unwrap(), &body[1_000_000..]);
    assert_eq!(engine.uploads.publish(file.clone(), &key("deep/er/a.bin")).await.unwrap(), Published::Stored);
    assert_same("published", &fs::read(engine.path("deep/er/a.bin")).unwrap(), &body);
    assert_same("still its writer's", &file.read_at(0, 5_000_000).unwrap(), &body);
    assert_eq!((engine.spooled(), engine.journal()), (vec![], vec![]));
    let found = engine.cache.lookup(&key("deep/er/a.bin")).unwrap();
    assert_eq!((&*found.version.source, found.version.etag.is_local()), ("upload", true));
    assert!(found.checksum.unwrap().starts_with("crc64nvme:"));
    assert!(engine.uploads.is_local_only(&key("deep/er/a.bin")));
    assert_eq!(file.write_at(b"more", 0).unwrap_err().kind(), Kind::NotPermitted);
    assert_eq!(file.truncate(0).unwrap_err().kind(), Kind::NotPermitted);
    assert_same("unharmed", &fs::read(engine.path("deep/er/a.bin")).unwrap(), &body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_writes_doesn_t_matter() {
    let engine = Engine::new(NEVER);
    let body = random_bytes(2, 2_000_000);
    let backwards = engine.uploads.create(&key("backwards.bin")).unwrap();
    for at in (0..body.len()).step_by(100_000).rev() {
        backwards.write_at(&body[at..at + 100_000], at as u64).unwrap();
    }
    engine.uploads.publish(Arc::new(backwards), &key("backwards.bin")).await.unwrap();
    let twice = engine.write("twice.bin", &random_bytes(3, 2_500_000));
    twice.truncate(0).unwrap();
    twice.write_at(&body, 0).unwrap();
    engine.uploads.publish(twice, &key("twice.bin")).await.unwrap();
    let patched = engine.write("patched.bin", &[&[0; 10], &body[10..]].concat());
    patched.write_at(&body[..10], 0).unwrap();
    engine.uploads.publish(patched, &key("patched.bin")).await.unwrap();
    let cut = engine.write("cut.bin", &[&body[..], b"too much"].concat());
    cut.truncate(body.len() as u64).unwrap();
    engine.uploads.publish(cut, &key("cut.bin")).await.unwrap();
    for name in ["backwards.bin", "twice.bin", "patched.bin", "cut.bin"] {
        assert_same(name, &fs::read(engine.path(name)).unwrap(), &body);
        let verdict = engine.cache.verify(&key(name), &mut |_| {}).unwrap();
        assert_eq!(verdict, Verdict::Right, "{name}: its recorded checksum");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_written_reads_as_zeros() {
    let engine = Engine::new(NEVER);
    let file = engine.write("holes.bin", b"0123456789");
    file.truncate(4).unwrap();
    file.truncate(8).unwrap();
    file.write_at(b"end", 12).unwrap();
    assert_eq!(&file.read_at(0, 100).unwrap()[..], b"0123\0\0\0\0\0\0\0\0end");
    assert_eq!((file.size(), file.read_at(15, 10).unwrap().len()), (15, 0));
    engine.uploads.publish(file, &key("holes.bin")).await.unwrap();
    assert_eq!(fs::read(engine.path("holes.bin")).unwrap(), b"0123\0\0\0\0\0\0\0\0end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_writer_wins_unless_overwriting_is_allowed() {
    let engine = Engine::new(NEVER);
    assert_eq!(engine.publish("a.bin", b"first").await.unwrap(), Published::Stored);
    assert_eq!(engine.publish("a.bin", b"second").await.unwrap(), Published::Kept);
    assert_eq!(fs::read(engine.path("a.bin")).unwrap(), b"first");
    fs::write(engine.path("script.bin"), "a script's").unwrap();
    assert_eq!(engine.publish("script.bin", b"second").await.unwrap(), Published::Kept);
    assert_eq!(engine.spooled(), Vec::<String>::new(), "what lost goes");
    let over = Engine::new(WriteOptions { allow_overwrite: true, ..NEVER });
    over.publish("a.bin", b"first").await.unwrap();
    assert_eq!(over.publish("a.bin", b"second").await.unwrap(), Published::Stored);
    assert_eq!(fs::read(over.path("a.bin")).unwrap(), b"second");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_are_not_whole_are_refused() {
    let engine = Engine::new(NEVER);
    let body: Vec<u8> = (0..600_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for (name, archive) in
        [("a.tar.gz", gzip(&body)), ("a.zst", zstd::stream::encode_all(&*body, 1).unwrap())]
    {
        for bad in [&archive[..archive.len() - 1], &archive[..archive.len() / 2], b"", b"no archive"] {
            let file = engine.write(name, bad);
            let error = engine.uploads.publish(file.clone(), &key(name)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "{error}");
            assert!(error.to_string().contains(name), "{error}");
            assert!(!engine.path(name).exists());
        }
        // Not only what was decoded on the way.
        let patched = engine.write(name, &archive);
        patched.write_at(&[archive[0]], 0).unwrap();
        assert_eq!(engine.uploads.publish(patched, &key(name)).await.unwrap(), Published::Stored);
        assert_same(name, &fs::read(engine.path(name)).unwrap(), &archive);
        let broken = engine.write("b.tmp", &archive[..archive.len() - 1]);
        let error = engine.uploads.publish(broken, &key(&format!("b{name}"))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "published under a name that wasn't known at first");
    }
    assert_eq!(engine.spooled(), Vec::<String>::new());
    let unchecked = Engine::new(WriteOptions { unchecked_archives: true, ..NEVER });
    assert_eq!(unchecked.publish("a.zst", b"no archive").await.unwrap(), Published::Stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_turned_out_too_short_can_be_written_on() {
    let engine = Engine::new(NEVER);
    let archive = gzip(&random_bytes(4, 500_000));
    let file = engine.write("a.tar.gz", &archive[..300_000]);
    assert!(engine.uploads.publish(file.clone(), &key("a.tar.gz")).await.is_err());
    file.write_at(&archive[300_000..], 300_000).unwrap();
    assert_eq!(engine.uploads.publish(file, &key("a.tar.gz")).await.unwrap(), Published::Stored);
    assert_same("whole", &fs::read(engine.path("a.tar.gz")).unwrap(), &archive);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_smaller_than_the_file_is_no_space_and_publishes_nothing() {
    let engine = Engine::limited(NEVER, Some(3_000_000));
    let other = random_bytes(5, 1_000_000);
    engine.publish("other.bin", &other).await.unwrap();
    let file = engine.uploads.create(&key("a.bin")).unwrap();
    file.write_at(&vec![1; 2_500_000], 0).unwrap();
    assert!(!engine.path("other.bin").exists(), "it made room");
    let error = file.write_at(&vec![1; 1_000_000], 2_500_000).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains("--max-cache-size"), "{error}");
    let error = engine.uploads.publish(Arc::new(file), &key("a.bin")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "a writer that goes on regardless");
    assert_eq!(engine.spooled(), Vec::<String>::new());
    // Its space was given back.
    assert_eq!(engine.publish("b.bin", &vec![2; 2_900_000]).await.unwrap(), Published::Stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_where_it_could_go_nowhere() {
    let engine = Engine::new(WriteOptions { read_only: true, ..NEVER });
    assert_eq!(engine.uploads.create(&key("a.bin")).err().map(|e| e.kind()), Some(Kind::ReadOnly));
    let remote = tempfile::tempdir().unwrap();
    let nowhere = Uploads::new(directory(remote.path()), None, NEVER, Handle::current());
    assert_eq!(nowhere.create(&key("a.bin")).err().map(|e| e.kind()), Some(Kind::ReadOnly));
    // Whether there are credentials isn't known before somebody asks.
    let unsigned = WriteOptions { upload: None, ..NEVER };
    let web = Remote::parse("a test", "http://127.0.0.1:9/").unwrap();
    let web = store::open(&[web], &S3Options::default()).unwrap();
    let unsigned = Uploads::new(web, None, unsigned, Handle::current());
    let file = Arc::new(unsigned.create(&key("a.bin")).unwrap());
    assert_eq!(unsigned.publish(file, &key("a.bin")).await.unwrap_err().kind(), Kind::ReadOnly);
    assert!(unsigned.create(&key("a.bin")).is_err(), "now it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_here_can_be_renamed_and_removed() {
    let engine = Engine::new(NEVER);
    let archive = gzip(b"content");
    engine.publish("a.tmp", &archive).await.unwrap();
    engine.uploads.rename(&key("a.tmp"), &key("deep/a.tar.gz")).await.unwrap();
    assert!(!engine.path("a.tmp").exists());
    assert_same("renamed", &fs::read(engine.path("deep/a.tar.gz")).unwrap(), &archive);
    assert!(engine.uploads.is_local_only(&key("deep/a.tar.gz")), "its metadata went with it");
    engine.publish("b.tmp", b"no archive").await.unwrap();
    let error = engine.uploads.rename(&key("b.tmp"), &key("b.tar.gz")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    engine.publish("c.tmp", &gzip(b"other content")).await.unwrap();
    engine.uploads.rename(&key("c.tmp"), &key("deep/a.tar.gz")).await.unwrap();
    assert_same("the first stays", &fs::read(engine.path("deep/a.tar.gz")).unwrap(), &archive);
    assert!(!engine.path("c.tmp").exists());
    engine.uploads.remove(&key("deep/a.tar.gz")).await.unwrap();
    assert!(!engine.path("deep/a.tar.gz").exists());
    assert_eq!(engine.journal(), Vec::<String>::new());
    let error = engine.uploads.remove(&key("theirs.zst")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotPermitted);
    fs::write(engine.path("script.bin"), "a script's").unwrap();
    engine.uploads.remove(&key("script.bin")).await.unwrap();
    assert!(!engine.path("script.bin").exists(), "no remote has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_before_uploads_were_allowed_is_uploaded_by_the_next_writer() {
    let server = server();
    let engine = Engine::over(s3(&server), NEVER, None);
    engine.publish("a.bin", b"first").await.unwrap();
    engine.publish("b.bin", b"first").await.unwrap();
    fs::write(engine.path("script.bin"), "a script's").unwrap();
    fs::write(engine.path("other.bin"), "a script's").unwrap();
    assert_eq!(server.keys(), Vec::<String>::new());
    let engine = engine.with(s3(&server), THROUGH);
    assert_eq!(engine.publish("a.bin", b"first").await.unwrap(), Published::Stored);
    assert_eq!(engine.publish("b.bin", b"second").await.unwrap(), Published::Kept);
    assert_eq!(engine.publish("script.bin", b"a script's").await.unwrap(), Published::Stored);
    assert_eq!(engine.publish("other.bin", b"second").await.unwrap(), Published::Kept);
    for (name, body) in
        [("a.bin", Some("first")), ("b.bin", Some("first")), ("script.bin", Some("a script's"))]
    {
        assert_eq!(server.object(&crate::common::key(name)).as_deref(), body.map(str::as_bytes), "{name}");
        assert!(!engine.uploads.is_local_only(&key(name)), "{name}");
    }
    assert_eq!(server.object(&crate::common::key("other.bin")), None, "of whose bytes nothing is known");
    assert_eq!(fs::read(engine.path("other.bin")).unwrap(), b"a script's");
    assert_eq!(engine.journal(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_no_space_and_publishes_nothing() {
    needs_root!("a small disk");
    let dir = tempfile::tempdir().unwrap();
    let _disk = Tmpfs::at(dir.path(), "size=8m");
    let engine = Engine::at(dir, directory(&std::env::temp_dir()), NEVER, None);
    let file = engine.write("a.bin", &random_bytes(1, 4_000_000));
    let error = (0..8).find_map(|n| file.write_at(&[1; 1_000_000], 4_000_000 + n * 1_000_000).err()).unwrap();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains("a.bin"), "{error}");
    assert_eq!(engine.uploads.publish(file, &key("a.bin")).await.unwrap_err().kind(), Kind::NoSpace);
    assert!(!engine.path("a.bin").exists());
    assert_eq!(engine.publish("b.bin", &random_bytes(2, 6_000_000)).await.unwrap(), Published::Stored);
}
