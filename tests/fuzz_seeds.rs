//! What the fuzz targets check, over the inputs that fuzzing begins with: so that the targets
//! compile and what they found stays mended, without a fuzzer.

#[path = "../fuzz/properties/mod.rs"]
mod properties;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Runs a target over all files of its folder of seeds and of these others, which `fuzz/run` adds
/// as well.
fn over_seeds(target: &str, others: &[&str], holds: fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = format!("fuzz/seeds/{target}");
    let mut broken = Vec::new();
    for folder in others.iter().chain([&own.as_str()]) {
        let entries = fs::read_dir(root.join(folder)).expect("a folder of seeds");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let files: Vec<_> = paths.filter(|path| path.is_file()).collect();
        assert!(!files.is_empty(), "{folder} is empty");
        for file in files {
            let bytes = fs::read(&file).expect("a seed");
            if catch_unwind(AssertUnwindSafe(|| holds(&bytes))).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn request_lines_hold() {
    over_seeds("request_line", &[], properties::request_line::holds);
}

#[test]
fn tokens_hold() {
    over_seeds("token", &[], properties::token::holds);
}

#[test]
fn key_files_hold() {
    over_seeds("key_file", &["fixtures/keys"], properties::key_file::holds);
}

#[test]
fn key_scopes_hold() {
    let others = ["fixtures/config/ok", "fixtures/config/bad"];
    over_seeds("key_scope", &others, properties::key_scope::holds);
}

#[test]
fn record_files_hold() {
    over_seeds("record_file", &[], properties::record_file::holds);
}

#[test]
fn server_ymls_hold() {
    let others = ["fixtures/config/ok", "fixtures/config/bad", "fixtures/demo"];
    over_seeds("server_yml", &others, properties::server_yml::holds);
}

#[test]
fn child_ymls_hold() {
    let others = [
        "fixtures/config/ok",
        "fixtures/config/ok/original",
        "fixtures/config/bad",
        "fixtures/demo/children",
    ];
    over_seeds("child_yml", &others, properties::child_yml::holds);
}
