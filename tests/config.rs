//! Configuration from the outside: files of `fixtures/config` against what they must mean, and
//! bad ones against the whole diagnostics that people see.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test config` writes the snapshots anew; read the diff.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use supervisor_rs::{
    command::Op,
    config::{ChildContext, Diagnostic, Host, KeyScope, ServerSpec, child, key_scope, server},
    spec::{Hook, Mode, OpenMode, Repeat, RestartPolicy, Sink, Spec, Verb},
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config")
}

fn host() -> Host {
    Host {
        root: true,
        host_name: "alpha".to_owned(),
        xdg_state_home: None,
        home: Some(PathBuf::from("/root")),
        pid1: false,
    }
}

fn context() -> ChildContext {
    ChildContext {
        log_dir: PathBuf::from("/logs"),
        defaults: Arc::default(),
        pid1: false,
    }
}

fn read_server(bytes: &[u8]) -> Result<ServerSpec, Vec<Diagnostic>> {
    let path = Path::new("/tmp/server.yml");
    server(path, path, bytes, &host())
}

fn read_child(bytes: &[u8]) -> Result<Spec, Vec<Diagnostic>> {
    let name = "web".parse().expect("a name");
    child(&name, Path::new("/tmp/client/web.yml"), bytes, &context())
}

fn read_scope(bytes: &[u8]) -> Result<KeyScope, Vec<Diagnostic>> {
    key_scope(Path::new("/tmp/keys/deploy.yml"), bytes)
}

/// The files of a folder that end in `.yml`, sorted.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures().join(folder)).expect("the folder of fixtures");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .collect();
    files.sort();
    files
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .expect("a name")
        .to_string_lossy()
        .into_owned()
}

fn original(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(format!("ok/original/{name}.yml"))).expect("a fixture")
}

/// What a bad file of the fixtures tells, under a path that is the same on every machine.
fn faults_of(path: &Path, bytes: &[u8]) -> Vec<Diagnostic> {
    let (name, file) = (stem(path), path.file_name().expect("a name"));
    if name.starts_with("child-") {
        let shown = Path::new("/etc/children").join(file);
        let web = "web".parse().expect("a name");
        child(&web, &shown, bytes, &context()).expect_err(&name)
    } else if name.starts_with("scope-") {
        key_scope(&Path::new("/etc/keys").join(file), bytes).expect_err(&name)
    } else {
        let shown = Path::new("/etc").join(file);
        server(&shown, &shown, bytes, &host()).expect_err(&name)
    }
}

fn all(diagnostics: &[Diagnostic]) -> String {
    let blocks: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    blocks.join("\n\n") + "\n"
}

