//! The control plane across an upgrade: it stops where it is, and goes on here or in the next
//! program. The sockets that listen stay open all the while; who connects meanwhile waits in line.
//!
//! - Parked, no connection reads, writes or hands anything over. What is asked already is answered
//!   as ever, into the connection's queue.
//! - A connection that does not stop in time has the others go on: nothing is lost, and whoever
//!   asked for it is told.
//! - What was let in before is let in again whatever the limits are now.

use std::{io, net::TcpListener as StdListener, os::fd::OwnedFd, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    super::{
        asked::{Asked, Reply, ReplyAddress, ToConnection},
        authority::{Authority, HandedRefusals, Refusals, Tokens},
        connection::{Connection, Door, End, HandedConnection, Shared, Standing},
        guests::{Guest, Guests},
        limits::VERIFICATIONS_MAX,
        peer::Users,
        roster::{Arrival, PeerKey, Roster},
    },
    ASKS_MAX, Acceptor, Control, ControlConfig, Order, Recheck,
};
use crate::passed::{Claim, Passed};

/// How long connections may take to stop where they are: each does at its next step, and none
/// waits for its peer or a disk.
const PARK_TIME_MAX: Duration = Duration::from_secs(2);

/// How many orders wait for the acceptor.
const ORDERS_MAX: usize = 4;

/// Why the control plane has not stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotParked {
    /// Connections were at something that does not end.
    #[error("{0} connections did not stop within {PARK_TIME_MAX:?}")]
    Busy(usize),
    /// A fault of ours.
    #[error("the task that takes connections in is gone")]
    Gone,
}

/// The control plane on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedControl {
    listeners: Vec<Passed>,
    connections: Vec<HandedConnection>,
    /// The number of the next one to come.
    next: Arrival,
    refusals: HandedRefusals,
}

impl HandedControl {
    /// Every descriptor that goes over.
    pub fn passed(&self) -> impl Iterator<Item = &Passed> {
        let connections = self.connections.iter().map(HandedConnection::passed);
        self.listeners.iter().chain(connections)
    }

    /// How many connections go over.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}

/// How a time in which everything was parked has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// All goes on.
    Over,
    /// There is nothing more to do here.
    Ended,
}

/// A control plane but for its task.
pub(super) struct Prepared {
    acceptor: Acceptor,
    addresses: Vec<std::net::SocketAddr>,
    users_told_by: String,
    shared: Arc<Shared>,
    recheck: Recheck,
}

impl Prepared {
    pub(super) fn new(
        config: ControlConfig,
        requests: mpsc::Sender<Asked>,
        refusals: Arc<Refusals>,
    ) -> io::Result<Self> {
        let mut listeners = Vec::with_capacity(config.listeners.len());
        let mut addresses = Vec::with_capacity(config.listeners.len());
        for listener in config.listeners {
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            listeners.push(TcpListener::from_std(listener)?);
        }
        let ControlConfig { limits, ring, .. } = config;
        let roster = Roster::new(limits.connections_max, limits.connections_per_peer_max);
        let shared = Arc::new(Shared {
            name: config.name,
            version: config.version,
            limits,
            authority: Authority::new(config.policy),
            tokens: Arc::new(Tokens {
                ring: Arc::clone(&ring),
                audience: config.id.clone(),
                config: config.config,
                looks: config.looks,
                look_time_max: limits.look_time_max,
                verify_time_max: limits.verify_time_max,
                turns: Tokens::turns(),
            }),
            id: config.id,
            refusals,
            guests: Guests::new(roster),
            requests,
        });
        let users = Users::new(addresses.first().copied());
        let users_told_by = users.told_by();
        Ok(Self {
            acceptor: Acceptor::new(listeners, Arc::clone(&shared), users),
            addresses,
            users_told_by,
            shared,
            recheck: Recheck::new(ring),
        })
    }

    pub(super) fn start(mut self, connections: Vec<Connection>) -> Control {
        for connection in connections {
            self.acceptor.go_on_with(connection);
        }
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        Control {
            orders,
            acceptor: tokio::spawn(self.acceptor.run(received)),
            addresses: self.addresses,
            users_told_by: self.users_told_by,
            shared: self.shared,
            recheck: self.recheck,
        }
    }
}

impl Control {
    /// Goes on where the program before has stopped. `config` has no listeners of its own. Must be
    /// called within a tokio runtime; nothing is read or written before that is next polled.
    ///
    /// # Errors
    ///
    /// The system's, when a socket cannot be had or waited for.
    pub fn take_over(
        mut config: ControlConfig,
        handed: HandedControl,
        requests: mpsc::Sender<Asked>,
        claim: Claim<'_>,
    ) -> io::Result<Self> {
        for listener in handed.listeners {
            config
                .listeners
                .push(StdListener::from(listener.take(claim)?));
        }
        let refusals = Refusals::take_over(handed.refusals, config.refusals.clone());
        let prepared = Prepared::new(config, requests, refusals)?;
        prepared.shared.guests.roster().go_on_at(handed.next);
        let mut connections = Vec::with_capacity(handed.connections.len());
        for connection in handed.connections {
            let shared = Arc::clone(&prepared.shared);
            let (answers_in, answers) = ToConnection::new();
            let (guest, door) = admit(
                connection.arrival(),
                connection.key().clone(),
                answers_in.clone(),
                Arc::new(connection.standing()),
            );
            let counts_for = connection.counts_for().clone();
            let mut roster = prepared.shared.guests.roster();
            roster.enter_again(connection.arrival(), counts_for, guest);
            drop(roster);
            let answers = (answers_in, answers);
            connections.push(Connection::take_over(
                connection, shared, door, answers, claim,
            )?);
        }
        Ok(prepared.start(connections))
    }

