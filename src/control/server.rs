//! The server's side of the control protocol: it takes connections in and hands requests over.
//!
//! One task takes connections in; each connection is a task (`connection`). A request that may
//! be carried out is handed over as an [`Asked`] through the channel the caller gave; whoever
//! takes it answers through its [`Reply`](super::asked::Reply).
//!
//! Invariants: each [`Asked`] is answered exactly once, with `internal` if its reply is
//! dropped (I5); a request is carried out even if its client is gone by then; requests of one
//! connection are handed over in their order; nothing waits for a slow peer; the channel being
//! full is answered `busy` and never waited for (I8); a panic while a connection is taken in
//! costs that connection alone.
//!
//! Absent on purpose: making sockets (whoever listens says why it cannot), and deciding anything
//! about a command but whether its sender may give it (`authority`).

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{pending, poll_fn},
    io::{self, Write},
    net::{SocketAddr, TcpListener as StdListener},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

pub use super::authority::{ConfigCheck, Look, Policy};
use super::{
    asked::{Asked, Refused, ToConnection},
    authority::Refusals,
    connection::{
        Connection, Door, End, MakeRoom, Parked, Peer, Shared, Standing, Stays, too_many,
    },
    guests::Guest,
    keys::{Key, Ring},
    limits::{Limits, MAKE_ROOM_TIME_MAX},
    peer::Users,
    protocol,
    roster::{Admission, Arrival, Manner, PeerKey},
};
use crate::clock;

mod handover;
mod recheck;

pub use handover::{HandedControl, NotParked};
use handover::{Prepared, Stay};
use recheck::Recheck;

/// How long no connection is taken in after the system would not give one, or after a fault.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a connection is asked for room at most before it has said whether it stays: for its
/// peer, and for its key.
const ASKS_MAX: usize = 2;

/// What a control plane is started with.
#[derive(Debug)]
pub struct ControlConfig {
    /// Sockets that listen already.
    pub listeners: Vec<StdListener>,
    /// What the server calls itself.
    pub name: String,
    /// Its id, a UUID.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Who may command.
    pub policy: Policy,
    /// The keys that may sign.
    pub ring: Arc<Ring>,
    /// Whether server.yml is as it was last looked at; asked before each use of a key.
    pub config: Arc<dyn ConfigCheck>,
    /// Where server.yml is asked to be looked at again. Whoever receives it looks, applies what it
    /// finds to the ring and the policy, and answers. When it is full, tokens are answered `busy`.
    pub looks: mpsc::Sender<Look>,
    /// Where refusals are told for the audit trail. What it does not take is counted in the log.
    pub refusals: mpsc::Sender<Refused>,
    /// What a peer may use.
    pub limits: Limits,
}

/// The running control plane. Dropping it closes it as [`Control::close`] does, unwatched.
#[derive(Debug)]
pub struct Control {
    orders: mpsc::Sender<Order>,
    acceptor: JoinHandle<()>,
    addresses: Vec<SocketAddr>,
    users_told_by: String,
    shared: Arc<Shared>,
    recheck: Recheck,
}

impl Control {
    /// Begins to take connections in. Must be called within a tokio runtime.
    ///
    /// `requests` is where commands are handed over; when it is full, clients are told `busy`.
    ///
    /// # Errors
    ///
    /// The system's, when a listener cannot be waited for.
    pub fn start(config: ControlConfig, requests: mpsc::Sender<Asked>) -> io::Result<Self> {
        let refusals = Refusals::new(config.limits.failures_per_peer_max, config.refusals.clone());
        let prepared = Prepared::new(config, requests, refusals)?;
        Ok(prepared.start(Vec::new()))
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How the users of this host are told apart, for people: `sock_diag`, `/proc/net/tcp`, or
    /// `none` and why.
    #[must_use]
    pub fn users_told_by(&self) -> &str {
        &self.users_told_by
    }

    /// From now on these rules say who may command. Connections stay open, and the next command
    /// on each is judged by them. Hellos that are said already stay said.
    pub fn configure(&self, policy: Policy) {
        self.shared.authority.configure(policy);
    }

    /// Closes at once every connection on which one of these very keys has signed, whether or not
    /// answers are still due to it; what was asked on it is carried out. To be called with
    /// whatever [`Ring::refresh`] says was dropped.
    pub fn drop_keys(&self, keys: &[Arc<Key>]) {
        self.shared.drop_keys(keys);
    }

    /// Looks at the ring in the background: keys that were taken up or dropped and new faults are
    /// logged, and what dropped keys had open is closed. To be called whenever the directories of
    /// keys, or which they are, may have changed; told once while a look is under way and as often
    /// as one likes, it looks once more. Must be called within a tokio runtime.
    pub fn recheck_keys(&self) {
        self.recheck.ask(&self.shared);
    }

    /// Takes nothing more in, lets answers already given be written, answers what is still in
    /// flight `shutting_down`, and ends all connections; within [`Limits::close_time_max`].
    pub async fn close(self) {
        // An error means that the acceptor is gone already.
        let _ = self.orders.send(Order::Close).await;
        let _ = self.acceptor.await;
        self.shared.refusals.tell_left_out();
    }
}

/// What the acceptor is told. Dropping the sender is [`Order::Close`].
enum Order {
    /// End everything.
    Close,
    /// Take nothing more in, and have every connection stop where it is.
    Park(oneshot::Sender<Result<(), NotParked>>),
    /// Go on.
    Unpark,
    /// Give all that is parked away.
    HandOver(oneshot::Sender<io::Result<HandedControl>>),
}

/// Whether a connection that was asked to make room has done so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    Left,
    Stayed,
}

