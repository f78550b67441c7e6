//! `keygen NAME [--bits BITS]`: the command that asks no server.

use super::{super::LogArgs, Flags, Output, UsageError, sentence::Sentence, usage::KEYGEN};
use crate::control::keys::{Bits, KeyName};

/// A pair of keys to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keygen {
    /// The key's name: its files are `NAME.pem` and `NAME.pub.pem`.
    pub name: KeyName,
    /// How long it is.
    pub bits: Bits,
    /// How it is told.
    pub output: Output,
    /// How the client's own log is written.
    pub log: LogArgs,
}

pub(super) fn resolve_keygen(sentence: &Sentence, flags: Flags) -> Result<Keygen, UsageError> {
    let words = [
        ("on", !sentence.hosts.is_empty()),
        ("with", !sentence.keys.is_empty()),
    ];
    let words = words.into_iter().filter(|(_, given)| *given);
    let mut foreign = flags
        .foreign()
        .into_iter()
        .chain(words.map(|(word, _)| word));
    if let Some(flag) = foreign.next() {
        return Err(UsageError::Flag {
            flag,
            command: KEYGEN,
            instead: None,
        });
    }
    let name = sentence.name.as_deref();
    let name = name.ok_or(UsageError::KeygenNameMissing)?;
    Ok(Keygen {
        name: key_name(name)?,
        bits: flags
            .bits
            .as_deref()
            .map_or(Ok(Bits::default()), str::parse)?,
        output: flags.output(),
        log: flags.into_log(),
    })
}

fn key_name(text: &str) -> Result<KeyName, UsageError> {
    let wrong = |fault| UsageError::KeyName {
        name: text.to_owned(),
        fault,
    };
    let name: KeyName = text.parse().map_err(wrong)?;
    // `NAME.pem` would become `NAME.pem.pem`; and a private `NAME.pub.pem` would be taken for the
    // public half of `NAME`.
    let bare = text.strip_suffix(".pem").unwrap_or(text);
    let bare = bare.strip_suffix(".pub").unwrap_or(bare);
    match bare == text {
        true => Ok(name),
        false => Err(UsageError::KeyFile(bare.parse().map_err(wrong)?)),
    }
}
