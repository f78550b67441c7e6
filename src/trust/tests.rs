//! The trust check against what an attacker would try.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
    },
    path::PathBuf,
    process::Command,
};

use rustix::fs::{XattrFlags, mknodat, setxattr};
use tempfile::TempDir;

use super::*;

/// A user that owns nothing here.
const STRANGER: u32 = 54_321;
const BYTES_MAX: u64 = 1 << 16;

fn us() -> Owners {
    Owners::new(&[]).unwrap()
}

/// A directory that passes the check, with its links resolved.
fn sandbox() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    mode(path, 0o644);
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn read(path: &Path) -> Result<Trusted, TrustError> {
    open_file(path, &us(), BYTES_MAX)
}

fn text(path: &Path) -> String {
    String::from_utf8(read(path).unwrap().bytes).unwrap()
}

/// Whether what needs root is to be tested; says why when it is not.
pub(crate) fn as_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(
            std::env::var_os("REQUIRE_ALL").is_none(),
            "{what} needs root"
        );
        println!("skipped: {what} needs root");
    }
    root
}

fn help(error: &TrustError) -> String {
    let text = error.to_string();
    text.split_once("\nhelp: ")
        .map(|(_, help)| help.to_owned())
        .unwrap_or_default()
}

#[test]
fn a_file_of_ours_is_read_with_what_tells_whether_it_changed() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "command: a\n");
    let trusted = read(&path).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(trusted.bytes, b"command: a\n");
    assert_eq!(trusted.identity.inode.dev, meta.dev());
    assert_eq!(trusted.identity.inode.ino, meta.ino());
    assert_eq!(trusted.identity.size, 11);
    let ctime = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
    assert_eq!(trusted.identity.ctime_ns, ctime);
    let mtime = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    assert_eq!(trusted.identity.mtime_ns, mtime);
}

#[test]
fn an_empty_file_is_read_as_nothing() {
    let (_keep, dir) = sandbox();
    write(&dir.join("e.yml"), "");
    assert_eq!(text(&dir.join("e.yml")), "");
}

#[test]
fn a_relative_path_is_refused() {
    let error = read(Path::new("web.yml")).unwrap_err();
    assert!(matches!(error, TrustError::NotAbsolute { .. }));
}

#[test]
fn dots_and_doubled_slashes_lead_where_they_always_do() {
    let (_keep, dir) = sandbox();
    fs::create_dir(dir.join("a")).unwrap();
    write(&dir.join("web.yml"), "x");
    let odd = PathBuf::from(format!("{}//a/./../web.yml", dir.display()));
    assert_eq!(text(&odd), "x");
    let above = PathBuf::from(format!("/../..{}/web.yml", dir.display()));
    assert_eq!(text(&above), "x");
}

#[test]
fn what_is_not_there_is_named_by_its_first_missing_part() {
    let (_keep, dir) = sandbox();
    let error = read(&dir.join("no/such/file")).unwrap_err();
    assert_eq!(
        error,
        TrustError::Missing {
            path: dir.join("no")
        }
    );
    assert!(error.is_missing());
}

#[test]
fn a_file_on_the_way_is_no_directory() {
    let (_keep, dir) = sandbox();
    write(&dir.join("f"), "");
    let error = read(&dir.join("f/web.yml")).unwrap_err();
    let (path, kind) = (dir.join("f"), Kind::File);
    assert_eq!(error, TrustError::NotDirectory { path, kind });
    assert_eq!(open_dir(&dir.join("f"), &us()).unwrap_err(), error);
}

