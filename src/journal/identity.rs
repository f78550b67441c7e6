//! Who this server is, and which boot of which host or container this is.
//!
//! Sources: `random(4)` for the boot id, `proc(5)` for field 22 of `/proc/PID/stat`,
//! RFC 9562 for version 4 UUIDs.

use std::{fs, io};

use rustix::rand::{GetRandomFlags, getrandom};

use super::{
    error::JournalError,
    folder::{Folder, Shelf},
    log::passes_by_itself,
};

const ID_NAME: &str = "id";
const ID_TEMPORARY: &str = "id.new";
const ID_LEN_MAX: u64 = 64;

/// Identifies this boot: the kernel's boot id, the start time of PID 1 in clock ticks as far as
/// that is visible, and the number of our PID namespace. What is compared is `is_same_boot`.
///
/// Containers share the host's boot id, and each has a PID 1 and a namespace of its own. Whether
/// PID 1 is visible (`hidepid`) may change while children live.
///
/// # Errors
///
/// When there is no `/proc`.
pub fn boot_identity() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let mut identity = boot.trim().to_owned();
    if let Ok(stat) = fs::read_to_string("/proc/1/stat") {
        let ticks = start_ticks(&stat).ok_or_else(|| {
            let message = "`/proc/1/stat` has no start time";
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        identity = format!("{identity} {ticks}");
    }
    let namespace = fs::read_link("/proc/self/ns/pid")?;
    Ok(format!("{identity} {}", namespace.display()))
}

/// Whether two identities may be of one boot.
///
/// The start time of PID 1 decides alone where both have it: a container that is made anew may be
/// given the namespace's number again. Where they have nothing in common to tell them apart they
/// count as one: a dead run is told by its own start time, a live one must not be forgotten (I1).
pub(super) fn is_same_boot(one: &str, other: &str) -> bool {
    let (one, other) = (Identity::parse(one), Identity::parse(other));
    let init = one.init.zip(other.init);
    let namespace = one.namespace.zip(other.namespace);
    one.kernel == other.kernel && init.or(namespace).is_none_or(|(one, other)| one == other)
}

/// What an identity says; one of an earlier version says either of the last two.
struct Identity<'a> {
    kernel: &'a str,
    /// The start time of PID 1.
    init: Option<&'a str>,
    /// As the link in `/proc` names it.
    namespace: Option<&'a str>,
}

impl<'a> Identity<'a> {
    fn parse(text: &'a str) -> Self {
        let (kernel, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut words = rest.split_ascii_whitespace();
        let (is_namespace, is_init) = (
            |word: &&str| word.starts_with("pid:"),
            |word: &&str| word.bytes().all(|byte| byte.is_ascii_digit()),
        );
        Self {
            kernel,
            init: words.clone().find(is_init),
            namespace: words.find(is_namespace),
        }
    }
}

/// Field 22. The second field is a name that may hold spaces and parentheses.
fn start_ticks(stat: &str) -> Option<&str> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks = after_name.split_ascii_whitespace().nth(19)?;
    ticks.parse::<u64>().ok().map(|_| ticks)
}

