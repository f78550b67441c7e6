//! The file under all that can happen to it.

use std::{os::unix::fs::PermissionsExt, sync::Barrier};

use super::*;

const WEB: &str = "web1:33889";
const ONE: &str = "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

fn id(text: &str) -> ServerId {
    text.parse().unwrap()
}

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    /// With this in the file.
    fn with(text: impl AsRef<[u8]>) -> Self {
        let bed = Self::new();
        fs::create_dir(bed.path().parent().unwrap()).unwrap();
        fs::write(bed.path(), text).unwrap();
        bed
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("supervisor-rs/known_servers")
    }

    fn known(&self) -> KnownServers {
        KnownServers::read(Some(self.path()))
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn look(&self, place: &str, text: &str) -> Acquaintance {
        self.known().look(place, &id(text)).unwrap()
    }

    fn mode(&self, path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// The names in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().parent().unwrap()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn changed(before: &str) -> Acquaintance {
    Acquaintance::Changed { before: id(before) }
}

#[test]
fn an_id_is_a_uuid_in_either_case_and_nothing_else() {
    assert_eq!(id(&ONE.to_uppercase()), id(ONE));
    assert_eq!(id(&ONE.to_uppercase()).to_string(), ONE);
    for text in [
        "",
        "i",
        "0b6e8c1e3a4b4c6d8e8f90a1b2c3d4e5",
        "{0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5}",
        "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5 ",
        "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4eg",
        "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4\u{e9}",
        "0b6e8c1e_3a4b-4c6d-8e8f-90a1b2c3d4e5",
    ] {
        assert_eq!(text.parse::<ServerId>(), Err(NotAServerId), "{text}");
    }
}

#[test]
fn the_file_stands_where_state_belongs() {
    let path = |xdg: &str, home: &str| {
        let some = |text: &'static str| Some(OsStr::new(text)).filter(|text| !text.is_empty());
        let (xdg, home) = (xdg.to_owned().leak(), home.to_owned().leak());
        known_servers_path(some(xdg), some(home)).map(|path| path.display().to_string())
    };
    let is = |text: &str| Some(text.to_owned());
    assert_eq!(path("/s", "/h"), is("/s/supervisor-rs/known_servers"));
    let default = is("/h/.local/state/supervisor-rs/known_servers");
    assert_eq!(path("", "/h"), default);
    assert_eq!(path("relative", "/h"), default);
    assert_eq!(path("", "relative"), None);
    assert_eq!(path("", ""), None);
}

#[test]
fn a_stranger_is_written_down_and_known_from_then_on() {
    let bed = Bed::new();
    assert_eq!(bed.look(WEB, ONE), Acquaintance::Stranger);
    assert!(!bed.path().exists(), "looking makes nothing");
    let found = bed.known().record(WEB, &id(ONE)).unwrap();
    assert_eq!(found, Acquaintance::Stranger);
    assert_eq!(bed.text(), format!("{WEB} {ONE}\n"));
    assert_eq!(bed.look(WEB, ONE), Acquaintance::Known);
    assert_eq!(bed.look("WEB1:33889", ONE), Acquaintance::Known);
    assert_eq!(bed.look("web1:4000", ONE), Acquaintance::Stranger);
    assert_eq!(bed.look(WEB, OTHER), changed(ONE));
}

#[test]
fn file_lock_and_folder_are_their_owners_alone() {
    let bed = Bed::new();
    bed.known().record(WEB, &id(ONE)).unwrap();
    assert_eq!(bed.mode(&bed.path()), 0o600);
    assert_eq!(bed.mode(bed.path().parent().unwrap()), 0o700);
    assert_eq!(bed.mode(&beside(&bed.path(), ".lock")), 0o600);
    assert_eq!(bed.names(), ["known_servers", "known_servers.lock"]);
}

#[test]
fn nothing_but_a_stranger_is_written() {
    let bed = Bed::with(format!("{WEB} {ONE}\n"));
    let before = bed.text();
    let known = bed.known();
    assert_eq!(known.record(WEB, &id(ONE)).unwrap(), Acquaintance::Known);
    assert_eq!(known.record(WEB, &id(OTHER)).unwrap(), changed(ONE));
    assert_eq!(bed.text(), before);
}

#[test]
fn another_client_that_was_first_is_noticed() {
    let bed = Bed::new();
    let early = bed.known();
    bed.known().record(WEB, &id(OTHER)).unwrap();
    assert_eq!(early.look(WEB, &id(ONE)).unwrap(), Acquaintance::Stranger);
    assert_eq!(early.record(WEB, &id(ONE)).unwrap(), changed(OTHER));
}

#[test]
fn other_lines_and_comments_stay_as_they_are() {
    let text =
        format!("# mine\n\n  db:1\t{OTHER}  # no comment here\nnonsense\n\tdb:2  {OTHER}\r\n");
    let bed = Bed::with(&text);
    bed.known().record(WEB, &id(ONE)).unwrap();
    assert_eq!(bed.text(), format!("{text}{WEB} {ONE}\n"));
    let forgotten = KnownServers::forget(&bed.path(), &[WEB.to_owned()]).unwrap();
    assert_eq!(forgotten, [[id(ONE)]]);
    assert_eq!(bed.text(), text);
}

#[test]
fn a_last_line_without_end_is_not_joined_with_the_next() {
    let bed = Bed::with(format!("db:1 {OTHER}"));
    bed.known().record(WEB, &id(ONE)).unwrap();
    assert_eq!(bed.text(), format!("db:1 {OTHER}\n{WEB} {ONE}\n"));
}

#[test]
fn bad_lines_are_told_and_passed_over() {
    let mut text = b"web1:33889 not-an-id\nweb1:33889\n\xff\xfe x\n# fine\n".to_vec();
    text.extend_from_slice(format!("{WEB} {ONE} more\n{WEB} {ONE}\n").as_bytes());
    let bed = Bed::with(text);
    let warnings = bed.known().warnings();
    let lines = [1, 2, 3, 5];
    assert_eq!(warnings.len(), lines.len(), "{warnings:?}");
    for (warning, line) in warnings.iter().zip(lines) {
        let says = format!("known_servers`, line {line}, is no `host:port id`: it is passed over");
        assert!(warning.ends_with(&says), "{warning}");
    }
    assert_eq!(bed.look(WEB, ONE), Acquaintance::Known);
    let many = Bed::with("bad\n".repeat(1_000));
    assert_eq!(many.known().warnings().len(), FEW_AND_A_COUNT);
    assert!(many.known().warnings()[5].ends_with("has 995 more such lines"));
}

const FEW_AND_A_COUNT: usize = 6;

#[test]
fn two_lines_for_one_place_name_two_servers_that_may_stand_there() {
    let bed = Bed::with(format!("{WEB} {ONE}\n{WEB} {OTHER}\n"));
    assert_eq!(bed.look(WEB, ONE), Acquaintance::Known);
    assert_eq!(bed.look(WEB, OTHER), Acquaintance::Known);
    let forgotten = KnownServers::forget(&bed.path(), &[WEB.to_owned()]).unwrap();
    assert_eq!(forgotten, [[id(ONE), id(OTHER)]]);
    assert_eq!(bed.text(), "");
}

#[test]
fn forgetting_what_nobody_knew_makes_and_changes_nothing() {
    let bed = Bed::new();
    let places = [WEB.to_owned(), "db:1".to_owned()];
    let nobody: [Vec<ServerId>; 2] = [Vec::new(), Vec::new()];
    assert_eq!(KnownServers::forget(&bed.path(), &places).unwrap(), nobody);
    assert!(!bed.path().parent().unwrap().exists());
    let bed = Bed::with(format!("db:1 {ONE}\n"));
    let forgotten = KnownServers::forget(&bed.path(), &places).unwrap();
    assert_eq!(forgotten, [vec![], vec![id(ONE)]]);
}

#[test]
fn clients_that_write_at_once_lose_no_line() {
    const CLIENTS: usize = 16;
    let bed = Bed::new();
    let gate = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (bed, gate) = (&bed, &gate);
            scope.spawn(move || {
                let known = bed.known();
                gate.wait();
                known.record(&format!("h{number}:1"), &id(ONE)).unwrap();
            });
        }
    });
    for number in 0..CLIENTS {
        let found = bed.look(&format!("h{number}:1"), ONE);
        assert_eq!(found, Acquaintance::Known, "{number}");
    }
    assert_eq!(bed.text().lines().count(), CLIENTS);
}

