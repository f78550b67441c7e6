//! The hello's nonce: 32 random bytes in base64url without padding.
//!
//! It makes a token good for one connection only, so a connection without one is not served.
//!
//! Source: RFC 4648, section 5; getrandom(2).

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
            return Ok(base64url(&bytes));
        }
    }
    Err(Errno::AGAIN)
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0u32;
        for index in 0..3 {
            bits = bits << 8 | u32::from(group.get(index).copied().unwrap_or(0));
        }
        for index in 0..=group.len() {
            let digit = bits >> (18 - 6 * index) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_that_of_the_rfc_without_padding() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg"),
            (b"fooba", "Zm9vYmE"),
            (b"foobar", "Zm9vYmFy"),
            (b"\xfb\xff\xfe", "-__-"),
        ] {
            assert_eq!(base64url(bytes), text);
        }
    }

    #[test]
    fn no_nonce_is_like_another() {
        let nonces: std::collections::BTreeSet<String> =
            (0..1_000).map(|_| fresh().unwrap()).collect();
        assert_eq!(nonces.len(), 1_000);
        assert!(nonces.iter().all(|nonce| nonce.len() == 43));
    }
}
