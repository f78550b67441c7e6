//! Who a process is: what `/proc` says of it, and which run it belongs to.
//!
//! A pid alone says nothing, since numbers are used again. A pid with its start time does, and an
//! open pidfd does; here is what is needed to get from one to the other.
//!
//! Sources: proc_pid_stat(5), proc_pid_environ(5), pidfd_open(2).

use std::{
    fs::{self, File},
    io::{self, Read},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use crate::spec::{ChildName, Exit, RunId};

/// The name of the variable that tells whose run a process belongs to.
pub(super) const RUN_VARIABLE: &str = "SUPERVISOR_RS_RUN";

/// The name of the variable that tells which child's probe a program is.
pub(super) const PROBE_VARIABLE: &str = "SUPERVISOR_RS_PROBE";

/// The name of the variable that tells which child a hook's program runs for.
pub(super) const HOOK_VARIABLE: &str = "SUPERVISOR_RS_HOOK";

/// How much of an environment is read, in bytes: ours comes first in it.
const ENVIRONMENT_BYTES_MAX: u64 = 128 * 1024;

/// How the kernel counts start times for us (`USER_HZ`), on every machine that is still made.
const TICKS_PER_SECOND: u64 = 100;

/// How often a group is looked through when its members may still be forking.
const PASSES_MAX: usize = 8;

/// What we need of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// Field 4: its parent.
    pub(super) parent: i32,
    /// Field 5: its process group; 0 for one that is led from outside our PID namespace.
    pub(super) group: i32,
    /// Field 6: its session; 0 likewise.
    pub(super) session: i32,
    /// Field 22: when it started, in clock ticks since boot.
    pub(super) start_ticks: u64,
    /// Field 52: how it ended, as wait(2) has it; 0 also when we may not know.
    pub(super) status: i32,
}

/// Reads what `/proc` says of a process.
///
/// # Errors
/// `NotFound` when there is none, `InvalidData` when the kernel speaks differently.
pub(super) fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected stat line"))
}

/// The second field, a program's name in parentheses, is the program's own choice and may hold
/// blanks, parentheses and line breaks; so we count from the last parenthesis.
fn parse(text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field numbers as in the man page; the first one here is number 3.
    let field = |number: usize| fields.get(number - 3);
    Some(Stat {
        parent: field(4)?.parse().ok()?,
        group: field(5)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        start_ticks: field(22)?.parse().ok()?,
        status: field(52)?.parse().ok()?,
    })
}

/// A number that a child of ours can have: not that of PID 1, whose "group" is everybody to
/// kill(2), nor one that stands for a group. Records can be damaged, so this is asked.
pub(super) fn number(pid: i32) -> Option<Pid> {
    if pid > 1 { Pid::from_raw(pid) } else { None }
}

/// How a process ended that is not our child, if its zombie is still there and we may know.
pub(super) fn exit_of_zombie(pid: i32, start_ticks: u64) -> Exit {
    // First: once it is reaped nothing is forbidden any more, and 0 would be taken for its word.
    let may_inspect = may_inspect(pid);
    match stat(pid) {
        Ok(stat) if stat.start_ticks == start_ticks && (stat.status != 0 || may_inspect) => {
            exit(stat.status)
        }
        Ok(_) | Err(_) => Exit::Unknown,
    }
}

/// Whether the kernel shows us the protected fields of this process, of which the status is one.
/// Its links ask for the same right, and say so: a zombie's are gone, but not forbidden.
fn may_inspect(pid: i32) -> bool {
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
    }
}

/// A status as wait(2) has it.
pub(super) fn exit(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code((status >> 8) & 0xff),
        signal => Exit::Signal(signal),
    }
}

/// The variable in the environment of a run's processes, as `NAME=value`.
pub(super) fn run_mark(server_id: &str, child: &ChildName, run: RunId) -> String {
    format!("{RUN_VARIABLE}={server_id}/{child}/{run}")
}

/// The variable in the environment of the processes of a child's hooks, as `NAME=value`.
pub(super) fn hook_mark(server_id: &str, child: &ChildName) -> String {
    format!("{HOOK_VARIABLE}={server_id}/{child}")
}

/// Whether a process is our user in every respect: real, effective, saved and for files. One that
/// a stranger has started is his in one of them, until it gives that up (set-uid programs).
pub(super) fn is_own(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    users(&status) == Some([geteuid().as_raw(); 4])
}

/// The line `Uid:`, which comes after the name: that one cannot hold a line feed.
fn users(status: &str) -> Option<[u32; 4]> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut ids = line.split_ascii_whitespace().map(str::parse);
    let mut next = || ids.next()?.ok();
    Some([next()?, next()?, next()?, next()?])
}

/// How long a process that began then has lived.
pub(super) fn age(start_ticks: u64) -> Duration {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split_ascii_whitespace().next();
    let seconds = seconds.and_then(|text| text.parse::<f64>().ok());
    let uptime = Duration::try_from_secs_f64(seconds.unwrap_or_default()).unwrap_or_default();
    let began = Duration::from_millis(start_ticks.saturating_mul(1_000) / TICKS_PER_SECOND);
    uptime.saturating_sub(began)
}

/// All processes there are.
pub(super) fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Kills what is left of a run's or a hook's group, one by one: for when the group has no pidfd, or the
/// kernel cannot signal a group through one.
///
/// A process is taken for a member only when both its group and the mark in its environment are
/// the right ones, and both were read while its pidfd was open: neither a number that was used
/// again nor a forged environment alone makes anybody a victim. (Whoever forges both is a
/// process of that group that asks to be killed.)
pub(super) fn kill_members(group: i32, run: &str) {
    kill_those(|pid| stat(pid).is_ok_and(|stat| stat.group == group) && belongs(pid, run));
}