#[test]
fn a_client_that_never_ends_writing_is_not_waited_for_without_end() {
    const SHORT: Duration = Duration::from_millis(50);
    let bed = Bed::new();
    let held = Lock::take(&bed.path(), SHORT).unwrap();
    let fault = Lock::take(&bed.path(), SHORT).unwrap_err().to_string();
    assert!(fault.starts_with("cannot write `"), "{fault}");
    assert!(
        fault.ends_with("known_servers.lock` for 50ms"),
        "it says what to look at: {fault}"
    );
    drop(held);
    assert!(Lock::take(&bed.path(), SHORT).is_ok());
}

#[test]
fn what_a_killed_client_left_behind_is_in_nobodys_way() {
    let bed = Bed::with("");
    fs::write(beside(&bed.path(), ".tmp"), "half a li").unwrap();
    fs::write(beside(&bed.path(), ".lock"), "").unwrap();
    bed.known().record(WEB, &id(ONE)).unwrap();
    assert_eq!(bed.text(), format!("{WEB} {ONE}\n"));
    assert_eq!(bed.names(), ["known_servers", "known_servers.lock"]);
}

#[test]
fn a_link_to_the_file_stays_a_link() {
    let bed = Bed::with("");
    let kept = bed.dir.path().join("kept");
    fs::rename(bed.path(), &kept).unwrap();
    std::os::unix::fs::symlink(&kept, bed.path()).unwrap();
    bed.known().record(WEB, &id(ONE)).unwrap();
    assert!(bed.path().symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::read_to_string(kept).unwrap(), format!("{WEB} {ONE}\n"));
}

