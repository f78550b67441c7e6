//! Histories of children, for those who ask.

use std::collections::BTreeMap;

use super::Supervisor;
use crate::{
    command::{Answer, Checked, ErrorCode, Failure, HistoryRun, Why},
    reconcile::{
        event::RequestId,
        past::{HISTORY_LEN_MAX, PastEnd, PastRun},
    },
    spec::{ChildName, RunId},
};

impl Supervisor {
    /// Adds to the core's part of `check NAME` what stands in the child's history.
    pub(super) fn recount(
        &mut self,
        id: RequestId,
        child: &ChildName,
        latest: RunId,
        mut checked: Box<Checked>,
    ) {
        let Some(reply) = self.reply_to(id) else {
            return;
        };
        // Before the file is read: what is noted meanwhile is told once.
        let unnoted = self.journal.unnoted(child);
        let (histories, child) = (self.journal.histories(), child.clone());
        let read = move || histories.read(&child).map_err(|error| error.to_string());
        let read = self.looks.histories.look(read);
        let unanswered = self.looks.histories.unanswered();
        tokio::spawn(async move {
            let read = read.await.unwrap_or_else(|why| {
                let note = format!("the history cannot be read: {why}");
                checked.notes.push(note);
                Vec::new()
            });
            if let Some(row) = checked.children.first_mut() {
                row.history = history(read, unnoted, latest);
            }
            reply.send(Ok(Answer::Checked(*checked)));
            drop(unanswered);
        });
    }
}

impl Supervisor {
    /// Adds to the core's part of `why` what ended the child's last run.
    pub(super) fn account(&mut self, id: RequestId, latest: RunId, mut why: Box<Why>) {
        let Some(reply) = self.reply_to(id) else {
            return;
        };
        let unnoted = self.journal.unnoted(&why.child);
        let (histories, child) = (self.journal.histories(), why.child.clone());
        let read = move || histories.read(&child).map_err(|error| error.to_string());
        let read = self.looks.histories.look(read);
        let unanswered = self.looks.histories.unanswered();
        tokio::spawn(async move {
            let answer = match read.await {
                Ok(read) => {
                    let mut runs = history(read, unnoted, latest).into_iter();
                    why.ended = runs.find(is_over);
                    Ok(Answer::Why(Box::new(why.told())))
                }
                Err(error) => {
                    let message = format!("the history cannot be read: {error}");
                    Err(Failure::new(ErrorCode::Internal, message))
                }
            };
            reply.send(answer);
            drop(unanswered);
        });
    }
}

/// Whether a run has ended, or never began.
fn is_over(run: &HistoryRun) -> bool {
    run.exit.is_some() || run.reason.is_some()
}

/// What a history tells up to the latest run, the newest first. What the file says to live and what
/// does not was ended with the host; what is later has begun since it was asked for.
fn history(read: Vec<PastRun>, unnoted: Vec<PastRun>, latest: RunId) -> Vec<HistoryRun> {
    let mut runs = BTreeMap::new();
    for mut past in read.into_iter().filter(|past| past.run <= latest) {
        past.end.get_or_insert_with(PastEnd::with_the_host);
        runs.insert(past.run, past);
    }
    runs.extend(unnoted.into_iter().map(|past| (past.run, past)));
    let newest = runs.values().rev().take(HISTORY_LEN_MAX);
    newest.map(PastRun::shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::GivenBy,
        reconcile::cause::{Cause, Origin},
        spec::{Circumstances, Digest, Exit, Wall},
    };

    fn run(number: u64, end: Option<PastEnd>) -> PastRun {
        PastRun {
            run: RunId(number),
            digest: Digest([1; 16]),
            started: Some(Wall(1)),
            started_by: Some(Origin::from(Cause::Boot)),
            end,
        }
    }

    fn exited(code: i32) -> Option<PastEnd> {
        Some(PastEnd::Exited {
            exit: Exit::Code(code),
            circumstances: Circumstances::default(),
            at: Some(Wall(2)),
            by: None,
        })
    }

    #[test]
    fn the_newest_runs_are_told_once_with_what_is_known_of_their_ends() {
        let read = vec![run(1, exited(0)), run(2, None), run(3, None), run(4, None)];
        let unnoted = vec![run(3, exited(7)), run(4, None)];
        let told: Vec<_> = history(read, unnoted, RunId(4))
            .into_iter()
            .map(|it| (it.run.0, it.exit.map(|exit| exit.0), it.ended_by))
            .collect();
        let reboot = GivenBy {
            cause: "reboot".to_owned(),
            asker: None,
        };
        assert_eq!(
            told,
            [
                (4, None, None),
                (3, Some(Exit::Code(7)), None),
                (2, Some(Exit::Unknown), Some(reboot)),
                (1, Some(Exit::Code(0)), None),
            ]
        );
    }

    #[test]
    fn a_run_that_began_while_the_file_was_read_is_not_taken_for_one_that_the_host_ended() {
        let read = vec![run(1, exited(0)), run(2, exited(7)), run(3, None)];
        let told = history(read, vec![run(2, None)], RunId(2));
        let told: Vec<_> = told
            .iter()
            .map(|it| (it.run.0, it.exit.as_ref().map(|exit| exit.0)))
            .collect();
        assert_eq!(told, [(2, None), (1, Some(Exit::Code(0)))]);
    }

    #[test]
    fn no_more_runs_are_told_than_are_kept() {
        let read = (1..=30).map(|number| run(number, exited(0))).collect();
        let told = history(read, vec![run(31, None)], RunId(31));
        let numbers: Vec<u64> = told.iter().map(|it| it.run.0).collect();
        assert_eq!(numbers, (12..=31).rev().collect::<Vec<_>>());
    }
}
