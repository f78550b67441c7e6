//! The pure core.
pub mod effect;
pub mod event;
pub mod listing;
pub mod record;
