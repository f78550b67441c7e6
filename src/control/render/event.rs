//! Events for people and programs: a line each, as they come.

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{
    super::client::HostEvent,
    Heading, Style, harmless_json,
    history::given_by,
    table::{Paint, clean},
};

/// The least room for a name.
const NAME_CHARS_MIN: usize = 8;

/// The most room for one: a longer one moves what follows it.
const NAME_CHARS_MAX: usize = 24;

/// The longest of the words for states.
const STATE_CHARS: usize = 8;

/// An event, whatever a newer server may say of it.
#[derive(Debug, Deserialize)]
struct Event {
    at: String,
    child: String,
    state: String,
    run: Option<u64>,
    pid: Option<i64>,
    cause: Option<String>,
    #[serde(default)]
    asker: Value,
    #[serde(default)]
    exit: Value,
    config: Option<String>,
    detail: Option<String>,
}

/// Lines of events, one under the other: what they have told decides where columns stand.
#[derive(Debug)]
pub struct Events {
    heading: Heading,
    paint: Paint,
    name_chars: usize,
    host_chars: usize,
}

impl Events {
    /// Before the first.
    #[must_use]
    pub fn new(heading: Heading, style: Style) -> Self {
        Self {
            heading,
            paint: Paint(style),
            name_chars: NAME_CHARS_MIN,
            host_chars: 0,
        }
    }

    /// The next one as a line of text, with its line feed.
    pub fn text(&mut self, event: &HostEvent) -> String {
        let host = match self.heading {
            Heading::None => String::new(),
            Heading::Host => {
                let host = format!("{}:", clean(&event.host));
                self.host_chars = self.host_chars.max(host.chars().count());
                let pad = " ".repeat(self.host_chars - host.chars().count());
                format!("{}{pad} ", self.paint.strong(&host))
            }
        };
        let said = event.event.get();
        match serde_json::from_str::<Event>(said) {
            Ok(event) => format!("{host}{}\n", self.line(&event)),
            // Of a shape that this version does not know: as it came.
            Err(_) => format!("{host}{}\n", clean(said)),
        }
    }

    fn line(&mut self, event: &Event) -> String {
        let name = clean(&event.child);
        let chars = name.chars().count();
        self.name_chars = self.name_chars.max(chars.min(NAME_CHARS_MAX));
        let name_pad = " ".repeat(self.name_chars.saturating_sub(chars));
        let state = clean(&event.state);
        let state_pad = " ".repeat(STATE_CHARS.saturating_sub(state.chars().count()));
        let state = self.paint.word(&state);
        let at = clean(&event.at);
        let line = format!(
            "{at}  {name}{name_pad}  {state}{state_pad}  {}",
            rest(event)
        );
        line.trim_end().to_owned()
    }
}

/// `run 4, pid 123, code 1 (command, key deploy, 192.0.2.7:40000): what else is to be said`
fn rest(event: &Event) -> String {
    let run = event.run.map(|run| format!("run {run}"));
    let pid = event.pid.map(|pid| format!("pid {pid}"));
    let exit = Some(super::check::exit_word(&event.exit)).filter(|exit| !exit.is_empty());
    let config = event
        .config
        .as_deref()
        .map(|it| format!("file {}", clean(it)));
    let what: Vec<String> = [run, pid, exit, config].into_iter().flatten().collect();
    let mut text = what.join(", ");
    let cause = event.cause.as_deref().map(clean);
    let asker = Some(given_by(&event.asker)).filter(|asker| !asker.is_empty());
    let why: Vec<String> = cause.into_iter().chain(asker).collect();
    if !why.is_empty() {
        let gap = if text.is_empty() { "" } else { " " };
        text.push_str(&format!("{gap}({})", why.join(", ")));
    }
    if let Some(detail) = &event.detail {
        let gap = if text.is_empty() { "" } else { ": " };
        text.push_str(&format!("{gap}{}", clean(detail)));
    }
    text
}

/// One line of JSON, with its line feed.
#[must_use]
pub fn event_json(event: &HostEvent) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        host: &'a str,
        event: &'a RawValue,
    }
    let line = serde_json::to_string(&Line {
        host: &event.host,
        event: &event.event,
    });
    harmless_json(&line.expect("a string and JSON that was read before")) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> HostEvent {
        HostEvent {
            host: "h1".to_owned(),
            event: serde_json::from_str(json).unwrap(),
        }
    }

    const ENDED: &str = r#"{"seq":3,"at":"2023-11-14T22:13:20.123Z","child":"web","state":"stopped","run":4,"pid":7,"cause":"command","asker":{"key":"deploy","peer":"192.0.2.7:40000"},"exit":{"signal":"SIGTERM"}}"#;
    const LATER: &str = r#"{"seq":4,"at":"2023-11-14T22:13:21.000Z","child":"a-longer-name","state":"pending","cause":"boot","detail":"waits for db: held","new":1}"#;
    const FILE: &str = r#"{"seq":5,"at":"2023-11-14T22:13:22.000Z","child":"db","state":"stopped","config":"invalid","detail":"db.yml:1:1: bad"}"#;

    #[test]
    fn each_event_is_a_line_and_names_stand_under_each_other() {
        let mut lines = Events::new(Heading::None, Style::Plain);
        let text: String = [ENDED, LATER, FILE]
            .map(|json| lines.text(&event(json)))
            .concat();
        assert_eq!(
            text,
            "2023-11-14T22:13:20.123Z  web       stopped   run 4, pid 7, SIGTERM (command, key deploy, \
             192.0.2.7:40000)\n\
             2023-11-14T22:13:21.000Z  a-longer-name  pending   (boot): waits for db: held\n\
             2023-11-14T22:13:22.000Z  db             stopped   file invalid: db.yml:1:1: bad\n"
        );
        let mut lines = Events::new(Heading::Host, Style::Colour);
        let text = lines.text(&event(FILE));
        assert!(text.starts_with("\u{1b}[1mh1:\u{1b}[0m 2023"), "{text:?}");
    }

    #[test]
    fn no_event_drives_a_terminal_or_names_another_host() {
        let evil = event(r#"{"seq":1,"host":"h2","child":"\u001b[2J","state":"x","at":"\u202e"}"#);
        let mut lines = Events::new(Heading::None, Style::Plain);
        let text = lines.text(&evil);
        assert_eq!(text, "\\u{202e}  \\u{1b}[2J  x\n");
        let evil = event("{\"child\":\"\u{202e}\"}");
        assert_eq!(
            event_json(&evil),
            "{\"host\":\"h1\",\"event\":{\"child\":\"\\u202e\"}}\n"
        );
        assert_eq!(lines.text(&evil), "{\"child\":\"\\u{202e}\"}\n");
    }
}
