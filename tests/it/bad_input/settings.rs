//! Settings that are wrong: refused before anything is mounted, by the name under which they were given.

use std::fs;

use aztec_cache_test_support::s3::S3Server;

use crate::common::{Place, assert_refused, key, mounted, needs_fuse};

/// A place whose remote is never asked.
fn place() -> Place {
    Place::new("http://127.0.0.1:1")
}

/// Checks that `mount` refuses a place made so as wrong usage, naming `parts`, with nothing mounted or made.
#[track_caller]
fn assert_usage_error(make: impl FnOnce(&mut Place) -> &mut Place, parts: &[&str]) {
    let mut place = place();
    make(&mut place);
    let (output, _guard) = place.mount_daemon(&[]);
    assert_refused(&output, 2, parts);
    assert_eq!(mounted(&place.mountpoint()), None);
    assert!(!place.mountpoint().exists() && !place.cache().exists(), "something was made");
}

#[test]
fn a_malformed_remote() {
    for (url, part) in [
        ("build-cache", "write s3://BUCKET/PREFIX/, https://HOST/PATH/"),
        ("s3://", "write s3://BUCKET/PREFIX/"),
        ("s3://b/", "write s3://BUCKET/PREFIX/"),
        ("s3://bucket//prefix/", "single slashes"),
        ("ftp://host/dir/", "write s3://BUCKET/PREFIX/, https://HOST/PATH/"),
        ("file://relative/dir/", "write file:///DIR/"),
        ("https:///dir/", "write https://HOST/PATH/"),
        ("http://host/dir/?list", "write https://HOST/PATH/"),
    ] {
        let quoted = format!("'{url}'");
        assert_usage_error(|place| place.arg("--remote").arg(url), &["--remote: ", &quoted, part]);
        assert_usage_error(
            |place| place.env("AZTEC_CACHE_REMOTE", url),
            &["AZTEC_CACHE_REMOTE: ", &quoted, part],
        );
    }
    assert_usage_error(
        |place| place.arg("--remote").arg("s3://first/").arg("--remote").arg("second"),
        &["--remote: ", "'second'"],
    );
    assert_usage_error(
        |place| place.env("AZTEC_CACHE_REMOTE", "s3://first/ http://user:secret@/"),
        &["AZTEC_CACHE_REMOTE: ", "'http:///'"],
    );
}

#[test]
fn a_malformed_endpoint() {
    for url in ["localhost:9000", "s3.example.com", "http://", "http:///x", "ftp://host", "http://a b"] {
        let quoted = format!("'{url}'");
        assert_usage_error(
            |place| {
                place.args.clear();
                place.arg("--endpoint-url").arg(url)
            },
            &["--endpoint-url: ", &quoted, "write http://HOST:PORT"],
        );
    }
}

#[test]
fn a_malformed_size() {
    for (flag, variable) in
        [("--max-cache-size", "AZTEC_CACHE_MAX_SIZE"), ("--min-free", "AZTEC_CACHE_MIN_FREE")]
    {
        for text in ["lots", "10Q", "-1", "1 0"] {
            let quoted = format!("'{text}'");
            let parts = ["is not a size; write it like 500MB", &quoted];
            let argument = format!("{flag}={text}");
            assert_usage_error(|place| place.arg(argument), &[&parts[..], &[flag]].concat());
            assert_usage_error(|place| place.env(variable, text), &[&parts[..], &[variable]].concat());
        }
    }
    assert_usage_error(|place| place.arg("--min-free=120%"), &["--min-free", "'120%'", "0% to 99%"]);
}

#[test]
fn a_malformed_duration() {
    for text in ["soon", "10", "-5s", "5 parsecs"] {
        let quoted = format!("'{text}'");
        let parts = ["is not a duration; write never, or it like 90s", &quoted];
        let argument = format!("--revalidate={text}");
        assert_usage_error(|place| place.arg(argument), &[&parts[..], &["--revalidate"]].concat());
        assert_usage_error(
            |place| place.env("AZTEC_CACHE_REVALIDATE", text),
            &[&parts[..], &["AZTEC_CACHE_REVALIDATE"]].concat(),
        );
    }
}

#[test]
fn other_malformed_values() {
    assert_usage_error(|place| place.arg("--umask=888"), &["--umask", "'888'", "022"]);
    assert_usage_error(|place| place.arg("--uid=me"), &["--uid", "'me'"]);
    assert_usage_error(|place| place.arg("-o").arg("frobnicate"), &["-o", "'frobnicate'", "--help"]);
    assert_usage_error(|place| place.arg("--log-level=loud"), &["--log-level", "'loud'", "debug"]);
    assert_usage_error(|place| place.env("AZTEC_CACHE_LOG", "loud"), &["AZTEC_CACHE_LOG", "'loud'"]);
    assert_usage_error(|place| place.env("AZTEC_CACHE_READ_ONLY", "maybe"), &["AZTEC_CACHE_READ_ONLY"]);
    assert_usage_error(|place| place.arg("--auto-unmount"), &["--auto-unmount", "--allow-other"]);
}

