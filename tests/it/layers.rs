//! Who may import whom: the table of ARCHITECTURE.md, checked against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Each module with what it imports. A module stands below everything that it imports, so there are no circles.
const LAYERS: &[(&str, &[&str])] = &[
    ("checksum", &[]),
    ("object", &["checksum"]),
    ("error", &[]),
    ("metrics", &[]),
    ("errno", &["error"]),
    ("answer", &["error"]),
    ("single_flight", &["error"]),
    ("cli", &["error"]),
    ("config", &["cli", "error"]),
    ("logging", &["config", "error"]),
    ("daemon", &["error"]),
    ("mountpoint", &["error"]),
    ("store", &["answer", "checksum", "config", "error", "metrics", "object"]),
    ("cache", &["checksum", "config", "error", "object"]),
    ("archive", &[]),
    ("upload", &["answer", "archive", "cache", "checksum", "config", "error", "object", "store"]),
    ("extract", &["archive", "error"]),
    ("verify", &["answer", "archive", "cache", "object"]),
    ("coherence", &["cache", "error", "object"]),
    ("fill", &["answer", "cache", "checksum", "error", "object", "store"]),
    (
        "download",
        &[
            "answer",
            "cache",
            "checksum",
            "config",
            "error",
            "fill",
            "metrics",
            "object",
            "single_flight",
            "store",
        ],
    ),
    ("fetch", &["cache", "download", "fill", "metrics", "object", "store"]),
    ("streams", &["fetch"]),
    ("listing", &["answer", "cache", "coherence", "error", "object", "single_flight", "store"]),
    ("lookup", &["answer", "coherence", "error", "listing", "object", "single_flight", "store"]),
    ("process", &["error"]),
    ("spooled", &["answer", "error", "listing", "lookup", "object", "process", "upload"]),
    ("status", &["cache", "error", "fetch", "metrics", "object", "spooled", "store", "upload"]),
    ("nodes", &["coherence", "object", "spooled"]),
    ("handles", &["answer", "download", "error", "fetch", "listing", "metrics", "object"]),
    (
        "filesystem",
        &[
            "answer",
            "cache",
            "coherence",
            "config",
            "error",
            "fetch",
            "handles",
            "listing",
            "lookup",
            "nodes",
            "object",
            "process",
            "spooled",
            "store",
            "upload",
        ],
    ),
    ("passthrough", &[]),
    ("privilege", &[]),
    ("fuse", &["answer", "errno", "error", "filesystem", "metrics", "passthrough", "streams"]),
    (
        "engine",
        &[
            "answer",
            "cache",
            "coherence",
            "config",
            "error",
            "fetch",
            "fill",
            "handles",
            "listing",
            "object",
            "store",
            "upload",
        ],
    ),
    (
        "mount",
        &[
            "cache",
            "config",
            "engine",
            "error",
            "fetch",
            "filesystem",
            "fill",
            "fuse",
            "mountpoint",
            "passthrough",
            "privilege",
            "spooled",
            "status",
            "store",
            "streams",
            "upload",
            "verify",
        ],
    ),
    (
        "commands",
        &[
            "cache",
            "cli",
            "coherence",
            "config",
            "daemon",
            "engine",
            "error",
            "extract",
            "handles",
            "listing",
            "logging",
            "mount",
            "mountpoint",
            "object",
            "privilege",
            "status",
            "store",
            "upload",
            "verify",
        ],
    ),
];

#[test]
fn modules_import_what_the_table_says() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for_each_source(&src, &mut |path, text| {
        let relative = path.strip_prefix(&src).expect("it lies below");
        let first = relative.components().next().expect("a component").as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if !["lib", "main"].contains(&module.as_str()) {
            imports
                .entry(module.clone())
                .or_default()
                .extend(imported(text).filter(|other| *other != module));
        }
    });
    let table: BTreeMap<String, BTreeSet<String>> = LAYERS
        .iter()
        .map(|(module, others)| (module.to_string(), others.iter().map(|o| o.to_string()).collect()))
        .collect();
    for (module, others) in &imports {
        assert_eq!(table.get(module), Some(others), "the imports of {module} differ from the table (left)");
    }
    assert_eq!(table.len(), imports.len(), "a module of the table is gone");
}

#[test]
fn the_table_has_no_circles() {
    for (index, (module, others)) in LAYERS.iter().enumerate() {
        for other in *others {
            let below = LAYERS[..index].iter().any(|(lower, _)| lower == other);
            assert!(below, "{module} imports {other}, which does not stand below it");
        }
    }
}

#[test]
fn no_file_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["src", "tests", "examples"].into_iter().filter(|dir| root.join(dir).exists()) {
        for_each_source(&root.join(dir), &mut |path, text| {
            assert!(text.lines().count() <= 600, "{}: over 600 lines; make it two rooms", path.display());
        });
    }
}

/// The modules named in `crate::…` paths outside of a file's unit tests.
fn imported(text: &str) -> impl Iterator<Item = String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default(),
            None => rest,
        };
        let take = if rest.starts_with('{') { usize::MAX } else { 1 };
        for item in list.split(',').take(take) {
            let name: String = item.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.insert(name);
        }
    }
    names.into_iter().filter(|name| !name.is_empty())
}

fn for_each_source(dir: &Path, visit: &mut dyn FnMut(&Path, &str)) {
    for entry in
        fs::read_dir(dir).expect("a readable directory").map(|entry| entry.expect("a readable entry"))
    {
        let path = entry.path();
        if path.is_dir() {
            for_each_source(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path, &fs::read_to_string(&path).expect("source text"));
        }
    }
}
