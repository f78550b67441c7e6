//! The fields of `server.yml`: a table of them, and a rule each.
//!
//! Absent on purpose: what depends on more than one field or on the host (`server`).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    child::{self, Defaults},
    diagnostic::Span,
    fault::{Fault, Words},
    node::{Quoting, Value, plain_boolean},
    rules::{Checker, Field, Rule, rule},
    values::DURATION_MAX,
};
use crate::spec::{ChildName, Mode, OnExit};

/// More often than this a rescan would be the server's main occupation.
const RESCAN_MIN: Duration = Duration::from_secs(1);

/// The most characters of a server's name: what a host name may have.
const NAME_CHARS_MAX: usize = 255;

const MODES: Words = &["quiet", "half", "full", "sync"];

const ON_EXITS: Words = &["leave", "stop"];

const ON_OFF: Words = &["on", "off"];

/// The file as far as it was written; `None` where it says nothing.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) loadpaths: Option<Vec<PathBuf>>,
    pub(super) mode: Option<Mode>,
    pub(super) startup: BTreeSet<ChildName>,
    pub(super) encrypt: Option<bool>,
    pub(super) encrypt_at: Span,
    pub(super) pub_keys_path: Option<Vec<PathBuf>>,
    pub(super) listener_addr: Option<IpAddr>,
    pub(super) ipv6: Option<bool>,
    pub(super) listener_port: Option<u16>,
    pub(super) name: Option<String>,
    pub(super) id: Option<String>,
    pub(super) state_dir: Option<(PathBuf, Span)>,
    pub(super) runtime_dir: Option<(PathBuf, Span)>,
    pub(super) log_dir: Option<(PathBuf, Span)>,
    pub(super) on_exit: Option<OnExit>,
    pub(super) allow_unsigned_remote: Option<bool>,
    pub(super) allow_local_users: Option<Vec<String>>,
    pub(super) trusted_owners: Option<Vec<String>>,
    /// The inner `None` is `off`.
    pub(super) rescan: Option<Option<Duration>>,
    pub(super) defaults: Option<Defaults>,
}

/// The fields of `server.yml`.
pub(super) const FIELDS: &[Rule<Draft>] = &[
    rule("loadpaths", loadpaths),
    rule("mode", |c, f, d| d.mode = mode(c, f)),
    rule("startup", startup),
    rule("encrypt", encrypt),
    rule("pub_keys_path", |c, f, d| {
        d.pub_keys_path = c.each(f, Checker::directory)
    }),
    rule("listener_addr", |c, f, d| d.listener_addr = address(c, f)),
    rule("ipv6", |c, f, d| d.ipv6 = c.boolean(f)),
    rule("listener_port", |c, f, d| d.listener_port = port(c, f)),
    rule("name", |c, f, d| d.name = name(c, f)),
    rule("id", |c, f, d| d.id = uuid(c, f)),
    rule("state_dir", |c, f, d| d.state_dir = placed(c, f)),
    rule("runtime_dir", |c, f, d| d.runtime_dir = placed(c, f)),
    rule("log_dir", |c, f, d| d.log_dir = placed(c, f)),
    rule("on_exit", |c, f, d| d.on_exit = on_exit(c, f)),
    rule("allow_unsigned_remote", |c, f, d| {
        d.allow_unsigned_remote = c.boolean(f)
    }),
    rule("allow_local_users", |c, f, d| {
        d.allow_local_users = c.each(f, user)
    }),
    rule("trusted_owners", |c, f, d| {
        d.trusted_owners = c.each(f, user)
    }),
    rule("rescan", |c, f, d| d.rescan = rescan(c, f)),
    rule("defaults", |c, f, d| d.defaults = child::defaults(c, f)),
];

fn loadpaths(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Draft) {
    if field.is_nothing() {
        checker.fault(field.span(), Fault::NoValue { field: field.name });
        return;
    }
    let mut seen = BTreeSet::new();
    draft.loadpaths = checker.each(field, |checker, item| {
        let path = checker.directory(item)?;
        if !seen.insert(path.clone()) {
            let found = path.to_string_lossy().as_ref().into();
            checker.fault(
                item.span(),
                Fault::ListedTwice {
                    field: item.name,
                    found,
                },
            );
            return None;
        }
        Some(path)
    });
}

