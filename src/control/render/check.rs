//! `check` for people: a table of children, or everything about one.

use serde::Deserialize;
use serde_json::Value;

use super::{
    super::protocol::Fields,
    history,
    table::{Paint, Table, clean, clean_lines},
    typed,
};

/// An answer to `check`, read no more strictly than it must be to be shown.
#[derive(Debug, Deserialize)]
struct Checked {
    children: Vec<Row>,
    #[serde(default)]
    others: u64,
    #[serde(default)]
    notes: Vec<String>,
}

/// A child, whatever a newer server may say of it.
#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    state: String,
    pid: Option<i64>,
    run: Option<u64>,
    started_at: Option<String>,
    uptime_ms: Option<u64>,
    #[serde(default)]
    restarts: u64,
    #[serde(default)]
    hold: bool,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    output: Value,
    #[serde(default)]
    exit: Value,
    reason: Option<String>,
    next: Option<Next>,
    held_since: Option<String>,
    #[serde(default)]
    faults: Vec<String>,
    #[serde(default)]
    depends_on: Vec<Dependency>,
    #[serde(default)]
    details: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    history: Vec<history::Run>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    condition: String,
    met: bool,
}

#[derive(Debug, Deserialize)]
struct Next {
    action: String,
    at: String,
}

/// Whether the one child that was asked for has a live process.
pub(super) fn has_live_process(fields: &Fields) -> bool {
    typed::<Checked>(fields).is_some_and(|checked| {
        checked
            .children
            .first()
            .is_some_and(|row| row.pid.is_some())
    })
}

/// The table.
pub(super) fn many(fields: &Fields, paint: Paint) -> Option<String> {
    let checked: Checked = typed(fields)?;
    let mut text = String::new();
    if checked.children.is_empty() {
        let none = match checked.others {
            0 => "no children are known\n",
            _ => "no child has a live process\n",
        };
        text.push_str(none);
    } else {
        let mut table = Table::headed([
            "NAME", "STATE", "PID", "RUN", "UPTIME", "RESTARTS", "CONFIG", "EXIT", "NOTE",
        ]);
        for row in &checked.children {
            table.row([
                clean(&row.name),
                state(row),
                row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                row.run.map(|run| run.to_string()).unwrap_or_default(),
                row.uptime_ms.map(span).unwrap_or_default(),
                row.restarts.to_string(),
                member(&row.config, "status"),
                exit_word(&row.exit),
                note(row),
            ]);
        }
        text.push_str(&table.text(paint));
        let faulty = |row: &&Row| !row.faults.is_empty() || is_conflict(row);
        if let Some(row) = checked.children.iter().find(faulty) {
            let name = clean(&row.name);
            text.push_str(&format!(
                "`check {name}` shows what is wrong with its file\n"
            ));
        }
    }
    match checked.others {
        0 => {}
        1 => text.push_str("1 other without a live process, `check --all` shows it too\n"),
        others => text.push_str(&format!(
            "{others} others without a live process, `check --all` shows them too\n"
        )),
    }
    text.push_str(&notes(&checked.notes));
    Some(text)
}

/// Everything about one child.
pub(super) fn one(fields: &Fields, paint: Paint) -> Option<String> {
    let checked: Checked = typed(fields)?;
    let row = checked.children.first()?;
    let mut keys = Table::keys();
    keys.key("name", &clean(&row.name));
    keys.key("state", &state(row));
    keys.key("reason", &clean_lines(row.reason.as_deref().unwrap_or("")));
    let number = |number: Option<String>| number.unwrap_or_default();
    keys.key("pid", &number(row.pid.map(|pid| pid.to_string())));
    keys.key("run", &number(row.run.map(|run| run.to_string())));
    keys.key("started", &started(row));
    keys.key("restarts", &row.restarts.to_string());
    keys.key("exit", &exit(&row.exit));
    if let Some(next) = &row.next {
        keys.key("next", &clean(&format!("{} at {}", next.action, next.at)));
    }
    keys.key("hold", &hold(row));
    keys.key("config", &config(&row.config));
    keys.key("digest", &member(&row.config, "digest"));
    keys.key("stdout", &member(&row.output, "stdout"));
    keys.key("stderr", &member(&row.output, "stderr"));
    keys.key("depends on", &depends_on(&row.depends_on));
    for (title, detail) in &row.details {
        keys.key(&clean(title), &clean_lines(detail));
    }
    let mut text = keys.text(paint);
    for fault in &row.faults {
        text.push('\n');
        text.push_str(&clean_lines(fault));
        text.push('\n');
    }
    text.push_str(&history::table(&row.history, paint));
    text.push_str(&notes(&checked.notes));
    Some(text)
}

