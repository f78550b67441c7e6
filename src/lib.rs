//! A supervisor of processes, each described by one YAML file in a watched directory.
//!
//! Reading order: [`spec`] (nouns) and [`command`] (words of the control plane), then
//! [`reconcile`] (every decision, without I/O), then the organs, then [`supervisor`], the one
//! place that knows them all.
//!
//! Layers; a file imports lower layers and its own folder, organs never import each other:
//!
//! | layer | modules |
//! |---|---|
//! | L0 nouns | [`spec`], [`command`] |
//! | L1 | [`config`], [`reconcile`], `control::protocol`, all pure; beside them [`clock`], [`trust`], [`telemetry`], [`passed`] |
//! | L2 organs | [`watch`], [`process`], [`probe`], [`journal`], [`control`], [`audit`] |
//! | L3 | [`supervisor`], which alone imports all organs; [`cli`] |

pub mod audit;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod journal;
pub mod passed;
pub mod probe;
pub mod process;
pub mod reconcile;
pub mod spec;
pub mod supervisor;
pub mod telemetry;
pub mod trust;
pub mod watch;
