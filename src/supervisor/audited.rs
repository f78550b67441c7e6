//! Requests on their way through the loop, and what the audit trail is told of them.
//!
//! A command that changes something is let in with room for its line, and answered when that is on
//! disk; where there is no room it is refused before it is carried out. What only asks is answered
//! at once. Of who was refused a line is written too; nobody waits for that.
//!
//! Absent on purpose: what stands in a line, and how it gets to disk (`audit`).

use std::{path::Path, sync::Arc};

use super::{ServeError, Supervisor, start::open_server_file, upgrade::HandedWaiting};
use crate::{
    audit::{self, Audit, By, Entry, Given, Hash, Outcome, Refusal, Room, Verdict},
    clock,
    command::{Answer, Asker, ChildEvent, Command, ErrorCode, Failure},
    control::asked::{Asked, Credential, Issuer, NotTaken, Refused, Reply},
    reconcile::event::{Event, RequestId},
};

/// Who waits for an answer, and what is told of it.
pub(super) struct Waiting {
    reply: Reply,
    /// `None` for what changes nothing.
    audited: Option<Audited>,
}

struct Audited {
    command: Command,
    issuer: Issuer,
    room: Room,
}

impl Waiting {
    /// Where the answer goes, and what the audit trail will be told.
    pub(super) fn into_parts(self) -> (Reply, Option<(Command, Issuer)>) {
        let told = |audited: Audited| (audited.command, audited.issuer);
        (self.reply, self.audited.map(told))
    }
}

impl Supervisor {
    /// Waits for the answers that the program before has waited for.
    pub(super) fn wait_again(&mut self, handed: Vec<HandedWaiting>) {
        for HandedWaiting { id, reply, audited } in handed {
            let reply = self.control.reply(reply);
            // Whatever room there is: these were let in.
            let audited = audited.and_then(|(command, issuer)| {
                self.audit.room().map(|room| Audited {
                    command,
                    issuer,
                    room,
                })
            });
            self.waiting.insert(id, Waiting { reply, audited });
        }
    }

    pub(super) fn take_request(&mut self, asked: Asked) {
        let Asked {
            command,
            issuer,
            reply,
        } = asked;
        let asker = Arc::new(asker(&issuer));
        let audited = match changes_something(&command) {
            false => None,
            true => match self.audit.room() {
                Some(room) => Some(Audited {
                    command: command.clone(),
                    issuer,
                    room,
                }),
                None => {
                    let message = "too many commands wait for the audit trail, try again";
                    return reply.send(Err(Failure::new(ErrorCode::Busy, message)));
                }
            },
        };
        match &command {
            Command::Wait { .. } | Command::Events { .. } => self.forsake(),
            Command::Child { .. }
            | Command::StopAll
            | Command::StartAll
            | Command::CheckOne(_)
            | Command::Why(_)
            | Command::Check { .. }
            | Command::Info
            | Command::Kill(_)
            | Command::Upgrade => {}
        }
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.waiting.insert(id, Waiting { reply, audited });
        self.inbox.push_back(Event::Request { id, command, asker });
    }

    /// Tells the core whose answers nobody will hear: before another waits, so that those who are
    /// gone do not count.
    fn forsake(&mut self) {
        for (id, waiting) in &self.waiting {
            if waiting.reply.is_unheard() {
                self.inbox.push_back(Event::Forsaken { id: *id });
            }
        }
    }

    /// Says parts of a stream; what comes to be known of its client is told to the core.
    pub(super) fn tell(
        &mut self,
        id: RequestId,
        events: &[Arc<ChildEvent>],
        answer: Option<Answer>,
    ) {
        let Some(waiting) = self.waiting.get_mut(&id) else {
            return;
        };
        for event in events {
            match waiting.reply.tell(event) {
                Ok(()) => {}
                Err(NotTaken::Behind) => {
                    let seq = event.seq;
                    return self.inbox.push_back(Event::FellBehind { id, seq });
                }
                Err(NotTaken::Gone) => return self.inbox.push_back(Event::Forsaken { id }),
                Err(NotTaken::CutOff) => return,
            }
        }
        if let Some(answer) = answer {
            self.answer(id, Ok(answer));
        }
    }

    /// Gives the one answer to a request, once its line is written if it has one.
    pub(super) fn answer(&mut self, id: RequestId, answer: Result<Answer, Failure>) {
        let Some(Waiting { reply, audited }) = self.waiting.remove(&id) else {
            return;
        };
        let Some(audited) = audited else {
            return reply.send(answer);
        };
        let given = Given {
            by: by(audited.issuer.credential),
            peer: audited.issuer.peer,
            command: audited.command,
            outcome: Outcome::of(&answer),
        };
        let entry = Entry::command(clock::wall(), given);
        self.audit
            .record(audited.room, entry, move || reply.send(answer));
    }

    /// Who waits for the answer to what changes nothing, which somebody else will give.
    pub(super) fn reply_to(&mut self, id: RequestId) -> Option<Reply> {
        self.waiting.remove(&id).map(|waiting| waiting.reply)
    }
}

