//! Whatever server.yml says, it is a whole configuration or its faults are shown in their places.
//!
//! - All paths of a configuration are absolute, there are loadpaths unless it says that there are
//!   none, and with `encrypt` there is a place for keys.
//! - It is the same when the file begins with a byte order mark.
//! - What it gives children as defaults makes whole specs of them.
//! - Each fault lies within the file and is shown in a few lines.

use std::{path::Path, sync::Arc};

use supervisor_rs::config::{ChildContext, Host, SERVER_BYTES_MAX, ServerSpec, server};

/// Panics when one of the properties does not hold.
pub fn holds(bytes: &[u8]) {
    for host in [of_root(), of_a_user()] {
        let path = Path::new("/etc/supervisor/server.yml");
        let read = |bytes: &[u8]| server(path, path, bytes, &host);
        let result = read(bytes);
        match &result {
            Ok(spec) => {
                is_whole(spec);
                if spec.loadpaths.is_empty() {
                    // It says so: it does not merely lack them.
                    let more = [bytes, b"\nloadpaths: [/x]\n"].concat();
                    assert!(read(&more).is_err());
                }
            }
            Err(faults) => super::text::are_diagnostics(bytes, faults),
        }
        if let Some(marked) = super::text::marked(bytes, SERVER_BYTES_MAX) {
            assert_eq!(read(&marked), result);
        }
    }
}

fn of_root() -> Host {
    Host {
        root: true,
        host_name: "alpha".to_owned(),
        xdg_state_home: None,
        home: Some("/root".into()),
        pid1: true,
    }
}

fn of_a_user() -> Host {
    Host {
        root: false,
        host_name: "beta".to_owned(),
        xdg_state_home: Some("state".into()),
        home: None,
        pid1: false,
    }
}

fn is_whole(spec: &ServerSpec) {
    assert!(!spec.encrypt || !spec.pub_keys_path.is_empty());
    let dirs = [&spec.state_dir, &spec.runtime_dir, &spec.log_dir];
    let lists = spec.loadpaths.iter().chain(&spec.pub_keys_path);
    dirs.into_iter()
        .chain(lists)
        .for_each(|path| is_usable(path));
    assert!(!spec.name.is_empty() && !spec.name.contains(char::is_control));
    assert!(spec.rescan.is_none_or(|every| !every.is_zero()));
    let context = ChildContext {
        log_dir: spec.log_dir.clone(),
        defaults: Arc::clone(&spec.defaults),
        pid1: false,
    };
    super::child_yml::holds_in(b"command: sleep 10\n", &context);
}

/// A path that means the same wherever it is used, and that the kernel takes.
pub fn is_usable(path: &Path) {
    assert!(path.is_absolute(), "{}", path.display());
    let text = path.to_str().expect("text");
    assert!(!text.contains('\0'), "{text:?}");
}
