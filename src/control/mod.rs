//! The control plane: how commands reach the server, and how answers reach people.
//!
//! Reading order: [`protocol`] (what stands on the wire), [`keys`] and [`token`] (who signs, and
//! how), `peer` and `authority` (who may command), `roster`, `failures` and [`limits`] (who may
//! connect, and use how much), [`asked`] (a request and its answer), `guests`, `connection` and
//! [`server`]; then the other side: [`host`], [`client`], [`render`].
//!
//! Invariants: every request that was taken gets exactly one answer (I5); a line that is no
//! request changes nothing (I6); whatever a peer does, it waits for nobody and nobody for it:
//! each queue, wait and buffer has a named bound (I8).
//!
//! Absent on purpose: what a command does (`reconcile`).

mod alive;
pub mod asked;
mod authority;
pub mod client;
mod connection;
mod failures;
mod guests;
pub mod host;
pub mod keys;
pub mod limits;
mod nonce;
mod peer;
pub mod protocol;
pub mod render;
mod roster;
pub mod server;
pub mod token;