#[test]
fn a_file_that_cannot_be_read_is_told_and_never_waited_for_or_overwritten() {
    let folder = Bed::with("");
    fs::remove_file(folder.path()).unwrap();
    fs::create_dir(folder.path()).unwrap();
    let pipe = Bed::with("");
    fs::remove_file(pipe.path()).unwrap();
    #[cfg(target_os = "linux")]
    rustix::fs::mknodat(
        rustix::fs::CWD,
        pipe.path(),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let large = Bed::with("");
    let file = File::options().write(true).open(large.path()).unwrap();
    file.set_len(KNOWN_SERVERS_BYTES_MAX + 1).unwrap();
    for (bed, says) in [
        (&folder, "it is not a regular file"),
        (&pipe, "it is not a regular file"),
        (&large, "it has more than 4194304 bytes"),
    ] {
        let known = bed.known();
        assert!(known.fault().unwrap().to_string().ends_with(says));
        assert!(known.look(WEB, &id(ONE)).is_err());
        assert!(known.warnings()[0].contains("hint: "));
        assert!(known.record(WEB, &id(ONE)).is_err());
        assert!(KnownServers::forget(&bed.path(), &[WEB.to_owned()]).is_err());
    }
    let nowhere = KnownServers::read(None);
    assert!(nowhere.warnings()[0].contains("neither `XDG_STATE_HOME` nor `HOME`"));
    assert!(nowhere.record(WEB, &id(ONE)).is_err());
}

#[test]
fn a_folder_that_cannot_be_made_is_told_with_its_path() {
    let bed = Bed::new();
    fs::write(bed.path().parent().unwrap(), "a file").unwrap();
    // Not a folder on the way: this is no empty file.
    let fault = bed.known();
    let message = fault.fault().unwrap().to_string();
    assert!(message.starts_with("cannot read `"), "{message}");
    let fault = bed.known().record(WEB, &id(ONE)).unwrap_err().to_string();
    assert!(fault.starts_with("cannot write `"), "{fault}");
    assert!(fault.contains("supervisor-rs`: "), "{fault}");
}
