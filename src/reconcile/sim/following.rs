//! Who follows what becomes of children in the fake world, and whether he is told all of it, and
//! nothing else.
//!
//! No random numbers are drawn for it: who follows whom is decided by the number of the request.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    checks::Asked,
    files::{NAMES, name},
    world::{RunKey, World},
};
use crate::{
    command::{Answer, ChildEvent, Command, ErrorCode, Failure, Follow, StateName},
    reconcile::{FOLLOWERS_PER_ASKER_MAX, child::Child, event::Event, event::RequestId},
    spec::ChildName,
};

/// After every how many requests somebody follows.
const EVERY: u64 = 10;

/// After every how many somebody who follows goes away, or is found not to read.
const LEAVES_EVERY: u64 = 23;

/// How many events back somebody asks.
const LAST: [Option<u32>; 3] = [None, Some(0), Some(3)];

/// What those who follow have heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// By request: the latest number, and each child's state.
    by: BTreeMap<RequestId, (u64, BTreeMap<ChildName, StateName>)>,
    /// Runs whose end is to be told in this step.
    ends: BTreeSet<RunKey>,
    /// Whom nothing more is told, for he does not read.
    behind: BTreeSet<RequestId>,
}

impl Heard {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A run has ended, which is written down.
    pub(super) fn run_ended(&mut self, key: RunKey) {
        self.ends.insert(key);
    }
}

/// Whether this is answered only with the server's end.
pub(super) fn is_without_end(command: &Command) -> bool {
    matches!(
        command,
        Command::Events {
            follow: Follow::Yes,
            ..
        }
    )
}

impl World {
    /// Somebody follows, or goes, or does not read.
    pub(super) fn sometimes_follow(&mut self) {
        let number = self.next_request;
        // Mixed, so that no choice goes along with another.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pick = |from: u64, shift: u64| (mixed >> shift) % from;
        if self.ended {
            return;
        }
        if number.is_multiple_of(EVERY) {
            let of = usize::try_from(pick(4, 29)).expect("it is small");
            let child = NAMES.get(of).filter(|_| of > 0).map(|text| name(text));
            let last = usize::try_from(pick(3, 41)).expect("it is small");
            self.request(Command::Events {
                child,
                follow: match pick(4, 37) {
                    0 => Follow::No,
                    _ => Follow::Yes,
                },
                last: LAST[last],
            });
        } else if number.is_multiple_of(LEAVES_EVERY) {
            let follows = |asked: &&Asked| is_without_end(&asked.command);
            let Some(id) = self.checks.open.values().find(follows).map(|it| it.id) else {
                return;
            };
            if number.is_multiple_of(2) {
                self.tell(Event::Forsaken { id });
            } else {
                self.checks.heard.behind.insert(id);
                let seq = self.checks.heard.by.get(&id).map_or(1, |(seq, _)| seq + 1);
                self.tell(Event::FellBehind { id, seq });
            }
        }
    }