#[test]
fn fifos_directories_sockets_and_devices_are_faults_and_never_hang() {
    let (_keep, dir) = sandbox();
    let cwd = rustix::fs::CWD;
    let rw = Mode::from_raw_mode(0o600);
    mknodat(cwd, dir.join("fifo.yml"), FileType::Fifo, rw, 0).unwrap();
    fs::create_dir(dir.join("dir.yml")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("sock.yml")).unwrap();
    symlink("/dev/zero", dir.join("zero.yml")).unwrap();
    symlink("fifo.yml", dir.join("link.yml")).unwrap();
    for (name, kind) in [
        ("fifo.yml", Kind::Fifo),
        ("dir.yml", Kind::Directory),
        ("sock.yml", Kind::Socket),
        ("zero.yml", Kind::Device),
        ("link.yml", Kind::Fifo),
    ] {
        match read(&dir.join(name)).unwrap_err() {
            TrustError::NotRegular { kind: found, .. } => assert_eq!(found, kind, "{name}"),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn a_file_over_the_bound_is_refused_before_it_is_read() {
    let (_keep, dir) = sandbox();
    let path = dir.join("big.yml");
    fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    let (bytes, bytes_max) = (100 << 20, 10);
    let error = open_file(&path, &us(), bytes_max).unwrap_err();
    let path_of = path.clone();
    assert_eq!(
        error,
        TrustError::TooLarge {
            path: path_of,
            bytes,
            bytes_max
        }
    );
    write(&path, "0123456789");
    assert!(open_file(&path, &us(), 10).is_ok());
    assert!(open_file(&path, &us(), 9).is_err());
}

#[test]
fn a_file_that_lies_about_its_size_is_bounded_too() {
    // The kernel says that these have no bytes.
    let error = open_file(Path::new("/proc/kallsyms"), &us(), 100);
    assert!(
        matches!(error, Err(TrustError::TooLarge { bytes: 101, .. })),
        "{error:?}"
    );
}

#[test]
fn links_are_followed_one_by_one() {
    let (_keep, dir) = sandbox();
    fs::create_dir_all(dir.join("v1/conf")).unwrap();
    write(&dir.join("v1/conf/web.yml"), "one");
    symlink("v1", dir.join("current")).unwrap();
    symlink(dir.join("current/conf"), dir.join("abs")).unwrap();
    symlink("abs/../conf/web.yml", dir.join("web.yml")).unwrap();
    assert_eq!(text(&dir.join("web.yml")), "one");
    let found = open_dir(&dir.join("abs"), &us()).unwrap();
    assert_eq!(found.path(), dir.join("v1/conf"));
    let meta = fs::metadata(dir.join("v1/conf")).unwrap();
    assert_eq!(
        found.inode(),
        Inode {
            dev: meta.dev(),
            ino: meta.ino()
        }
    );
}

#[test]
fn links_in_a_circle_end() {
    let (_keep, dir) = sandbox();
    symlink("b", dir.join("a")).unwrap();
    symlink("a", dir.join("b")).unwrap();
    symlink("self/x", dir.join("self")).unwrap();
    for name in ["a", "self"] {
        let error = read(&dir.join(name)).unwrap_err();
        assert!(matches!(error, TrustError::Links { .. }), "{name}: {error}");
    }
}

#[test]
fn as_many_links_as_the_kernel_follows_are_followed() {
    let (_keep, dir) = sandbox();
    write(&dir.join("l0"), "end");
    for n in 1..=walk::LINKS_MAX + 1 {
        symlink(format!("l{}", n - 1), dir.join(format!("l{n}"))).unwrap();
    }
    assert_eq!(text(&dir.join(format!("l{}", walk::LINKS_MAX))), "end");
    assert!(read(&dir.join(format!("l{}", walk::LINKS_MAX + 1))).is_err());
}

#[test]
fn links_that_multiply_are_bounded() {
    // Each is far within the bound of links; together they are 20 * 400 steps.
    let (_keep, dir) = sandbox();
    let round = "../".to_owned() + dir.file_name().unwrap().to_str().unwrap() + "/";
    write(&dir.join("l0"), "end");
    for n in 1..=20 {
        let long = round.repeat(100) + &format!("l{}", n - 1);
        symlink(long, dir.join(format!("l{n}"))).unwrap();
    }
    assert_eq!(text(&dir.join("l2")), "end");
    let error = read(&dir.join("l20")).unwrap_err();
    assert!(matches!(error, TrustError::Deep { .. }), "{error}");
}

#[test]
fn a_dangling_link_names_itself_and_what_is_missing() {
    let (_keep, dir) = sandbox();
    symlink("gone/web.yml", dir.join("web.yml")).unwrap();
    let error = read(&dir.join("web.yml")).unwrap_err();
    let (link, path) = (dir.join("web.yml"), dir.join("gone"));
    assert_eq!(error, TrustError::Dangling { link, path });
}

#[test]
fn magic_links_are_read_as_text_and_lead_nowhere() {
    let (_keep, dir) = sandbox();
    write(&dir.join("f"), "secret");
    let file = fs::File::open(dir.join("f")).unwrap();
    fs::remove_file(dir.join("f")).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    // The kernel would lead us to the open file although it has no name any more.
    let magic = PathBuf::from(format!("/proc/self/fd/{fd}"));
    assert!(fs::read(&magic).is_ok());
    assert!(read(&magic).unwrap_err().is_missing());
}

#[test]
fn a_file_that_others_may_write_is_refused_with_the_way_out() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "x");
    mode(&path, 0o646);
    let error = read(&path).unwrap_err();
    assert_eq!(help(&error), format!("`chmod o-w {}`", path.display()));
    mode(&path, 0o644);
    assert_eq!(text(&path), "x");
}

#[test]
fn a_directory_that_others_may_write_is_refused_on_the_way_and_at_its_end() {
    let (_keep, dir) = sandbox();
    let inner = dir.join("open/inner");
    fs::create_dir_all(&inner).unwrap();
    write(&inner.join("web.yml"), "x");
    mode(&dir.join("open"), 0o757);
    for error in [
        read(&inner.join("web.yml")).unwrap_err(),
        open_dir(&inner, &us()).unwrap_err(),
        open_dir(&dir.join("open"), &us()).unwrap_err(),
    ] {
        match &error {
            TrustError::Writable {
                path,
                mode,
                by: Writers::Others,
                ..
            } => {
                assert_eq!((path, *mode), (&dir.join("open"), 0o757));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_link_cannot_lead_around_the_check_of_a_directory() {
    let (_keep, dir) = sandbox();
    fs::create_dir_all(dir.join("open/inner")).unwrap();
    write(&dir.join("open/inner/web.yml"), "x");
    mode(&dir.join("open"), 0o777);
    symlink("open/inner/web.yml", dir.join("web.yml")).unwrap();
    symlink("open/inner", dir.join("in")).unwrap();
    symlink("in/../inner/web.yml", dir.join("up.yml")).unwrap();
    for name in ["web.yml", "in/web.yml", "up.yml"] {
        let error = read(&dir.join(name)).unwrap_err();
        assert!(
            matches!(error, TrustError::Writable { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn a_sticky_directory_is_good_on_the_way_but_is_no_loadpath() {
    let (_keep, dir) = sandbox();
    let shared = dir.join("shared");
    fs::create_dir_all(shared.join("mine")).unwrap();
    write(&shared.join("server.yml"), "s");
    write(&shared.join("mine/web.yml"), "x");
    mode(&shared, 0o1777);
    assert_eq!(text(&shared.join("server.yml")), "s");
    assert_eq!(text(&shared.join("mine/web.yml")), "x");
    assert!(open_dir(&shared.join("mine"), &us()).is_ok());
    let error = open_dir(&shared, &us()).unwrap_err();
    assert!(matches!(error, TrustError::Writable { .. }), "{error}");
}

#[test]
fn a_hard_link_that_anybody_may_have_made_is_refused() {
    let (_keep, dir) = sandbox();
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    write(&dir.join("secret"), "s");
    fs::hard_link(dir.join("secret"), shared.join("server.yml")).unwrap();
    assert_eq!(text(&shared.join("server.yml")), "s");
    mode(&shared, 0o1777);
    let error = read(&shared.join("server.yml")).unwrap_err();
    assert!(
        matches!(error, TrustError::HardLinks { links: 2, .. }),
        "{error}"
    );
    // One that only we can have made is fine.
    fs::hard_link(dir.join("secret"), dir.join("other")).unwrap();
    assert_eq!(text(&dir.join("other")), "s");
}

#[test]
fn what_belongs_to_a_stranger_is_refused_until_the_stranger_is_trusted() {
    if !as_root("a file of somebody else's") {
        return;
    }
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "x");
    chown(&path, Some(STRANGER), None).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(
        error,
        TrustError::Owner {
            uid: STRANGER,
            kind: Kind::File,
            ..
        }
    ));
    assert_eq!(
        help(&error),
        format!(
            "`chown root {}`, or in server.yml `trusted_owners: [{STRANGER}]`",
            path.display()
        )
    );
    let trusting = Owners::new(&[STRANGER.to_string()]).unwrap();
    assert!(open_file(&path, &trusting, BYTES_MAX).is_ok());
}

#[test]
fn a_strangers_directory_and_a_strangers_link_are_refused() {
    if !as_root("a directory of somebody else's") {
        return;
    }
    let (_keep, dir) = sandbox();
    fs::create_dir(dir.join("theirs")).unwrap();
    write(&dir.join("theirs/web.yml"), "x");
    write(&dir.join("real.yml"), "x");
    symlink("real.yml", dir.join("web.yml")).unwrap();
    lchown(dir.join("web.yml"), Some(STRANGER), None).unwrap();
    let error = read(&dir.join("web.yml")).unwrap_err();
    assert!(matches!(
        error,
        TrustError::Owner {
            kind: Kind::Link,
            ..
        }
    ));
    assert!(help(&error).starts_with("`chown -h root "), "{error}");
    chown(dir.join("theirs"), Some(STRANGER), None).unwrap();
    let error = read(&dir.join("theirs/web.yml")).unwrap_err();
    assert!(matches!(
        error,
        TrustError::Owner {
            kind: Kind::Directory,
            ..
        }
    ));
}

#[test]
fn a_strangers_sticky_directory_is_refused() {
    if !as_root("a directory of somebody else's") {
        return;
    }
    let (_keep, dir) = sandbox();
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    write(&shared.join("server.yml"), "x");
    mode(&shared, 0o1777);
    // Its owner may remove and rename what others put there.
    chown(&shared, Some(STRANGER), None).unwrap();
    assert!(matches!(
        read(&shared.join("server.yml")),
        Err(TrustError::Owner { .. })
    ));
}

#[test]
fn a_file_planted_in_a_sticky_directory_is_refused() {
    if !as_root("a file of somebody else's") {
        return;
    }
    let (_keep, dir) = sandbox();
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    mode(&shared, 0o1777);
    write(&dir.join("good.yml"), "x");
    write(&shared.join("server.yml"), "x");
    chown(shared.join("server.yml"), Some(STRANGER), None).unwrap();
    assert!(matches!(
        read(&shared.join("server.yml")),
        Err(TrustError::Owner { .. })
    ));
    // A stranger's link to a good file is a stranger's choice of a file.
    symlink(dir.join("good.yml"), shared.join("link.yml")).unwrap();
    lchown(shared.join("link.yml"), Some(STRANGER), None).unwrap();
    assert!(matches!(
        read(&shared.join("link.yml")),
        Err(TrustError::Owner { .. })
    ));
}

#[test]
fn the_owners_primary_group_may_write_and_no_other_group() {
    if !as_root("a file of another group") {
        return;
    }
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "x");
    mode(&path, 0o664);
    chown(&path, Some(0), Some(0)).unwrap();
    assert_eq!(text(&path), "x");
    chown(&path, Some(0), Some(STRANGER)).unwrap();
    mode(&path, 0o664);
    let error = read(&path).unwrap_err();
    assert!(matches!(
        error,
        TrustError::Writable {
            by: Writers::Group { gid: STRANGER },
            mode: 0o664,
            ..
        }
    ));
    assert_eq!(help(&error), format!("`chmod g-w {}`", path.display()));
    mode(&path, 0o666);
    let error = read(&path).unwrap_err();
    assert_eq!(help(&error), format!("`chmod go-w {}`", path.display()));
}

#[test]
fn a_trusted_user_whose_group_is_unknown_has_no_group_that_may_write() {
    if !as_root("a file of somebody else's") {
        return;
    }
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "x");
    chown(&path, Some(STRANGER), Some(STRANGER)).unwrap();
    mode(&path, 0o664);
    let trusting = Owners::new(&[STRANGER.to_string()]).unwrap();
    let error = open_file(&path, &trusting, BYTES_MAX).unwrap_err();
    assert!(matches!(error, TrustError::Writable { .. }), "{error}");
}

#[test]
fn an_access_control_list_that_lets_a_stranger_write_is_refused() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "x");
    let gid = us().primary_group(rustix::process::geteuid().as_raw());
    if fs::metadata(&path).unwrap().gid() != gid.unwrap() {
        println!("skipped: files here are not made with the user's primary group");
        return;
    }
    // Version 2, then tag, permissions, id: owner, a named user, group, mask, others.
    let mut list = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, perm, id) in [
        (1u16, 6u16, none),
        (2, 6, STRANGER),
        (4, 4, none),
        (16, 6, none),
        (32, 4, none),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(perm.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    if setxattr(&path, "system.posix_acl_access", &list, XattrFlags::empty()).is_err() {
        println!("skipped: this file system has no access control lists");
        return;
    }
    let error = read(&path).unwrap_err();
    assert!(
        matches!(
            error,
            TrustError::Writable {
                by: Writers::List,
                ..
            }
        ),
        "{error}"
    );
    assert!(help(&error).starts_with("`setfacl -b "), "{error}");
}

#[test]
fn mode_bits_do_not_count_on_a_read_only_mount() {
    const INSIDE: &str = "SUPERVISOR_RS_TEST_READ_ONLY";
    if let Some(dir) = std::env::var_os(INSIDE) {
        let dir = PathBuf::from(dir);
        assert_eq!(text(&dir.join("web.yml")), "x");
        assert!(open_dir(&dir, &us()).is_ok());
        let owned = read(&dir.join("theirs.yml"));
        assert!(matches!(owned, Err(TrustError::Owner { .. })), "{owned:?}");
        return;
    }
    if !as_root("a mount") {
        return;
    }
    let (_keep, dir) = sandbox();
    write(&dir.join("web.yml"), "x");
    write(&dir.join("theirs.yml"), "x");
    chown(dir.join("theirs.yml"), Some(STRANGER), None).unwrap();
    mode(&dir.join("web.yml"), 0o666);
    mode(&dir, 0o777);
    assert!(read(&dir.join("web.yml")).is_err());
    // A mount of our own, in a process of its own: it is gone when that process ends.
    let script = r#"mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@""#;
    let run = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(&dir)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "trust::tests::mode_bits_do_not_count_on_a_read_only_mount",
        ])
        .env(INSIDE, &dir)
        .output();
    match run {
        Ok(run) if run.status.success() => {
            assert!(String::from_utf8_lossy(&run.stdout).contains("1 passed"));
        }
        Ok(run) if String::from_utf8_lossy(&run.stdout).contains("panicked") => {
            panic!("{}", String::from_utf8_lossy(&run.stdout));
        }
        Ok(run) => println!(
            "skipped: no mounts here: {}",
            String::from_utf8_lossy(&run.stderr)
        ),
        Err(error) => println!("skipped: no `unshare` here: {error}"),
    }
}

#[test]
fn what_is_swapped_between_the_look_and_the_reading_is_never_read_unchecked() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&dir.join("good"), "good");
    write(&dir.join("evil"), "evil");
    mode(&dir.join("evil"), 0o666);
    symlink("good", &path).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut names = ["good", "evil"].into_iter().cycle();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let next = dir.join("next");
                symlink(names.next().unwrap(), &next).unwrap();
                fs::rename(&next, &path).unwrap();
            }
        });
        for _ in 0..2_000 {
            match read(&path) {
                Ok(trusted) => assert_eq!(trusted.bytes, b"good"),
                Err(TrustError::Writable { .. } | TrustError::Changing { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn the_bytes_are_those_of_the_descriptor_that_was_checked() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "old");
    let opened = open(&path, &us(), &mut Way::default()).unwrap();
    write(&dir.join("new"), "new!");
    fs::rename(dir.join("new"), &path).unwrap();
    assert_eq!(opened.read(BYTES_MAX).unwrap().bytes, b"old");
}

#[test]
fn a_file_written_between_opening_and_reading_is_told() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "old");
    let opened = open(&path, &us(), &mut Way::default()).unwrap();
    write(&path, "longer");
    let error = opened.read(BYTES_MAX).unwrap_err();
    assert_eq!(error, TrustError::Changing { path });
}

