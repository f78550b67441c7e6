//! What becomes of children, told to clients that follow it.
//!
//! - An event is told when a child's state, its run or how its file stands to what runs is another
//!   than was last told. Whether that is so is looked at once, at the end of a step, for each child
//!   that the step has touched; what was so for a moment within it is not told, but for the end of a
//!   run, which always is.
//! - The latest are kept for those who ask later. After the death of a server it begins anew.
//! - Who follows is answered when the server ends (`shutting_down`), or when he reads too slowly for
//!   what happens (`busy`): nothing is left out unsaid. An upgrade takes all of it along.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    cause::{Cause, Origin},
    child::{Child, Last, Phase},
    effect::Effect,
    event::RequestId,
    planted::{Bug, planted},
    view::config_status,
    waits::Room,
};
use crate::{
    command::{
        Answer, Asker, ChildEvent, ConfigStatus, ErrorCode, Failure, Follow, HowEnded, Op, Stamp,
        StateName, Told,
    },
    spec::{ChildName, RunId, Time},
};

/// How many events are kept for those who ask later.
pub const EVENTS_KEPT_MAX: usize = 1_000;
/// How many may follow at one time; one more is `busy`.
pub const FOLLOWERS_MAX: usize = 64;
/// How many of them may be one asker's.
pub const FOLLOWERS_PER_ASKER_MAX: usize = 16;

/// What they are told who may not.
const ROOM: Room = Room {
    all: FOLLOWERS_MAX,
    per_asker: FOLLOWERS_PER_ASKER_MAX,
    do_so: "follow",
};

/// How much of a detail an event has, in characters: all that are kept, at their longest, are to
/// fit into what a connection holds for its client.
const DETAIL_CHARS_MAX: usize = 120;

/// The latest events, and who follows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Feed {
    /// The number of the latest.
    seq: u64,
    kept: VecDeque<Arc<ChildEvent>>,
    pub(super) followers: BTreeMap<RequestId, Follower>,
}

/// Somebody who follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Follower {
    /// Which child; without, all.
    child: Option<ChildName>,
    asker: Arc<Asker>,
    /// How many events he was told.
    count: usize,
}

/// What was last told of a child; of one that nothing was told of, that it is stopped, never ran
/// and has a good file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastTold {
    pub(super) state: Option<StateName>,
    run: Option<RunId>,
    /// The latest run whose end was told.
    ended: Option<RunId>,
    config: Option<ConfigStatus>,
}

impl Feed {
    /// The latest of one child or all, the oldest first.
    fn latest(&self, child: Option<&ChildName>, last: Option<u32>) -> Vec<Arc<ChildEvent>> {
        let most = last.map_or(usize::MAX, |last| {
            usize::try_from(last).unwrap_or(usize::MAX)
        });
        let mine = |event: &&Arc<ChildEvent>| child.is_none_or(|child| *child == event.child);
        let mut latest: Vec<_> = self
            .kept
            .iter()
            .rev()
            .filter(mine)
            .take(most)
            .cloned()
            .collect();
        latest.reverse();
        latest
    }

    /// Numbers an event, keeps it, and has it told to those who follow its child.
    fn put(&mut self, turn: &mut Turn, mut event: ChildEvent) {
        self.seq += 1;
        event.seq = self.seq;
        let event = Arc::new(event);
        if self.kept.len() >= EVENTS_KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Arc::clone(&event));
        for (id, follower) in &mut self.followers {
            let is_his = follower
                .child
                .as_ref()
                .is_none_or(|child| *child == event.child);
            if is_his || planted(Bug::FollowersHearAll) {
                follower.count += 1;
                turn.emit(Effect::Tell {
                    id: *id,
                    events: vec![Arc::clone(&event)],
                    answer: None,
                });
            }
        }
    }
}

impl State {
    pub(super) fn tell_events(
        &mut self,
        turn: &mut Turn,
        id: RequestId,
        (child, follow, last): (Option<ChildName>, Follow, Option<u32>),
        asker: Arc<Asker>,
    ) {
        if let Err(failure) = self.may_hear(child.as_ref(), follow, &asker) {
            let answer = Err(failure);
            return turn.emit(Effect::Reply { id, answer });
        }
        let events = self.feed.latest(child.as_ref(), last);
        let answer = match follow {
            Follow::No => Some(Answer::Told(told(child, events.len()))),
            Follow::Yes => {
                let count = events.len();
                let follower = Follower {
                    child,
                    asker,
                    count,
                };
                self.feed.followers.insert(id, follower);
                None
            }
        };
        if answer.is_some() || !events.is_empty() {
            turn.emit(Effect::Tell { id, events, answer });
        }
    }

