//! Any sequence of writes, failures and restarts, compared with a model: nothing saved is lost, and nothing is there twice.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use aztec_cache::cache::Origin;
use aztec_cache::checksum::{Checksum, extend_crc64nvme};
use aztec_cache::error::{Error, Kind, Result};
use aztec_cache::object::{ETag, Key, ObjectVersion};
use aztec_cache::store::{Body, Existing, ObjectStore, Page, Payload, Put};
use aztec_cache::upload::Published;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Engine, THROUGH, key};
use crate::common::PATIENCE;

/// What the remote does with puts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fine,
    Busy,
    Refusing,
    /// It does what it is told, but its answers are lost.
    Mute,
}

#[derive(Clone, Debug)]
enum Step {
    Publish(usize, u8, Weather),
    Rename(usize, usize),
    Remove(usize),
    Evict(usize),
    /// Another process comes, in fine weather.
    Restart,
}

/// A remote in memory.
struct Shelf {
    objects: Mutex<HashMap<Key, Vec<u8>>>,
    weather: Mutex<Weather>,
}

impl Shelf {
    fn new() -> Arc<Shelf> {
        Arc::new(Shelf { objects: Mutex::default(), weather: Mutex::new(Weather::Fine) })
    }

    fn object(&self, key: &Key) -> Option<Vec<u8>> {
        self.objects.lock().unwrap().get(key).cloned()
    }

    fn turn(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }
}

fn version(key: &Key, bytes: &[u8]) -> ObjectVersion {
    let crc = extend_crc64nvme(0, bytes);
    ObjectVersion {
        key: key.clone(),
        etag: ETag::new(&format!("{crc:x}")),
        size: bytes.len() as u64,
        modified: SystemTime::UNIX_EPOCH,
        checksum: Some(Arc::new(Checksum::crc64nvme(crc))),
        source: "shelf://".into(),
    }
}

fn failure(kind: Kind) -> Error {
    Error::new(kind, "the weather")
}

#[async_trait]
impl ObjectStore for Shelf {
    fn url(&self) -> &str {
        "shelf://"
    }

    async fn head(&self, key: &Key) -> Result<ObjectVersion> {
        self.object(key).map(|bytes| version(key, &bytes)).ok_or_else(|| failure(Kind::NotFound))
    }

    async fn list(&self, _: &str, _: Option<String>, _: u16) -> Result<Page> {
        Err(failure(Kind::ListDenied))
    }

    async fn get(&self, _: &ObjectVersion, _: Range<u64>) -> Result<Body> {
        Err(failure(Kind::NotFound))
    }

    async fn put(&self, key: &Key, payload: &Payload, existing: Existing) -> Result<Put> {
        let weather = *self.weather.lock().unwrap();
        match weather {
            Weather::Busy => return Err(failure(Kind::Remote)),
            Weather::Refusing => return Err(failure(Kind::AccessDenied)),
            Weather::Fine | Weather::Mute => {}
        }
        let mut bytes = vec![0; payload.size as usize];
        payload.file.read_exact_at(&mut bytes, 0).unwrap();
        let mut objects = self.objects.lock().unwrap();
        assert_eq!(existing, Existing::Keep);
        if objects.contains_key(key) {
            return Ok(Put::Kept);
        }
        let stored = version(key, &bytes);
        objects.insert(key.clone(), bytes);
        if weather == Weather::Mute { Err(failure(Kind::TimedOut)) } else { Ok(Put::Stored(stored)) }
    }
}

const NAMES: [&str; 3] = ["a.bin", "deep/b.bin", "c.bin"];

fn step() -> impl Strategy<Value = Step> {
    let weather = prop_oneof![
        3 => Just(Weather::Fine),
        2 => Just(Weather::Busy),
        1 => Just(Weather::Refusing),
        1 => Just(Weather::Mute)
    ];
    let name = || 0..NAMES.len();
    prop_oneof![
        4 => (name(), any::<u8>(), weather).prop_map(|(name, body, weather)| Step::Publish(name, body, weather)),
        2 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => name().prop_map(Step::Remove),
        1 => name().prop_map(Step::Evict),
        2 => Just(Step::Restart),
    ]
}

