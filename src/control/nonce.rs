//! The hello's nonce: 32 random bytes in base64url without padding.
//!
//! It makes a token good for one connection only, so a connection without one is not served.
//!
//! Source: RFC 4648, section 5; getrandom(2).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

/// How many random bytes a nonce has.
const NONCE_BYTES: usize = 32;

/// How often a call that a signal cut short is made again.
const TRIES_MAX: usize = 8;

/// A nonce nobody can have seen before.
///
/// # Errors
///
/// The system's, when it gives no random bytes.
pub(super) fn fresh() -> Result<String, Errno> {
    let mut bytes = [0; NONCE_BYTES];
    let mut filled = 0;
    for _ in 0..TRIES_MAX {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if filled == NONCE_BYTES {
            return Ok(URL_SAFE_NO_PAD.encode(bytes));
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_nonce_is_like_another() {
        let nonces: std::collections::BTreeSet<String> =
            (0..1_000).map(|_| fresh().unwrap()).collect();
        assert_eq!(nonces.len(), 1_000);
        let is_base64url = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        for nonce in nonces {
            assert!(
                nonce.len() == 43 && nonce.chars().all(is_base64url),
                "{nonce}"
            );
        }
    }
}
