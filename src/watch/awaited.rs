//! The files of a loadpath that are being written, as far as is known, and when to look at them
//! again.
//!
//! Two witnesses say for how long a file is being written. A lease that is refused is right at
//! that moment. Hints are not: a time that is set looks like a write, and the news of a closing is
//! lost when watches are put up anew or the directory is elsewhere meanwhile. A lease that is
//! granted refutes them where there are leases; where there are none it is granted always, so
//! what only hints say is believed until the file has been the same for [`HINTS_BELIEVED`].
//!
//! Absent on purpose: looking, and the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    time::Duration,
};

use super::{again::Again, reader::Print};
use crate::spec::Mono;

/// How long a file must stay as it is before hints that it is being written are not believed
/// any more.
pub(super) const HINTS_BELIEVED: Duration = Duration::from_secs(5);

/// Why a file was taken for one that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// A lease, which was refused.
    Lease,
    /// The file itself: it changed while it was read.
    Change,
    /// Nothing but hints.
    Hints,
}

/// What hints and earlier looks say of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nothing that matters: the file itself will tell.
    None,
    /// It is being written, unless a look shows otherwise.
    Open,
}

/// Files that are being written.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    files: BTreeMap<OsString, Wait>,
}

#[derive(Debug)]
struct Wait {
    again: Again,
    said: Said,
}

/// Who said last that it is being written.
#[derive(Debug)]
enum Said {
    Lease,
    Change,
    /// Hints did; how it looked at the first look that found it so, and when that was.
    Hints {
        seen: Option<(Option<Print>, Mono)>,
    },
}

impl Awaited {
    /// A hint says that it was written and not closed since.
    pub(super) fn note(&mut self, file: &OsStr, now: Mono) {
        let unseen = Said::Hints { seen: None };
        match self.files.get_mut(file) {
            None => {
                let again = Again::soon(now);
                let said = unseen;
                self.files.insert(file.to_owned(), Wait { again, said });
            }
            Some(wait) => match wait.said {
                // Leases work here: they tell better.
                Said::Lease => {}
                Said::Change | Said::Hints { .. } => wait.said = unseen,
            },
        }
    }

    /// What is to be believed of a file that looks like this now.
    pub(super) fn claim(&mut self, file: &OsStr, print: Option<Print>, now: Mono) -> Claim {
        let Some(wait) = self.files.get_mut(file) else {
            return Claim::None;
        };
        let Said::Hints { seen } = &mut wait.said else {
            return Claim::None;
        };
        match seen {
            Some((same, since)) if *same == print => match now - *since >= HINTS_BELIEVED {
                true => Claim::None,
                false => Claim::Open,
            },
            Some(_) | None => {
                *seen = Some((print, now));
                Claim::Open
            }
        }
    }

    /// A look found that it is being written.
    pub(super) fn wait(&mut self, file: &OsStr, witness: Witness, now: Mono) {
        let wait = self.files.entry(file.to_owned()).or_insert_with(|| Wait {
            again: Again::soon(now),
            said: Said::Change,
        });
        match witness {
            Witness::Lease => wait.said = Said::Lease,
            // What was said before still holds.
            Witness::Change | Witness::Hints => {}
        }
    }

    /// It is not being written, or there is news that makes all earlier looks void.
    pub(super) fn forget(&mut self, file: &OsStr) {
        self.files.remove(file);
    }

    /// None of them is there any more.
    pub(super) fn clear(&mut self) {
        self.files.clear();
    }

    /// Forgets all others.
    pub(super) fn retain(&mut self, names: &BTreeSet<OsString>) {
        self.files.retain(|file, _| names.contains(file));
    }

    /// Has all looked at soon again: the news of their closing may have been lost.
    pub(super) fn hurry(&mut self, now: Mono) {
        for wait in self.files.values_mut() {
            wait.again = Again::soon(now);
        }
    }

