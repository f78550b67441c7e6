//! How runs end, as it stands on the wire.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};

use super::Stamp;
use crate::spec::{Exit, signal_name};

/// How a run ended, and when: `{"code":0,"at":…}`, `{"signal":"SIGKILL","at":…}` or
/// `{"unknown":true,"at":…}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitAt {
    /// How.
    pub exit: Exit,
    /// When.
    pub at: Stamp,
}

/// An exit whose time stands elsewhere: `{"code":0}`, `{"signal":"SIGKILL"}` or `{"unknown":true}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HowEnded(pub Exit);

impl Serialize for ExitAt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        serialize_exit(&mut map, self.exit)?;
        map.serialize_entry("at", &self.at)?;
        map.end()
    }
}

fn serialize_exit<M: SerializeMap>(map: &mut M, exit: Exit) -> Result<(), M::Error> {
    match exit {
        Exit::Code(code) => map.serialize_entry("code", &code),
        Exit::Signal(number) => match signal_name(number) {
            Some(name) => map.serialize_entry("signal", name),
            None => map.serialize_entry("signal", &format!("SIG{number}")),
        },
        Exit::Unknown => map.serialize_entry("unknown", &true),
    }
}

/// How a run ended, as it stands on the wire.
#[derive(Deserialize)]
struct WireExit {
    code: Option<i32>,
    signal: Option<String>,
}

impl WireExit {
    fn exit(&self) -> Exit {
        let number = |name: &str| {
            let real_time = name
                .strip_prefix("SIG")
                .and_then(|digits| digits.parse().ok());
            (1..=31)
                .find(|number| signal_name(*number) == Some(name))
                .or(real_time)
        };
        match (self.code, self.signal.as_deref().and_then(number)) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        }
    }
}

impl Serialize for HowEnded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        serialize_exit(&mut map, self.0)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for HowEnded {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = WireExit::deserialize(deserializer)?;
        Ok(Self(wire.exit()))
    }
}

impl<'de> Deserialize<'de> for ExitAt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            #[serde(flatten)]
            exit: WireExit,
            at: Stamp,
        }
        let wire = Wire::deserialize(deserializer)?;
        let (exit, at) = (wire.exit.exit(), wire.at);
        Ok(Self { exit, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Wall;

    #[test]
    fn exits_are_written_as_the_contract_says() {
        let at = Stamp(Wall(1_700_000_000_123));
        let json = |exit| serde_json::to_string(&ExitAt { exit, at }).unwrap();
        assert_eq!(
            json(Exit::Code(0)),
            r#"{"code":0,"at":"2023-11-14T22:13:20.123Z"}"#
        );
        assert_eq!(
            json(Exit::Signal(9)),
            r#"{"signal":"SIGKILL","at":"2023-11-14T22:13:20.123Z"}"#
        );
        assert_eq!(
            json(Exit::Unknown),
            r#"{"unknown":true,"at":"2023-11-14T22:13:20.123Z"}"#
        );
        for exit in [
            Exit::Code(3),
            Exit::Signal(15),
            Exit::Signal(34),
            Exit::Unknown,
        ] {
            let there = ExitAt { exit, at };
            assert_eq!(serde_json::from_str::<ExitAt>(&json(exit)).unwrap(), there);
        }
    }
}
