//! Which command the words and options mean, or why they mean none.

use std::time::Duration;

use super::{Flags, UsageError, sentence::Sentence, usage::nearest_command};
use crate::{
    command::{CheckScope, Command, Follow, Goal, KillChildren, Op, WAIT_TIME, WAIT_TIME_MAX},
    spec::Verb,
};

pub(super) fn resolve_command(sentence: &Sentence, flags: &Flags) -> Result<Command, UsageError> {
    let word = &sentence.command;
    let op = Op::ALL
        .into_iter()
        .find(|op| op.as_str().eq_ignore_ascii_case(word))
        .ok_or_else(|| unknown_command(sentence))?;
    refuse_foreign_flags(op, flags)?;
    let is_all = |name: &&String| name.eq_ignore_ascii_case("all");
    let all = flags.all || flags.all_rows || sentence.name.as_ref().is_some_and(|n| is_all(&n));
    let name = sentence.name.as_ref().filter(|name| !is_all(name));
    if let (Some(name), true) = (name, all) {
        return Err(UsageError::NameAndAll {
            command: op,
            name: name.clone(),
        });
    }
    let one = || match name {
        Some(name) => Ok(name.parse()?),
        None if all => Err(UsageError::NoAll(op)),
        None => Err(UsageError::NameMissing(op)),
    };
    let of_child = |verb| one().map(|child| Command::Child { verb, child });
    let of_server = |command| match &sentence.name {
        None => Ok(command),
        Some(name) => Err(UsageError::NameUnwanted {
            command: op,
            name: name.clone(),
        }),
    };
    match op {
        Op::Start if all => Ok(Command::StartAll),
        Op::Start => of_child(Verb::Start),
        Op::Restart => of_child(Verb::Restart),
        Op::Trystart => of_child(Verb::Trystart),
        Op::Stop if all => Ok(Command::StopAll),
        Op::Stop => of_child(Verb::Stop),
        Op::Check => Ok(match name {
            Some(name) => Command::CheckOne(name.parse()?),
            None if all => Command::Check {
                scope: CheckScope::All,
            },
            None => Command::Check {
                scope: CheckScope::Live,
            },
        }),
        Op::Why => one().map(Command::Why),
        Op::Wait => Ok(Command::Wait {
            child: one()?,
            goal: goal(flags)?,
            run: None,
            time: timeout(flags)?,
        }),
        Op::Events => Ok(Command::Events {
            child: name.map(|name| name.parse()).transpose()?,
            follow: match flags.follow {
                true => Follow::Yes,
                false => Follow::No,
            },
            last: tail(flags)?,
        }),
        Op::Info => of_server(Command::Info),
        Op::Kill if flags.stop_children => of_server(Command::Kill(KillChildren::Stop)),
        Op::Kill => of_server(Command::Kill(KillChildren::AsConfigured)),
        Op::Upgrade => of_server(Command::Upgrade),
    }
}

/// How long is waited for the run that a command starts, with `--wait`.
pub(super) fn resolve_ready_within(
    command: &Command,
    flags: &Flags,
) -> Result<Option<Duration>, UsageError> {
    match (command, flags.wait) {
        (Command::StartAll, true) => Err(UsageError::WaitForAll),
        (_, true) => timeout(flags).map(Some),
        (Command::Wait { .. }, false) => Ok(None),
        (_, false) if flags.timeout.is_some() => Err(UsageError::TimeoutAlone),
        (_, false) => Ok(None),
    }
}

fn goal(flags: &Flags) -> Result<Goal, UsageError> {
    let word = flags.goal.as_deref().ok_or(UsageError::GoalMissing)?;
    let is_it = |goal: &Goal| goal.as_str().eq_ignore_ascii_case(word);
    let found = Goal::ALL.into_iter().find(is_it);
    found.ok_or_else(|| UsageError::Goal(word.to_owned()))
}

fn timeout(flags: &Flags) -> Result<Duration, UsageError> {
    let Some(text) = &flags.timeout else {
        return Ok(WAIT_TIME);
    };
    let time = humantime::parse_duration(text);
    let time = time.map_err(|_| UsageError::Timeout(text.clone()))?;
    match time > WAIT_TIME_MAX {
        true => Err(UsageError::TimeoutTooLong),
        false => Ok(time),
    }
}

fn tail(flags: &Flags) -> Result<Option<u32>, UsageError> {
    let count = |text: &String| text.parse().map_err(|_| UsageError::Tail(text.clone()));
    flags.tail.as_ref().map(count).transpose()
}

fn unknown_command(sentence: &Sentence) -> UsageError {
    let word = &sentence.command;
    let second = sentence.name.as_deref().unwrap_or_default();
    let turned = Op::ALL
        .into_iter()
        .find(|op| op.as_str().eq_ignore_ascii_case(second));
    match (nearest_command(word), turned) {
        (None, Some(command)) => UsageError::Turned {
            command,
            name: word.clone(),
        },
        (nearest, _) => UsageError::UnknownCommand {
            word: word.clone(),
            nearest,
        },
    }
}

fn refuse_foreign_flags(op: Op, flags: &Flags) -> Result<(), UsageError> {
    let wrong = |flag, instead| {
        Err(UsageError::Flag {
            flag,
            command: op.as_str(),
            instead,
        })
    };
    if flags.bits.is_some() {
        return wrong("--bits", None);
    }
    if flags.goal.is_some() && op != Op::Wait {
        return wrong("--for", None);
    }
    if op != Op::Events && flags.follow {
        return wrong("--follow", None);
    }
    if op != Op::Events && flags.tail.is_some() {
        return wrong("--tail", None);
    }
    if flags.stop_children && op != Op::Kill {
        return wrong("--stop-children", None);
    }
    match op {
        Op::Stop
        | Op::Check
        | Op::Why
        | Op::Wait
        | Op::Events
        | Op::Info
        | Op::Kill
        | Op::Upgrade
            if flags.wait =>
        {
            wrong("--wait", None)
        }
        Op::Start | Op::Stop if flags.all_rows => wrong("-a", Some("--all")),
        Op::Start | Op::Stop | Op::Check => Ok(()),
        Op::Kill if flags.all || flags.all_rows => wrong("--all", Some("--stop-children")),
        Op::Restart | Op::Trystart | Op::Why | Op::Wait | Op::Events | Op::Info | Op::Upgrade
            if flags.all || flags.all_rows =>
        {
            wrong("--all", None)
        }
        Op::Restart
        | Op::Trystart
        | Op::Why
        | Op::Wait
        | Op::Events
        | Op::Info
        | Op::Kill
        | Op::Upgrade => Ok(()),
    }
}
