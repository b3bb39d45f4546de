//! `s3://BUCKET/PREFIX/`: where requests go and how they are signed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use aztec_cache_test_support::s3::{Access, Options, S3Server};

use crate::common::{Place, RawServer, errno, key, needs_fuse, wait_for};

/// A server that gives nothing to those who don't sign.
fn private() -> S3Server {
    let server = S3Server::start_with(Options { anonymous: Access::NONE, ..Options::default() });
    server.put(&key("noir-1.tar.gz"), "bytes");
    server
}

/// Checks that a mount of `place` reads the artifact, signing every request or none.
#[track_caller]
fn assert_reads(place: &Place, server: &S3Server, signed: bool) {
    server.reset_counts();
    let mount = place.mount();
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes", "{}", mount.said());
    assert!(server.counts().get > 0 && server.log().iter().all(|request| request.signed == signed));
    mount.unmount();
}

/// A place without any AWS setting in its environment, and with `files` in its `~/.aws`.
fn place_with(server: &S3Server, files: &[(&str, &str)]) -> Place {
    let mut place = Place::of(server);
    place.unset("AWS_ACCESS_KEY_ID").unset("AWS_SECRET_ACCESS_KEY");
    place.cache = None;
    let dir = place.dir.path().join(".aws");
    fs::create_dir(&dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    place
}

const CREDENTIALS: &str = "[default]\naws_access_key_id = nobody\naws_secret_access_key = wrong\n\
    [ci]\naws_access_key_id = test\naws_secret_access_key = test-secret\n";

#[test]
fn credentials_from_the_environment_sign() {
    needs_fuse!();
    let server = private();
    assert_reads(&Place::of(&server), &server, true);
}

#[test]
fn no_sign_request_leaves_credentials_unused() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    let mut by_flag = Place::of(&server);
    by_flag.arg("--no-sign-request");
    assert_reads(&by_flag, &server, false);
    let mut by_params = Place::of(&server);
    by_params.env("S3_BUILD_CACHE_AWS_PARAMS", "--no-sign-request");
    assert_reads(&by_params, &server, false);
}

#[test]
fn a_profile_by_flag_params_or_variable_signs() {
    needs_fuse!();
    let server = private();
    let files = [("credentials", CREDENTIALS)];
    let mut by_flag = place_with(&server, &files);
    by_flag.arg("--profile").arg("ci");
    assert_reads(&by_flag, &server, true);
    let mut by_params = place_with(&server, &files);
    by_params.env("S3_BUILD_CACHE_AWS_PARAMS", "--profile=ci");
    assert_reads(&by_params, &server, true);
    let mut by_variable = place_with(&server, &files);
    by_variable.env("AWS_PROFILE", "ci");
    assert_reads(&by_variable, &server, true);
}

#[test]
fn a_profile_that_is_asked_for_goes_before_keys_in_the_environment() {
    needs_fuse!();
    let server = private();
    let mut place = place_with(&server, &[("credentials", CREDENTIALS)]);
    place.env("AWS_ACCESS_KEY_ID", "nobody").env("AWS_SECRET_ACCESS_KEY", "wrong");
    place.arg("--profile").arg("ci");
    assert_reads(&place, &server, true);
}

#[test]
fn keys_in_the_environment_go_before_the_default_profile() {
    needs_fuse!();
    let server = private();
    let mut place = place_with(&server, &[("credentials", CREDENTIALS)]);
    place.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test-secret");
    assert_reads(&place, &server, true);
}

#[test]
fn a_profile_whose_credentials_a_program_gives() {
    needs_fuse!();
    let server = private();
    let mut place = place_with(&server, &[]);
    let program = place.dir.path().join("credentials.sh");
    let json = r#"{"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test-secret"}"#;
    fs::write(&program, format!("#!/bin/sh\necho '{json}'\n")).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let config = format!("[profile ci]\ncredential_process = {}\n", program.display());
    fs::write(place.dir.path().join(".aws/config"), config).unwrap();
    place.arg("--profile").arg("ci");
    assert_reads(&place, &server, true);
}

#[test]
fn a_profile_that_does_not_exist_is_access_denied() {
    needs_fuse!();
    let server = private();
    let mut place = place_with(&server, &[("credentials", CREDENTIALS)]);
    place.arg("--profile").arg("missing");
    let mount = place.mount();
    wait_for("the warning", || mount.said().contains("warning"));
    let said = mount.said();
    assert!(said.contains("credentials") && said.contains("check --profile"), "{said}");
    assert!(said.lines().all(|line| line.starts_with("aztec-cache: ")), "{said}");
    assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::EACCES);
    mount.unmount();
}

