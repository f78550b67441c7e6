//! Whatever a token says, it gives a command only if it was signed and says what it must.
//!
//! The input is taken for a token as it is, and for the header and the claims of one, each on a
//! line, which get
//! - a good signature of something else: then they give no command;
//! - a good signature of their own: then they give one only if a plain JSON reader, which knows
//!   the rules from DESIGN, finds nothing wrong with them.
//!
//! What is told of a token that is refused is short, drives no terminal, and is not the token.

use std::{path::Path, sync::OnceLock};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Map, Value, json};
use supervisor_rs::{
    command::Command,
    control::{
        keys::{PrivateKey, PublicKey},
        protocol::{Body, LINE_BYTES_MAX, WireCommand, parse_request},
        token::{Expected, LEEWAY_S, LIFETIME_MAX_S, TYP, TokenError, Unverified, sign},
    },
};

/// What the seeds were made for.
const EXPECTED: Expected<'static> = Expected {
    audience: "0191d9a5-7c3e-7b1d-9a3f-000000000001",
    nonce: "bm9uY2U",
    id: 7,
    now: 1_800_000_000,
};

const HEADER_FIELDS: [&str; 10] = [
    "alg", "typ", "kid", "jku", "jwk", "x5c", "x5u", "x5t", "x5t#S256", "cty",
];
const CLAIMS: [&str; 8] = ["iss", "aud", "nonce", "iat", "exp", "nbf", "jti", "cmd"];

/// A pair of keys that is nobody's.
struct Keys {
    public: PublicKey,
    private: PrivateKey,
    encoding: EncodingKey,
    /// A good token for something else.
    other: String,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let pem = include_bytes!("../../fixtures/keys/test-only-2048-pkcs8.private.pem");
        let public = include_bytes!("../../fixtures/keys/2048-spki.pem");
        let name = "deploy".parse().expect("a name");
        let private = PrivateKey::from_pem(name, Path::new("/deploy.pem"), pem);
        let private = private.expect("a private key");
        let public = PublicKey::from_pem(public).expect("its public half");
        let other = Expected { id: 8, ..EXPECTED };
        // Else nothing would be found, whatever is wrong.
        let good = sign(&private, &Command::Info, &EXPECTED).expect("it signs");
        assert_eq!(verify(&good, &public).ok(), Some(Command::Info));
        Keys {
            public,
            encoding: EncodingKey::from_rsa_pem(pem).expect("a private key"),
            other: sign(&private, &Command::Info, &other).expect("it signs"),
            private,
        }
    })
}

/// Panics when one of the properties does not hold.
pub fn holds(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let keys = keys();
    if let Ok(command) = verify(text, &keys.public) {
        // There is one way to write a token, and nobody else has the key.
        assert_eq!(
            sign(&keys.private, &command, &EXPECTED).ok().as_deref(),
            Some(text)
        );
    }
    let Some((header, claims)) = text.split_once('\n') else {
        return;
    };
    let signed = format!("{}.{}", part(header.as_bytes()), part(claims.as_bytes()));
    let (_, foreign) = keys.other.rsplit_once('.').expect("a token");
    let forged = format!("{signed}.{foreign}");
    if forged != keys.other {
        assert!(verify(&forged, &keys.public).is_err());
    }
    if Unverified::parse(&forged).is_err() {
        return;
    }
    let own = jsonwebtoken::crypto::sign(signed.as_bytes(), &keys.encoding, Algorithm::RS256);
    let own = own.expect("it signs");
    if let Ok(command) = verify(&format!("{signed}.{own}"), &keys.public) {
        let faults = faults(header, claims, &command);
        assert!(faults.is_empty(), "{faults:?}: {header} {claims}");
    }
}

/// These bytes as a part of a token.
pub fn part(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn verify(token: &str, key: &PublicKey) -> Result<Command, TokenError> {
    let verified =
        Unverified::parse(token).and_then(|unverified| unverified.verify(key, &EXPECTED));
    if let Err(error) = &verified {
        let message = error.to_string();
        super::text::is_message(&message);
        assert!(token.len() < 100 || !message.contains(token));
    }
    if verified.is_ok() {
        assert!(token.len() <= LINE_BYTES_MAX);
    }
    verified
}

/// What DESIGN has against a signed token with this header and these claims, and against taking
/// it for this command.
fn faults(header: &str, claims: &str, command: &Command) -> Vec<&'static str> {
    let (Some(header), Some(claims)) = (object(header), object(claims)) else {
        return vec!["no two objects"];
    };
    let known = |map: &Map<String, Value>, names: &[&str]| {
        map.keys().all(|key| names.contains(&key.as_str()))
    };
    let number = |key: &str| claims.get(key).and_then(Value::as_i64);
    let leeway = i64::try_from(LEEWAY_S).expect("a small number");
    let lifetime_max = i64::try_from(LIFETIME_MAX_S).expect("a small number");
    let latest = EXPECTED.now + leeway;
    let (iat, exp) = (number("iat"), number("exp"));
    let times = iat.zip(exp).is_some_and(|(iat, exp)| {
        iat <= latest && exp >= EXPECTED.now - leeway && (0..=lifetime_max).contains(&(exp - iat))
    });
    let nbf = match claims.get("nbf") {
        None => true,
        Some(nbf) => nbf.as_i64().is_some_and(|nbf| nbf <= latest),
    };
    let request = json!({"id": 1, "command": claims.get("cmd")}).to_string();
    let same = parse_request(request.as_bytes())
        .is_ok_and(|request| request.body == Body::Command(command.clone()));
    let again = json!(WireCommand(command));
    let rules = [
        ("header fields", known(&header, &HEADER_FIELDS)),
        ("alg", header.get("alg") == Some(&json!("RS256"))),
        ("typ", header.get("typ") == Some(&json!(TYP))),
        ("claims", known(&claims, &CLAIMS)),
        (
            "kid and iss",
            header
                .get("kid")
                .is_some_and(|kid| claims.get("iss") == Some(kid)),
        ),
        ("aud", claims.get("aud") == Some(&json!(EXPECTED.audience))),
        ("nonce", claims.get("nonce") == Some(&json!(EXPECTED.nonce))),
        (
            "jti",
            claims.get("jti") == Some(&json!(EXPECTED.id.to_string())),
        ),
        ("times", times),
        ("nbf", nbf),
        ("cmd", same && again["op"] == claims["cmd"]["op"]),
    ];
    let broken = rules.into_iter().filter(|(_, kept)| !kept);
    broken.map(|(rule, _)| rule).collect()
}

fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}
