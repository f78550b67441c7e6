//! What a key may be used for: the commands it may sign, for which children, from where.
//!
//! - Without a scope file a key may do everything; each field of one takes something away, and
//!   a command must pass all of them.
//! - With `children`, a command that concerns all children is forbidden, whatever the patterns
//!   are: `start --all`, `stop --all`, `check` and `events` without a name (they tell of every
//!   child), and `kill`. `info` concerns no child, and is governed by `allow` alone.
//! - Who may `check`, `start`, `restart` or `trystart` a child may also `wait` for it; who may `check`
//!   it may also ask `why`.
//! - A command for one child may start others through its hooks: that is what the child's file
//!   says, and not what the key says.
//! - `from` is about the peer's address as the server sees it, IPv4 addresses as such however the
//!   socket writes them: `::/0` is every IPv6 peer and no IPv4 peer. Through ssh, peers come from
//!   the server's own host.
//!
//! What is forbidden is told to the peer, who has proven who he is. Where he would have to come
//! from is not told: whoever stole a key need not learn which host to take next.
//!
//! Absent on purpose: the text of scope files (`config`), and which file belongs to which key
//! (`ring`).

use std::{fmt, net::IpAddr};

use super::KeyName;
use crate::{
    command::{CheckScope, Command, KillChildren, Op},
    config::{ChildPattern, KeyScope},
    spec::{ChildName, Verb},
};

/// How many of a scope's patterns a message repeats.
const PATTERNS_SHOWN_MAX: usize = 8;

/// What a key may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(Option<Limited>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Limited {
    /// Whose scope it is, for messages.
    key: KeyName,
    limits: KeyScope,
}

/// Why a key may not sign a command. The text is for the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It came from elsewhere.
    #[error("key `{key}` may not be used from {from}: its scope names other addresses")]
    From {
        /// Which key.
        key: KeyName,
        /// Where it came from.
        from: IpAddr,
    },
    /// The command is not among those it may give.
    #[error("key `{key}` may not `{}`: its scope allows {}", op.as_str(), Ops(allow))]
    Op {
        /// Which key.
        key: KeyName,
        /// The command.
        op: Op,
        /// What it may give instead.
        allow: Vec<Op>,
    },
    /// The child is not among those it may command.
    #[error(
        "key `{key}` may not `{} {child}`: its scope holds {}",
        op.as_str(),
        Patterns(children)
    )]
    Child {
        /// Which key.
        key: KeyName,
        /// The command.
        op: Op,
        /// The child.
        child: ChildName,
        /// The children it may command.
        children: Vec<ChildPattern>,
    },
    /// The command concerns all children.
    #[error(
        "key `{key}` may not `{command}`, which concerns all children: its scope holds {}",
        Patterns(children)
    )]
    AllChildren {
        /// Which key.
        key: KeyName,
        /// The command, as it is typed.
        command: &'static str,
        /// The children it may command.
        children: Vec<ChildPattern>,
    },
}

impl Scope {
    /// What a key without a scope file may do.
    #[must_use]
    pub fn everything() -> Self {
        Self(None)
    }

    /// What this key may do, as its scope file says.
    #[must_use]
    pub fn of(key: KeyName, limits: KeyScope) -> Self {
        Self(Some(Limited { key, limits }))
    }

    /// What its scope file says; `None` when it has none.
    #[must_use]
    pub fn limits(&self) -> Option<&KeyScope> {
        self.0.as_ref().map(|limited| &limited.limits)
    }

    /// Whether this command may be given by a peer with this address.
    ///
    /// # Errors
    ///
    /// What of the scope forbids it.
    pub fn permits(&self, command: &Command, from: IpAddr) -> Result<(), Forbidden> {
        match &self.0 {
            None => Ok(()),
            Some(limited) => limited.permits(command, from.to_canonical()),
        }
    }
}

impl Limited {
    fn permits(&self, command: &Command, from: IpAddr) -> Result<(), Forbidden> {
        let key = || self.key.clone();
        let op = command.op();
        if let Some(networks) = &self.limits.from
            && !networks.iter().any(|network| network.contains(&from))
        {
            return Err(Forbidden::From { key: key(), from });
        }
        if let Some(allow) = &self.limits.allow
            && !allow.iter().any(|allowed| implies(*allowed, op))
        {
            let allow = allow.clone();
            return Err(Forbidden::Op {
                key: key(),
                op,
                allow,
            });
        }
        let Some(children) = &self.limits.children else {
            return Ok(());
        };
        match Concerns::of(command) {
            Concerns::None => Ok(()),
            Concerns::One(child) if children.iter().any(|pattern| pattern.matches(child)) => Ok(()),
            Concerns::One(child) => Err(Forbidden::Child {
                key: key(),
                op,
                child: child.clone(),
                children: children.clone(),
            }),
            Concerns::All(command) => Err(Forbidden::AllChildren {
                key: key(),
                command,
                children: children.clone(),
            }),
        }
    }
}