#[test]
fn the_region_signed_for_is_the_flags_the_params_the_variables_the_profiles_or_the_default() {
    needs_fuse!();
    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let config = "[default]\nregion = from-profile\n[profile ci]\nregion = from-ci\n";
    for (args, env, expected) in [
        (
            &["--region", "from-flag"][..],
            &[("AWS_REGION", "no"), ("S3_BUILD_CACHE_AWS_PARAMS", "--region no")][..],
            "from-flag",
        ),
        (&[], &[("AWS_REGION", "no"), ("S3_BUILD_CACHE_AWS_PARAMS", "--region from-params")], "from-params"),
        (&[], &[("AWS_REGION", "from-variable")], "from-variable"),
        (&[], &[], "from-profile"),
        (&[], &[("AWS_PROFILE", "ci")], "from-ci"),
        (&[], &[("AWS_CONFIG_FILE", "/nonexistent")], "us-east-2"),
    ] {
        let server = RawServer::answering(answer);
        let mut place = Place::new(&server.url());
        fs::create_dir(place.dir.path().join(".aws")).unwrap();
        fs::write(place.dir.path().join(".aws/config"), config).unwrap();
        place.args.extend(args.iter().map(Into::into));
        for (name, value) in env {
            place.env(name, value);
        }
        let mount = place.mount();
        assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::ENOENT);
        let heads = server.heads();
        let scope = format!("/{expected}/s3/aws4_request");
        assert!(!heads.is_empty() && heads.iter().all(|head| head.contains(&scope)), "{expected}: {heads:?}");
        mount.unmount();
    }
}

#[test]
fn with_an_endpoint_the_bucket_is_in_the_path() {
    needs_fuse!();
    let server =
        RawServer::answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    for by_variable in [false, true] {
        let mut place = Place::new(&server.url());
        if by_variable {
            place.args.clear();
            place.env("AWS_ENDPOINT_URL", server.url());
        }
        let mount = place.mount();
        assert_eq!(errno(mount.read("noir-1.tar.gz")), libc::ENOENT);
        mount.unmount();
    }
    let host = format!("host: {}", server.url().strip_prefix("http://").unwrap());
    for head in server.heads() {
        let target = head.split(' ').nth(1).unwrap();
        assert!(target.starts_with("/aztec-ci-artifacts/"), "{head}");
        assert!(head.to_lowercase().contains(&host), "{head}");
    }
    assert!(server.heads().iter().any(|head| head.contains("/aztec-ci-artifacts/build-cache/noir-1.tar.gz")));
}

#[test]
fn prefixes_with_and_without_their_slash_and_none() {
    needs_fuse!();
    let server = S3Server::start();
    server.put("build-cache/noir-1.tar.gz", "bytes");
    server.put("build-cache-old/noir-1.tar.gz", "old bytes");
    server.put("a/b/noir-1.tar.gz", "deep bytes");
    for (remote, name, bytes) in [
        ("s3://aztec-ci-artifacts/build-cache", "noir-1.tar.gz", "bytes"),
        ("s3://aztec-ci-artifacts/build-cache/", "noir-1.tar.gz", "bytes"),
        ("s3://aztec-ci-artifacts/a/b", "noir-1.tar.gz", "deep bytes"),
        ("s3://aztec-ci-artifacts", "a/b/noir-1.tar.gz", "deep bytes"),
        ("s3://aztec-ci-artifacts/", "build-cache-old/noir-1.tar.gz", "old bytes"),
    ] {
        let mut place = Place::of(&server);
        place.env("AZTEC_CACHE_REMOTE", remote);
        let mount = place.mount();
        assert_eq!(mount.read(name).unwrap(), bytes.as_bytes(), "{remote}");
        let top = name.split('/').next().unwrap();
        assert!(mount.list("").unwrap().iter().any(|listed| listed == top), "{remote}");
        mount.unmount();
    }
}

#[test]
fn the_flag_goes_before_the_variable_and_the_variable_before_the_file() {
    needs_fuse!();
    let server = S3Server::start();
    for from in ["flag", "variable", "file"] {
        server.put(&format!("{from}/noir-1.tar.gz"), from);
    }
    let mut place = Place::of(&server);
    place.cache = None;
    place.unset("AZTEC_CACHE_REMOTE");
    let config = place.dir.path().join(".config/aztec-cache");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.toml"), "remote = 's3://aztec-ci-artifacts/file/'\n").unwrap();
    let read = |place: &Place| {
        let mount = place.mount();
        let bytes = mount.read("noir-1.tar.gz").unwrap();
        mount.unmount();
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(read(&place), "file");
    place.env("AZTEC_CACHE_REMOTE", "s3://aztec-ci-artifacts/variable/");
    assert_eq!(read(&place), "variable");
    place.arg("--remote").arg("s3://aztec-ci-artifacts/flag/");
    assert_eq!(read(&place), "flag");
}