    fn may_hear(
        &self,
        child: Option<&ChildName>,
        follow: Follow,
        asker: &Asker,
    ) -> Result<(), Failure> {
        let is_known = |name: &ChildName| self.children.get(name).is_some_and(Child::is_known);
        if let Some(unknown) = child.filter(|name| !is_known(name)) {
            return Err(self.unknown(unknown));
        }
        if follow == Follow::No {
            return Ok(());
        }
        if self.ending.is_some() {
            return Err(super::jobs::server_ends());
        }
        let followers = self.feed.followers.values();
        ROOM.admit(followers.map(|other| &other.asker), asker)
    }

    /// Who follows reads so slowly that an event was not taken for him: he is told so, and which.
    pub(super) fn on_fell_behind(&mut self, turn: &mut Turn, id: RequestId, seq: u64) {
        self.feed.followers.remove(&id);
        let message = format!(
            "this client does not read what it is told: event {seq} and later ones were not sent\n\
             hint: follow again; the latest {EVENTS_KEPT_MAX} events are kept"
        );
        let answer = Err(Failure::new(ErrorCode::Busy, message));
        turn.emit(Effect::Reply { id, answer });
    }

    /// Who followed is gone.
    pub(super) fn stop_following(&mut self, turn: &mut Turn, id: RequestId) {
        if self.feed.followers.remove(&id).is_some() {
            let failure = Failure::new(ErrorCode::Superseded, "nobody follows any more");
            let answer = Err(failure);
            turn.emit(Effect::Reply { id, answer });
        }
    }

    /// The server ends, and nothing more will happen that could be told.
    pub(super) fn end_feed(&mut self, turn: &mut Turn) {
        while let Some((id, _)) = self.feed.followers.pop_first() {
            if !planted(Bug::FollowersLeft) {
                self.refuse_while_ending(turn, id);
            }
        }
    }

    /// A server has begun: of children at rest there is nothing to tell but what comes. Those whose
    /// runs have ended since the last server looked are no such.
    pub(super) fn begin_feed(&mut self, news: impl Fn(&ChildName) -> bool) {
        let (touched, dropped) = self.children.take_touched();
        for name in touched.iter().filter(|name| !news(name)) {
            let now = self
                .children
                .get(name)
                .map(|child| self.to_tell(name, child));
            if let (Some(child), Some(now)) = (self.children.note(name), now)
                && child.run.is_none()
                && child.job.is_none()
            {
                child.told = now;
            }
        }
        self.children.touch_again(touched, dropped);
    }

    /// Tells what this step has made of each child that it has touched.
    pub(super) fn tell_changes(&mut self, turn: &mut Turn) {
        let (touched, dropped) = self.children.take_touched();
        for (name, child) in dropped {
            let told = LastTold {
                config: child.told.config,
                ..self.to_tell(&name, &child)
            };
            for event in self.changes(turn, &name, &child, told) {
                self.feed.put(turn, event);
            }
        }
        for name in touched {
            let Some(child) = self.children.get(&name) else {
                continue;
            };
            let told = self.to_tell(&name, child);
            if told == child.told.or_nothing() {
                continue;
            }
            let events = self.changes(turn, &name, child, told);
            if let Some(child) = self.children.note(&name) {
                child.told = told;
            }
            for event in events {
                self.feed.put(turn, event);
            }
        }
    }

    /// What there is to tell of a child.
    fn to_tell(&self, name: &ChildName, child: &Child) -> LastTold {
        let run = child.run.as_ref().map(|run| run.id);
        let last = child.last.as_ref();
        LastTold {
            state: Some(child.state(self.start_under_way(name))),
            run: run.or_else(|| last.map(|last| last.id)),
            ended: last.filter(|last| last.exit.is_some()).map(|last| last.id),
            config: Some(config_status(child)),
        }
    }

    /// What is to be told of a child of which that was told last and this is so now.
    fn changes(
        &self,
        turn: &Turn,
        name: &ChildName,
        child: &Child,
        now: LastTold,
    ) -> Vec<ChildEvent> {
        let before = child.told.or_nothing();
        let mut events = Vec::new();
        let last = child.last.as_ref().filter(|_| before.ended != now.ended);
        let mut state = before.state;
        if let Some(last) = last.filter(|last| last.exit.is_some()) {
            let event = end(turn.now, name, last);
            state = Some(event.state);
            events.push(event);
        }
        let is_of_last = last.is_some_and(|last| Some(last.id) == now.run);
        let same_run = before.run == now.run || is_of_last;
        let same_file = before.config == now.config;
        if state == now.state && same_run && same_file {
            return events;
        }
        if planted(Bug::BackoffNotTold) && now.state == Some(StateName::Backoff) {
            return events;
        }
        let state = now.state.unwrap_or(StateName::Stopped);
        let config = now.config.filter(|_| !same_file);
        let live = child.run.as_ref();
        let origin = self.origin(name, child);
        events.push(ChildEvent {
            seq: 0,
            at: Stamp(turn.now.wall),
            child: name.clone(),
            state,
            run: now.run,
            pid: live.and_then(|run| run.pid),
            cause: origin.as_ref().map(|by| by.cause.word().to_owned()),
            asker: origin.and_then(|by| by.asker),
            exit: None,
            config,
            detail: self.detail(turn, name, child, state).map(|it| short(&it)),
        });
        events
    }