/// What was saved here under each name, and neither removed nor renamed since.
type Saved = HashMap<&'static str, Vec<u8>>;

/// What holds at any time: what was saved is here, or there; if another was there first, that one.
fn check(engine: &Engine, shelf: &Shelf, saved: &Saved) {
    for name in NAMES {
        let there = shelf.object(&key(name));
        match (fs::read(engine.path(name)).ok(), saved.get(name)) {
            (Some(here), saved) => {
                assert!(saved == Some(&here) || there == Some(here), "{name}: wrong bytes")
            }
            (None, Some(_)) => assert!(there.is_some(), "{name}: lost"),
            (None, None) => {}
        }
        if let Some(local) = engine.cache.lookup(&key(name)) {
            let same = shelf.object(&key(name)) == fs::read(engine.path(name)).ok();
            assert!(local.origin == Origin::Pending || same, "{name}: neither there nor on its way");
        }
    }
}

async fn run(steps: Vec<Step>) {
    let shelf = Shelf::new();
    let mut engine = Engine::over(shelf.clone(), THROUGH, None);
    let mut saved = Saved::new();
    for step in steps {
        match step {
            Step::Publish(name, body, weather) => {
                shelf.turn(weather);
                let (name, body) = (NAMES[name], vec![body; 1 + usize::from(body)]);
                match engine.publish(name, &body).await {
                    Ok(Published::Kept) => {}
                    Err(error) if error.kind() != Kind::AccessDenied => panic!("{error}"),
                    Ok(Published::Stored) | Err(_) => drop(saved.insert(name, body)),
                }
            }
            Step::Rename(from, to) => {
                let (from, to) = (NAMES[from], NAMES[to]);
                let before = engine.uploads.is_local_only(&key(from));
                let renamed = engine.uploads.rename(&key(from), &key(to)).await;
                match renamed {
                    Ok(()) if from == to => {}
                    Ok(()) => {
                        assert!(before);
                        let body = saved.remove(from).expect("it was here");
                        // Else there was one, which stays.
                        if fs::read(engine.path(to)).is_ok_and(|here| here == body) {
                            saved.insert(to, body);
                        } else {
                            saved.entry(to).or_insert(body);
                        }
                    }
                    // It may have been uploaded meanwhile.
                    Err(error) => assert!(!before || !engine.uploads.is_local_only(&key(from)), "{error}"),
                }
            }
            Step::Remove(name) => {
                let name = NAMES[name];
                let before = engine.uploads.is_local_only(&key(name));
                match engine.uploads.remove(&key(name)).await {
                    Ok(()) => {
                        assert!(before);
                        saved.remove(name);
                    }
                    Err(error) => assert!(!before || !engine.uploads.is_local_only(&key(name)), "{error}"),
                }
            }
            Step::Evict(name) => {
                let name = NAMES[name];
                let before = engine.uploads.is_local_only(&key(name));
                match engine.cache.remove(&key(name)) {
                    Ok(_) => {
                        let lost = saved.remove(name).is_some() && shelf.object(&key(name)).is_none();
                        assert!(!lost, "{name}: evicted before it was uploaded");
                    }
                    Err(error) => assert!(before, "{error}"),
                }
            }
            Step::Restart => {
                shelf.turn(Weather::Fine);
                let begun = Instant::now();
                // The one before may be at it at the same moment, and fail: what is refused, each process tries once.
                loop {
                    engine = engine.with(shelf.clone(), THROUGH);
                    engine.uploads.drain(PATIENCE).await;
                    let pending = engine.uploads.pending();
                    if pending.is_empty() {
                        break;
                    }
                    assert!(begun.elapsed() < PATIENCE, "never uploaded: {pending:?}");
                }
                for name in saved.keys() {
                    let there = shelf.object(&key(name));
                    let here = fs::read(engine.path(name)).ok();
                    assert!(
                        there.is_some() && (here.is_none() || here == there),
                        "{name}: {here:?} {there:?}"
                    );
                }
            }
        }
        check(&engine, &shelf, &saved);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_saved_is_lost_and_the_first_writer_wins(steps in vec(step(), 1..14)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
        runtime.shutdown_background();
    }
}
