//! What tells one public key from any other, whatever its file is called.
//!
//! It is SHA-256 over the key's SubjectPublicKeyInfo (RFC 5280, section 4.1) in DER, as `SHA256:`
//! and base64 without padding. `openssl rsa -pubin -in KEY.pub.pem -outform DER | openssl dgst
//! -sha256 -binary | base64` gives the same, but for its padding.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The fingerprint of a public key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of a SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of_spki(der: &[u8]) -> Self {
        let digest = STANDARD_NO_PAD.encode(Sha256::digest(der));
        Self(format!("SHA256:{digest}"))
    }

    /// As it is shown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_digest_in_base64_without_padding() {
        assert_eq!(
            Fingerprint::of_spki(b"").to_string(),
            "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
        );
    }
}