/// Has a line written of a request that was refused because of who made it.
pub(super) fn note_refusal(audit: &Audit, refused: Refused) {
    audit.note(Entry::refused(clock::wall(), refusal(refused)));
}

/// Takes up the audit trail of this server.
pub(super) fn open(state_dir: &Path, server_id: &str) -> Result<Audit, ServeError> {
    let version = env!("CARGO_PKG_VERSION");
    let audit = Audit::open(state_dir.to_owned(), version, server_id);
    audit.map_err(ServeError::Audit)
}

/// Whether a line is written of a command that is carried out.
fn changes_something(command: &Command) -> bool {
    match command {
        Command::Child { .. }
        | Command::StopAll
        | Command::StartAll
        | Command::Kill(_)
        | Command::Upgrade => true,
        Command::CheckOne(_)
        | Command::Why(_)
        | Command::Wait { .. }
        | Command::Events { .. }
        | Command::Check { .. }
        | Command::Info => false,
    }
}

fn refusal(refused: Refused) -> Refusal {
    let Refused {
        peer,
        credential,
        claimed,
        command,
        code,
        why,
        more,
    } = refused;
    Refusal {
        by: credential.map(by),
        claimed: claimed.map(|name| name.to_string()),
        peer,
        command,
        code,
        why,
        more,
    }
}

/// What is kept of who gave a command with what came of it.
fn asker(issuer: &Issuer) -> Asker {
    let (key, user) = match &issuer.credential {
        Credential::Key { name, .. } => (Some(name.to_string()), None),
        Credential::User(uid) => (None, Some(*uid)),
        Credential::Reach => (None, None),
    };
    let peer = issuer.peer;
    Asker { key, user, peer }
}

fn by(credential: Credential) -> By {
    match credential {
        Credential::Key { name, fingerprint } => By::Key {
            name: name.to_string(),
            fingerprint: fingerprint.to_string(),
        },
        Credential::User(uid) => By::User { uid },
        Credential::Reach => By::Reach,
    }
}

/// Checks the audit trail in the `state_dir` that this server.yml names; a server may be writing
/// to it. Nothing is written. With `noted`, one of its lines must have this hash.
///
/// # Errors
///
/// When server.yml is bad, or the trail cannot be read.
pub fn verify_audit(path: &Path, noted: Option<Hash>) -> Result<Verdict, ServeError> {
    let server_file = open_server_file(path).map_err(ServeError::BadConfig)?;
    let verdict = audit::verify(&server_file.spec().state_dir, noted);
    verdict.map_err(ServeError::Audit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::{CheckScope, Follow, Goal, KillChildren, WAIT_TIME},
        control::keys::Fingerprint,
        spec::Verb,
    };

    #[test]
    fn what_changes_something_is_told_and_what_asks_is_not() {
        let child = || "web".parse().unwrap();
        let verbs = [Verb::Start, Verb::Restart, Verb::Trystart, Verb::Stop];
        for verb in verbs {
            let child = child();
            assert!(changes_something(&Command::Child { verb, child }));
        }
        for kill in [KillChildren::AsConfigured, KillChildren::Stop] {
            assert!(changes_something(&Command::Kill(kill)));
        }
        assert!(changes_something(&Command::StopAll));
        assert!(changes_something(&Command::StartAll));
        assert!(changes_something(&Command::Upgrade));
        let scope = CheckScope::All;
        assert!(!changes_something(&Command::Check { scope }));
        assert!(!changes_something(&Command::CheckOne(child())));
        assert!(!changes_something(&Command::Why(child())));
        assert!(!changes_something(&Command::Info));
        assert!(!changes_something(&Command::Events {
            child: Some(child()),
            follow: Follow::Yes,
            last: None,
        }));
        assert!(!changes_something(&Command::Wait {
            child: child(),
            goal: Goal::Ready,
            run: None,
            time: WAIT_TIME,
        }));
    }

    #[test]
    fn a_refusal_keeps_all_that_is_known_of_it() {
        let fingerprint = Fingerprint::of_spki(b"");
        let refused = Refused {
            peer: "192.0.2.1:4".parse().unwrap(),
            credential: Some(Credential::Key {
                name: "deploy".parse().unwrap(),
                fingerprint: fingerprint.clone(),
            }),
            claimed: Some("other".parse().unwrap()),
            command: Some(Command::StopAll),
            code: ErrorCode::Forbidden,
            why: "no".to_owned(),
            more: 3,
        };
        let expected = Refusal {
            by: Some(By::Key {
                name: "deploy".to_owned(),
                fingerprint: fingerprint.to_string(),
            }),
            claimed: Some("other".to_owned()),
            peer: refused.peer,
            command: refused.command.clone(),
            code: refused.code,
            why: "no".to_owned(),
            more: 3,
        };
        assert_eq!(refusal(refused), expected);
        assert_eq!(by(Credential::User(7)), By::User { uid: 7 });
        assert_eq!(by(Credential::Reach), By::Reach);
    }
}