    pub(super) fn contains(&self, file: &OsStr) -> bool {
        self.files.contains_key(file)
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Option<Mono> {
        self.files.values().map(|wait| wait.again.at()).min()
    }

    /// Those that are to be looked at now; the looks after this one are planned.
    pub(super) fn due(&mut self, now: Mono) -> Vec<OsString> {
        let mut due = Vec::new();
        for (file, wait) in &mut self.files {
            if wait.again.is_due(now) {
                wait.again = wait.again.after(now);
                due.push(file.clone());
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Identity, Inode};

    fn print(size: u64) -> Option<Print> {
        Some(Print::of_file(Identity {
            inode: Inode { dev: 1, ino: 2 },
            size,
            mtime_ns: 0,
            ctime_ns: 0,
        }))
    }

    fn file() -> &'static OsStr {
        OsStr::new("web.yml")
    }

    const START: Mono = Mono(1_000_000);

    #[test]
    fn with_nothing_awaited_there_is_no_timer() {
        let mut awaited = Awaited::default();
        assert_eq!(awaited.next(), None);
        awaited.note(file(), START);
        assert!(awaited.next().is_some());
        awaited.forget(file());
        assert_eq!(awaited.next(), None);
        assert!(awaited.due(Mono(u64::MAX)).is_empty());
    }

    #[test]
    fn hints_are_believed_until_the_file_stayed_the_same_for_a_while() {
        let mut awaited = Awaited::default();
        assert_eq!(awaited.claim(file(), print(1), START), Claim::None);
        awaited.note(file(), START);
        assert_eq!(awaited.claim(file(), print(1), START), Claim::Open);
        let late = START + HINTS_BELIEVED;
        let just_before = Mono(late.0 - 1);
        assert_eq!(awaited.claim(file(), print(1), just_before), Claim::Open);
        assert_eq!(awaited.claim(file(), print(1), late), Claim::None);
    }

    #[test]
    fn a_file_that_grows_or_is_hinted_at_again_is_believed_anew() {
        let mut awaited = Awaited::default();
        awaited.note(file(), START);
        assert_eq!(awaited.claim(file(), print(1), START), Claim::Open);
        let late = START + HINTS_BELIEVED;
        assert_eq!(awaited.claim(file(), print(2), late), Claim::Open);
        let later = late + HINTS_BELIEVED;
        // Within a tick of the clock a write may leave no trace but the hint.
        awaited.note(file(), later);
        assert_eq!(awaited.claim(file(), print(2), later), Claim::Open);
        assert_eq!(
            awaited.claim(file(), print(2), later + HINTS_BELIEVED),
            Claim::None
        );
    }

    #[test]
    fn once_a_lease_was_refused_leases_are_believed_over_hints() {
        let mut awaited = Awaited::default();
        awaited.note(file(), START);
        awaited.wait(file(), Witness::Lease, START);
        awaited.note(file(), START);
        awaited.wait(file(), Witness::Hints, START);
        assert_eq!(awaited.claim(file(), print(1), START), Claim::None);
        assert!(awaited.contains(file()));
    }

    #[test]
    fn a_file_that_changed_while_it_was_read_is_left_to_the_hints_that_come_then() {
        let mut awaited = Awaited::default();
        awaited.wait(file(), Witness::Change, START);
        assert_eq!(awaited.claim(file(), print(1), START), Claim::None);
        awaited.note(file(), START);
        assert_eq!(awaited.claim(file(), print(1), START), Claim::Open);
    }

    #[test]
    fn a_file_held_open_for_ever_delays_no_look_at_another() {
        let mut awaited = Awaited::default();
        awaited.wait(OsStr::new("slow.yml"), Witness::Lease, START);
        let mut now = START;
        for _ in 0..20 {
            now = awaited.next().unwrap();
            assert_eq!(awaited.due(now), ["slow.yml"]);
            assert!(awaited.due(now).is_empty(), "one look, not two");
        }
        awaited.wait(file(), Witness::Lease, now);
        let next = awaited.next().unwrap();
        assert_eq!(next, Again::soon(now).at());
        assert_eq!(awaited.due(next), ["web.yml"]);
    }

    #[test]
    fn what_may_have_lost_its_news_is_looked_at_soon() {
        let mut awaited = Awaited::default();
        awaited.wait(file(), Witness::Lease, START);
        let mut now = START;
        for _ in 0..20 {
            now = awaited.next().unwrap();
            awaited.due(now);
        }
        awaited.hurry(now);
        assert_eq!(awaited.next(), Some(Again::soon(now).at()));
    }
}