/// The server's id: the fixed one, else the one on disk, else the one that is `noted` elsewhere,
/// else a new one; it is kept.
///
/// A disk that takes nothing and an id file that holds something else do not keep the server
/// from starting; they are told in `warnings`.
pub(super) fn server_id(
    state: &Folder,
    fixed: Option<&str>,
    noted: impl FnOnce() -> Option<String>,
    warnings: &mut Vec<String>,
) -> Result<String, JournalError> {
    if let Some(fixed) = fixed {
        return Ok(fixed.to_owned());
    }
    let shown = state.path(ID_NAME);
    let read = state.read_small(ID_NAME, ID_LEN_MAX);
    let damage = match read {
        Ok(None) => None,
        Ok(Some(bytes)) => {
            let text = String::from_utf8_lossy(&bytes);
            if is_uuid(text.trim()) {
                return Ok(text.trim().to_owned());
            }
            let kept = state.set_aside(ID_NAME, &bytes);
            Some(("holds no server id".to_owned(), kept))
        }
        Err(error) if passes_by_itself(&error) => {
            return Err(state.file_error(ID_NAME, error));
        }
        Err(error) => {
            let why = format!("cannot be read: {error}");
            Some((why, state.move_aside(ID_NAME)))
        }
    };
    let noted = noted().filter(|id| is_uuid(id));
    if damage.is_some() || noted.is_some() {
        let (why, kept) = match damage {
            Some((why, Ok(kept))) => (why, format!(" (the old file: `{kept}`)")),
            Some((why, Err(error))) => (why, format!(" (the old file: {error})")),
            None => ("is missing".to_owned(), String::new()),
        };
        let instead = match &noted {
            Some(_) => "the id noted in `directories` is used",
            None => "a new one is made",
        };
        let shown = shown.display();
        warnings.push(format!("`{shown}` {why}: {instead}{kept}"));
    }
    let id = match noted {
        Some(id) => id,
        None => new_uuid().map_err(JournalError::Random)?,
    };
    if let Err(error) = keep(state, &id) {
        warnings.push(format!(
            "the new server id cannot be kept in `{}`: {error}",
            shown.display()
        ));
    }
    Ok(id)
}

/// Puts the id back if its file was deleted.
pub(super) fn keep_if_missing(state: &Folder, id: &str) -> io::Result<()> {
    match state.read_small(ID_NAME, ID_LEN_MAX)? {
        Some(_) => Ok(()),
        None => keep(state, id),
    }
}

fn keep(state: &Folder, id: &str) -> io::Result<()> {
    let mut file = state.create(ID_TEMPORARY)?;
    let line = format!("{id}\n");
    if file.write(line.as_bytes())? != line.len() {
        state.remove(ID_TEMPORARY)?;
        return Err(io::ErrorKind::WriteZero.into());
    }
    file.sync()?;
    state.rename(ID_TEMPORARY, ID_NAME)?;
    state.sync()
}

