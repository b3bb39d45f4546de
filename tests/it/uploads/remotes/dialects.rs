//! S3 servers that lack what uploads would like to have.

use std::thread;

use aztec_cache::store::{Existing, Put};
use aztec_cache_test_support::artifacts::random_bytes;
use aztec_cache_test_support::s3::{Fault, Op, Options, S3Server, Support};

use super::{MIB, NAME, Remotes, assert_holds, payload, server_with};
use crate::common::{PATIENCE, key};

const SIZES: [usize; 2] = [1000, 12 * MIB];

fn server(conditional_writes: Support, checksums: Support) -> S3Server {
    server_with(Options { conditional_writes, checksums, ..Options::default() })
}

fn lacking() -> impl Iterator<Item = (Support, Support)> {
    let all = [Support::Full, Support::Ignored, Support::Refused];
    all.into_iter().flat_map(move |conditions| all.map(|checksums| (conditions, checksums)))
}

#[test]
fn uploads_arrive_whole_whatever_the_server_lacks() {
    for (conditions, checksums) in lacking() {
        for size in SIZES {
            println!("conditions {conditions:?}, checksums {checksums:?}, {size} bytes");
            let server = server(conditions, checksums);
            let remotes = Remotes::s3(&server.url());
            let body = random_bytes(1, size);
            remotes.store(NAME, &body);
            assert_holds(&server, NAME, &body);
            server.reset_counts();
            remotes.store("next.zst", &body);
            assert_holds(&server, "next.zst", &body);
            let parts = if size > 8 * MIB { 3 } else { 1 };
            assert_eq!(server.counts().put, parts, "what is refused is remembered");
        }
    }
}

#[test]
fn what_is_there_stays_whatever_the_server_lacks() {
    for (conditions, checksums) in lacking() {
        let server = server(conditions, checksums);
        let remotes = Remotes::s3(&server.url());
        for size in SIZES {
            let name = format!("{size}.zst");
            server.put(&key(&name), "theirs");
            let ours = payload(&random_bytes(1, size));
            assert_eq!(remotes.put(&name, &ours, Existing::Keep).unwrap(), Put::Kept);
            assert_holds(&server, &name, b"theirs");
            assert!(matches!(remotes.put(&name, &ours, Existing::Replace).unwrap(), Put::Stored(_)));
        }
    }
}

/// Of a large object: it takes long enough for another to come first.
#[test]
fn an_object_that_appears_during_the_upload_stays_where_conditions_are_lacking() {
    for conditions in [Support::Ignored, Support::Refused] {
        let server = server(conditions, Support::Full);
        let remotes = Remotes::s3(&server.url());
        let gate = server.hold(Op::Part, None);
        let put = thread::scope(|scope| {
            let ours = payload(&random_bytes(1, 12 * MIB));
            let put = scope.spawn(|| remotes.put(NAME, &{ ours }, Existing::Keep).unwrap());
            assert!(gate.wait_until_waiting(1, PATIENCE));
            server.put(&key(NAME), "theirs");
            gate.release();
            put.join().unwrap()
        });
        assert_eq!(put, Put::Kept, "{conditions:?}");
        assert_holds(&server, NAME, b"theirs");
    }
}

#[test]
fn a_lost_answer_is_found_out_whatever_the_server_lacks() {
    for (conditions, checksums) in lacking() {
        for (size, op) in [(SIZES[0], Op::Put), (SIZES[1], Op::Complete)] {
            let server = server(conditions, checksums);
            let remotes = Remotes::s3(&server.url());
            let body = random_bytes(1, size);
            remotes.store("before.zst", &body);
            server.set_faults([Fault::lose_answer().on(op).times(1)]);
            let version = remotes.store(NAME, &body);
            assert!(version.is(&remotes.head(NAME).unwrap()), "{conditions:?} {checksums:?}");
            assert_holds(&server, NAME, &body);
        }
    }
}

#[test]
fn where_checksums_are_refused_md5s_find_damage_on_the_way() {
    for (size, op) in [(SIZES[0], Op::Put), (SIZES[1], Op::Part)] {
        let server = server(Support::Full, Support::Refused);
        let remotes = Remotes::s3(&server.url());
        remotes.store("before.zst", &random_bytes(1, size));
        server.set_faults([Fault::corrupt_upload(500).on(op).times(1)]);
        let body = random_bytes(2, size);
        remotes.store(NAME, &body);
        assert_holds(&server, NAME, &body);
        assert!(server.log().iter().rev().take(2).all(|request| request.checksum.is_none()));
    }
}
