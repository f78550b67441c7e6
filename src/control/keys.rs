//! Keys: who may sign, and what with.
//!
//! A key has a name, which is its file's ([`KeyName`]), and a [`Fingerprint`], which is its own.
//!
//! Source: DESIGN, section 8; RFC 8017, RFC 5280 and RFC 7468 for what stands in key files.

mod fingerprint;
mod name;
mod scope;

pub use self::{
    fingerprint::Fingerprint,
    name::{KEY_NAME_CHARS_MAX, KeyName, KeyNameError},
    scope::{Forbidden, Scope},
};