/// Whether who may give one command may give another with it: a command that starts something is of
/// little use to who may not wait until it runs, and `wait` and `why` tell less than `check`.
fn implies(allowed: Op, op: Op) -> bool {
    let also = match allowed {
        Op::Check => op == Op::Wait || op == Op::Why,
        Op::Start | Op::Restart | Op::Trystart => op == Op::Wait,
        Op::Stop | Op::Why | Op::Wait | Op::Events | Op::Info | Op::Kill | Op::Upgrade => false,
    };
    allowed == op || also
}

/// Which children a command concerns.
enum Concerns<'a> {
    None,
    One(&'a ChildName),
    /// All of them; the command as it is typed.
    All(&'static str),
}

impl<'a> Concerns<'a> {
    fn of(command: &'a Command) -> Self {
        match command {
            Command::Child {
                verb: Verb::Start | Verb::Restart | Verb::Trystart | Verb::Stop,
                child,
            }
            | Command::CheckOne(child)
            | Command::Why(child)
            | Command::Wait { child, .. }
            | Command::Events {
                child: Some(child), ..
            } => Self::One(child),
            Command::Events { child: None, .. } => Self::All("events"),
            Command::StartAll => Self::All("start --all"),
            Command::StopAll => Self::All("stop --all"),
            Command::Check {
                scope: CheckScope::Live,
            } => Self::All("check"),
            Command::Check {
                scope: CheckScope::All,
            } => Self::All("check --all"),
            Command::Kill(KillChildren::AsConfigured) => Self::All("kill"),
            Command::Kill(KillChildren::Stop) => Self::All("kill --stop-children"),
            Command::Upgrade => Self::All("upgrade"),
            Command::Info => Self::None,
        }
    }
}

/// "check, trystart".
struct Ops<'a>(&'a [Op]);

impl fmt::Display for Ops<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        let words: Vec<&str> = self.0.iter().map(|op| op.as_str()).collect();
        f.write_str(&words.join(", "))
    }
}

/// "the children `web-*`, `api`".
struct Patterns<'a>(&'a [ChildPattern]);

