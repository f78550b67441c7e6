//! What the core says of why a child is as it is: what comes next, and how its file is.

use super::{State, Turn, child::Child, effect::Effect, event::RequestId, view::config_status};
use crate::{
    command::{ConfigStatus, Op, Row, StateName, Why},
    spec::{ChildName, Mode, RestartWhen, RunId},
};

impl State {
    /// Tells why a child is as it is; the shell adds what ended its last run.
    pub(super) fn account(&self, turn: &mut Turn, id: RequestId, name: ChildName) {
        let Some(child) = self.children.get(&name).filter(|it| it.is_known()) else {
            let answer = Err(self.unknown(&name));
            return turn.emit(Effect::Reply { id, answer });
        };
        let row = self.row(&name, child, turn.now);
        let why = Why {
            op: Op::Why,
            child: name.clone(),
            state: row.state,
            ended: None,
            reason: row.reason.clone().filter(|reason| !reason.is_empty()),
            next: self.comes_next(&name, child, &row),
            config: how_the_file_is(child, &row),
            message: String::new(),
        };
        turn.emit(Effect::Account {
            id,
            latest: RunId(child.highest()),
            why: Box::new(why),
        });
    }

    /// What happens next and when, or why nothing does.
    fn comes_next(&self, name: &ChildName, child: &Child, row: &Row) -> String {
        let start = format!("`supervisor-rs-client start {name}`");
        let repeat = row
            .next
            .as_ref()
            .map(|next| format!("{} at {}", next.action, next.at));
        match row.state {
            StateName::Starting => "it is `running` once it is ready".to_owned(),
            StateName::Running => repeat.unwrap_or_else(|| {
                let pid = row.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
                let since = row
                    .started_at
                    .map_or(String::new(), |at| format!(" since {at}"));
                format!("nothing: it runs{since}{pid}")
            }),
            StateName::Stopping => "it ends, or is killed when its time is up".to_owned(),
            StateName::Pending => "it starts as soon as that is over".to_owned(),
            StateName::Backoff => {
                let restarts = child.streak.restarts;
                let at = repeat.unwrap_or_else(|| "restart".to_owned());
                format!("{at}, by its restart policy (restarted {restarts} times so far)")
            }
            StateName::Stopped | StateName::Exited | StateName::Failed => {
                let held = row.held_since.map(|at| {
                    format!(
                        "nothing: it is held since {at}, by an order to stop; {start} releases it"
                    )
                });
                held.or_else(|| repeat.map(|next| format!("{next}, by its repeat")))
                    .unwrap_or_else(|| self.why_nothing(child, row.state, &start))
            }
        }
    }

    /// Why nothing starts a child at rest by itself.
    fn why_nothing(&self, child: &Child, state: StateName, start: &str) -> String {
        let policy = child.in_force().map(|spec| spec.restart.when);
        let policy = match (state, policy) {
            (StateName::Exited, Some(RestartWhen::Never)) => "`restart` is `never`; ",
            (StateName::Exited, Some(RestartWhen::OnFailure | RestartWhen::Always)) => {
                "`restart` asks for no other after such an end; "
            }
            (StateName::Exited, None)
            | (
                StateName::Stopped
                | StateName::Failed
                | StateName::Pending
                | StateName::Starting
                | StateName::Running
                | StateName::Stopping
                | StateName::Backoff,
                _,
            ) => "",
        };
        let mode = self.settings.mode;
        let file = match mode {
            Mode::Sync => " and so does a change of its file",
            Mode::Quiet | Mode::Half | Mode::Full => "",
        };
        format!("nothing: {policy}{start} starts it{file} (mode `{}`)", mode)
    }
}

fn how_the_file_is(child: &Child, row: &Row) -> String {
    let path = row.config.path.as_deref().unwrap_or_default();
    match config_status(child) {
        ConfigStatus::Current => format!("`{path}` is in force"),
        ConfigStatus::Changed => format!("`{path}` has changed: the next start uses it"),
        ConfigStatus::Invalid => {
            let faults = row.faults.join("\n");
            format!("`{path}` is bad, and the last good one stays in force:\n{faults}")
        }
        ConfigStatus::Removed => format!("`{path}` is gone"),
        ConfigStatus::Conflict => format!(
            "several have its name, and none of them is used: {}",
            row.config.paths.join(", ")
        ),
        ConfigStatus::Rejected => format!("`{path}` was tried and did not come up"),
    }
}
