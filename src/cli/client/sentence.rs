//! The words of the client's command line, recorded as they were typed.

use std::path::PathBuf;

use super::UsageError;

/// What the words say, before it is known whether it makes sense.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sentence {
    pub(super) command: String,
    pub(super) name: Option<String>,
    pub(super) hosts: Vec<String>,
    pub(super) keys: Vec<PathBuf>,
}

/// The words that begin a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clause {
    On,
    With,
}

fn clause(word: &str) -> Option<Clause> {
    if word.eq_ignore_ascii_case("on") {
        Some(Clause::On)
    } else if word.eq_ignore_ascii_case("with") {
        Some(Clause::With)
    } else {
        None
    }
}

/// Reads `COMMAND [NAME] [on HOST…]… [with KEY]`.
pub(super) fn read_words(words: &[String]) -> Result<Sentence, UsageError> {
    let mut words = words.iter().peekable();
    let mut sentence = Sentence::default();
    match words.next() {
        Some(word) if clause(word).is_none() => sentence.command.clone_from(word),
        Some(_) | None => return Err(UsageError::NoCommand),
    }
    if let Some(name) = words.next_if(|word| clause(word).is_none()) {
        sentence.name = Some(name.clone());
    }
    while let Some(word) = words.next() {
        match clause(word) {
            Some(Clause::On) => {
                let mut hosts = words
                    .next_if(|word| clause(word).is_none())
                    .ok_or(UsageError::HostMissing)?
                    .clone();
                // `on host1, host2`, as a shell splits it.
                while let Some(more) = words.next_if(|word| {
                    clause(word).is_none() && (hosts.ends_with(',') || word.starts_with(','))
                }) {
                    hosts.push_str(more);
                }
                sentence.hosts.extend(split_hosts(&hosts)?);
            }
            Some(Clause::With) => {
                let key = words
                    .next_if(|word| clause(word).is_none())
                    .ok_or(UsageError::KeyMissing)?;
                sentence.keys.push(key.into());
            }
            None => return Err(UsageError::Unexpected(word.clone())),
        }
    }
    Ok(sentence)
}

/// Several hosts in one word: commas or spaces separate them.
pub(super) fn split_hosts(text: &str) -> Result<Vec<String>, UsageError> {
    let hosts: Vec<String> = text
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|host| !host.is_empty())
        .map(str::to_owned)
        .collect();
    match hosts.is_empty() {
        true => Err(UsageError::HostMissing),
        false => Ok(hosts),
    }
}