#[test]
fn an_attempt_is_repeated_while_things_change_and_not_for_ever() {
    let changing = || TrustError::Changing { path: "/x".into() };
    let mut attempts = 0;
    let result: Result<(), _> = again(|| {
        attempts += 1;
        Err(changing())
    });
    assert_eq!((result, attempts), (Err(changing()), ATTEMPTS_MAX));
    let mut attempts = 0;
    let result = again(|| {
        attempts += 1;
        if attempts == 2 {
            Ok(())
        } else {
            Err(changing())
        }
    });
    assert_eq!((result, attempts), (Ok(()), 2));
}

#[test]
fn the_way_tells_each_place_where_a_name_was_looked_up() {
    let (_keep, dir) = sandbox();
    fs::create_dir_all(dir.join("v1")).unwrap();
    symlink("v1", dir.join("current")).unwrap();
    let mut way = Way::default();
    open_dir_along(&dir.join("current"), &us(), &mut way).unwrap();
    let here: Vec<_> = way.steps.iter().filter(|step| step.dir == dir).collect();
    assert_eq!(here.len(), 2);
    assert!(here[0].link && here[0].name == "current");
    assert!(!here[1].link && here[1].name == "v1");
    assert_eq!(way.steps[0].dir, Path::new("/"));
    // When it fails, the last step is where.
    open_dir_along(&dir.join("no/such"), &us(), &mut way).unwrap_err();
    let last = way.steps.last().unwrap();
    assert_eq!((&last.dir, last.name.to_str()), (&dir, Some("no")));
}