#[test]
fn every_bad_file_is_told_exactly_as_its_snapshot_shows() {
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    let mut wrong = Vec::new();
    for path in files("bad") {
        let bytes = fs::read(&path).expect("a fixture");
        let name = stem(&path);
        let faults = faults_of(&path, &bytes);
        let told = all(&faults);
        let snapshot = path.with_extension("stderr");
        if update {
            fs::write(&snapshot, told).expect("a snapshot is written");
        } else if fs::read_to_string(&snapshot).ok().as_ref() != Some(&told) {
            wrong.push(format!("{name} now tells:\n{told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_snapshot_has_its_file_and_every_file_names_its_kind() {
    let known: BTreeSet<String> = files("bad").iter().map(|path| stem(path)).collect();
    for name in &known {
        let kinds = ["child-", "server-", "scope-"];
        let kind = kinds.iter().any(|kind| name.starts_with(kind));
        assert!(kind, "{name} is neither a child, a server nor a scope file");
    }
    for entry in fs::read_dir(fixtures().join("bad")).expect("fixtures") {
        let path = entry.expect("an entry").path();
        assert!(
            known.contains(&stem(&path)),
            "{} is an orphan",
            path.display()
        );
    }
}

#[test]
fn every_fault_of_a_fixture_has_a_place_and_its_line_is_the_files() {
    for path in files("bad") {
        let bytes = fs::read(&path).expect("a fixture");
        let text = String::from_utf8_lossy(&bytes);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines: Vec<&str> = text
            .split('\n')
            .map(|line| line.trim_end_matches('\r'))
            .collect();
        for fault in faults_of(&path, &bytes) {
            let name = path.display();
            if fault.message.ends_with("more faults are not shown") {
                continue;
            }
            let place = fault.place.unwrap_or_else(|| panic!("{name}: {fault}"));
            let line = fault.source_line.as_deref().expect("a line");
            assert_eq!(line, lines[place.line - 1], "{name}");
            assert!(
                place.column <= line.chars().count() + 1,
                "{name}: {place:?}"
            );
            assert!(
                fault.width >= 1 && fault.width <= line.chars().count().max(1),
                "{name}"
            );
        }
    }
}

#[test]
fn messages_are_one_line_in_lower_case_without_a_full_stop() {
    for path in files("bad") {
        let bytes = fs::read(&path).expect("a fixture");
        for fault in faults_of(&path, &bytes) {
            for text in [Some(&fault.message), fault.help.as_ref()]
                .into_iter()
                .flatten()
            {
                let first = text.chars().next().expect("a text");
                assert!(!first.is_uppercase() || text.starts_with("YAML"), "{text}");
                assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
                assert!(text.chars().count() < 400, "{text}");
            }
        }
    }
}

// Attacks: whoever can write a file, or damage one, must get a fault and nothing else.

/// How long any one file may take; a child's file is read while the core waits for it.
const SECONDS_MAX: u64 = 5;

/// Reads bytes as each kind of file: nothing may panic or take long, and what is refused is told.
fn survives(what: &str, bytes: &[u8]) -> Vec<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let owned = bytes.to_vec();
    // A small stack, so that recursion that follows the input is found out.
    let reader = std::thread::Builder::new().stack_size(256 << 10);
    let reader = reader.spawn(move || {
        let faults = [
            read_child(&owned).err(),
            read_server(&owned).err(),
            read_scope(&owned).err(),
        ];
        let told: Vec<String> = faults
            .into_iter()
            .flatten()
            .map(|faults| all(&faults))
            .collect();
        // Nobody listens any more when the time is over.
        let _ = sender.send(told);
    });
    let told = receiver.recv_timeout(std::time::Duration::from_secs(SECONDS_MAX));
    let told = told.unwrap_or_else(|why| panic!("{what}: {why}"));
    reader.expect("a thread").join().expect("no panic");
    for text in &told {
        assert!(text.trim().len() > 10, "{what}: {text:?}");
        assert!(
            text.len() < 200_000,
            "{what}: {} bytes of diagnostics",
            text.len()
        );
        let bad = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(bad), "{what}: {text:?}");
    }
    told
}

#[test]
fn a_file_of_100_mb_is_refused_before_it_is_parsed() {
    let told = survives("100 MB", &vec![b'['; 100 << 20]);
    assert_eq!(
        told,
        [
            "/tmp/client/web.yml: the file has more than 65536 bytes\nhelp: is this the file you meant?\n",
            "/tmp/server.yml: the file has more than 1048576 bytes\nhelp: is this the file you meant?\n",
            "/tmp/keys/deploy.yml: the file has more than 65536 bytes\nhelp: is this the file you meant?\n",
        ]
    );
}

#[test]
fn a_file_of_exactly_the_most_bytes_is_read() {
    let mut text = "command: sleep 10\n#".to_owned();
    text += &"x".repeat(supervisor_rs::config::CHILD_BYTES_MAX - text.len());
    assert!(read_child(text.as_bytes()).is_ok());
    text.push('x');
    assert!(read_child(text.as_bytes()).is_err());
}

#[test]
fn a_hundred_thousand_brackets_neither_recurse_nor_linger() {
    for unit in [
        "[", "{", "- ", "? ", "[{", "a: [", "&a [", "!!seq [", "{a: ", "\"a\": {", "a:\n  ",
    ] {
        let told = survives(unit, unit.repeat(100_000).as_bytes());
        assert_eq!(told.len(), 3, "{unit}");
        let told = survives(unit, unit.repeat(30_000 / unit.len()).as_bytes());
        assert_eq!(told.len(), 3, "{unit}");
    }
}

#[test]
fn files_of_one_thing_over_and_over_are_done_in_time() {
    for unit in [
        "a: 1\n",
        "- a\n",
        "*a ",
        "&a ",
        "! ",
        "# \n",
        "\n",
        "\r",
        "\t",
        " ",
        "'",
        "\"",
        "%",
        "---\n",
        "...\n",
        "|\n",
        ">\n",
        ":",
        ": ",
        "a: &a *a\n",
        "? a\n",
        "\u{feff}",
        "\u{301}",
        "名",
        "🦀",
        "\0",
        "\u{85}",
        "\u{2028}",
        "%TAG ! x\n",
        "%YAML 1.2\n",
        "x-a: b\n",
        "\\",
        "a:\r",
        "<<: a\n",
    ] {
        for size in [64 << 10, 1 << 20] {
            survives(unit, unit.repeat(size / unit.len()).as_bytes());
        }
    }
    // Keys that all differ, and a key as long as the file.
    let keys: String = (0..60_000).map(|i| format!("key{i}: x\n")).collect();
    survives("many keys", keys.as_bytes());
    survives(
        "a long key",
        format!("{}: x\n", "k".repeat(60_000)).as_bytes(),
    );
    survives(
        "a long value",
        format!("command: {}\n", "v".repeat(60_000)).as_bytes(),
    );
    survives(
        "a long line of faults",
        format!("command: [{}]\n", "{}, ".repeat(15_000)).as_bytes(),
    );
}

#[test]
fn an_alias_bomb_is_a_fault_and_not_a_gigabyte() {
    let mut bomb = "x-a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for i in 1..100 {
        let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
        bomb += &format!("x-a{i}: &a{i} [{aliases}]\n");
    }
    bomb += "command: *a99\n";
    let told = survives("alias bomb", bomb.as_bytes());
    assert!(told[0].contains("more than 100000 values"), "{}", told[0]);
}

#[test]
fn what_is_not_text_is_told_with_its_place() {
    let told = survives("bytes", b"command: a\nworkdir: \xc3\x28\n");
    assert!(
        told[0].starts_with("/tmp/client/web.yml:2:10: not UTF-8: byte 0xc3"),
        "{}",
        told[0]
    );
    survives("every byte", &(0..=255).collect::<Vec<u8>>());
    survives("cut in a character", &"command: 名".as_bytes()[..11]);
    survives("a surrogate", b"command: \xed\xa0\x80\n");
}

/// A small generator (xorshift64*, Vigna 2016), so that a failing seed can be tried again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end as u64)).expect("below a usize")
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Reads bytes as each kind of file; a panic here fails the test with the input shown.
fn try_each(seed: u64, bytes: &[u8]) {
    let tried = std::panic::catch_unwind(|| {
        let scope = read_scope(bytes).err();
        for faults in [read_child(bytes).err(), read_server(bytes).err(), scope]
            .into_iter()
            .flatten()
        {
            assert!(!faults.is_empty());
            assert!(!all(&faults).contains(|c: char| c.is_control() && c != '\n'));
        }
    });
    let input = String::from_utf8_lossy(bytes);
    assert!(tried.is_ok(), "seed {seed} fails with {input:?}");
}

#[test]
fn random_bytes_never_panic() {
    for seed in 1..=3_000 {
        let mut random = Random(seed);
        let len = random.below(200);
        let bytes: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[7]).collect();
        try_each(seed, &bytes);
    }
}