    /// Parts of a stream, and its end if that is part of it.
    pub(super) fn check_told(
        &mut self,
        id: RequestId,
        events: &[std::sync::Arc<ChildEvent>],
        answer: Option<&Answer>,
    ) {
        let Some(asked) = self.checks.open.get(&id).cloned() else {
            return self.blame(|_| format!("I5: {} is told more after its answer", id.0));
        };
        let Command::Events { child, follow, .. } = &asked.command else {
            return self.blame(|_| format!("{:?} is told events", asked.command));
        };
        let mut wrong = None;
        let (seq, states) = self.checks.heard.by.entry(id).or_default();
        for event in events {
            if event.seq <= *seq {
                wrong = Some(format!("event {} comes after {seq}", event.seq));
            }
            if child.as_ref().is_some_and(|child| *child != event.child) {
                wrong = Some(format!("who follows {child:?} is told of {}", event.child));
            }
            *seq = event.seq;
            states.insert(event.child.clone(), event.state);
            if let (Some(run), Some(_)) = (event.run, event.exit) {
                let key = (event.child.clone(), run);
                if !self.checks.over.contains(&key) {
                    wrong = Some(format!("{} run {run} is told to have ended", event.child));
                }
                if child.is_none() {
                    self.checks.heard.ends.remove(&key);
                }
            }
        }
        if answer.is_some() != (*follow == Follow::No) {
            wrong = Some(format!("I5: {:?} is answered: {answer:?}", asked.command));
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
        if answer.is_some() {
            self.checks.close(id);
        }
    }

    /// Whether the end of a stream is true.
    pub(super) fn check_followed(&mut self, asked: &Asked, answer: &Result<Answer, Failure>) {
        let Command::Events { child, .. } = &asked.command else {
            return;
        };
        let right = match answer {
            Ok(_) => false,
            Err(failure) => match failure.code {
                ErrorCode::ShuttingDown => self.core.ending.is_some(),
                ErrorCode::Superseded => self.checks.forsaken.contains(&asked.id),
                ErrorCode::UnknownChild => {
                    let core = child.as_ref().and_then(|name| self.core.children.get(name));
                    !core.is_some_and(Child::is_known)
                }
                ErrorCode::Busy => {
                    let followers = self.core.feed.followers.len();
                    let many = followers >= FOLLOWERS_PER_ASKER_MAX;
                    many || self.checks.heard.behind.contains(&asked.id)
                }
                _other => false,
            },
        };
        if !right {
            self.blame(|_| format!("I5: {:?} is answered wrongly: {answer:?}", asked.command));
        }
    }

    /// Everybody who follows knows how it is, of all that he heard of; and of nobody something else is
    /// so than was last told, whether or not anybody followed then.
    pub(super) fn after_events(&mut self) {
        let mut wrong = None;
        let is = |name: &ChildName, child: &Child| child.state(self.core.start_under_way(name));
        for (name, child) in &self.core.children {
            let told = child.told.state.unwrap_or(StateName::Stopped);
            if told != is(name, child) {
                wrong = Some(format!("{name} is {:?} and told {told:?}", is(name, child)));
            }
        }
        let follows = |asked: &&Asked| is_without_end(&asked.command);
        let mut all_are_heard = false;
        for asked in self.checks.open.values().filter(follows) {
            if let Command::Events { child: None, .. } = asked.command {
                all_are_heard = true;
            }
            let Some((_, states)) = self.checks.heard.by.get(&asked.id) else {
                continue;
            };
            for (name, heard) in states {
                let child = self.core.children.get(name);
                if let Some(child) = child.filter(|child| is(name, child) != *heard) {
                    let now = is(name, child);
                    wrong = Some(format!(
                        "{name} is {now:?}, and {} heard {heard:?}",
                        asked.id.0
                    ));
                }
            }
        }
        if let Some((name, run)) = self.checks.heard.ends.first().filter(|_| all_are_heard) {
            wrong = Some(format!("the end of {name} run {run} is not told"));
        }
        let open = self.checks.open.values().filter(follows).count();
        if open != self.core.feed.followers.len() {
            let held = self.core.feed.followers.len();
            wrong = Some(format!("I5: {open} follow and {held} are known"));
        }
        self.checks.heard.ends.clear();
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }
}

#[test]
fn more_than_may_follow_are_told_so_and_who_is_gone_makes_room() {
    let mut stage = super::script::Stage::after("file web v1\nboot quiet");
    for id in 0..FOLLOWERS_PER_ASKER_MAX {
        let out = stage.then(&format!("request {id} events web -f"));
        assert!(!out.contains("answer"), "{out}");
    }
    let out = stage.then("request 5000 events -f");
    assert!(
        out.contains("answer 5000: busy: you follow 16 times already"),
        "{out}"
    );
    let out = stage.then("forsaken 7\nrequest 5001 events -f");
    assert!(!out.contains("answer 5001"), "{out}");
}
