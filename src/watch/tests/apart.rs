//! A watch that takes its first look in its own thread, at a loadpath that does not answer.

use std::{
    fs,
    sync::{atomic::AtomicUsize, mpsc},
};

use tokio::sync::mpsc::error::TryRecvError;

use super::{super::*, bed::*};

/// A watch whose first look hangs at the file `m.yml`, between `a.yml` and `z.yml`.
struct Hung {
    bed: Bed,
    let_go: mpsc::Sender<()>,
}

/// Such a watch, which hangs by now.
fn hung() -> Hung {
    let (keep, root) = sandbox(Disk::Usual);
    for file in ["a", "m", "z"] {
        fs::write(root.join(format!("conf/{file}.yml")), child("old")).unwrap();
    }
    let parses = Arc::new(AtomicUsize::new(0));
    let (arrived, arrives) = mpsc::channel();
    let (let_go, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let parse: Parse = Arc::new(move |name, path, bytes| {
        if name.as_str() == "m" {
            let _nobody_waits = arrived.send(());
            // Once the gate is open, it is.
            let _open = gate.lock().unwrap().recv();
        }
        parse(path, bytes, "")
    });
    let config = WatchConfig {
        parse,
        key_dirs: vec![root.join("keys")],
        ..config(&root, &parses)
    };
    let watch = Watch::resume_apart(config.clone(), open_for_writing_by_us, &[]);
    arrives.recv_timeout(PATIENCE).unwrap();
    let bed = Bed::on((keep, root), config, parses, watch);
    Hung { bed, let_go }
}

impl Bed {
    fn until_reread(&mut self, which: u64) {
        let answers = |seen: &Seen| matches!(seen, Seen::Reread { token, .. } if *token == which);
        self.until(|bed| bed.told.iter().any(answers));
    }
}

/// What a file of the bed is known to have said.
fn known(root: &Path, file: &str) -> Arc<Spec> {
    let path = root.join("conf").join(file);
    Arc::new(parse(&path, child("known").as_bytes(), "").unwrap())
}

#[test]
fn nobody_waits_for_a_first_look_that_hangs_and_nothing_is_missed_by_it() {
    let Hung { mut bed, let_go } = hung();
    // Keys are not put off by it; of children nothing is told that is not all.
    assert_eq!(bed.next(), Seen::Keys);
    assert_eq!(bed.seen.try_recv(), Err(TryRecvError::Empty));
    bed.watch().reread(7, [name("a")].into());
    // One that was read already, one that was not, one more and one less.
    bed.write("conf/a.yml", &child("new"));
    bed.write("conf/z.yml", &child("new"));
    bed.write("conf/b.yml", &child("new"));
    drop(let_go);
    let Seen::Listing(first) = bed.next() else {
        panic!("{:#?}", bed.told);
    };
    assert_eq!(first.scope, Scope::Whole);
    assert_eq!(bed.next(), Seen::Capabilities(Capabilities::Inotify));
    assert_eq!(bed.next(), Seen::ServerFile);
    bed.until_reread(7);
    for child in ["a", "b", "z"] {
        bed.until_runs(child, "new");
    }
    assert_eq!(bed.command("m"), Some("old"));
    fs::remove_file(bed.path("conf/m.yml")).unwrap();
    bed.until_gone("m");
}

#[test]
fn what_a_file_said_last_is_taken_to_stand_in_it_while_somebody_writes_it() {
    let (keep, root) = sandbox(Disk::Usual);
    let ran = ["web.yml", "gone.yml"].map(|file| known(&root, file));
    let writer = File::create(root.join("conf/web.yml")).unwrap();
    let parses = Arc::new(AtomicUsize::new(0));
    let config = config(&root, &parses);
    let watch = Watch::resume_apart(config.clone(), open_for_writing_by_us, &ran);
    let mut bed = Bed::on((keep, root), config, parses, watch);
    assert!(matches!(bed.next(), Seen::Listing(_)));
    assert_eq!(bed.command("web"), Some("known"));
    assert!(!bed.entries.contains_key("gone"), "{:#?}", bed.entries);
    bed.write("conf/web.yml", &child("new"));
    drop(writer);
    bed.until_runs("web", "new");
}

#[test]
fn an_end_that_was_taken_back_while_the_first_look_hangs_is_none() {
    let Hung { mut bed, let_go } = hung();
    bed.watch().close();
    bed.watch().reread(1, [name("a")].into());
    bed.watch().reopen();
    drop(let_go);
    bed.until_reread(1);
    bed.write("conf/a.yml", &child("new"));
    bed.until_runs("a", "new");
}

#[test]
fn a_watch_that_was_told_to_end_ends_when_its_first_look_does() {
    let Hung { mut bed, let_go } = hung();
    bed.watch().close();
    drop(let_go);
    while bed.seen.blocking_recv().is_some() {}
}