#[test]
fn random_words_of_yaml_never_panic() {
    const WORDS: [&str; 66] = [
        "allow",
        "children",
        "from",
        "check",
        "*",
        "[!",
        "a-",
        "10.0.0.0",
        "/8",
        "::ffff:",
        "command",
        "output",
        "repeat",
        "hooks",
        "restart",
        "loadpaths",
        "encrypt",
        "defaults",
        "rescan",
        "seconds",
        "stdout",
        "when",
        "max",
        "success",
        "id",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n- ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\"",
        "'",
        "\\",
        "&a ",
        "*a",
        "!!str ",
        "!",
        "|",
        ">",
        "#",
        "%",
        "@",
        "~",
        "null",
        "on",
        "5",
        "5s",
        "-1",
        "1e999",
        "18446744073709551616",
        "10 in 5m",
        "é",
        "🦀",
        "\r\n",
        "\t",
        "\0",
        "\u{feff}",
        "---\n",
        "? ",
        "<<: ",
    ];
    for seed in 1..=6_000 {
        let mut random = Random(seed);
        let len = random.below(40);
        let text: String = (0..len).map(|_| random.pick(&WORDS)).collect();
        try_each(seed, text.as_bytes());
    }
}

#[test]
fn good_files_that_were_damaged_never_panic() {
    let good: Vec<Vec<u8>> = ["ok", "ok/original", "bad"]
        .iter()
        .flat_map(|folder| files(folder))
        .map(|path| fs::read(path).expect("a fixture"))
        .collect();
    for seed in 1..=3_000 {
        let mut random = Random(seed);
        let mut bytes = good[random.below(good.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() + 1);
            let byte = random.next().to_le_bytes()[7];
            match random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 if at < bytes.len() => bytes[at] = byte,
                _ => {
                    let other = &good[random.below(good.len())];
                    bytes.extend_from_slice(&other[..random.below(other.len() + 1)]);
                }
            }
        }
        try_each(seed, &bytes);
    }
}

