//! Why something is done: the word that orders, records and log lines share.
//!
//! It is written down with each run that ended, so that a name in here is part of a file format.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::Asker;

/// Why something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A client asked.
    Command,
    /// Another child's hook.
    Hook,
    /// A repeat timer.
    Repeat,
    /// The restart policy.
    Policy,
    /// It was not ready in time.
    NotReady,
    /// Probes of its health failed.
    Unhealthy,
    /// Another child depends on it.
    Dependency,
    /// The server started.
    Boot,
    /// A new file.
    New,
    /// A changed file.
    Changed,
    /// A file that is gone.
    Removed,
    /// The settings in server.yml changed.
    Settings,
    /// The server ends.
    Shutdown,
    /// The host went down, or was started anew.
    Reboot,
}

/// Why something is done, and who asked for it if somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Why.
    pub cause: Cause,
    /// Who asked, also where a hook did it for him.
    #[serde(flatten)]
    pub asker: Option<Arc<Asker>>,
}

impl Origin {
    /// Why, and who asked if somebody did.
    #[must_use]
    pub fn new(cause: Cause, asker: Option<Arc<Asker>>) -> Self {
        Self { cause, asker }
    }

    /// What a client asks.
    #[must_use]
    pub fn command(asker: Arc<Asker>) -> Self {
        Self {
            cause: Cause::Command,
            asker: Some(asker),
        }
    }
}

impl From<Cause> for Origin {
    /// What nobody asked for.
    fn from(cause: Cause) -> Self {
        Self { cause, asker: None }
    }
}

impl Cause {
    /// The cause as a word on the wire, as it is in records.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Hook => "hook",
            Self::Repeat => "repeat",
            Self::Policy => "policy",
            Self::NotReady => "not_ready",
            Self::Unhealthy => "unhealthy",
            Self::Dependency => "dependency",
            Self::Boot => "boot",
            Self::New => "new",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Settings => "settings",
            Self::Shutdown => "shutdown",
            Self::Reboot => "reboot",
        }
    }

    /// The cause as a word for the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Hook => "hook",
            Self::Repeat => "repeat",
            Self::Policy => "policy",
            Self::NotReady => "not ready",
            Self::Unhealthy => "unhealthy",
            Self::Dependency => "dependency",
            Self::Boot => "boot",
            Self::New => "new file",
            Self::Changed => "file changed",
            Self::Removed => "file removed",
            Self::Settings => "settings changed",
            Self::Shutdown => "shutdown",
            Self::Reboot => "reboot",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_one_word_in_records_and_on_the_wire() {
        for cause in [
            Cause::Command,
            Cause::Hook,
            Cause::Repeat,
            Cause::Policy,
            Cause::NotReady,
            Cause::Unhealthy,
            Cause::Dependency,
            Cause::Boot,
            Cause::New,
            Cause::Changed,
            Cause::Removed,
            Cause::Settings,
            Cause::Shutdown,
            Cause::Reboot,
        ] {
            let text = serde_json::to_string(&cause).unwrap();
            assert_eq!(text, format!("\"{}\"", cause.word()));
        }
    }

    #[test]
    fn an_origin_is_written_flat_and_read_back() {
        let asker = Asker {
            key: Some("deploy".to_owned()),
            user: None,
            peer: "192.0.2.1:7".parse().unwrap(),
        };
        let origins = [
            Origin::from(Cause::Policy),
            Origin::command(Arc::new(asker)),
        ];
        for (origin, text) in origins.into_iter().zip([
            r#"{"cause":"policy"}"#,
            r#"{"cause":"command","key":"deploy","peer":"192.0.2.1:7"}"#,
        ]) {
            assert_eq!(serde_json::to_string(&origin).unwrap(), text);
            assert_eq!(serde_json::from_str::<Origin>(text).unwrap(), origin);
        }
    }
}
