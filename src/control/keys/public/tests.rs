//! What a file in `pub_keys_path` may hold, and everything that others tried to have there.

use rsa::{
    pkcs1::{EncodeRsaPrivateKey, RsaPublicKey, UintRef},
    pkcs8::{
        AlgorithmIdentifierRef, DecodePrivateKey, EncodePrivateKey,
        der::{
            Encode,
            asn1::{AnyRef, BitStringRef, OctetStringRef},
        },
    },
};

use super::*;
use crate::control::keys::fixture;

const SPKI_2048: &str = fixture!("2048-spki.pem");
const PKCS1_2048: &str = fixture!("2048-pkcs1.pem");

fn fault(file: impl AsRef<[u8]>) -> PublicKeyError {
    match PublicKey::from_pem(file.as_ref()) {
        Ok(key) => panic!("taken: {key:?}"),
        Err(fault) => fault,
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn der_of(text: &str) -> Vec<u8> {
    Pem::parse(text).unwrap().blocks[0]
        .decode()
        .unwrap()
        .to_vec()
}

/// PKCS#1 of any two numbers.
fn pkcs1_of(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = RsaPublicKey {
        modulus: UintRef::new(modulus).unwrap(),
        public_exponent: UintRef::new(exponent).unwrap(),
    };
    key.to_der().unwrap()
}

fn spki_of(algorithm: AlgorithmIdentifierRef<'_>, key: &[u8]) -> Vec<u8> {
    let spki = SubjectPublicKeyInfoRef {
        algorithm,
        subject_public_key: BitStringRef::new(0, key).unwrap(),
    };
    spki.to_der().unwrap()
}

/// A key whose modulus has 2048 bits, in both forms.
fn with_exponent(exponent: &[u8]) -> [String; 2] {
    let key = pkcs1_of(&[0xff; 256], exponent);
    [
        pem("RSA PUBLIC KEY", &key),
        pem("PUBLIC KEY", &spki_of(pkcs1::ALGORITHM_ID, &key)),
    ]
}

#[test]
fn keys_that_openssl_made_are_taken_in_both_forms_and_are_one_key() {
    for (bits, spki, pkcs1, fingerprint) in [
        (
            2048,
            SPKI_2048,
            PKCS1_2048,
            "SHA256:zWVt/jgCEh1orWqG+97WOOeO1eQprgxxQsd4uJWsSm4",
        ),
        (
            3072,
            fixture!("3072-spki.pem"),
            fixture!("3072-pkcs1.pem"),
            "SHA256:IX6VisvK9PAxeDKokrtClYwGW3JBiWBAi+kZYpd1VXE",
        ),
        (
            4096,
            fixture!("4096-spki.pem"),
            fixture!("4096-pkcs1.pem"),
            "SHA256:FJPP3UhqeVPDC4UV9CHA280AMozaLI+z7c8FDvcU8gQ",
        ),
    ] {
        for form in [spki, pkcs1] {
            let key = PublicKey::from_pem(form.as_bytes()).unwrap();
            assert_eq!(key.bits(), bits);
            assert_eq!(key.fingerprint().as_str(), fingerprint, "openssl says so");
        }
    }
}

#[test]
fn white_space_around_the_block_and_carriage_returns_do_no_harm() {
    let plain = PublicKey::from_pem(SPKI_2048.as_bytes()).unwrap();
    for file in [
        SPKI_2048.trim_end().to_owned(),
        format!("{SPKI_2048}\n"),
        format!("\n \t\r\n{SPKI_2048}\n\n"),
        SPKI_2048.replace('\n', "\r\n"),
        pem("PUBLIC KEY", &der_of(SPKI_2048)),
    ] {
        let key = PublicKey::from_pem(file.as_bytes()).unwrap();
        assert_eq!(key.fingerprint(), plain.fingerprint(), "{file:?}");
    }
}

#[test]
fn an_empty_file_is_refused() {
    for file in ["", "\n", " \t\r\n\n"] {
        assert_eq!(fault(file), PublicKeyError::Empty);
    }
}

#[test]
fn a_file_that_is_too_large_is_refused_before_it_is_looked_at() {
    let limit = usize::try_from(PUBLIC_KEY_BYTES_MAX).unwrap();
    let padded = |bytes: usize| SPKI_2048.to_owned() + &" ".repeat(bytes - SPKI_2048.len());
    assert!(PublicKey::from_pem(padded(limit).as_bytes()).is_ok());
    assert_eq!(fault(padded(limit + 1)), PublicKeyError::TooLarge);
}

#[test]
fn text_before_the_block_is_refused() {
    for text in [
        "deploy key\n",
        "# comment\n\n",
        "\u{feff}",
        "Public-Key: (2048 bit)\n",
        "-\n",
    ] {
        let refused = fault(text.to_owned() + SPKI_2048);
        let at_once = matches!(refused, PublicKeyError::TextAround { line: 1 });
        // A mark before the first dash hides the block's beginning.
        assert!(
            at_once || refused == PublicKeyError::NoBlock,
            "{text:?}: {refused}"
        );
    }
}

#[test]
fn text_after_the_block_is_refused() {
    let lines = SPKI_2048.lines().count();
    for text in ["x", "\n\n# comment\n", "-----END PUBLIC KEY-----\n", "\0"] {
        let refused = fault(SPKI_2048.to_owned() + text);
        assert!(
            matches!(refused, PublicKeyError::TextAround { line } if line > lines),
            "{text:?}: {refused}"
        );
    }
}

#[test]
fn two_blocks_are_refused_even_when_they_are_one_key() {
    for second in [
        SPKI_2048,
        PKCS1_2048,
        fixture!("3072-spki.pem"),
        fixture!("certificate.pem"),
    ] {
        let refused = fault(SPKI_2048.to_owned() + second);
        let line = SPKI_2048.lines().count() + 1;
        assert_eq!(refused, PublicKeyError::SecondBlock { line });
    }
}

#[test]
fn a_private_key_of_any_kind_is_refused_loudly() {
    for private in [
        fixture!("test-only-2048-pkcs1.private.pem"),
        fixture!("test-only-4096-pkcs8.private.pem"),
        fixture!("test-only-1024.private.pem"),
        fixture!("test-only-ec.private.pem"),
        fixture!("test-only-ed25519.private.pem"),
        fixture!("test-only-encrypted-pkcs1.private.pem"),
        fixture!("test-only-encrypted-pkcs8.private.pem"),
        fixture!("test-only-openssh.private.pem"),
        fixture!("test-only-text-around.private.pem"),
        "PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\n",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
    ] {
        for file in [
            private.to_owned(),
            SPKI_2048.to_owned() + private,
            private.to_owned() + SPKI_2048,
            format!("\u{feff}text\n{private}"),
            private.replace('\n', "\r"),
            private.chars().flat_map(|c| [c, '\0']).collect(),
        ] {
            let refused = fault(&file);
            assert_eq!(refused, PublicKeyError::PrivateKey, "{file}");
            let message = refused.to_string();
            for says in ["PRIVATE KEY", "compromised", "openssl rsa -in", "-pubout"] {
                assert!(message.contains(says), "{message}");
            }
        }
    }
}

#[test]
fn a_private_key_in_disguise_is_refused_as_one() {
    let key =
        rsa::RsaPrivateKey::from_pkcs8_pem(fixture!("test-only-2048-pkcs8.private.pem")).unwrap();
    let forms = [
        key.to_pkcs8_der().unwrap().as_bytes().to_vec(),
        key.to_pkcs1_der().unwrap().as_bytes().to_vec(),
    ];
    for der in forms {
        assert_eq!(fault(&der), PublicKeyError::PrivateKey, "bare DER");
        for label in ["PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE", "X"] {
            assert_eq!(
                fault(pem(label, &der)),
                PublicKeyError::PrivateKey,
                "{label}"
            );
        }
    }
}

#[test]
fn a_certificate_is_refused() {
    assert_eq!(
        fault(fixture!("certificate.pem")),
        PublicKeyError::Certificate
    );
    let request = pem("CERTIFICATE REQUEST", b"x");
    assert_eq!(fault(request), PublicKeyError::Certificate);
}

#[test]
fn a_key_in_the_form_of_openssh_is_refused_with_the_command_that_converts_it() {
    for file in [
        fixture!("openssh.pub"),
        fixture!("ssh2.pub"),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI x@y\n",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNh\n",
        "sk-ssh-ed25519@openssh.com AAAA\n",
    ] {
        assert_eq!(fault(file), PublicKeyError::OpenSsh, "{file}");
    }
    let message = PublicKeyError::OpenSsh.to_string();
    assert!(message.contains("ssh-keygen -e -m PKCS8"), "{message}");
}

#[test]
fn a_key_that_is_not_rsa_is_refused_by_its_name() {
    for (file, name) in [
        (fixture!("ec-spki.pem"), "EC"),
        (fixture!("ed25519-spki.pem"), "Ed25519"),
        (fixture!("rsa-pss-spki.pem"), "RSA-PSS"),
    ] {
        assert_eq!(
            fault(file),
            PublicKeyError::NotRsa {
                algorithm: name.to_owned()
            }
        );
    }
}

#[test]
fn a_key_of_1024_bits_is_refused() {
    assert_eq!(
        fault(fixture!("1024-spki.pem")),
        UnfitKey::Bits(1024).into()
    );
}

#[test]
fn a_key_of_8192_bits_is_refused() {
    assert_eq!(
        fault(fixture!("8192-spki.pem")),
        UnfitKey::Bits(8192).into()
    );
}

#[test]
fn a_key_of_2047_or_4097_bits_is_refused() {
    let of = |modulus: &[u8]| pem("RSA PUBLIC KEY", &pkcs1_of(modulus, &[1, 0, 1]));
    let mut short = [0xff; 256];
    short[0] = 0x7f;
    assert_eq!(fault(of(&short)), UnfitKey::Bits(2047).into());
    let mut long = [0xff; 513];
    long[0] = 1;
    assert_eq!(fault(of(&long)), UnfitKey::Bits(4097).into());
    assert_eq!(fault(of(&[0])), UnfitKey::Bits(0).into());
    for bytes in [256, 512] {
        let file = of(&vec![0xff; bytes]);
        assert!(PublicKey::from_pem(file.as_bytes()).is_ok(), "{bytes}");
    }
}

#[test]
fn a_key_with_exponent_3_is_refused() {
    assert_eq!(
        fault(fixture!("exponent-3-spki.pem")),
        UnfitKey::Exponent(3).into()
    );
}

#[test]
fn a_key_with_another_bad_exponent_is_refused() {
    for (exponent, why) in [
        (&[0][..], UnfitKey::Exponent(0)),
        (&[1], UnfitKey::Exponent(1)),
        (&[17], UnfitKey::Exponent(17)),
        (&[0xff, 0xff], UnfitKey::Exponent(65_535)),
        (&[1, 0, 0], UnfitKey::Exponent(65_536)),
        (&[1, 0, 2], UnfitKey::Exponent(65_538)),
        (&[2, 0, 0, 0, 1], UnfitKey::LongExponent(34)),
        (&[0xff; 256], UnfitKey::LongExponent(2048)),
    ] {
        for file in with_exponent(exponent) {
            assert_eq!(fault(file), why.clone().into());
        }
    }
    for exponent in [&[1, 0, 1][..], &[1, 0, 3], &[1, 0xff, 0xff, 0xff, 0xff]] {
        for file in with_exponent(exponent) {
            assert!(PublicKey::from_pem(file.as_bytes()).is_ok(), "{exponent:?}");
        }
    }
}

#[test]
fn a_key_with_an_even_modulus_is_refused() {
    let mut modulus = [0xff; 256];
    modulus[255] = 0xfe;
    let file = pem("RSA PUBLIC KEY", &pkcs1_of(&modulus, &[1, 0, 1]));
    assert_eq!(fault(file), UnfitKey::EvenModulus.into());
}

#[test]
fn a_block_that_is_no_base64_or_cut_off_is_refused() {
    let at = SPKI_2048.find("MII").unwrap();
    for (text, why) in [
        (SPKI_2048.replacen("MII", "M*I", 1), PemError::Base64),
        (SPKI_2048.replacen("MII", "MI", 1), PemError::Base64),
        (
            SPKI_2048.replacen("MII", "Proc-Type: 4,ENCRYPTED\n\nMII", 1),
            PemError::Headers,
        ),
        (
            SPKI_2048.replacen("MII", "Comment: x\nMII", 1),
            PemError::Headers,
        ),
        (
            SPKI_2048[..at + 200].to_owned(),
            PemError::Unfinished {
                label: "PUBLIC KEY".to_owned(),
                line: 1,
            },
        ),
        (
            SPKI_2048.replacen("END PUBLIC KEY", "END RSA PUBLIC KEY", 1),
            PemError::Unfinished {
                label: "PUBLIC KEY".to_owned(),
                line: 1,
            },
        ),
    ] {
        assert_eq!(fault(&text), why.into(), "{text}");
    }
}

#[test]
fn bytes_after_the_key_are_refused_wherever_they_are() {
    let spki = der_of(SPKI_2048);
    let key = der_of(PKCS1_2048);
    let longer = |der: &[u8]| [der, &[0]].concat();
    for file in [
        pem("PUBLIC KEY", &longer(&spki)),
        pem("RSA PUBLIC KEY", &longer(&key)),
        pem("PUBLIC KEY", &spki_of(pkcs1::ALGORITHM_ID, &longer(&key))),
    ] {
        assert_eq!(fault(file), PublicKeyError::TrailingBytes);
    }
}

#[test]
fn a_block_that_is_not_what_its_label_says_is_refused() {
    let (spki, key) = (der_of(SPKI_2048), der_of(PKCS1_2048));
    let absent = AlgorithmIdentifierRef {
        oid: pkcs1::ALGORITHM_OID,
        parameters: None,
    };
    let other = AlgorithmIdentifierRef {
        oid: pkcs1::ALGORITHM_OID,
        parameters: Some(AnyRef::from(OctetStringRef::new(b"x").unwrap())),
    };
    for file in [
        pem("PUBLIC KEY", &key),
        pem("RSA PUBLIC KEY", &spki),
        pem("PUBLIC KEY", b""),
        pem("PUBLIC KEY", b"\x30\x00"),
        pem("PUBLIC KEY", &spki[..spki.len() - 1]),
        pem("PUBLIC KEY", &spki_of(absent, &key)),
        pem("PUBLIC KEY", &spki_of(other, &key)),
    ] {
        let refused = fault(&file);
        assert!(
            matches!(refused, PublicKeyError::Malformed { .. }),
            "{refused}"
        );
    }
}

#[test]
fn a_number_that_is_not_written_as_der_wants_it_is_refused() {
    let key = pkcs1_of(&[0xff; 256], &[1, 0, 1]);
    let exponent = [2, 3, 1, 0, 1];
    assert!(key.ends_with(&exponent));
    let (head, modulus) = ([0x30, 0x82], &key[4..key.len() - 5]);
    for exponent in [
        &[2, 4, 0, 1, 0, 1][..], // a zero more than it needs
        &[2, 3, 0x81, 0, 1],     // negative
        &[2, 0x81, 3, 1, 0, 1],  // a length longer than it needs
        &[2, 0],                 // nothing
        &[4, 3, 1, 0, 1],        // not a number
    ] {
        let body = [modulus, exponent].concat();
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        let file = pem("RSA PUBLIC KEY", &[&head[..], &length, &body].concat());
        let refused = fault(&file);
        assert!(
            matches!(refused, PublicKeyError::Malformed { .. }),
            "{refused}"
        );
    }
}

#[test]
fn another_kind_of_file_is_refused() {
    assert_eq!(
        fault(pem("DH PARAMETERS", b"x")),
        PublicKeyError::Label {
            label: "DH PARAMETERS".to_owned()
        }
    );
    assert_eq!(fault(b"\xff\xfe-\0-\0"), PublicKeyError::NotText);
    for text in [
        "hello",
        "{\"kty\":\"RSA\"}",
        "-----BEGIN PUBLIC KEY-----MIIB-----END PUBLIC KEY-----",
    ] {
        assert_eq!(fault(text), PublicKeyError::NoBlock, "{text}");
    }
}

#[test]
fn no_message_repeats_much_of_a_file_or_anything_that_a_terminal_obeys() {
    let label = format!("\u{1b}[2J{}", "A".repeat(10_000));
    let message = fault(pem(&label, b"x")).to_string();
    assert!(message.len() < 400, "{message}");
    assert!(!message.contains('\u{1b}'), "{message}");
}

#[test]
fn no_byte_of_a_key_file_can_be_changed_without_a_trace() {
    let plain = PublicKey::from_pem(SPKI_2048.as_bytes()).unwrap();
    for at in 0..SPKI_2048.len() {
        for bit in [0x01, 0x20, 0x80] {
            let mut file = SPKI_2048.as_bytes().to_vec();
            file[at] ^= bit;
            if let Ok(key) = PublicKey::from_pem(&file) {
                let blank = file[at].is_ascii_whitespace();
                assert!(
                    blank || key.fingerprint() != plain.fingerprint(),
                    "byte {at}"
                );
            }
        }
    }
}
