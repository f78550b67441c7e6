//! The lines of `known_servers`: read leniently, kept as they are. Pure.

use std::path::Path;

use super::{Acquaintance, ServerId};
use crate::trust::Shown;

/// How many bad lines are told one by one.
const FAULTS_TOLD_MAX: usize = 5;

/// The file's content.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// The numbers of lines that are neither entry nor comment, from 1.
    bad: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    place: String,
    id: ServerId,
}

/// What a line is.
enum Line {
    Entry(Entry),
    /// Empty, or a comment.
    Silent,
    Bad,
}

fn parse(line: &[u8]) -> Line {
    let Ok(text) = std::str::from_utf8(line) else {
        return Line::Bad;
    };
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Line::Silent;
    }
    let mut words = text.split_whitespace();
    match (words.next(), words.next().map(str::parse), words.next()) {
        (Some(place), Some(Ok(id)), None) => Line::Entry(Entry {
            place: place.to_owned(),
            id,
        }),
        _ => Line::Bad,
    }
}

impl Lines {
    pub(super) fn parse(bytes: Vec<u8>) -> Self {
        let (mut entries, mut bad) = (Vec::new(), Vec::new());
        for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
            match parse(line) {
                Line::Entry(entry) => entries.push(entry),
                Line::Silent => {}
                Line::Bad => bad.push(number),
            }
        }
        Self {
            bytes,
            entries,
            bad,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A warning for each bad line, and for those beyond the bound one.
    pub(super) fn faults(&self, path: &Path) -> Vec<String> {
        let told = self.bad.iter().take(FAULTS_TOLD_MAX);
        let mut warnings: Vec<String> = told
            .map(|number| {
                format!(
                    "{}, line {number}, is no `host:port id`: it is passed over",
                    Shown(path)
                )
            })
            .collect();
        if let Some(more @ 1..) = self.bad.len().checked_sub(FAULTS_TOLD_MAX) {
            warnings.push(format!("{} has {more} more such lines", Shown(path)));
        }
        warnings
    }

    fn at<'a>(&'a self, place: &'a str) -> impl Iterator<Item = &'a Entry> {
        let is_there = |entry: &&Entry| entry.place.eq_ignore_ascii_case(place);
        self.entries.iter().filter(is_there)
    }

    pub(super) fn knows(&self, place: &str) -> bool {
        self.at(place).next().is_some()
    }

    /// Who wrote two lines for one place meant that either server may stand there.
    pub(super) fn look(&self, place: &str, id: &ServerId) -> Acquaintance {
        match self.at(place).last() {
            None => Acquaintance::Stranger,
            Some(_) if self.at(place).any(|entry| entry.id == *id) => Acquaintance::Known,
            Some(entry) => Acquaintance::Changed {
                before: entry.id.clone(),
            },
        }
    }

    pub(super) fn add(&mut self, place: &str, id: &ServerId) {
        if self.bytes.last().is_some_and(|last| *last != b'\n') {
            self.bytes.push(b'\n');
        }
        self.bytes
            .extend_from_slice(format!("{place} {id}\n").as_bytes());
        self.entries.push(Entry {
            place: place.to_owned(),
            id: id.clone(),
        });
    }

    /// Takes all lines of a place out and returns their ids.
    pub(super) fn remove(&mut self, place: &str) -> Vec<ServerId> {
        let ids = self.at(place).map(|entry| entry.id.clone()).collect();
        let goes = |line: &&[u8]| match parse(line) {
            Line::Entry(entry) => entry.place.eq_ignore_ascii_case(place),
            Line::Silent | Line::Bad => false,
        };
        let lines = self.bytes.split_inclusive(|byte| *byte == b'\n');
        let kept: Vec<u8> = lines
            .filter(|line| !goes(line))
            .flatten()
            .copied()
            .collect();
        *self = Self::parse(kept);
        ids
    }
}
