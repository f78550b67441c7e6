//! Looks at processes and at what the server tells all the while, so that little escapes a drill.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use supervisor_rs::clock;

use crate::{
    children::CHILDREN,
    clients::Shared,
    judge::Judge,
    line::{Gone, Line},
    look::{CHECK, check_one, exits, rows},
    sandbox::PATIENCE,
};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(15);

/// The watcher; it ends when this is dropped.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins to look.
    pub(crate) fn begin(shared: &Arc<Shared>, judge: &Arc<Judge>) -> Self {
        let (own, judge) = (Arc::clone(shared), Arc::clone(judge));
        let thread = thread::spawn(move || {
            while !own.is_over() {
                judge.leaders(&own);
                // The server may die at any moment; the next one is asked then.
                let _gone = watch(&own, &judge);
                thread::sleep(LOOK);
            }
        });
        Self {
            shared: Arc::clone(shared),
            thread: Some(thread),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.end();
        if let Some(thread) = self.thread.take() {
            let failed = thread.join().is_err();
            assert!(!failed || thread::panicking(), "the watcher has failed");
        }
    }
}

/// Looks until the server is gone.
fn watch(shared: &Shared, judge: &Judge) -> Result<(), Gone> {
    let Some(mut line) = Line::open(shared) else {
        return Err(Gone);
    };
    for (turn, child) in (0..).zip(CHILDREN.iter().cycle()) {
        if shared.is_over() {
            break;
        }
        let answer = ask(&mut line, 2 * turn + 1, CHECK)?;
        judge.rows(shared, line.life, &rows(&answer));
        let answer = ask(&mut line, 2 * turn + 2, &check_one(child.name))?;
        judge.ended(shared, child.name, &exits(&answer));
        judge.leaders(shared);
        thread::sleep(LOOK);
    }
    Ok(())
}

fn ask(line: &mut Line, id: u64, command: &str) -> Result<Value, Gone> {
    line.write(&format!("{{\"id\":{id},\"command\":{command}}}\n"))?;
    let answer = line.next(clock::mono() + PATIENCE)?;
    Ok(answer.expect("a server that lives answers"))
}