#[test]
fn names_are_listed_to_a_bound() {
    let (_keep, dir) = sandbox();
    for name in ["a.yml", "b.yml", "c.txt"] {
        write(&dir.join(name), "");
    }
    let open = open_dir(&dir, &us()).unwrap();
    let yml = |name: &OsStr| name.as_bytes().ends_with(b".yml");
    let mut names = open.names(2, yml).unwrap().unwrap();
    names.sort();
    assert_eq!(names, ["a.yml", "b.yml"]);
    let error = open.names(1, yml).unwrap_err();
    assert!(matches!(error, TrustError::Crowded { names_max: 1, .. }));
}

#[test]
fn a_removed_directory_does_not_pass_for_an_empty_one() {
    let (_keep, dir) = sandbox();
    let gone = dir.join("gone");
    fs::create_dir(&gone).unwrap();
    let open = open_dir(&gone, &us()).unwrap();
    assert_eq!(open.names(9, |_| true), Ok(Some(Vec::new())));
    fs::remove_dir(&gone).unwrap();
    assert_eq!(open.names(9, |_| true), Ok(None));
}

#[test]
fn a_directory_opened_before_it_was_moved_is_still_that_directory() {
    let (_keep, dir) = sandbox();
    fs::create_dir(dir.join("a")).unwrap();
    write(&dir.join("a/web.yml"), "a");
    let open = open_dir(&dir.join("a"), &us()).unwrap();
    fs::rename(dir.join("a"), dir.join("b")).unwrap();
    fs::create_dir(dir.join("a")).unwrap();
    let file = open.open(OsStr::new("web.yml"), &us()).unwrap();
    assert_eq!(file.read(BYTES_MAX).unwrap().bytes, b"a");
}