/// Kills every process that is one of those, however often they fork meanwhile. Each is looked at
/// again while its pidfd holds its number.
fn kill_those(is_one: impl Fn(i32) -> bool) {
    let kill = |pid: i32| {
        let pidfd = number(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let pidfd = pidfd.filter(|_| is_one(pid));
        pidfd.is_some_and(|pidfd| pidfd_send_signal(pidfd, Signal::KILL).is_ok())
    };
    for _ in 0..PASSES_MAX {
        let found = pids().filter(|pid| is_one(*pid)).filter(|pid| kill(*pid));
        if found.count() == 0 {
            return;
        }
    }
}

/// Kills whatever was started with this in its environment, by whomever of our user: nothing that
/// has it is to live.
pub(super) fn kill_marked(name: &str, value: &str) {
    let begins = format!("{name}={value}");
    kill_those(|pid| {
        let all = environment(pid).unwrap_or_default();
        let mut variables = all.split(|byte| *byte == 0);
        is_own(pid) && variables.any(|variable| variable.starts_with(begins.as_bytes()))
    });
}

/// Whether a process was started with this mark in its environment, as `NAME=value`. A zombie
/// has none.
pub(super) fn belongs(pid: i32, mark: &str) -> bool {
    environment(pid).is_some_and(|environment| {
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|variable| variable == mark.as_bytes())
    })
}

/// What a process was started with in its environment under this name, if that is one.
pub(super) fn marked(pid: i32, name: &str) -> Option<String> {
    let environment = environment(pid)?;
    let mut values = values_of(name, &environment);
    let value = std::str::from_utf8(values.next()?).ok()?;
    values.next().is_none().then(|| value.to_owned())
}

/// Whether a process shows an environment at all: the kernel may hide it, and programs that choose
/// their own title write over it.
pub(super) fn shows_environment(pid: i32) -> bool {
    let is_variable = |text: &[u8]| text.iter().position(|byte| *byte == b'=') > Some(0);
    environment(pid).is_some_and(|all| all.split(|byte| *byte == 0).any(is_variable))
}

fn environment(pid: i32) -> Option<Vec<u8>> {
    let mut environment = Vec::new();
    let file = File::open(format!("/proc/{pid}/environ")).ok()?;
    let read = file
        .take(ENVIRONMENT_BYTES_MAX)
        .read_to_end(&mut environment);
    read.is_ok().then_some(environment)
}

fn values_of<'a>(name: &str, environment: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let variables = environment.split(|byte| *byte == 0);
    variables.filter_map(move |variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_cannot_forge_the_fields_behind_it() {
        let mut fields = vec!["0"; 50];
        fields[0] = "S";
        fields[1] = "7";
        fields[2] = "8";
        fields[3] = "9";
        fields[19] = "12345";
        fields[49] = "256";
        for name in ["sh", "a b", ") S 1 1 1", "x) (y", "\n)\n"] {
            let line = format!("42 ({name}) {}\n", fields.join(" "));
            let stat = parse(line.as_bytes()).unwrap();
            assert_eq!(
                stat,
                Stat {
                    parent: 7,
                    group: 8,
                    session: 9,
                    start_ticks: 12345,
                    status: 256
                },
                "{name:?}"
            );
        }
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"42 (sh"), None);
        assert_eq!(parse(b"42 (sh) S 1"), None);
        let invalid = format!("42 (\u{fffd}) {}", fields.join(" ")).replace('\u{fffd}', "\u{80}");
        assert!(parse(invalid.as_bytes()).is_some());
    }

    #[test]
    fn a_process_is_a_users_only_if_it_is_in_every_respect() {
        let status = |uids: &str| users(&format!("Name:\tUid: 0\nUid:\t{uids}\nGid:\t0\n"));
        assert_eq!(status("0\t0\t0\t0"), Some([0; 4]));
        assert_eq!(status("1000\t0\t0\t0"), Some([1000, 0, 0, 0]));
        assert_eq!(status("0\t0\t0"), None);
        assert_eq!(users(""), None);
    }

    #[test]
    fn an_age_is_told_by_the_start_time() {
        let own = stat(std::process::id().cast_signed()).unwrap().start_ticks;
        assert!(age(own) < age(0));
        assert!(age(own) < Duration::from_secs(3_600));
        assert_eq!(age(u64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_status_is_a_code_or_a_signal() {
        assert_eq!(exit(0), Exit::Code(0));
        assert_eq!(exit(3 << 8), Exit::Code(3));
        assert_eq!(exit(9), Exit::Signal(9));
        assert_eq!(exit(11 | 0x80), Exit::Signal(11), "with a core dump");
    }

    #[test]
    fn we_know_ourselves() {
        let own = i32::try_from(std::process::id()).unwrap();
        let stat = stat(own).unwrap();
        assert!(stat.start_ticks > 0);
        assert_eq!(
            stat.parent,
            std::os::unix::process::parent_id().cast_signed()
        );
        assert!(pids().any(|pid| pid == own));
        assert!(!belongs(own, "NO=such"));
    }

    #[test]
    fn the_number_of_everybody_is_no_childs() {
        for pid in [-1, 0, 1, i32::MIN] {
            assert_eq!(number(pid), None);
        }
        assert!(number(2).is_some());
        for pid in [-1, 0, 1, i32::MIN, i32::MAX] {
            assert_eq!(exit_of_zombie(pid, 1), Exit::Unknown);
        }
    }
}