#[test]
fn a_file_cut_anywhere_is_a_fault_or_a_shorter_file_but_never_a_panic() {
    for path in files("ok").into_iter().chain(files("ok/original")) {
        let bytes = fs::read(&path).expect("a fixture");
        for len in 0..bytes.len() {
            try_each(len as u64, &bytes[..len]);
        }
    }
}

// The original's files, and those of this project's own documents.

fn log(path: &str, mode: OpenMode) -> Sink {
    let path = PathBuf::from(path);
    Sink::File { path, mode }
}

fn start_child() -> Option<Hook> {
    let child = "child".parse().expect("a name");
    Some(Hook::Command {
        verb: Verb::Start,
        child,
    })
}

fn paths(all: &[&str]) -> Vec<PathBuf> {
    all.iter().map(PathBuf::from).collect()
}

#[test]
fn every_original_file_is_read() {
    for path in files("ok/original") {
        let bytes = fs::read(&path).expect("a fixture");
        let name = stem(&path);
        let faults = if name.starts_with("child") {
            read_child(&bytes).err()
        } else {
            read_server(&bytes).err()
        };
        assert!(
            faults.is_none(),
            "{name}: {}",
            all(&faults.unwrap_or_default())
        );
    }
    assert_eq!(files("ok/original").len(), 8);
}

#[test]
fn the_originals_server_file_means_what_it_meant() {
    let spec = read_server(&original("server")).expect("good");
    assert_eq!(spec.loadpaths, paths(&["/tmp/client", "/tmp/second/path"]));
    assert_eq!(spec.mode, Mode::Half);
    let startup: Vec<String> = spec.startup.iter().map(ToString::to_string).collect();
    assert_eq!(startup, ["child1", "child2"]);
    assert!(spec.encrypt);
    assert_eq!(spec.pub_keys_path, paths(&["/tmp/vault1", "/tmp/vault2"]));
    assert_eq!(spec.listener_addr.to_string(), "127.0.0.1");
}

#[test]
fn the_originals_file_with_keys_means_what_it_meant() {
    let spec = read_server(&original("server-keys")).expect("good");
    assert!(spec.encrypt);
    assert_eq!(spec.mode, Mode::Quiet);
    assert_eq!(
        spec.pub_keys_path,
        paths(&["/tmp/pub_keys", "/tmp/pub_keys2"])
    );
}