impl fmt::Display for Patterns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no child");
        }
        f.write_str("the children ")?;
        for (index, pattern) in self.0.iter().take(PATTERNS_SHOWN_MAX).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}`{pattern}`")?;
        }
        match self.0.len().saturating_sub(PATTERNS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    const HERE: &str = "127.0.0.1";

    fn scope(text: &str) -> Scope {
        let limits = config::key_scope(Path::new("/keys/deploy.yml"), text.as_bytes()).unwrap();
        Scope::of("deploy".parse().unwrap(), limits)
    }

    fn child(verb: Verb, name: &str) -> Command {
        let child = name.parse().unwrap();
        Command::Child { verb, child }
    }

    fn check(name: &str) -> Command {
        Command::CheckOne(name.parse().unwrap())
    }

    fn permitted(scope: &Scope, command: &Command, from: &str) -> bool {
        scope.permits(command, from.parse().unwrap()).is_ok()
    }

    fn told(scope: &Scope, command: &Command, from: &str) -> String {
        let forbidden = scope.permits(command, from.parse().unwrap());
        forbidden.unwrap_err().to_string()
    }

    #[test]
    fn without_a_scope_file_a_key_may_do_all_from_anywhere() {
        for command in Command::every("db") {
            for from in [HERE, "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1"] {
                assert!(permitted(&Scope::everything(), &command, from));
            }
        }
    }

    #[test]
    fn a_scope_that_names_nothing_limits_nothing() {
        for command in Command::every("db") {
            assert!(permitted(&scope("x-note: nothing"), &command, "192.0.2.1"));
        }
    }

    #[test]
    fn only_the_commands_that_are_allowed_are() {
        for op in Op::ALL {
            let scope = scope(&format!("allow: [{}]", op.as_str()));
            for command in Command::every("db") {
                let starts = matches!(op, Op::Start | Op::Restart | Op::Trystart);
                let waits = command.op() == Op::Wait && (starts || op == Op::Check);
                let why = command.op() == Op::Why && op == Op::Check;
                let expected = command.op() == op || waits || why;
                assert_eq!(permitted(&scope, &command, HERE), expected, "{command:?}");
            }
        }
    }

    #[test]
    fn who_may_start_a_child_may_wait_for_that_and_for_no_other() {
        let scope = scope("allow: [trystart]\nchildren: [web]");
        let wait = |child: &str| Command::Wait {
            child: child.parse().unwrap(),
            goal: crate::command::Goal::Ready,
            run: None,
            time: crate::command::WAIT_TIME,
        };
        assert!(permitted(&scope, &wait("web"), HERE));
        assert_eq!(
            told(&scope, &wait("db"), HERE),
            "key `deploy` may not `wait db`: its scope holds the children `web`"
        );
    }

    #[test]
    fn an_empty_list_of_any_kind_allows_nothing() {
        for (text, free) in [
            ("allow: []", false),
            ("children: []", true),
            ("from: []", false),
        ] {
            for command in Command::every("db") {
                // `children` says nothing of `info`.
                let expected = free && command == Command::Info;
                let is = permitted(&scope(text), &command, HERE);
                assert_eq!(is, expected, "{text} {command:?}");
            }
        }
    }

    #[test]
    fn only_the_children_that_a_pattern_matches_can_be_commanded() {
        let scope = scope("children: ['web-*', api]");
        for verb in [Verb::Start, Verb::Restart, Verb::Trystart, Verb::Stop] {
            for good in ["web-1", "web-", "api"] {
                assert!(permitted(&scope, &child(verb, good), HERE), "{good}");
            }
            for bad in ["db", "web", "Web-1", "api2", "my-web-1", "API"] {
                assert!(!permitted(&scope, &child(verb, bad), HERE), "{bad}");
            }
        }
        assert!(permitted(&scope, &check("api"), HERE));
        assert!(!permitted(&scope, &check("db"), HERE));
    }

    #[test]
    fn with_children_a_command_about_all_of_them_is_forbidden_even_if_all_match() {
        let scope = scope("children: ['*']");
        for command in Command::every("web") {
            let concerns_all = match &command {
                Command::Child { .. }
                | Command::CheckOne(_)
                | Command::Why(_)
                | Command::Wait { .. }
                | Command::Events { child: Some(_), .. }
                | Command::Info => false,
                Command::StartAll
                | Command::Events { child: None, .. }
                | Command::StopAll
                | Command::Check { .. }
                | Command::Kill(_)
                | Command::Upgrade => true,
            };
            assert_eq!(
                permitted(&scope, &command, HERE),
                !concerns_all,
                "{command:?}"
            );
        }
    }

    #[test]
    fn a_command_must_pass_every_field() {
        let scope = scope("allow: [check]\nchildren: [web]\nfrom: [10.0.0.0/8]");
        assert!(permitted(&scope, &check("web"), "10.1.2.3"));
        assert!(!permitted(&scope, &check("web"), "11.1.2.3"));
        assert!(!permitted(&scope, &check("db"), "10.1.2.3"));
        assert!(!permitted(&scope, &child(Verb::Stop, "web"), "10.1.2.3"));
    }

    #[test]
    fn an_ipv4_peer_is_the_same_on_a_socket_of_ipv6() {
        let scope = scope("from: [10.0.0.0/8, 127.0.0.1]");
        for from in ["10.255.0.1", "::ffff:10.255.0.1", "::ffff:127.0.0.1"] {
            assert!(permitted(&scope, &Command::Info, from), "{from}");
        }
        for from in [
            "11.0.0.1",
            "::ffff:11.0.0.1",
            "127.0.0.2",
            "::1",
            "::10.0.0.1",
        ] {
            assert!(!permitted(&scope, &Command::Info, from), "{from}");
        }
    }

    #[test]
    fn a_network_of_one_family_holds_no_peer_of_the_other() {
        for (text, six, four) in [
            ("from: ['::/0']", true, false),
            ("from: [0.0.0.0/0]", false, true),
        ] {
            let scope = scope(text);
            assert_eq!(permitted(&scope, &Command::Info, "2001:db8::1"), six);
            for from in ["192.0.2.1", "::ffff:192.0.2.1"] {
                assert_eq!(
                    permitted(&scope, &Command::Info, from),
                    four,
                    "{text} {from}"
                );
            }
        }
    }

    #[test]
    fn the_signer_is_told_in_one_sentence_what_is_not_allowed() {
        let deploy =
            scope("allow: [check, trystart]\nchildren: ['web-*', api]\nfrom: [10.0.0.0/8]");
        let from = "10.0.0.1";
        assert_eq!(
            told(&deploy, &child(Verb::Stop, "web-1"), from),
            "key `deploy` may not `stop`: its scope allows check, trystart"
        );
        assert_eq!(
            told(&deploy, &check("db"), from),
            "key `deploy` may not `check db`: its scope holds the children `web-*`, `api`"
        );
        let all = Command::Check {
            scope: CheckScope::All,
        };
        assert_eq!(
            told(&deploy, &all, from),
            "key `deploy` may not `check --all`, which concerns all children: \
             its scope holds the children `web-*`, `api`"
        );
        assert_eq!(
            told(&scope("allow: []"), &Command::Info, from),
            "key `deploy` may not `info`: its scope allows nothing"
        );
        assert_eq!(
            told(&scope("children: []"), &check("db"), from),
            "key `deploy` may not `check db`: its scope holds no child"
        );
    }

    #[test]
    fn where_a_key_may_be_used_from_is_not_told_to_who_stole_it() {
        let scope = scope("allow: [check]\nfrom: [198.51.100.7]");
        assert_eq!(
            told(&scope, &Command::StopAll, "::ffff:192.0.2.1"),
            "key `deploy` may not be used from 192.0.2.1: its scope names other addresses"
        );
    }

    #[test]
    fn a_scope_of_many_patterns_is_told_of_in_a_line() {
        let items: String = (0..200)
            .map(|i| format!("- '{}{i}*'\n", "x".repeat(50)))
            .collect();
        let scope = scope(&format!("children:\n{items}"));
        let text = told(&scope, &check("db"), HERE);
        assert!(text.ends_with("and 192 more") && text.len() < 700, "{text}");
    }
}
