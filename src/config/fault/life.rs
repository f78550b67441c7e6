//! What can be wrong with how a child is stopped, looked at and made to wait: `stop`, `ready`,
//! `health`, `depends_on`.

use super::Quoted;
use crate::spec::NameError;

/// One way in which one of these fields can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::config) enum LifeFault {
    #[error("`{field}` has exactly one probe")]
    OneProbe {
        field: &'static str,
        help: &'static str,
    },
    #[error("`ready.interval` is how often a probe is tried, and here nothing is tried")]
    NothingTried,
    #[error("`health.timeout` is the time of a probe, and here none is tried")]
    NothingTimed,
    #[error("`ready.log` takes a regular expression: {why}")]
    Pattern { why: String },
    #[error("`ready.log` has nothing to read: both outputs are the server's own")]
    NothingLogged,
    #[error("`{field}` can only be `true`")]
    OnlyTrue { field: &'static str },
    #[error("`{field}` takes a port or \"ADDRESS:PORT\", not {found}")]
    Endpoint { field: &'static str, found: Quoted },
    #[error("`{field}` takes a URL of an address that begins with `http://`, not {found}")]
    Url { field: &'static str, found: Quoted },
    #[error("`{field}` takes the name of a signal, not {found}")]
    Signal { field: &'static str, found: Quoted },
    #[error("{found} in `{field}` tells no program to end")]
    SignalTellsNothing { field: &'static str, found: Quoted },
    #[error("`stop` has a `ladder` and a step beside it")]
    StopBoth,
    #[error("the ladder of `stop` does not end with `KILL`")]
    LadderWithoutKill { help: &'static str },
    #[error("`KILL` in the ladder of `stop` has something after it")]
    LadderAfterKill,
    #[error("a step of `stop` has either a `signal` or a `command`")]
    LadderStep,
    #[error("the ladder of `stop` has more than {max} steps before `KILL`")]
    LadderTooLong { max: usize },
    #[error("`depends_on` names no child: {source}")]
    DependsName { source: NameError },
    #[error("{child} in `depends_on` is `started`, `ready` or `completed`, not {found}")]
    Condition { child: Quoted, found: Quoted },
    #[error("a child in its own `depends_on` waits for itself")]
    DependsOnItself,
}

impl LifeFault {
    /// The way out.
    pub(super) fn help(&self) -> &'static str {
        match self {
            Self::OneProbe { help, .. } | Self::LadderWithoutKill { help } => help,
            Self::NothingTried => "remove it: what the run says counts at once",
            Self::NothingTimed => {
                "remove it: `interval` and `failures` say how long it may be silent"
            }
            Self::Pattern { .. } => {
                "in single quotes YAML leaves it as it is: `log: '^ready in \\d+ ms$'`"
            }
            Self::NothingLogged => "give one of them a file: `output: [{stdout: NAME.out}]`",
            Self::OnlyTrue { .. } => "write `true`, or remove the line",
            Self::Endpoint { .. } => "such as `8080`, `127.0.0.1:8080` or `[::1]:8080`",
            Self::Url { .. } => {
                "such as `http://127.0.0.1:8080/healthz`; for TLS write `exec:` and a program"
            }
            Self::Signal { .. } => "such as `TERM`, `INT`, `QUIT`, `USR1` or `RTMIN+3`",
            Self::SignalTellsNothing { .. } => "such as `TERM`, `INT` or `QUIT`",
            Self::StopBoth => "write all steps into `ladder`, and `scope` beside it",
            Self::LadderAfterKill => "nothing survives it: remove what follows",
            Self::LadderStep => "write one of them, and `wait` for its time",
            Self::LadderTooLong { .. } => "give fewer steps a longer `wait`",
            Self::DependsName { .. } => {
                "write the name of a file without its ending: `db` of `db.yml`"
            }
            Self::Condition { .. } => {
                "such as `db: ready`; a program that ends when it is done is `completed`"
            }
            Self::DependsOnItself => "remove the line, or write the name of another child",
        }
    }
}
