//! Files that are read for those who ask, off the loop.
//!
//! One file is read at a time, so that however many ask about a disk that does not answer, they take
//! one thread; whoever waits for longer than [`LOOK_TIME_MAX`] is answered without the file.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// How long who asks waits for the file.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);

/// Looks at files, one after the other.
pub(super) struct Looks {
    turn: Arc<Semaphore>,
    /// Each who is not answered yet has a share of it.
    unanswered: Arc<()>,
}

/// Looks at files of one kind keep nobody waiting who asks about another.
pub(super) struct FileLooks {
    pub(super) histories: Looks,
    pub(super) logs: Looks,
}

impl FileLooks {
    pub(super) fn new() -> Self {
        Self {
            histories: Looks::new(),
            logs: Looks::new(),
        }
    }
}

/// Somebody's who is not answered yet.
pub(super) struct Unanswered {
    _share: Arc<()>,
}

impl Looks {
    fn new() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            unanswered: Arc::new(()),
        }
    }

    /// Whether no thread looks, and all who asked are answered.
    pub(super) fn is_idle(&self) -> bool {
        self.turn.available_permits() == 1 && Arc::strong_count(&self.unanswered) == 1
    }

    /// To be kept until who asked is answered.
    pub(super) fn unanswered(&self) -> Unanswered {
        Unanswered {
            _share: Arc::clone(&self.unanswered),
        }
    }

    /// Reads a file; says for a person why that could not be done.
    pub(super) fn look<T, F>(&self, read: F) -> impl Future<Output = Result<T, String>> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, String> + Send + 'static,
    {
        let turn = Arc::clone(&self.turn);
        let look = async move {
            let turn = turn.acquire_owned().await.map_err(|it| it.to_string())?;
            let read = spawn_blocking(move || {
                let read = read();
                drop(turn);
                read
            });
            let panicked = |_| Err("reading it has panicked".to_owned());
            read.await.unwrap_or_else(panicked)
        };
        async move {
            let slow = || Err(format!("its disk does not answer within {LOOK_TIME_MAX:?}"));
            timeout(LOOK_TIME_MAX, look)
                .await
                .unwrap_or_else(|_| slow())
        }
    }
}
