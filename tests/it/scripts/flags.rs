//! `cache_upload_flag` and `cache_download_flag`: a text under a name.

use aztec_cache_test_support::s3::S3Server;

use super::{Said, Shell, Way, has_aws, ways};
use crate::common::key;

#[test]
fn a_flag_that_was_uploaded_is_found_with_its_text() {
    for way in ways().into_iter().filter(|way| *way != Way::Bare || has_aws()) {
        let server = S3Server::start();
        let mut shell = Shell::signed(&server, way);
        assert_eq!(shell.run("cache_download_flag", &["tests-1"]), Said::new(1, &[]), "{way:?}");
        shell.place.env("CI", "1");
        let said = shell.run("cache_upload_flag", &["tests-2", "passed at last,  twice"]);
        let lines = ["Saved tests-2.flag to local cache.", "Cache upload of tests-2.flag complete in Ns."];
        assert_eq!(said, Said::new(0, &lines), "{way:?}");
        assert!(server.object(&key("tests-2.flag")).is_some());
        server.put(&key("tests-3.flag"), "from elsewhere\n");
        for (name, text) in [("tests-2", "passed at last,  twice"), ("tests-3", "from elsewhere")] {
            assert_eq!(shell.run("cache_download_flag", &[name]), Said::new(0, &[text]), "{way:?}");
        }
    }
}

#[test]
fn flags_follow_the_rules_of_artifacts() {
    for way in ways() {
        let server = S3Server::start();
        server.put(&key("tests-1.flag"), "text\n");
        let mut shell = Shell::anonymous(&server, way);
        let refused = "Not using cache for x-disabled-cache.flag due to uncommitted changes/files.";
        assert_eq!(shell.run("cache_download_flag", &["x-disabled-cache"]), Said::new(1, &[refused]));
        let refused = "Skipping upload of x-disabled-cache.flag due to uncommitted changes/files.";
        assert_eq!(shell.run("cache_upload_flag", &["x-disabled-cache", "text"]), Said::new(0, &[refused]));
        shell.place.env("NO_CACHE", "1").env("NO_CACHE_UPLOAD", "1");
        let refused = "Not using cache for tests-1.flag because NO_CACHE=1.";
        assert_eq!(shell.run("cache_download_flag", &["tests-1"]), Said::new(1, &[refused]));
        let refused = "Skipping upload because NO_CACHE_UPLOAD=1.";
        assert_eq!(shell.run("cache_upload_flag", &["tests-1", "text"]), Said::new(0, &[refused]));
        assert_eq!(shell.run("cache_upload_flag", &["tests-1"]).code, Some(2));
    }
}
