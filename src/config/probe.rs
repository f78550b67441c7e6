//! `ready` and `health`: what shows it, and how often and how long that is tried or waited for.
//!
//! Absent on purpose: whether anything listens there; only a run shows.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use super::{
    command,
    fault::LifeFault,
    node::Value,
    rules::{Checker, Field, Rule, Shape, rule},
    values::DURATION_MAX,
};
use crate::spec::{Endpoint, Health, Probe, Pulse, Ready, Sign, THIS_HOST, log_pattern};

/// Shorter pauses and times would only use up the host.
const SPANS: RangeInclusive<Duration> = Duration::from_millis(10)..=DURATION_MAX;

/// How many probes in a row have to fail at most.
const FAILURES: RangeInclusive<u64> = 1..=1_000;

/// The ports that can be connected to.
const PORTS: RangeInclusive<u64> = 1..=65_535;

/// The descriptors that a run may be given, besides the three that every run has.
const DESCRIPTORS: RangeInclusive<u64> = 3..=9;

const HTTP: &str = "http://";

const HTTP_PORT: u16 = 80;

const READY_HELP: &str =
    "write `notify`, or one of `tcp: PORT`, `http: URL`, `exec: COMMAND`, `fd: 3` and `log: REGEX`";

const HEALTH_HELP: &str =
    "write `watchdog`, or one of `tcp: PORT`, `http: URL`, `exec: COMMAND` and `watchdog: true`";

/// What is shown once, when a run is ready.
const SAID_ONCE: [(&[&str], &str); 1] = [(
    &["notify", "fd", "log"],
    "`ready`: it is shown once, and no sign of health",
)];

/// What is said over and over.
const SAID_OFTEN: [(&[&str], &str); 1] = [(
    &["watchdog"],
    "`health`: it is said over and over, once a run is ready",
)];

/// `ready` as one word.
const NOTIFY: &str = "notify";

/// `health` as one word.
const WATCHDOG: &str = "watchdog";

/// What one of the two fields says so far.
struct Draft<S> {
    /// Each sign that was written; `None` is one with a fault, which is told.
    signs: Vec<Option<S>>,
    timeout: Option<Duration>,
    interval: Option<Duration>,
    failures: Option<u64>,
}

impl<S> Default for Draft<S> {
    fn default() -> Self {
        Self {
            signs: Vec::new(),
            timeout: None,
            interval: None,
            failures: None,
        }
    }
}

const READY: &[Rule<Draft<Sign>>] = &[
    rule("ready.notify", |c, f, draft| {
        draft.signs.push(only(c, f).map(|()| Sign::Notify))
    }),
    rule("ready.tcp", |c, f, draft| {
        draft.signs.push(tcp(c, f).map(Sign::Probe))
    }),
    rule("ready.http", |c, f, draft| {
        draft.signs.push(http(c, f).map(Sign::Probe))
    }),
    rule("ready.exec", |c, f, draft| {
        draft.signs.push(exec(c, f).map(Sign::Probe))
    }),
    rule("ready.fd", |c, f, draft| draft.signs.push(fd(c, f))),
    rule("ready.log", |c, f, draft| draft.signs.push(log(c, f))),
    rule("ready.timeout", |c, f, draft| {
        draft.timeout = c.duration(f, SPANS)
    }),
    rule("ready.interval", |c, f, draft| {
        draft.interval = c.duration(f, SPANS)
    }),
];

const HEALTH: &[Rule<Draft<Pulse>>] = &[
    rule("health.watchdog", |c, f, draft| {
        draft.signs.push(only(c, f).map(|()| Pulse::Watchdog))
    }),
    rule("health.tcp", |c, f, draft| {
        draft.signs.push(tcp(c, f).map(Pulse::Probe))
    }),
    rule("health.http", |c, f, draft| {
        draft.signs.push(http(c, f).map(Pulse::Probe))
    }),
    rule("health.exec", |c, f, draft| {
        draft.signs.push(exec(c, f).map(Pulse::Probe))
    }),
    rule("health.interval", |c, f, draft| {
        draft.interval = c.duration(f, SPANS)
    }),
    rule("health.timeout", |c, f, draft| {
        draft.timeout = c.duration(f, SPANS)
    }),
    rule("health.failures", |c, f, draft| {
        draft.failures = c.whole(f, FAILURES)
    }),
];

