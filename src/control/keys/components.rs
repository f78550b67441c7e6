//! The two numbers of an RSA public key: which are good enough, and what they are called.
//!
//! A modulus of 2048 to 4096 bits: below it can be factored, above it checking signatures costs a
//! server too much. An odd exponent from 65537: smaller ones have a history of forged signatures.
//! At most 33 bits of it, which is what the library that checks signatures takes.
//!
//! Source: DESIGN, section 8; RFC 8017, appendix A.1.1; NIST SP 800-57 part 1, table 2.

use rsa::pkcs8::{
    SubjectPublicKeyInfoRef,
    der::{Encode, asn1::BitStringRef},
};
use rsa::{pkcs1, pkcs8::ObjectIdentifier};

use super::Fingerprint;

/// The fewest bits of a modulus.
pub const BITS_MIN: u32 = 2048;

/// The most bits of a modulus.
pub const BITS_MAX: u32 = 4096;

/// The smallest exponent.
const EXPONENT_MIN: u64 = 65_537;

/// The most bits of an exponent.
const EXPONENT_BITS_MAX: u32 = 33;

/// Why an RSA key is not good enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitKey {
    /// The modulus is too short or too long.
    #[error(
        "the key has {0} bits; it must have {BITS_MIN} to {BITS_MAX}\n\
         hint: make another: `supervisor-rs-client keygen NAME`"
    )]
    Bits(u32),
    /// The modulus is no product of two odd primes.
    #[error("the key's modulus is even; no RSA key is like that")]
    EvenModulus,
    /// A small exponent.
    #[error(
        "the key's exponent is {0}; it must be odd and at least {EXPONENT_MIN}\n\
         hint: make another: `supervisor-rs-client keygen NAME`"
    )]
    Exponent(u64),
    /// A huge exponent.
    #[error(
        "the key's exponent has {0} bits; it must have at most {EXPONENT_BITS_MAX}\n\
         hint: make another: `supervisor-rs-client keygen NAME`"
    )]
    LongExponent(u32),
}

/// A public key that is good enough.
#[derive(Debug)]
pub(super) struct Components {
    pub(super) bits: u32,
    pub(super) fingerprint: Fingerprint,
    /// As PKCS#1 in DER.
    pub(super) pkcs1: Vec<u8>,
}

impl Components {
    pub(super) fn check(key: &pkcs1::RsaPublicKey<'_>) -> Result<Self, UnfitKey> {
        let (modulus, exponent) = (key.modulus.as_bytes(), key.public_exponent.as_bytes());
        let bits = bits_of(modulus);
        if !(BITS_MIN..=BITS_MAX).contains(&bits) {
            return Err(UnfitKey::Bits(bits));
        }
        if modulus.last().is_none_or(|low| low % 2 == 0) {
            return Err(UnfitKey::EvenModulus);
        }
        let exponent_bits = bits_of(exponent);
        if exponent_bits > EXPONENT_BITS_MAX {
            return Err(UnfitKey::LongExponent(exponent_bits));
        }
        let exponent = exponent
            .iter()
            .fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        if exponent < EXPONENT_MIN || exponent % 2 == 0 {
            return Err(UnfitKey::Exponent(exponent));
        }
        let pkcs1 = key.to_der().expect("numbers of this size can be encoded");
        let subject_public_key =
            BitStringRef::new(0, &pkcs1).expect("a key of this size can be encoded");
        let spki = SubjectPublicKeyInfoRef {
            algorithm: pkcs1::ALGORITHM_ID,
            subject_public_key,
        };
        let spki = spki.to_der().expect("a key of this size can be encoded");
        Ok(Self {
            bits,
            fingerprint: Fingerprint::of_spki(&spki),
            pkcs1,
        })
    }
}

/// How many bits a number has, given without leading zero bytes.
fn bits_of(number: &[u8]) -> u32 {
    let Some((first, rest)) = number.split_first() else {
        return 0;
    };
    // Bounded: key files are.
    u32::try_from(rest.len())
        .unwrap_or(u32::MAX)
        .saturating_mul(8)
        .saturating_add(8 - first.leading_zeros())
}

/// What people call the algorithm of a key.
pub(super) fn algorithm_name(oid: ObjectIdentifier) -> String {
    match oid.to_string().as_str() {
        "1.2.840.10045.2.1" => "EC".to_owned(),
        "1.3.101.112" => "Ed25519".to_owned(),
        "1.3.101.113" => "Ed448".to_owned(),
        "1.3.101.110" => "X25519".to_owned(),
        "1.2.840.113549.1.1.10" => "RSA-PSS".to_owned(),
        "1.2.840.10040.4.1" => "DSA".to_owned(),
        oid => format!("algorithm {oid}"),
    }
}
