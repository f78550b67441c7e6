//! Whatever a child's file says, it is a whole spec or its faults are shown in their places.
//!
//! - A spec names a program, holds no NUL, and its paths are absolute.
//! - It is the same after it was recorded and read again, and when the file begins with a byte
//!   order mark.
//! - Each fault lies within the file and is shown in a few lines.

use std::path::Path;

use supervisor_rs::{
    config::{CHILD_BYTES_MAX, ChildContext, child},
    spec::{Sink, Spec},
};

const PATH: &str = "/etc/children/web.yml";

/// Panics when one of the properties does not hold.
pub fn holds(bytes: &[u8]) {
    for pid1 in [false, true] {
        let context = ChildContext {
            log_dir: "/logs".into(),
            defaults: Default::default(),
            pid1,
        };
        holds_in(bytes, &context);
    }
}

/// As [`holds`], in this context.
pub fn holds_in(bytes: &[u8], context: &ChildContext) {
    let name = "web".parse().expect("a name");
    let read = |bytes: &[u8]| child(&name, Path::new(PATH), bytes, context);
    let result = read(bytes);
    match &result {
        Ok(spec) => is_whole(spec),
        Err(faults) => super::text::are_diagnostics(bytes, faults),
    }
    if let Some(marked) = super::text::marked(bytes, CHILD_BYTES_MAX) {
        assert_eq!(read(&marked), result);
    }
}

fn is_whole(spec: &Spec) {
    assert_eq!(spec.path, Path::new(PATH));
    assert!(!spec.command.is_empty() && !spec.command[0].is_empty());
    assert!(spec.command.iter().all(|word| !word.contains('\0')));
    super::server_yml::is_usable(&spec.workdir);
    for sink in [&spec.stdout, &spec.stderr] {
        match sink {
            Sink::Inherit => {}
            Sink::File { path, .. } => super::server_yml::is_usable(path),
        }
    }
    let record = serde_json::to_string(spec).expect("a spec can be recorded");
    let again: Spec = serde_json::from_str(&record).expect("a record can be read");
    assert_eq!(again, *spec);
}
