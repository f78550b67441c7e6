//! The watch against real directories, links, editors and races.

mod apart;
mod bed;
mod closing;
mod files;
mod keys;
mod paths;
mod stress;
mod thread;