    /// Takes nothing more in, and has every connection stop where it is; within
    /// `PARK_TIME_MAX`. Until [`Control::unpark`] nobody is heard.
    ///
    /// # Errors
    ///
    /// One does not stop. Then all go on.
    pub fn park(&self) -> impl Future<Output = Result<(), NotParked>> + Send + 'static {
        let (parked, answer) = oneshot::channel();
        let orders = self.orders.clone();
        async move {
            let sent = orders.send(Order::Park(parked)).await;
            sent.map_err(|_| NotParked::Gone)?;
            answer.await.map_err(|_| NotParked::Gone)?
        }
    }

    /// All that is parked goes on.
    pub fn unpark(&self) {
        // Never full: one order is answered before the next is given. Closed means that it is gone.
        let _ = self.orders.try_send(Order::Unpark);
    }

    /// Whether no thread looks at keys or checks a token.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let turns = self.shared.tokens.turns.available_permits();
        turns == VERIFICATIONS_MAX && self.recheck.is_idle()
    }

    /// Gives all that is parked away.
    ///
    /// # Errors
    ///
    /// The system's, when a socket cannot be had back.
    pub async fn hand_over(self) -> io::Result<HandedControl> {
        let (handed, answer) = oneshot::channel();
        let gone = || io::Error::other(NotParked::Gone);
        let order = Order::HandOver(handed);
        self.orders.send(order).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Where the answer to a request goes that the program before has let in.
    #[must_use]
    pub fn reply(&self, address: ReplyAddress) -> Reply {
        match self.shared.guests.roster().get(address.connection) {
            Some(guest) => Reply::new(address.connection, address.id, guest.answers.clone()),
            None => Reply::to_nobody(address),
        }
    }
}

/// Both sides of a connection's door.
fn admit(
    arrival: Arrival,
    key: PeerKey,
    answers: ToConnection,
    standing: Arc<Standing>,
) -> (Guest, Door) {
    let (room, asked_for_room) = mpsc::channel(ASKS_MAX);
    let (end, ended) = watch::channel(None);
    let guest = Guest {
        room,
        end,
        answers,
        standing: Arc::clone(&standing),
    };
    let door = Door {
        key,
        arrival,
        room: asked_for_room,
        end: ended,
        standing,
    };
    (guest, door)
}

impl Acceptor {
    /// Parks all and stays so until told what then.
    pub(super) async fn stay_parked(
        &mut self,
        parked: oneshot::Sender<Result<(), NotParked>>,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Stay {
        let outcome = self.park().await;
        let is_parked = outcome.is_ok();
        // An error means that it is not waited for any more: then there is nothing to stay for.
        if parked.send(outcome).is_err() || !is_parked {
            self.unpark();
            return Stay::Over;
        }
        match orders.recv().await {
            Some(Order::Unpark | Order::Park(_)) => {
                self.unpark();
                Stay::Over
            }
            Some(Order::HandOver(handed)) => {
                let _ = handed.send(self.hand_over());
                Stay::Ended
            }
            Some(Order::Close) | None => {
                self.unpark();
                Stay::Ended
            }
        }
    }

    async fn park(&mut self) -> Result<(), NotParked> {
        for guest in self.shared.guests.roster().all() {
            guest.end.send_if_modified(|end| {
                let goes_on = end.is_none();
                if goes_on {
                    *end = Some(End::Parking);
                }
                goes_on
            });
        }
        let all_parked = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.take_leave(ended);
            }
        };
        match timeout(PARK_TIME_MAX, all_parked).await {
            Ok(()) => Ok(()),
            Err(_) => Err(NotParked::Busy(self.tasks.len())),
        }
    }

    /// All that is parked goes on, and what was to park is not to any more.
    pub(super) fn unpark(&mut self) {
        for parked in std::mem::take(&mut self.parked) {
            let (arrival, key) = (parked.arrival(), parked.key().clone());
            let standing = Arc::clone(parked.standing());
            let (guest, door) = admit(arrival, key.clone(), parked.answers_in().clone(), standing);
            let mut roster = self.shared.guests.roster();
            let counts_for = roster.peer(arrival).cloned().unwrap_or(key);
            if let Some(before) = roster.leave(arrival)
                && *before.end.borrow() == Some(End::KeyDropped)
            {
                guest.end.send_replace(Some(End::KeyDropped));
            }
            roster.enter_again(arrival, counts_for, guest);
            drop(roster);
            self.go_on_with(parked.unpark(door));
        }
    }

    pub(super) fn go_on_with(&mut self, connection: Connection) {
        let arrival = connection.arrival();
        let task = self.tasks.spawn(connection.go_on());
        self.arrivals.insert(task.id(), arrival);
    }

    fn hand_over(&mut self) -> io::Result<HandedControl> {
        let mut listeners = Vec::with_capacity(self.listeners.len());
        for listener in std::mem::take(&mut self.listeners) {
            listeners.push(Passed::Held(OwnedFd::from(listener.into_std()?)));
        }
        let mut connections = Vec::with_capacity(self.parked.len());
        for parked in std::mem::take(&mut self.parked) {
            let known = self.shared.guests.roster().peer(parked.arrival()).cloned();
            let counts_for = known.unwrap_or_else(|| parked.key().clone());
            connections.push(parked.hand_over(counts_for)?);
        }
        // In the order in which they came.
        connections.sort_by_key(HandedConnection::arrival);
        Ok(HandedControl {
            listeners,
            connections,
            next: self.shared.guests.roster().next(),
            refusals: self.shared.refusals.hand_over(),
        })
    }
}
