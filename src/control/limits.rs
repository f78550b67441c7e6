//! What a peer may use: every bound of the server's side of the protocol, by name (I8).
//!
//! Source: DESIGN, section 8; `docs/PROTOCOL.md` tells clients the same numbers.

use std::time::Duration;

/// The most connections at one time.
pub const CONNECTIONS_MAX: usize = 256;

/// The most connections of one peer at one time (a user of this host, an IPv4 address, an IPv6 /64,
/// and for connections on which a signed command was given, a key).
pub const CONNECTIONS_PER_PEER_MAX: usize = 128;

/// The most requests of one connection that are not answered yet.
pub const IN_FLIGHT_MAX: usize = 128;

/// The most `check` and `info` requests of one connection that are not answered yet, and as many
/// each of `stop --all`, `start --all` and `kill`: their answers are large. Those after them are
/// read when an answer was taken away.
pub const LOOKS_IN_FLIGHT_MAX: usize = 2;

/// How many bytes of streams (`events`) may wait for one connection: who does not read what he is
/// told is told so, and no more. All events that are kept fit in.
pub const EVENT_BYTES_WAITING_MAX: usize = 1024 * 1024;

/// How long a connection may take until its first request that is allowed.
pub const FIRST_REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a connection may go without a request or an answer.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(300);

/// How long a peer may take to read each 64 KiB of its answers.
pub const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a refused peer is given to read why before its connection is reset.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a connection that is asked to make room for another may take to say that it does not.
pub const MAKE_ROOM_TIME_MAX: Duration = Duration::from_secs(1);

/// How long [`Control::close`](super::server::Control::close) waits for answers to be written.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// How many requests of a peer may be refused at once because of who sends them, and be answered
/// why. Once that is used up, what fails is answered `busy` and its connection closed; what is
/// rightly signed is taken all the same.
pub const FAILURES_PER_PEER_MAX: u32 = 256;

/// How many more may be refused each second.
pub const FAILURES_REFILL_PER_S: u32 = 8;

/// How many refusals of a peer are told at once, each by itself, to the log and the audit trail.
pub const AUDITED_REFUSALS_PER_PEER_MAX: u32 = 64;

/// How many more are told each second.
pub const AUDITED_REFUSALS_REFILL_PER_S: u32 = 1;

/// How many refusals of those who have not shown a key are told at once, each by itself, of however
/// many peers: the audit trail keeps so many files and no more, and who has a network of addresses
/// must not push out of it what was commanded.
pub const AUDITED_REFUSALS_MAX: u32 = 1_024;

/// How long it takes until one more is told.
pub const AUDITED_REFUSALS_INTERVAL: Duration = Duration::from_secs(10);

/// How long refusals are only counted until their number is told.
pub const LEFT_OUT_TIME_MAX: Duration = Duration::from_secs(60);

/// Of how many peers it is remembered how often they have failed.
pub const FAILING_PEERS_MAX: usize = 1_024;

/// How many tokens of a connection are checked together at most.
pub const VERIFY_BATCH_MAX: usize = 16;

/// How many are on a connection that has not given a command yet that it may give: who floods waits
/// his turn for each, and a newcomer for no more than one of each that came before him.
pub const VERIFY_FIRST_MAX: usize = 1;

/// Of how many connections tokens are checked at the same time; the others wait their turn.
pub const VERIFICATIONS_MAX: usize = 4;

/// How long a token waits for an edit of server.yml to be looked at before it is checked.
pub const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// How long it may take until it is known what a token is worth, its turn included: the disk that
/// keys stand on may not answer.
pub const VERIFY_TIME_MAX: Duration = Duration::from_secs(10);

/// How many keys may sign on one connection.
pub const KEYS_PER_CONNECTION_MAX: usize = 16;

/// The most descriptors that the server has open for itself at one time, in whatever it does: about
/// forty that stay, and those that a start needs for a moment beside them (two outputs, what is
/// read of `/proc`, the child's file and the directories on the way to it).
pub const SERVER_FILES_MAX: u64 = 52;

/// What a peer may use. The defaults are this module's constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// [`CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// [`CONNECTIONS_PER_PEER_MAX`].
    pub connections_per_peer_max: usize,
    /// [`IN_FLIGHT_MAX`].
    pub in_flight_max: usize,
    /// [`LOOKS_IN_FLIGHT_MAX`].
    pub looks_in_flight_max: usize,
    /// [`FIRST_REQUEST_TIME_MAX`].
    pub first_request_time_max: Duration,
    /// [`IDLE_TIME_MAX`].
    pub idle_time_max: Duration,
    /// [`WRITE_TIME_MAX`].
    pub write_time_max: Duration,
    /// [`LINGER_TIME_MAX`].
    pub linger_time_max: Duration,
    /// [`CLOSE_TIME_MAX`].
    pub close_time_max: Duration,
    /// [`FAILURES_PER_PEER_MAX`].
    pub failures_per_peer_max: u32,
    /// [`LOOK_TIME_MAX`].
    pub look_time_max: Duration,
    /// [`VERIFY_TIME_MAX`].
    pub verify_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            connections_per_peer_max: CONNECTIONS_PER_PEER_MAX,
            in_flight_max: IN_FLIGHT_MAX,
            looks_in_flight_max: LOOKS_IN_FLIGHT_MAX,
            first_request_time_max: FIRST_REQUEST_TIME_MAX,
            idle_time_max: IDLE_TIME_MAX,
            write_time_max: WRITE_TIME_MAX,
            linger_time_max: LINGER_TIME_MAX,
            close_time_max: CLOSE_TIME_MAX,
            failures_per_peer_max: FAILURES_PER_PEER_MAX,
            look_time_max: LOOK_TIME_MAX,
            verify_time_max: VERIFY_TIME_MAX,
        }
    }
}

impl Limits {
    /// The defaults, but with no more connections than this, so that whoever connects cannot use
    /// up the descriptors that processes are started with. Half of them for one peer, as ever.
    #[must_use]
    pub fn for_open_files(connections: u64) -> Self {
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        let connections_max = connections.clamp(2, CONNECTIONS_MAX);
        Self {
            connections_max,
            connections_per_peer_max: CONNECTIONS_PER_PEER_MAX.min(connections_max.div_ceil(2)),
            ..Self::default()
        }
    }

    /// How many children can run, and be started again, with so many open files, whoever connects:
    /// a child costs one. One more than [`Limits::connections_max`] is taken in, to be refused.
    ///
    /// With a quarter of the files for connections that is 19 of 96, 139 of 256, 715 of 1024.
    #[must_use]
    pub fn children_beside(&self, open_files: u64) -> u64 {
        let connections = u64::try_from(self.connections_max).unwrap_or(u64::MAX);
        open_files
            .saturating_sub(connections)
            .saturating_sub(1 + SERVER_FILES_MAX)
    }
}