fn startup(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Draft) {
    let names: Option<Vec<ChildName>> = checker.each(field, |checker, item| {
        let name = checker.line(item)?.parse();
        name.map_err(|source| {
            checker.fault(
                item.span(),
                Fault::ChildName {
                    field: item.name,
                    source,
                },
            )
        })
        .ok()
    });
    draft.startup = names.into_iter().flatten().collect();
}

fn mode(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Mode> {
    let all = [Mode::Quiet, Mode::Half, Mode::Full, Mode::Sync];
    let word = checker.word(field, MODES)?;
    all.into_iter().find(|mode| mode.to_string() == word)
}

fn encrypt(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Draft) {
    draft.encrypt_at = field.span();
    draft.encrypt = match &field.node.value {
        Value::Scalar {
            quoting: Quoting::Text,
            ..
        } => checker.word(field, ON_OFF).map(|word| word == "on"),
        Value::Scalar {
            quoting: Quoting::Plain,
            ..
        }
        | Value::List(_)
        | Value::Mapping(_) => {
            let value = plain_boolean(field.node);
            if value.is_none() {
                checker.form(field, "`on` or `off`", None);
            }
            value
        }
    };
}

fn address(checker: &mut Checker<'_>, field: Field<'_>) -> Option<IpAddr> {
    let text = checker.text(field)?;
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let help = if text.eq_ignore_ascii_case("localhost") {
        "write `127.0.0.1` or `::1`"
    } else if text.starts_with('[') && text.ends_with(']') {
        "write it without the brackets"
    } else if text.parse::<SocketAddr>().is_ok() {
        "write the port as `listener_port`"
    } else {
        "such as `127.0.0.1` or `::1`; a name is not looked up"
    };
    checker.fault(
        field.span(),
        Fault::Address {
            field: field.name,
            found: text.into(),
            help,
        },
    );
    None
}

fn port(checker: &mut Checker<'_>, field: Field<'_>) -> Option<u16> {
    checker
        .whole(field, 0..=u64::from(u16::MAX))
        .and_then(|port| u16::try_from(port).ok())
}

fn name(checker: &mut Checker<'_>, field: Field<'_>) -> Option<String> {
    let name = checker.line(field)?;
    if name.chars().count() > NAME_CHARS_MAX {
        checker.fault(
            field.span(),
            Fault::LongText {
                field: field.name,
                max: NAME_CHARS_MAX,
            },
        );
        return None;
    }
    Some(name.to_owned())
}

fn uuid(checker: &mut Checker<'_>, field: Field<'_>) -> Option<String> {
    let text = checker.text(field)?;
    let lens: Vec<usize> = text.split('-').map(str::len).collect();
    let digits = text.chars().all(|c| c == '-' || c.is_ascii_hexdigit());
    if digits && lens == [8, 4, 4, 4, 12] {
        return Some(text.to_ascii_lowercase());
    }
    checker.fault(field.span(), Fault::Uuid { found: text.into() });
    None
}

/// A directory and where it was named.
fn placed(checker: &mut Checker<'_>, field: Field<'_>) -> Option<(PathBuf, Span)> {
    Some((checker.directory(field)?, field.span()))
}

fn on_exit(checker: &mut Checker<'_>, field: Field<'_>) -> Option<OnExit> {
    checker.word(field, ON_EXITS).map(|word| {
        if word == "stop" {
            OnExit::Stop
        } else {
            OnExit::Leave
        }
    })
}

/// A user's name, or a number as it stands for a user without one.
fn user(checker: &mut Checker<'_>, field: Field<'_>) -> Option<String> {
    let name = checker.line(field)?;
    if name.contains([':', '/', ',']) || name.contains(char::is_whitespace) {
        checker.fault(
            field.span(),
            Fault::UserName {
                field: field.name,
                found: name.into(),
            },
        );
        return None;
    }
    Some(name.to_owned())
}

fn rescan(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Option<Duration>> {
    if let Value::Scalar { text, .. } = &field.node.value
        && text == "off"
    {
        return Some(None);
    }
    checker.duration(field, RESCAN_MIN..=DURATION_MAX).map(Some)
}