fn new_uuid() -> io::Result<String> {
    let mut bytes = [0; 16];
    // Up to 256 bytes are never given in part, see getrandom(2).
    getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, Folder) {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temp.path().join("state")).unwrap();
        (temp, folder)
    }

    fn id_of(state: &Folder, fixed: Option<&str>) -> (String, Vec<String>) {
        let mut warnings = Vec::new();
        let id = server_id(state, fixed, || None, &mut warnings).unwrap();
        (id, warnings)
    }

    #[test]
    fn an_id_once_made_is_kept() {
        let (_temp, state) = state();
        let (first, warnings) = id_of(&state, None);
        assert_eq!(warnings, [""; 0]);
        assert!(is_uuid(&first), "{first}");
        assert_eq!(&first[14..15], "4");
        assert!(matches!(&first[19..20], "8" | "9" | "a" | "b"));
        assert_eq!(id_of(&state, None).0, first);
        let (_temp, other) = self::state();
        assert_ne!(id_of(&other, None).0, first);
    }

    #[test]
    fn a_fixed_id_wins_and_is_not_kept() {
        let (_temp, state) = state();
        let (kept, _) = id_of(&state, None);
        let fixed = "11111111-2222-4333-8444-555555555555";
        assert_eq!(id_of(&state, Some(fixed)).0, fixed);
        assert_eq!(id_of(&state, None).0, kept);
    }

    #[test]
    fn a_damaged_id_is_told_kept_aside_and_replaced_once() {
        let (temp, state) = state();
        std::fs::write(temp.path().join("state/id"), [0xff; 4096]).unwrap();
        let (id, warnings) = id_of(&state, None);
        assert!(is_uuid(&id), "{id}");
        assert!(warnings[0].contains("id.corrupt-1"), "{warnings:?}");
        assert_eq!(id_of(&state, None), (id, vec![]));
    }

    #[test]
    fn an_id_that_is_lost_is_the_one_that_is_noted_for_children_are_known_by_it() {
        const NOTED: &str = "11111111-2222-4333-8444-555555555555";
        for spoil in [
            |_: &std::path::Path| {},
            |id: &std::path::Path| std::fs::write(id, "x").unwrap(),
            |id: &std::path::Path| std::fs::create_dir(id).unwrap(),
        ] {
            let (temp, state) = state();
            spoil(&temp.path().join("state/id"));
            let noted = || Some(NOTED.to_owned());
            let mut warnings = Vec::new();
            let id = server_id(&state, None, noted, &mut warnings).unwrap();
            assert_eq!(id, NOTED);
            let told = "the id noted in `directories` is used";
            assert!(warnings[0].contains(told), "{warnings:?}");
            assert_eq!(id_of(&state, None), (id, vec![]));
        }
        // Nor is a note believed that is no id.
        let (_temp, state) = state();
        let mut warnings = Vec::new();
        let id = server_id(&state, None, || Some("../x".to_owned()), &mut warnings).unwrap();
        assert!(is_uuid(&id), "{id}");
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn an_id_that_would_leave_its_place_is_not_believed() {
        for text in [
            "../../etc/passwd",
            "",
            "11111111-2222-4333-8444-55555555555",
            "11111111-2222-4333-8444-55555555555/",
            "11111111x2222x4333x8444x555555555555",
        ] {
            assert!(!is_uuid(text), "{text}");
        }
    }

    #[test]
    fn a_boot_is_one_line_and_stays_the_same() {
        let boot = boot_identity().unwrap();
        assert_eq!(boot, boot_identity().unwrap());
        assert!(boot.len() > 36, "{boot}");
        assert_eq!(boot.lines().count(), 1);
    }

    #[test]
    fn a_boot_stays_the_same_whether_or_not_pid_1_is_visible() {
        const FULL: &str = "b1 777 pid:[4026531836]";
        for same in [
            FULL,
            // As an earlier version wrote it.
            "b1 777",
            "b1 pid:[4026531836]",
            // Nothing in common but the kernel.
            "b1",
            // The start time alone decides.
            "b1 777 pid:[1]",
        ] {
            assert!(is_same_boot(FULL, same), "{same}");
            assert!(is_same_boot(same, FULL), "{same}");
        }
        assert!(is_same_boot("b1 777", "b1 pid:[4026531836]"));
        let boot = boot_identity().unwrap();
        assert!(is_same_boot(&boot, &boot));
        let said = Identity::parse(&boot);
        assert!(said.namespace.is_some(), "{boot}");
    }

    #[test]
    fn another_kernel_or_container_is_another_boot() {
        for (one, other) in [
            ("b1 777 pid:[1]", "b2 777 pid:[1]"),
            ("b1", "b2"),
            ("b1 777", "b1 778"),
            ("b1 pid:[1]", "b1 pid:[2]"),
            ("b1 777 pid:[1]", "b1 pid:[2]"),
            // The number of a namespace is given again.
            ("b1 777 pid:[1]", "b1 778 pid:[1]"),
            ("b1 777", "b1 778 pid:[1]"),
        ] {
            assert!(!is_same_boot(one, other), "{one} {other}");
            assert!(!is_same_boot(other, one), "{other} {one}");
        }
    }

    #[test]
    fn a_program_cannot_choose_its_start_time_by_its_name() {
        let rest = "S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 777 1 1";
        assert_eq!(start_ticks(&format!("1 (init) {rest}")), Some("777"));
        let name = "a) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 666 (";
        assert_eq!(start_ticks(&format!("1 ({name}) {rest}")), Some("777"));
        assert_eq!(start_ticks("1 (init) S 0"), None);
        assert_eq!(start_ticks(""), None);
    }
}