fn notes(notes: &[String]) -> String {
    let line = |note: &String| format!("note: {}\n", clean_lines(note));
    notes.iter().map(line).collect()
}

fn state(row: &Row) -> String {
    let held = if row.hold { ", held" } else { "" };
    format!("{}{held}", clean(&row.state))
}

fn started(row: &Row) -> String {
    let at = row.started_at.as_deref().map(clean).unwrap_or_default();
    match row.uptime_ms {
        Some(uptime) => format!("{at} (up {})", span(uptime)),
        None => at,
    }
}

fn hold(row: &Row) -> String {
    if !row.hold {
        return String::new();
    }
    let since = row.held_since.as_deref().map(clean);
    let since = since.map(|at| format!("since {at}, ")).unwrap_or_default();
    format!("{since}`start {}` releases it", clean(&row.name))
}

fn depends_on(all: &[Dependency]) -> String {
    let line = |it: &Dependency| {
        let met = match it.met {
            true => "yes",
            false => "not yet",
        };
        clean(&format!("{} {}: {met}", it.name, it.condition))
    };
    let lines: Vec<String> = all.iter().map(line).collect();
    lines.join("\n")
}

fn config(config: &Value) -> String {
    let status = member(config, "status");
    let paths: Vec<&str> = match config.get("paths").and_then(Value::as_array) {
        Some(paths) => paths.iter().filter_map(Value::as_str).collect(),
        None => Vec::new(),
    };
    if paths.is_empty() {
        return format!("{} ({status})", member(config, "path"));
    }
    let paths: Vec<String> = paths.into_iter().map(clean).collect();
    let paths = paths.join("\n");
    format!("{paths} ({status}: none of them is used; remove or rename all but one)")
}

pub(super) fn exit_word(exit: &Value) -> String {
    match (exit.get("code"), exit.get("signal")) {
        (Some(code), _) => format!("code {}", clean(&code.to_string())),
        (None, Some(signal)) => clean(signal.as_str().unwrap_or_default()),
        (None, None) if exit.is_object() => "unknown".to_owned(),
        (None, None) => String::new(),
    }
}

fn exit(exit: &Value) -> String {
    let word = exit_word(exit);
    let at = member(exit, "at");
    match (word.is_empty(), at.is_empty()) {
        (true, _) => String::new(),
        (false, true) => word,
        (false, false) => format!("{word} at {at}"),
    }
}

/// What the table tells besides: the first thing an operator should know.
fn note(row: &Row) -> String {
    let mut notes = Vec::new();
    if let Some(reason) = row
        .reason
        .as_deref()
        .and_then(|reason| reason.lines().next())
    {
        // The way out, as the whole answer to `check NAME` has it, would make the table too wide.
        let what = reason.split("; hint: ").next().unwrap_or(reason);
        notes.push(clean(what));
    }
    if let Some(next) = &row.next {
        notes.push(clean(&format!("next {} at {}", next.action, next.at)));
    }
    match row.faults.len() {
        0 => {}
        1 => notes.push("1 fault".to_owned()),
        count => notes.push(format!("{count} faults")),
    }
    if is_conflict(row) {
        notes.push("several files have this name".to_owned());
    }
    notes.join("; ")
}

fn is_conflict(row: &Row) -> bool {
    row.config.get("status").and_then(Value::as_str) == Some("conflict")
}

fn member(object: &Value, key: &str) -> String {
    clean(object.get(key).and_then(Value::as_str).unwrap_or_default())
}

/// A span of time in its two greatest units.
pub(super) fn span(millis: u64) -> String {
    let seconds = millis / 1_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    if seconds == 0 {
        format!("{millis}ms")
    } else if minutes == 0 {
        format!("{seconds}s")
    } else if hours == 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else {
        format!("{days}d{:02}h", hours % 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_shown_in_two_units() {
        for (millis, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (61_000, "1m01s"),
            (3_600_000, "1h00m"),
            (90_000_000, "1d01h"),
            (u64::MAX, "213503982334d14h"),
        ] {
            assert_eq!(span(millis), text);
        }
    }
}