    /// Why a child is as it is, and who asked.
    fn origin(&self, name: &ChildName, child: &Child) -> Option<Origin> {
        if let Some(run) = &child.run {
            return match run.phase {
                Phase::Spawning | Phase::Running => run.begun_by.clone(),
                Phase::Stopping { cause, .. } => Some(Origin::new(cause, run.stop_asker.clone())),
            };
        }
        let job = child.job.and_then(|id| self.jobs.get(&id));
        if let Some(job) = job.filter(|_| self.start_under_way(name)) {
            return Some(job.by.clone());
        }
        if child.retry.is_some() {
            return Some(Cause::Policy.into());
        }
        child.last.as_ref().and_then(|last| last.by.clone())
    }

    /// What else is to be said of it.
    fn detail(
        &self,
        turn: &Turn,
        name: &ChildName,
        child: &Child,
        state: StateName,
    ) -> Option<String> {
        let taken_back = child.run.as_ref().filter(|run| {
            turn.cause == Cause::Boot && run.pid.is_some() && run.started.mono < turn.now.mono
        });
        if let Some(run) = taken_back {
            return Some(format!("taken back, began {}", Stamp(run.started.wall)));
        }
        let row = self.row(name, child, turn.now);
        let next = row.next.filter(|_| state == StateName::Backoff);
        let next = next.map(|next| format!("{} at {}", next.action, next.at));
        let fault = row.faults.first().cloned();
        let all: Vec<String> = next.into_iter().chain(row.reason).chain(fault).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl LastTold {
    /// With what is so of a child of which nothing was told.
    fn or_nothing(self) -> Self {
        Self {
            state: self.state.or(Some(StateName::Stopped)),
            config: self.config.or(Some(ConfigStatus::Current)),
            ..self
        }
    }
}

/// That a run has ended.
fn end(now: Time, name: &ChildName, last: &Last) -> ChildEvent {
    let state = match &last.by {
        None => StateName::Exited,
        Some(_) => StateName::Stopped,
    };
    ChildEvent {
        seq: 0,
        at: Stamp(now.wall),
        child: name.clone(),
        state,
        run: Some(last.id),
        pid: last.pid,
        cause: last.by.as_ref().map(|by| by.cause.word().to_owned()),
        asker: last.by.as_ref().and_then(|by| by.asker.clone()),
        exit: last.exit.map(HowEnded),
        config: None,
        detail: None,
    }
}

fn told(child: Option<ChildName>, count: usize) -> Told {
    let of = child
        .as_ref()
        .map_or(String::new(), |child| format!(" of `{child}`"));
    let message = match count {
        0 => format!("no event{of} is kept"),
        1 => format!("1 event{of}"),
        count => format!("{count} events{of}"),
    };
    Told {
        op: Op::Events,
        child,
        count,
        message,
    }
}

/// A detail on one line, of bounded length.
fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut shown: String = line.chars().take(DETAIL_CHARS_MAX).collect();
    if line.chars().nth(DETAIL_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_one_bounded_line() {
        assert_eq!(short("a\nb"), "a");
        assert_eq!(short(""), "");
        let long = short(&"é".repeat(1_000));
        assert_eq!(long.chars().count(), DETAIL_CHARS_MAX + 1);
    }

    #[test]
    fn the_latest_are_told_the_oldest_first_and_no_more_are_kept_than_may_be() {
        let mut state = State::new();
        let now = Time {
            mono: crate::spec::Mono(1),
            wall: crate::spec::Wall(1),
        };
        let mut turn = Turn::begin(now);
        let name = |number: usize| -> ChildName { format!("c{}", number % 2).parse().unwrap() };
        for number in 0..EVENTS_KEPT_MAX + 10 {
            let event = ChildEvent {
                seq: 0,
                at: Stamp(now.wall),
                child: name(number),
                state: StateName::Running,
                run: None,
                pid: None,
                cause: None,
                asker: None,
                exit: None,
                config: None,
                detail: None,
            };
            state.feed.put(&mut turn, event);
        }
        let numbers = |child: Option<&ChildName>, last| -> Vec<u64> {
            let latest = state.feed.latest(child, last);
            latest.iter().map(|event| event.seq).collect()
        };
        assert_eq!(numbers(None, None).len(), EVENTS_KEPT_MAX);
        assert_eq!(numbers(None, None).first(), Some(&11));
        assert_eq!(numbers(None, Some(3)), [1_008, 1_009, 1_010]);
        assert_eq!(numbers(Some(&name(0)), Some(2)), [1_007, 1_009]);
        assert_eq!(numbers(None, Some(0)), [0_u64; 0]);
    }
}
