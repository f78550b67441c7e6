//! How a run is told to end: steps that ask, each with its time, and KILL at last.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::signal_name;

/// What the name of a signal may begin with.
const SIGNAL_PREFIX: &str = "SIG";

/// What names of real-time signals begin with.
const REAL_TIME_PREFIX: &str = "RTMIN";

/// The first real-time signal as the GNU C library numbers them: programs ask that one.
const REAL_TIME_MIN: i32 = 34;

/// The last real-time signal.
const REAL_TIME_MAX: i32 = 64;

/// How a run is told to end. After the steps comes KILL, always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPolicy {
    /// What is done first, in order; at most [`StopPolicy::STEPS_MAX`]. None: KILL at once.
    pub steps: Vec<StopStep>,
    /// Whom signals go to.
    pub scope: StopScope,
}

impl StopPolicy {
    /// The most steps before KILL.
    pub const STEPS_MAX: usize = 16;

    /// The longest time for a step: every stop ends.
    pub const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

    /// How long a step has unless told otherwise.
    pub const WAIT: Duration = Duration::from_secs(10);

    /// How long it may take until KILL.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.steps.iter().map(|step| step.wait).sum()
    }

    /// Whether it is what is built in.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self {
            steps: vec![StopStep::default()],
            scope: StopScope::Group,
        }
    }
}

/// As a person reads it: `INT 5s, TERM 10s, KILL; tree`.
impl fmt::Display for StopPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for StopStep { act, wait } in &self.steps {
            write!(f, "{act} {}, ", humantime::format_duration(*wait))?;
        }
        f.write_str("KILL")?;
        match self.scope {
            StopScope::Group => Ok(()),
            StopScope::Tree => f.write_str("; tree"),
        }
    }
}

/// One step of a stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopStep {
    /// What is done.
    pub act: StopAct,
    /// How long the run has to end before the next step.
    pub wait: Duration,
}

impl Default for StopStep {
    fn default() -> Self {
        Self {
            act: StopAct::Signal(SignalNumber::TERM),
            wait: StopPolicy::WAIT,
        }
    }
}

/// What a step of a stop does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopAct {
    /// Sends a signal.
    Signal(SignalNumber),
    /// Runs a program that has the run end; never empty.
    Run(Vec<String>),
}

impl fmt::Display for StopAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::Run(argv) => write!(f, "`{}`", shell_words::join(argv)),
        }
    }
}

/// Whom the signals of a stop go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopScope {
    /// The run's process group.
    #[default]
    Group,
    /// Everything that the run has started and that can be found.
    Tree,
}

impl StopScope {
    /// The word as written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Tree => "tree",
        }
    }
}

/// The number of a signal, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// Asks to end.
    pub const TERM: Self = Self(15);
    /// Ends, unasked.
    pub const KILL: Self = Self(9);

    /// The number, as in signal(7).
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    /// Whether it stops or continues a process rather than telling it anything.
    #[must_use]
    pub fn is_job_control(self) -> bool {
        const JOB_CONTROL: [&str; 5] = ["SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"];
        signal_name(self.0).is_some_and(|name| JOB_CONTROL.contains(&name))
    }
}

/// The number of no signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no signal has this name or number")]
pub struct NoSignal;

impl TryFrom<i32> for SignalNumber {
    type Error = NoSignal;
    fn try_from(number: i32) -> Result<Self, NoSignal> {
        (1..=REAL_TIME_MAX)
            .contains(&number)
            .then_some(Self(number))
            .ok_or(NoSignal)
    }
}

impl From<SignalNumber> for i32 {
    fn from(signal: SignalNumber) -> Self {
        signal.0
    }
}

/// `TERM`, `SIGTERM`, `RTMIN`, `RTMIN+3`, in any case.
impl FromStr for SignalNumber {
    type Err = NoSignal;
    fn from_str(text: &str) -> Result<Self, NoSignal> {
        let upper = text.to_ascii_uppercase();
        let short = upper.strip_prefix(SIGNAL_PREFIX).unwrap_or(&upper);
        if let Some(beyond) = short.strip_prefix(REAL_TIME_PREFIX) {
            let digits = beyond.strip_prefix('+');
            let plain = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let beyond = match (beyond, plain) {
                ("", _) => 0,
                (_, Some(digits)) => digits.parse().map_err(|_| NoSignal)?,
                (_, None) => return Err(NoSignal),
            };
            let number = REAL_TIME_MIN.checked_add(beyond).ok_or(NoSignal)?;
            return number.try_into();
        }
        let named = |number: &i32| {
            let name = signal_name(*number).and_then(|name| name.strip_prefix(SIGNAL_PREFIX));
            name == Some(short)
        };
        (1..REAL_TIME_MIN).find(named).map(Self).ok_or(NoSignal)
    }
}

/// As people write it: `TERM`, `RTMIN+3`.
impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (signal_name(self.0), self.0 - REAL_TIME_MIN) {
            (Some(name), _) => f.write_str(name.strip_prefix(SIGNAL_PREFIX).unwrap_or(name)),
            (None, 0) => f.write_str(REAL_TIME_PREFIX),
            (None, beyond @ 1..) => write!(f, "{REAL_TIME_PREFIX}+{beyond}"),
            (None, _) => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_their_names_in_any_case() {
        for (text, number) in [
            ("TERM", 15),
            ("sigterm", 15),
            ("SIGINT", 2),
            ("Quit", 3),
            ("USR1", 10),
            ("WINCH", 28),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmin+30", 64),
        ] {
            let signal: SignalNumber = text.parse().unwrap();
            assert_eq!(signal.number(), number, "{text}");
            assert_eq!(signal.to_string().parse(), Ok(signal), "{text}");
        }
        for wrong in [
            "",
            "SIG",
            "15",
            "TERMINATE",
            "RTMIN+31",
            "RTMIN-1",
            "RTMIN+",
            "RTMINX",
        ] {
            assert_eq!(wrong.parse::<SignalNumber>(), Err(NoSignal), "{wrong}");
        }
        for wrong in [-1, 0, 65] {
            assert_eq!(SignalNumber::try_from(wrong), Err(NoSignal));
        }
    }

    #[test]
    fn what_stops_or_continues_tells_nobody_to_end() {
        for name in ["STOP", "CONT", "TSTP", "TTIN", "TTOU"] {
            assert!(name.parse::<SignalNumber>().unwrap().is_job_control());
        }
        for name in ["TERM", "HUP", "KILL", "RTMIN+3"] {
            assert!(!name.parse::<SignalNumber>().unwrap().is_job_control());
        }
    }
}