struct Acceptor {
    listeners: Vec<TcpListener>,
    /// The listener that is looked at first next time, so that none starves another.
    turn: usize,
    shared: Arc<Shared>,
    users: Users,
    tasks: JoinSet<Option<Parked>>,
    /// Connections that have stopped where they were.
    parked: Vec<Parked>,
    arrivals: BTreeMap<Id, Arrival>,
    /// Whether the last attempt to take a connection in failed: said once, not each time.
    starved: bool,
}

impl Acceptor {
    fn new(listeners: Vec<TcpListener>, shared: Arc<Shared>, users: Users) -> Self {
        Self {
            listeners,
            turn: 0,
            shared,
            users,
            tasks: JoinSet::new(),
            parked: Vec::new(),
            arrivals: BTreeMap::new(),
            starved: false,
        }
    }

    /// Takes connections in until told to end. A panic is a fault of ours that would leave a
    /// server which nobody can reach: it is told, and the work goes on with the connections
    /// there are.
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        while let Err(Panicked) = caught(self.take_in_all(&mut orders)).await {
            error!("taking connections in has panicked and is taken up again");
            // What it was at may have been entered without being there.
            let is_there = |guest: &Guest| !guest.room.is_closed();
            self.shared.guests.roster().retain(is_there);
            sleep(ACCEPT_PAUSE).await;
        }
        self.end().await;
    }

    async fn take_in_all(&mut self, orders: &mut mpsc::Receiver<Order>) {
        // When connections are taken in again after the system would not give one.
        let mut paused = None;
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Park(parked)) => {
                        if self.stay_parked(parked, orders).await == Stay::Ended {
                            return;
                        }
                    }
                    Some(Order::Unpark) => {}
                    Some(Order::HandOver(handed)) => drop(handed),
                    Some(Order::Close) | None => return,
                },
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.take_leave(ended);
                    // It stopped too late for that.
                    if !self.parked.is_empty() {
                        self.unpark();
                    }
                }
                () = until(paused) => paused = None,
                accepted = accept_any(&self.listeners, self.turn), if paused.is_none() => match accepted {
                    Ok((stream, peer)) => {
                        self.starved = false;
                        self.turn = self.turn.wrapping_add(1);
                        self.take_in(stream, peer).await;
                    }
                    Err(fault) => {
                        if !std::mem::replace(&mut self.starved, true) {
                            warn!(%fault, "cannot take a connection in");
                        }
                        paused = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                },
            }
        }
    }

    /// A connection's task has ended.
    fn take_leave(&mut self, ended: Result<(Id, Option<Parked>), JoinError>) {
        let (task, parked) = match ended {
            Ok(ended) => ended,
            Err(fault) => (fault.id(), None),
        };
        let arrival = self.arrivals.remove(&task);
        match parked {
            Some(parked) => self.parked.push(parked),
            None => {
                if let Some(arrival) = arrival {
                    self.shared.guests.roster().leave(arrival);
                }
            }
        }
    }

    async fn take_in(&mut self, stream: TcpStream, address: SocketAddr) {
        #[cfg(test)]
        tests::panic_if_planted();
        // Before anything else: whose it is can only be told while the peer is there.
        let origin = self.users.origin(&stream, address).await;
        let peer = Peer { address, origin };
        let key = PeerKey::of(origin, address.ip());
        // Each is asked once, so that this ends.
        let mut stayed = BTreeSet::new();
        loop {
            let manner = |arrival: Arrival, guest: &Guest| match stayed.contains(&arrival) {
                true => Manner::Busy,
                false => guest.standing.manner(),
            };
            let admission = self.shared.guests.roster().admission(&key, manner);
            match admission {
                Admission::Welcome => break,
                Admission::InPlaceOf(arrival) => match self.ask_for_room(arrival).await {
                    Reaction::Left => {
                        debug!(peer = %address, "a quiet connection makes room");
                        self.shared.guests.roster().leave(arrival);
                        break;
                    }
                    Reaction::Stayed => {
                        stayed.insert(arrival);
                    }
                },
                Admission::Refused => {
                    debug!(peer = %address, "connection refused: too many");
                    return refuse(stream);
                }
            }
        }
        self.enter(key, stream, peer);
    }

    /// Asks a connection to make room. When it has, its descriptor is free.
    async fn ask_for_room(&self, arrival: Arrival) -> Reaction {
        let (stays, answer) = oneshot::channel();
        let asked = match self.shared.guests.roster().get(arrival) {
            Some(guest) => guest.room.try_send(MakeRoom(stays)),
            None => return Reaction::Left,
        };
        match asked {
            Ok(()) => {}
            // It was asked before and has not answered.
            Err(mpsc::error::TrySendError::Full(_)) => return Reaction::Stayed,
            Err(mpsc::error::TrySendError::Closed(_)) => return Reaction::Left,
        }
        match timeout(MAKE_ROOM_TIME_MAX, answer).await {
            Ok(Err(_)) => Reaction::Left,
            Ok(Ok(Stays)) | Err(_) => Reaction::Stayed,
        }
    }

    fn enter(&mut self, key: PeerKey, stream: TcpStream, peer: Peer) {
        let (room, asked_for_room) = mpsc::channel(ASKS_MAX);
        let (end, ended) = watch::channel(None);
        let standing = Arc::new(Standing::new(clock::mono()));
        let (answers_in, answers) = ToConnection::new();
        let guest = Guest {
            room,
            end,
            answers: answers_in.clone(),
            standing: Arc::clone(&standing),
        };
        let arrival = self.shared.guests.roster().enter(key.clone(), guest);
        let door = Door {
            key,
            arrival,
            room: asked_for_room,
            end: ended,
            standing,
        };
        let connection = Connection::new(
            stream,
            peer,
            Arc::clone(&self.shared),
            door,
            (answers_in, answers),
        );
        let task = self.tasks.spawn(connection.serve());
        self.arrivals.insert(task.id(), arrival);
    }

    async fn end(mut self) {
        drop(self.listeners);
        let all: Vec<Guest> = self.shared.guests.roster().leave_all().collect();
        for guest in all {
            guest.end.send_replace(Some(End::Closing));
        }
        let all_gone = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(self.shared.limits.close_time_max, all_gone)
            .await
            .is_err()
        {
            debug!(left = self.tasks.len(), "connections cut off at the end");
        }
        self.tasks.shutdown().await;
    }
}

impl Shared {
    /// Ends what these keys have open.
    fn drop_keys(&self, keys: &[Arc<Key>]) {
        let closed = self.guests.drop_keys(keys);
        if closed > 0 {
            info!(closed, "connections of dropped keys are closed");
        }
    }
}

/// A future has panicked and is not to be polled again. What is said of it stands in the log of
/// whoever set the panic hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Panicked;

/// What a future comes to. What it has borrowed must be fit for use after a panic.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    poll_fn(
        |context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        },
    )
    .await
}

/// Until then; never, if there is nothing to wait for.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

async fn accept_any(listeners: &[TcpListener], turn: usize) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|context| {
        for index in 0..listeners.len() {
            let listener = &listeners[(turn % listeners.len() + index) % listeners.len()];
            if let Poll::Ready(accepted) = listener.poll_accept(context) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

/// Says why and hangs up, without waiting.
fn refuse(stream: TcpStream) {
    let mut line = Vec::new();
    protocol::write_failure(&mut line, None, &too_many());
    // What a fresh socket does not take at once is not worth waiting for.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write_all(&line);
    }
}

#[cfg(test)]
mod tests;
