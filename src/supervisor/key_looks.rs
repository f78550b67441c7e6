//! Looks at the keys for those who ask what there is, all of them together.
//!
//! One look at a time: who asks while it is under way waits for the next, which answers all who
//! came meanwhile. So however many ask, they cost one thread, and tokens are checked on the others.
//!
//! A look at a disk that does not answer is given up on, and who asks until it ends after all is
//! told so at once: `info` is what tells an operator which directory it is.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::{JoinError, spawn_blocking},
    time::timeout,
};

use crate::control::keys::{Ring, RingSurvey};

/// How long a look may take until those who wait for it are answered without.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);

/// What is done with what was seen. Bounded by what connections may have in flight.
type Then = Box<dyn FnOnce(&Seen) + Send>;

/// What a look came to.
pub(super) type Seen = Result<RingSurvey, Unseen>;

/// Why it is not known which keys there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unseen {
    /// The disk does not answer.
    #[error(
        "which keys there are is not known: a look at them takes longer than {0:?}\n\
         hint: a disk or a network file system on the way to `pub_keys_path` may have gone"
    )]
    Slow(Duration),
    /// A fault of ours, which stands in the log.
    #[error("which keys there are is not known: looking at them has panicked")]
    Panicked,
}

/// Looks when asked to. Copies are one and the same.
#[derive(Clone)]
pub(super) struct KeyLooks {
    ring: Arc<Ring>,
    time_max: Duration,
    state: Arc<Mutex<State>>,
}

struct State {
    look: Look,
    waiting: Vec<Then>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// There is none.
    Absent,
    UnderWay,
    /// It takes too long. Nobody waits for it.
    Slow,
}

impl KeyLooks {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self::within(ring, LOOK_TIME_MAX)
    }

    fn within(ring: Arc<Ring>, time_max: Duration) -> Self {
        let state = State {
            look: Look::Absent,
            waiting: Vec::new(),
        };
        Self {
            ring,
            time_max,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Has `then` done with what a look sees that begins after now. Never waits. Must be called
    /// within a tokio runtime.
    pub(super) fn ask(&self, then: impl FnOnce(&Seen) + Send + 'static) {
        let mut state = self.lock();
        match state.look {
            Look::Slow => {
                drop(state);
                then(&Err(Unseen::Slow(self.time_max)));
            }
            Look::UnderWay => state.waiting.push(Box::new(then)),
            Look::Absent => {
                state.waiting.push(Box::new(then));
                state.look = Look::UnderWay;
                tokio::spawn(self.clone().look_for_all());
            }
        }
    }

    /// Whether no thread looks.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().look == Look::Absent
    }

    /// Looks until nobody waits.
    async fn look_for_all(self) {
        loop {
            let waiting = {
                let mut state = self.lock();
                if state.waiting.is_empty() {
                    state.look = Look::Absent;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            let ring = Arc::clone(&self.ring);
            let mut look = spawn_blocking(move || ring.look());
            match timeout(self.time_max, &mut look).await {
                Ok(seen) => answer(waiting, &seen.map_err(panicked)),
                Err(_) => {
                    let late = {
                        let mut state = self.lock();
                        state.look = Look::Slow;
                        std::mem::take(&mut state.waiting)
                    };
                    let slow = Err(Unseen::Slow(self.time_max));
                    answer(waiting, &slow);
                    answer(late, &slow);
                    // Nobody is told what it sees at last: who asks then has another made.
                    let _ = look.await;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(waiting: Vec<Then>, seen: &Seen) {
    for then in waiting {
        then(seen);
    }
}

fn panicked(_: JoinError) -> Unseen {
    tracing::error!("looking at the keys has panicked");
    Unseen::Panicked
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::PermissionsExt,
    };

    use tokio::{sync::mpsc, time::timeout};

    use super::*;
    use crate::trust::Owners;

    const TIME_MAX: Duration = Duration::from_secs(20);

    /// A ring over a directory whose disk does not answer while this is locked.
    macro_rules! ring {
        ($disk:ident) => {{
            static DISK: Mutex<()> = Mutex::new(());
            fn hangs(_: &File) -> bool {
                drop(DISK.lock().unwrap());
                false
            }
            let keep = tempfile::tempdir().unwrap();
            fs::set_permissions(keep.path(), fs::Permissions::from_mode(0o700)).unwrap();
            let dir = keep.path().canonicalize().unwrap();
            fs::write(dir.join("bad.pem"), "bad").unwrap();
            fs::set_permissions(dir.join("bad.pem"), fs::Permissions::from_mode(0o644)).unwrap();
            let ring = Ring::new(vec![dir], Owners::new(&[]).unwrap());
            $disk = &DISK;
            (keep, Arc::new(ring.with_writers_seen(hangs)))
        }};
    }

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().max_blocking_threads(2);
        builder.build().unwrap()
    }

    /// The number of faults that it is told of, or that it is told of none.
    fn faults_to(
        told: &mpsc::UnboundedSender<Result<usize, Unseen>>,
    ) -> impl FnOnce(&Seen) + use<> {
        let told = told.clone();
        move |seen| {
            let seen = seen.as_ref();
            let told = told.send(seen.map(|seen| seen.faults.len()).map_err(|why| *why));
            told.unwrap();
        }
    }

    #[test]
    fn however_many_ask_they_leave_a_thread_for_others_and_are_all_answered() {
        let disk: &'static Mutex<()>;
        let (_keep, ring) = ring!(disk);
        let looks = KeyLooks::new(ring);
        let (told, mut heard) = mpsc::unbounded_channel();
        let hanging = disk.lock().unwrap();
        runtime().block_on(async {
            for _ in 0..100 {
                looks.ask(faults_to(&told));
                tokio::task::yield_now().await;
            }
            let other = timeout(TIME_MAX, spawn_blocking(|| ()));
            assert!(other.await.is_ok());
            assert!(heard.try_recv().is_err());
            drop(hanging);
            for _ in 0..100 {
                let heard = timeout(TIME_MAX, heard.recv()).await.unwrap();
                assert_eq!(heard, Some(Ok(1)));
            }
        });
    }

    #[test]
    fn a_look_at_a_disk_that_does_not_answer_is_not_waited_for() {
        let disk: &'static Mutex<()>;
        let (_keep, ring) = ring!(disk);
        let looks = KeyLooks::within(ring, Duration::from_millis(50));
        let (told, mut heard) = mpsc::unbounded_channel();
        let hanging = disk.lock().unwrap();
        runtime().block_on(async {
            let slow = Some(Err(Unseen::Slow(Duration::from_millis(50))));
            looks.ask(faults_to(&told));
            tokio::task::yield_now().await;
            looks.ask(faults_to(&told));
            for _ in 0..2 {
                assert_eq!(timeout(TIME_MAX, heard.recv()).await.unwrap(), slow);
            }
            looks.ask(faults_to(&told));
            assert_eq!(heard.try_recv().ok(), slow);
            drop(hanging);
            let all = async {
                loop {
                    looks.ask(faults_to(&told));
                    if heard.recv().await == Some(Ok(1)) {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            assert!(timeout(TIME_MAX, all).await.is_ok());
        });
    }
}
