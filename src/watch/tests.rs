//! The watch against real directories, links, editors and races.

mod bed;
mod closing;
mod files;
mod keys;
mod paths;
mod stress;
mod thread;
