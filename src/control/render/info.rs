//! `info` for people: names and values.

use super::{
    super::protocol::Fields,
    check::span,
    table::{Paint, Table, clean, clean_lines},
    typed,
};
use crate::command::Info;

/// Everything about the server.
pub(super) fn info(fields: &Fields, paint: Paint) -> Option<String> {
    let info: Info = typed(fields)?;
    let mut keys = Table::keys();
    keys.key("name", &clean(&info.name));
    keys.key("id", &clean(&info.id));
    keys.key("version", &clean(&info.version));
    keys.key("pid", &info.pid.to_string());
    let started = format!("{} (up {})", info.started_at, span(info.uptime_ms));
    keys.key("started", &started);
    keys.key("listens at", &clean(&info.listener));
    keys.key("encrypt", if info.encrypt { "on" } else { "off" });
    keys.key("keys", &public_keys(&info));
    keys.key("mode", &info.mode.to_string());
    let on_exit = match info.on_exit {
        crate::spec::OnExit::Leave => "leave",
        crate::spec::OnExit::Stop => "stop",
    };
    keys.key("on exit", on_exit);
    keys.key("config", &clean(&info.config));
    keys.key("loadpaths", &loadpaths(&info));
    let startup: Vec<&str> = info.startup.iter().map(|child| child.as_str()).collect();
    keys.key("startup", &startup.join(" "));
    keys.key("state dir", &clean(&info.state_dir));
    keys.key("runtime dir", &clean(&info.runtime_dir));
    keys.key("log dir", &clean(&info.log_dir));
    let count = |(state, count): (&String, &usize)| format!("{count} {}", clean(state));
    let counts: Vec<String> = info.counts.iter().map(count).collect();
    keys.key("children", &counts.join(", "));
    let line = |(name, gives): (&String, &String)| format!("{}: {}", clean(name), clean(gives));
    let capabilities: Vec<String> = info.capabilities.iter().map(line).collect();
    keys.key("capabilities", &capabilities.join("\n"));
    let restart: Vec<String> = info
        .needs_restart
        .iter()
        .map(|field| clean(field))
        .collect();
    keys.key("needs a restart", &restart.join(", "));
    let mut text = keys.text(paint);
    for fault in &info.faults {
        text.push('\n');
        text.push_str(&clean_lines(fault));
        text.push('\n');
    }
    Some(text)
}

fn public_keys(info: &Info) -> String {
    let line = |key: &crate::command::InfoKey| {
        let scope = match &key.scope {
            Some(file) => format!(", as far as {} lets it", clean(file)),
            None => String::new(),
        };
        format!(
            "{} ({} bits, {}, {}{scope})",
            clean(&key.name),
            key.bits,
            clean(&key.fingerprint),
            clean(&key.path)
        )
    };
    let lines: Vec<String> = info.keys.iter().map(line).collect();
    lines.join("\n")
}

fn loadpaths(info: &Info) -> String {
    let line = |loadpath: &crate::command::InfoLoadpath| {
        let children = match loadpath.children {
            1 => "1 child".to_owned(),
            count => format!("{count} children"),
        };
        format!(
            "{} ({}, {children})",
            clean(&loadpath.path),
            clean(&loadpath.state)
        )
    };
    let lines: Vec<String> = info.loadpaths.iter().map(line).collect();
    lines.join("\n")
}
