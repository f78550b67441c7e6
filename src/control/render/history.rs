//! The history of a child for people: one run a line, the newest first.

use serde::Deserialize;
use serde_json::Value;

use super::table::{Paint, Table, clean};
use crate::spec::Circumstances;

/// A run, whatever a newer server may say of it.
#[derive(Debug, Deserialize)]
pub(super) struct Run {
    run: u64,
    started_at: Option<String>,
    #[serde(default)]
    started_by: Value,
    ended_at: Option<String>,
    #[serde(default)]
    exit: Value,
    #[serde(default)]
    ended_by: Value,
    reason: Option<String>,
    #[serde(flatten)]
    circumstances: Circumstances,
}

/// The runs as a table under a line of their own; nothing where there are none.
pub(super) fn table(runs: &[Run], paint: Paint) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let mut table = Table::headed([
        "RUN",
        "STARTED",
        "STARTED BY",
        "ENDED",
        "EXIT",
        "ENDED BY",
        "NOTE",
    ]);
    for run in runs {
        let text = |text: &Option<String>| text.as_deref().map(clean).unwrap_or_default();
        let reason = run.reason.as_deref().and_then(|it| it.lines().next());
        table.row([
            run.run.to_string(),
            text(&run.started_at),
            given_by(&run.started_by),
            text(&run.ended_at),
            super::check::exit_word(&run.exit),
            given_by(&run.ended_by),
            reason
                .map(clean)
                .or_else(|| run.circumstances.words().map(str::to_owned))
                .unwrap_or_default(),
        ]);
    }
    format!("\n{}", table.text(paint))
}

/// `command, key deploy, 192.0.2.7:40000`
pub(super) fn given_by(by: &Value) -> String {
    let member = |key: &str| by.get(key).and_then(Value::as_str).map(clean);
    let key = member("key").map(|name| format!("key {name}"));
    let user = by.get("user").and_then(Value::as_u64);
    let user = user.map(|uid| format!("user {uid}"));
    let parts = [member("cause"), key, user, member("peer")];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join(", ")
}
