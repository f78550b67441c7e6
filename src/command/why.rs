//! Why a child is as it is: what ended its last run, what comes next, how its file is. The sentences
//! are made here and nowhere else.

use serde::{Deserialize, Serialize};

use super::{Asker, HistoryRun, Op, StateName};
use crate::spec::{ChildName, Circumstances, Exit};

/// The answer to `why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Always `why`.
    pub op: Op,
    /// The child.
    pub child: ChildName,
    /// Its state.
    pub state: StateName,
    /// Its last run that is over, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<HistoryRun>,
    /// What a probe said last, or what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What happens next and when, or why nothing does; for a person.
    pub next: String,
    /// How its file is; for a person.
    pub config: String,
    /// All of it on one screen.
    pub message: String,
}

impl Why {
    /// Says all of it, now that all is known.
    #[must_use]
    pub fn told(mut self) -> Self {
        let ended = match &self.ended {
            Some(run) => how_it_ended(run),
            None => "no run of it has ended, as far as is known".to_owned(),
        };
        let reason = self.reason.clone().unwrap_or_default();
        let rows = [
            ("before", ended.as_str()),
            ("reason", &reason),
            ("next", &self.next),
            ("file", &self.config),
        ];
        let mut message = format!("`{}` is {}", self.child, self.state.as_str());
        for (title, text) in rows {
            for (index, line) in text.lines().enumerate() {
                let title = if index == 0 { title } else { "" };
                message.push_str(&format!("\n  {title:<6}  {line}"));
            }
        }
        self.message = message;
        self
    }
}

/// What ended a run, by whom, and when.
fn how_it_ended(run: &HistoryRun) -> String {
    let number = run.run;
    let at = run.ended_at.map_or(String::new(), |at| format!(" at {at}"));
    let Some(exit) = run.exit.map(|exit| exit.0) else {
        let why = run.reason.as_deref().unwrap_or("why is not known");
        return format!("run {number} was not started{at}: {why}");
    };
    let Some(by) = &run.ended_by else {
        let how = match exit {
            Exit::Code(_) => format!("{exit}"),
            Exit::Signal(_) => format!("{exit}, which was not sent by the server"),
            Exit::Unknown => "nobody saw how".to_owned(),
        };
        let circumstances = what_else(run.circumstances);
        return format!("run {number} ended by itself{at}: {how}{circumstances}");
    };
    let asker = by.asker.as_ref().map_or(String::new(), by_whom);
    let why = match by.cause.as_str() {
        "command" => format!("by order{asker}"),
        "hook" => format!("by another child's hook{asker}"),
        "repeat" => "by its repeat".to_owned(),
        "policy" => "by its restart policy".to_owned(),
        "not_ready" => "because it was not ready in time".to_owned(),
        "unhealthy" => "because it failed its health probe".to_owned(),
        "changed" => "because its file had changed".to_owned(),
        "removed" => "because its file was gone".to_owned(),
        "settings" => "because the settings had changed".to_owned(),
        "shutdown" => format!("with the server's end{asker}"),
        "reboot" => "with the host".to_owned(),
        "boot" => "when the server started".to_owned(),
        other => format!("for this cause: {other}"),
    };
    let circumstances = what_else(run.circumstances);
    format!("run {number} was stopped{at} {why}: {exit}{circumstances}")
}

/// What else was seen of an end.
fn what_else(circumstances: Circumstances) -> &'static str {
    match (circumstances.out_of_memory, circumstances.core_dumped) {
        (true, _) => "\nthe kernel killed for want of memory at that time (`memory.events`)",
        (false, true) => "\nits core was dumped: core(5) says where to",
        (false, false) => "",
    }
}

/// ` of key deploy from 192.0.2.7:40000`
fn by_whom(asker: &Asker) -> String {
    let who = match (&asker.key, asker.user) {
        (Some(key), _) => format!(" of key `{key}`"),
        (None, Some(user)) => format!(" of user {user}"),
        (None, None) => String::new(),
    };
    format!("{who} from {}", asker.peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::{GivenBy, HowEnded, Stamp},
        spec::{Digest, RunId, Wall},
    };

    fn run(exit: Option<Exit>, cause: Option<&str>) -> HistoryRun {
        let asker = Asker {
            key: Some("deploy".to_owned()),
            user: None,
            peer: "192.0.2.7:40000".parse().unwrap(),
        };
        HistoryRun {
            run: RunId(4),
            digest: Digest([0; 16]),
            started_at: None,
            started_by: None,
            ended_at: Some(Stamp(Wall(1_700_000_000_000))),
            exit: exit.map(HowEnded),
            circumstances: Circumstances::default(),
            ended_by: cause.map(|cause| GivenBy {
                cause: cause.to_owned(),
                asker: (cause == "command").then_some(asker),
            }),
            reason: exit.is_none().then(|| "no such program".to_owned()),
        }
    }

    #[test]
    fn what_else_was_seen_of_an_end_is_told_with_it() {
        let mut run = run(Some(Exit::Signal(9)), None);
        run.circumstances.out_of_memory = true;
        let told = how_it_ended(&run);
        assert!(told.ends_with("at that time (`memory.events`)"), "{told}");
        run.circumstances = Circumstances {
            core_dumped: true,
            ..Circumstances::default()
        };
        let told = how_it_ended(&run);
        assert!(told.ends_with("its core was dumped: core(5) says where to"));
    }

    #[test]
    fn each_way_to_end_has_its_sentence() {
        const AT: &str = "at 2023-11-14T22:13:20.000Z";
        for (exit, cause, says) in [
            (
                None,
                None,
                format!("run 4 was not started {AT}: no such program"),
            ),
            (
                Some(Exit::Code(3)),
                None,
                format!("run 4 ended by itself {AT}: exit code 3"),
            ),
            (
                Some(Exit::Signal(11)),
                None,
                format!("run 4 ended by itself {AT}: SIGSEGV, which was not sent by the server"),
            ),
            (
                Some(Exit::Unknown),
                None,
                format!("run 4 ended by itself {AT}: nobody saw how"),
            ),
            (
                Some(Exit::Signal(15)),
                Some("command"),
                format!(
                    "run 4 was stopped {AT} by order of key `deploy` from 192.0.2.7:40000: SIGTERM"
                ),
            ),
            (
                Some(Exit::Signal(15)),
                Some("not_ready"),
                format!("run 4 was stopped {AT} because it was not ready in time: SIGTERM"),
            ),
            (
                Some(Exit::Code(0)),
                Some("changed"),
                format!("run 4 was stopped {AT} because its file had changed: exit code 0"),
            ),
            (
                Some(Exit::Code(0)),
                Some("tides"),
                format!("run 4 was stopped {AT} for this cause: tides: exit code 0"),
            ),
        ] {
            assert_eq!(how_it_ended(&run(exit, cause)), says);
        }
    }

    #[test]
    fn it_is_one_screen_with_what_is_known() {
        let why = Why {
            op: Op::Why,
            child: "web".parse().unwrap(),
            state: StateName::Failed,
            ended: None,
            reason: Some("given up\nhint: look".to_owned()),
            next: "nothing".to_owned(),
            config: "is good".to_owned(),
            message: String::new(),
        };
        assert_eq!(
            why.told().message,
            "`web` is failed\n  before  no run of it has ended, as far as is known\n  \
             reason  given up\n          hint: look\n  next    nothing\n  file    is good"
        );
    }
}