#[test]
fn a_link_in_a_directory_that_leads_back_to_it_is_a_directory() {
    let (_keep, dir) = sandbox();
    symlink(".", dir.join("web.yml")).unwrap();
    let open = open_dir(&dir, &us()).unwrap();
    let error = open.open(OsStr::new("web.yml"), &us()).unwrap_err();
    assert!(matches!(
        error,
        TrustError::NotRegular {
            kind: Kind::Directory,
            ..
        }
    ));
    assert_eq!(
        open_dir(Path::new("/"), &us()).unwrap().path(),
        Path::new("/")
    );
}

#[test]
fn a_file_that_cannot_be_read_says_what_the_system_says() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "x");
    mode(&path, 0o000);
    if rustix::process::geteuid().is_root() {
        // Root reads everything; the words are the same.
        let error = system(&path, "open", Errno::ACCESS);
        assert_eq!(
            error.to_string(),
            format!("cannot open `{}`: permission denied", path.display())
        );
        return;
    }
    let error = read(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot open `{}`: permission denied", path.display())
    );
}

#[test]
fn a_message_holds_nothing_that_a_terminal_obeys() {
    let path = PathBuf::from("/srv/a\x1b[2J\n\u{202e}'b\".yml");
    let error = TrustError::Writable {
        path,
        kind: Kind::File,
        mode: 0o666,
        user: "root".into(),
        by: Writers::Others,
    };
    let text = error.to_string();
    assert_eq!(text.lines().count(), 2);
    assert!(
        !text.contains('\x1b') && !text.contains('\u{202e}'),
        "{text:?}"
    );
}

#[test]
fn a_command_in_a_help_line_quotes_its_path() {
    let path = PathBuf::from("/srv/a b;reboot.yml");
    let error = TrustError::Writable {
        path,
        kind: Kind::File,
        mode: 0o666,
        user: "root".into(),
        by: Writers::Others,
    };
    assert_eq!(help(&error), "`chmod o-w '/srv/a b;reboot.yml'`");
}

#[test]
fn a_file_being_replaced_all_the_time_is_read_whole() {
    let (_keep, dir) = sandbox();
    let path = dir.join("web.yml");
    write(&path, "aaaa");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut texts = ["bbbbbbbb", "aaaa"].into_iter().cycle();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                write(&dir.join("next"), texts.next().unwrap());
                fs::rename(dir.join("next"), &path).unwrap();
                std::thread::yield_now();
            }
        });
        for _ in 0..500 {
            match read(&path) {
                Ok(it) => assert!(it.bytes == b"aaaa" || it.bytes == b"bbbbbbbb"),
                Err(TrustError::Changing { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