/// `ready`; with nothing in it, none.
pub(super) fn ready(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Option<Ready>> {
    if word(
        checker,
        field,
        NOTIFY,
        ("`notify` or a mapping", READY_HELP),
    )? {
        return Some(Some(Ready {
            sign: Sign::Notify,
            timeout: Ready::TIMEOUT,
            interval: Ready::INTERVAL,
        }));
    }
    let draft = draft(checker, field, READY, READY_HELP, &SAID_OFTEN)?;
    Some(draft.and_then(|mut draft| {
        let sign = draft.one(checker, field, READY_HELP)?;
        match (&sign, field.span_of("interval")) {
            (Sign::Notify | Sign::Fd(_) | Sign::Log(_), Some(at)) => {
                checker.fault(at, LifeFault::NothingTried);
            }
            (Sign::Probe(_) | Sign::Notify | Sign::Fd(_) | Sign::Log(_), _) => {}
        }
        Some(Ready {
            sign,
            timeout: draft.timeout.unwrap_or(Ready::TIMEOUT),
            interval: draft.interval.unwrap_or(Ready::INTERVAL),
        })
    }))
}

/// `health`; with nothing in it, none.
pub(super) fn health(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Option<Health>> {
    if word(
        checker,
        field,
        WATCHDOG,
        ("`watchdog` or a mapping", HEALTH_HELP),
    )? {
        return Some(Some(Health {
            pulse: Pulse::Watchdog,
            interval: Health::INTERVAL,
            timeout: Health::TIMEOUT,
            failures: Health::FAILURES,
        }));
    }
    let draft = draft(checker, field, HEALTH, HEALTH_HELP, &SAID_ONCE)?;
    Some(draft.and_then(|mut draft| {
        let failures = draft.failures.and_then(|count| u32::try_from(count).ok());
        let pulse = draft.one(checker, field, HEALTH_HELP)?;
        match (&pulse, field.span_of("timeout")) {
            (Pulse::Watchdog, Some(at)) => checker.fault(at, LifeFault::NothingTimed),
            (Pulse::Probe(_) | Pulse::Watchdog, _) => {}
        }
        Some(Health {
            pulse,
            interval: draft.interval.unwrap_or(Health::INTERVAL),
            timeout: draft.timeout.unwrap_or(Health::TIMEOUT),
            failures: failures.unwrap_or(Health::FAILURES),
        })
    }))
}

/// What the field says; the inner `None` is a field with nothing in it.
fn draft<S>(
    checker: &mut Checker<'_>,
    field: Field<'_>,
    rules: &[Rule<Draft<S>>],
    help: &'static str,
    elsewhere: &[(&[&'static str], &'static str)],
) -> Option<Option<Draft<S>>> {
    let entries = checker.entries(field, Some(help))?;
    if entries.is_empty() {
        return Some(None);
    }
    let mut draft = Draft::default();
    let shape = Shape {
        inside: Some(field.name),
        elsewhere,
    };
    checker.mapping(entries, rules, &shape, &mut draft);
    Some(Some(draft))
}

impl<S> Draft<S> {
    /// The one sign that was written; `None` when there is a fault, which is told.
    fn one(
        &mut self,
        checker: &mut Checker<'_>,
        field: Field<'_>,
        help: &'static str,
    ) -> Option<S> {
        let mut written = std::mem::take(&mut self.signs).into_iter();
        let sign = written.next();
        if sign.is_none() || written.next().is_some() {
            let name = field.name;
            let fault = LifeFault::OneProbe { field: name, help };
            checker.fault(field.head(), fault);
            return None;
        }
        sign.flatten()
    }
}

/// A descriptor that a run begins with.
fn fd(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Sign> {
    let number = checker.whole(field, DESCRIPTORS)?;
    u8::try_from(number).ok().map(Sign::Fd)
}

/// A regular expression for one line.
fn log(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Sign> {
    let text = checker.line(field)?;
    let error = match log_pattern(text) {
        Ok(_) => return Some(Sign::Log(text.to_owned())),
        Err(regex::Error::CompiledTooBig(max)) => {
            format!("error: it would have more than {max} bytes when it is compiled")
        }
        Err(error) => error.to_string(),
    };
    // The last line says what is wrong; one above has a caret below the place in the expression.
    let why = error.lines().last().unwrap_or_default();
    let why = why.trim_start_matches("error: ").to_owned();
    let caret = error.lines().find(|line| line.trim() == "^");
    let column = caret.and_then(|line| line.len().checked_sub("    ^".len()));
    let at = column.and_then(|column| checker.place_within(field, text, column));
    checker.fault(at.unwrap_or(field.span()), LifeFault::Pattern { why });
    None
}

/// `notify: true`.
fn only(checker: &mut Checker<'_>, field: Field<'_>) -> Option<()> {
    if checker.boolean(field)? {
        return Some(());
    }
    let name = field.name;
    checker.fault(field.span(), LifeFault::OnlyTrue { field: name });
    None
}

/// Whether the field is this word alone; `None` when it is another text, which is told.
fn word(
    checker: &mut Checker<'_>,
    field: Field<'_>,
    word: &'static str,
    (wanted, help): (&'static str, &'static str),
) -> Option<bool> {
    let Value::Scalar { text, .. } = &field.node.value else {
        return Some(false);
    };
    if field.is_nothing() || text == word {
        return Some(text == word);
    }
    checker.form(field, wanted, Some(help));
    None
}

/// A port, or `HOST:PORT`.
fn tcp(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Probe> {
    let text = checker.text(field)?;
    if text.contains(':') {
        let endpoint = endpoint(text);
        if endpoint.is_none() {
            let (name, found) = (field.name, text.into());
            checker.fault(field.span(), LifeFault::Endpoint { field: name, found });
        }
        return endpoint.map(Probe::Tcp);
    }
    let port = checker.whole(field, PORTS)?;
    let port = u16::try_from(port).ok()?;
    Some(Probe::Tcp(Endpoint { host: None, port }))
}

/// A URL without TLS.
fn http(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Probe> {
    let text = checker.line(field)?;
    let parsed = text.strip_prefix(HTTP).and_then(|rest| {
        let cut = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(cut);
        let at = match host.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => endpoint(host)?,
            Some(_) | None => endpoint(&format!("{host}:{HTTP_PORT}"))?,
        };
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        let plain = |c: char| c.is_ascii_graphic() && c != '#';
        path.chars().all(plain).then_some(Probe::Http { at, path })
    });
    if parsed.is_none() {
        let (name, found) = (field.name, text.into());
        checker.fault(field.span(), LifeFault::Url { field: name, found });
    }
    parsed
}

fn exec(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Probe> {
    command::argv(checker, field).map(Probe::Exec)
}

/// `HOST:PORT`, the host an address (IPv6 in brackets) or this one. Names are not looked up: that
/// may take any time.
fn endpoint(text: &str) -> Option<Endpoint> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let host = match (host, bare) {
        (THIS_HOST, _) => None,
        (_, Some(bare)) => Some(IpAddr::V6(bare.parse().ok()?)),
        (_, None) => Some(IpAddr::V4(host.parse().ok()?)),
    };
    Some(Endpoint { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::child::tests::read;

    fn ready(text: &str) -> Option<Ready> {
        read(&format!("command: x\nready: {text}\n")).ready
    }

    fn probe(text: &str) -> String {
        ready(text).expect("a probe").sign.to_string()
    }

    #[test]
    fn a_probe_is_a_port_a_url_or_a_program() {
        for (text, shown) in [
            ("{tcp: 8080}", "tcp localhost:8080"),
            ("{tcp: '127.0.0.1:80'}", "tcp 127.0.0.1:80"),
            ("{tcp: 'localhost:5432'}", "tcp localhost:5432"),
            ("{tcp: '[::1]:80'}", "tcp [::1]:80"),
            (
                "{http: 'http://127.0.0.1:8080/healthz'}",
                "http://127.0.0.1:8080/healthz",
            ),
            ("{http: 'http://localhost'}", "http://localhost:80/"),
            ("{http: 'http://[::1]/x?y=1'}", "http://[::1]:80/x?y=1"),
            ("{http: 'http://[::1]:8080?y'}", "http://[::1]:8080/?y"),
            ("{exec: ./probe 'a b'}", "exec ./probe 'a b'"),
            ("{exec: [sh, -c, exit 0]}", "exec sh -c 'exit 0'"),
            ("notify", "`READY=1`"),
            ("{notify: true}", "`READY=1`"),
            ("{fd: 3}", "a line on descriptor 3"),
            ("{log: '^ready$'}", "a line of its output like `^ready$`"),
        ] {
            assert_eq!(probe(text), shown, "{text}");
        }
    }

    #[test]
    fn what_is_not_said_of_a_probe_is_built_in() {
        let all = ready("{tcp: 1, timeout: 3s, interval: 20ms}").unwrap();
        assert_eq!(
            (all.timeout, all.interval),
            (Duration::from_secs(3), Duration::from_millis(20))
        );
        let bare = ready("{tcp: 1}").unwrap();
        assert_eq!(
            (bare.timeout, bare.interval),
            (Ready::TIMEOUT, Ready::INTERVAL)
        );
        assert_eq!(ready(""), None);
        let spec = read("command: x\nhealth: {exec: true, failures: 5, timeout: 1s}\n");
        let health = spec.health.unwrap();
        assert_eq!(
            (health.failures, health.timeout),
            (5, Duration::from_secs(1))
        );
        assert_eq!(health.interval, Health::INTERVAL);
        for text in ["watchdog", "{watchdog: true}"] {
            let health = read(&format!("command: x\nhealth: {text}\n"))
                .health
                .unwrap();
            assert_eq!((health.pulse, health.failures), (Pulse::Watchdog, 3));
        }
        assert_eq!(spec.ready, None);
    }
}