#[test]
fn malformed_aws_params() {
    for (text, parts) in [
        ("--endpoint-url 'http://127.0.0.1:1", ["unbalanced quote", "close it"]),
        ("--region \"us-east-2", ["unbalanced quote", "close it"]),
        ("--frobnicate 1", ["unknown option '--frobnicate'", "global options only"]),
        ("s3 cp", ["unknown option 's3'", "global options only"]),
        ("--region", ["--region needs a value", "--region VALUE"]),
        ("--endpoint-url localhost", ["'localhost'", "http://HOST:PORT"]),
    ] {
        assert_usage_error(
            |place| {
                place.args.clear();
                place.env("S3_BUILD_CACHE_AWS_PARAMS", text)
            },
            &[&parts[..], &["S3_BUILD_CACHE_AWS_PARAMS"]].concat(),
        );
    }
}

#[test]
fn an_aws_param_without_meaning_here_is_warned_about() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    let mut place = Place::of(&server);
    place.env("S3_BUILD_CACHE_AWS_PARAMS", "--output json --no-cli-pager");
    let mount = place.mount();
    let said = mount.said();
    for option in ["--output", "--no-cli-pager"] {
        let line = format!("aztec-cache: warning: S3_BUILD_CACHE_AWS_PARAMS: {option} has no meaning here");
        assert_eq!(said.lines().filter(|said| said.starts_with(&line)).count(), 1, "{said}");
    }
    assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
    mount.unmount();
}

#[test]
fn the_endpoint_may_be_given_in_the_aws_params_alone() {
    needs_fuse!();
    let server = S3Server::start();
    server.put(&key("noir-1.tar.gz"), "bytes");
    for params in [format!("--endpoint-url {}", server.url()), format!("--endpoint-url='{}'", server.url())] {
        let mut place = Place::of(&server);
        place.args.clear();
        place.env("S3_BUILD_CACHE_AWS_PARAMS", params);
        let mount = place.mount();
        assert_eq!(mount.read("noir-1.tar.gz").unwrap(), b"bytes");
        mount.unmount();
    }
    assert!(server.log().iter().all(|request| request.signed));
}

#[test]
fn unknown_flags_and_commands() {
    for (args, part) in [
        (&["mount", "--frobnicate"][..], "'--frobnicate'"),
        (&["frobnicate"], "'frobnicate'"),
        (&[], "subcommand"),
        (&["mount", "a", "b"], "'b'"),
        (&["unmount", "--lazy"], "'--lazy'"),
        (&["mount", "--remote"], "--remote"),
        (&["mount", "--quiet", "-v"], "--quiet"),
    ] {
        let output = place().command(args).output().unwrap();
        assert_refused(&output, 2, &[part, "see 'aztec-cache --help'"]);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for (args, part) in [(&["--help"], "umount"), (&["--version"], "aztec-cache ")] {
        let output = place().command(args).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        assert!(String::from_utf8_lossy(&output.stdout).contains(part));
    }
}

#[test]
fn a_bad_configuration_file() {
    for (text, parts) in [
        ("region = 'x'\ncach-dir = '/x'\n", &["line 2", "cach-dir"][..]),
        ("# a comment\n\nregion =\n", &["line 3"]),
        ("read-only = 'yes'\n", &["line 1", "expected a boolean"]),
        ("max-cache-size = '10Q'\n", &["max-cache-size in the configuration file", "'10Q'"]),
        ("remote = 'bucket'\n", &["remote in the configuration file", "'bucket'"]),
    ] {
        let mut place = place();
        place.unset("AZTEC_CACHE_REMOTE");
        let file = place.dir.path().join("config.toml");
        fs::write(&file, text).unwrap();
        let by_flag = place.mount_daemon(&["--config", file.to_str().unwrap()]).0;
        assert_refused(&by_flag, 2, parts);
        place.env("AZTEC_CACHE_CONFIG", &file);
        assert_refused(&place.mount_daemon(&[]).0, 2, parts);
        let default = place.dir.path().join(".config/aztec-cache");
        fs::create_dir_all(&default).unwrap();
        fs::rename(&file, default.join("config.toml")).unwrap();
        assert_refused(&place.unset("AZTEC_CACHE_CONFIG").mount_daemon(&[]).0, 2, parts);
    }
    assert_usage_error(
        |place| place.arg("--config").arg("/nonexistent/config.toml"),
        &["--config", "/nonexistent/config.toml", "name a readable file"],
    );
}

#[test]
fn a_bad_ca_bundle() {
    needs_fuse!();
    assert_usage_error(
        |place| place.arg("--ca-bundle").arg("/nonexistent.pem"),
        &["--ca-bundle", "/nonexistent.pem", "PEM"],
    );
    let place = place();
    let garbage = "-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    for (name, text) in [("empty.pem", ""), ("text.pem", "no certificate"), ("garbage.pem", garbage)] {
        let path = place.dir.path().join(name);
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        assert_refused(&place.mount_daemon(&["--ca-bundle", path]).0, 2, &["--ca-bundle", path, "PEM"]);
        assert_eq!(mounted(&place.mountpoint()), None);
    }
}

#[test]
fn a_log_file_that_cannot_be_written() {
    needs_fuse!();
    let place = place();
    let path = place.dir.path().join("missing/log");
    let path = path.to_str().unwrap();
    assert_refused(&place.mount_daemon(&["--log-file", path]).0, 2, &["--log-file", path, "may write"]);
}
