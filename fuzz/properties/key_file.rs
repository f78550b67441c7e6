//! Whatever a key file holds, it is a key of the right size or refused in a few words.
//!
//! - A public key has 2048 to 4096 bits, stands in one block and alone in its file, and is the
//!   same key whatever ends its lines.
//! - It takes no signature that is none.
//! - No file is a private key and a public one.
//!
//! Bytes that are no PEM are tried as what stands in a PEM block too.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use supervisor_rs::control::{
    keys::{PrivateKey, PublicKey},
    token::{Expected, Unverified},
};

const BITS: std::ops::RangeInclusive<u32> = 2048..=4096;

/// Panics when one of the properties does not hold.
pub fn holds(bytes: &[u8]) {
    holds_of_file(bytes);
    if !bytes.starts_with(b"-----") {
        for label in [
            "PUBLIC KEY",
            "RSA PUBLIC KEY",
            "PRIVATE KEY",
            "RSA PRIVATE KEY",
        ] {
            holds_of_file(block(label, bytes).as_bytes());
        }
    }
}

fn holds_of_file(bytes: &[u8]) {
    let name = "deploy".parse().expect("a name");
    let private = PrivateKey::from_pem(name, Path::new("/keys/deploy.pem"), bytes);
    match &private {
        Ok(key) => assert!(BITS.contains(&key.bits())),
        Err(error) => super::text::is_message_of_lines(&error.to_string()),
    }
    match PublicKey::from_pem(bytes) {
        Ok(key) => {
            assert!(private.is_err());
            is_good(&key, bytes);
        }
        Err(error) => super::text::is_message_of_lines(&error.to_string()),
    }
}

fn is_good(key: &PublicKey, bytes: &[u8]) {
    assert!(BITS.contains(&key.bits()));
    let text = std::str::from_utf8(bytes).expect("PEM is text");
    assert_eq!(text.matches("-----BEGIN").count(), 1);
    assert!(!text.contains("PRIVATE"));
    let other_ends = match text.contains("\r\n") {
        true => text.replace("\r\n", "\n"),
        false => text.replace('\n', "\r\n"),
    };
    let same = PublicKey::from_pem(other_ends.as_bytes()).expect("the same key");
    assert_eq!(same.fingerprint(), key.fingerprint());
    for more in [
        format!("{text}\nx\n"),
        format!("x\n{text}"),
        format!("{text}\n{text}"),
    ] {
        assert!(PublicKey::from_pem(more.as_bytes()).is_err());
    }
    takes_no_signature(key);
}

/// A token with a signature of the right length that nobody made.
fn takes_no_signature(key: &PublicKey) {
    let header =
        super::token::part(br#"{"alg":"RS256","typ":"supervisor-cmd+jwt","kid":"deploy"}"#);
    let claims = super::token::part(b"{}");
    let length = usize::try_from(key.bits().div_ceil(8)).expect("a small number");
    for filled in [0, 1, 0xff] {
        let signature = super::token::part(&vec![filled; length]);
        let token = format!("{header}.{claims}.{signature}");
        let unverified = Unverified::parse(&token).expect("the header is in order");
        let expected = Expected {
            audience: "a",
            nonce: "n",
            id: 1,
            now: 0,
        };
        assert!(unverified.verify(key, &expected).is_err());
    }
}

/// These bytes as a block of PEM.
fn block(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        block.extend(line.iter().copied().map(char::from));
        block.push('\n');
    }
    block + &format!("-----END {label}-----\n")
}