#[test]
fn the_originals_startup_file_means_what_it_meant() {
    let spec = read_server(&original("server-startup")).expect("good");
    let startup: Vec<String> = spec.startup.iter().map(ToString::to_string).collect();
    assert_eq!(startup, ["child1", "child2", "child3"]);
    assert!(!spec.encrypt);
    assert_eq!(spec.listener_addr.to_string(), "0.0.0.0");
}

#[test]
fn the_originals_listener_files_mean_what_they_meant() {
    let addr = |name| {
        read_server(&original(name))
            .expect("good")
            .listener_addr
            .to_string()
    };
    assert_eq!(addr("server-listener-ipv4"), "127.0.0.1");
    assert_eq!(addr("server-listener-ipv6"), "::1");
}

#[test]
fn the_originals_child_file_means_what_it_meant() {
    let spec = read_child(&original("child")).expect("good");
    assert_eq!(spec.command, ["/tmp/test"]);
    assert_eq!(spec.stdout, log("/logs/aaaaaa", OpenMode::Create));
    assert_eq!(spec.stderr, log("/logs/nnnnn", OpenMode::Append));
    let every = std::time::Duration::from_secs(5);
    assert_eq!(
        spec.repeat,
        Some(Repeat {
            action: Verb::Restart,
            every
        })
    );
    assert_eq!(
        (spec.prehook, spec.posthook),
        (start_child(), start_child())
    );
    assert_eq!(spec.restart, RestartPolicy::default());
}

#[test]
fn the_originals_repeat_and_hooks_files_mean_what_they_meant() {
    let spec = read_child(&original("child-repeat")).expect("good");
    let every = std::time::Duration::from_secs(5);
    assert_eq!(
        spec.repeat,
        Some(Repeat {
            action: Verb::Restart,
            every
        })
    );
    assert_eq!(spec.prehook, None);
    let spec = read_child(&original("child-hooks")).expect("good");
    assert_eq!(spec.command, ["sleep", "10"]);
    assert_eq!(
        (spec.prehook, spec.posthook),
        (start_child(), start_child())
    );
    assert_eq!(spec.repeat, None);
}

#[test]
fn a_file_with_every_field_is_read_as_a_whole() {
    let bytes = fs::read(fixtures().join("ok/server-full.yml")).expect("a fixture");
    let spec = read_server(&bytes).unwrap_or_else(|faults| panic!("{}", all(&faults)));
    let bytes = fs::read(fixtures().join("ok/child-full.yml")).expect("a fixture");
    let context = ChildContext {
        defaults: spec.defaults,
        ..context()
    };
    let web = "web".parse().expect("a name");
    let child = child(&web, Path::new("/c/web.yml"), &bytes, &context);
    let child = child.unwrap_or_else(|faults| panic!("{}", all(&faults)));
    assert_eq!(child.workdir, Path::new("/opt/web"));
    assert_eq!(child.restart.never_on, [78]);
    let record = serde_json::to_string(&child).expect("a spec is written into records");
    let back: Spec = serde_json::from_str(&record).expect("and read from them");
    assert_eq!(back, child);
}

#[test]
fn a_scope_with_every_field_is_read_as_a_whole() {
    let bytes = fs::read(fixtures().join("ok/scope-full.yml")).expect("a fixture");
    let scope = read_scope(&bytes).unwrap_or_else(|faults| panic!("{}", all(&faults)));
    let ops = vec![Op::Check, Op::Trystart, Op::Info];
    assert_eq!(scope.allow, Some(ops));
    let children = scope.children.expect("some");
    let children: Vec<String> = children.iter().map(ToString::to_string).collect();
    assert_eq!(children, ["web-*", "api", "db[0-9]"]);
    let from = scope.from.expect("some");
    let from: Vec<String> = from.iter().map(ToString::to_string).collect();
    assert_eq!(from, ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
}
