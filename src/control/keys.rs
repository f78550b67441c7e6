//! Keys: who may sign, and what with.
//!
//! A key has a name, which is its file's ([`KeyName`]), and a [`Fingerprint`], which is its own.
//!
//! Who commands has a [`PrivateKey`], the server the [`PublicKey`] to it; [`generate()`] and
//! [`write_pair`] make both. Which keys the server knows at any moment says its [`Ring`], and what
//! each may be used for its [`Scope`].
//!
//! Source: DESIGN, section 8; RFC 8017, RFC 5280 and RFC 7468 for what stands in key files.

mod components;
mod fingerprint;
mod generate;
mod name;
mod pem;
mod private;
mod public;
mod ring;
mod scope;

pub use self::{
    components::{BITS_MAX, BITS_MIN, UnfitKey},
    fingerprint::Fingerprint,
    generate::{Bits, BitsError, GenerateError, KeyPair, Written, generate, write_pair},
    name::{KEY_NAME_CHARS_MAX, KeyName, KeyNameError},
    pem::PemError,
    private::{PRIVATE_KEY_BYTES_MAX, PrivateKey, PrivateKeyError},
    public::{PUBLIC_KEY_BYTES_MAX, PublicKey, PublicKeyError},
    ring::{
        BeingWritten, Changes, FAULTS_TOLD_MAX, KEY_DIR_FILES_MAX, KEY_DIRS_MAX, Key, Missing,
        Ring, RingSurvey, UNTOLD_MAX, Uptake,
    },
    scope::{Forbidden, Scope},
};

/// The text of a key file that was made for tests.
#[cfg(test)]
macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/keys/",
            $name
        ))
    };
}
#[cfg(test)]
pub(in crate::control) use fixture;
