//! Keys and tokens for tests: right ones, and wrong ones in every way there is.
//!
//! - A [`Pair`] is made once for all tests, by the program's own means.
//! - A [`Forge`] is a token before it is signed: a right one for a connection, whose parts a test
//!   may change as it likes before it is signed, by whatever key and method.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign};
use serde_json::{Map, Value, json};
use supervisor_rs::control::keys::{Bits, generate};

use crate::sandbox::{Output, Sandbox, Wire};

/// Both halves of a key, as PEM, and its fingerprint as people are told it.
pub(crate) struct Pair {
    pub(crate) private: String,
    pub(crate) public: String,
    pub(crate) fingerprint: String,
}

/// One of two pairs of 2048 bits.
pub(crate) fn pair(which: Which) -> &'static Pair {
    static PAIRS: [OnceLock<Pair>; 2] = [const { OnceLock::new() }; 2];
    PAIRS[which as usize].get_or_init(|| {
        let pair = generate(Bits::B2048).expect("random numbers");
        Pair {
            private: pair.private_pem.to_string(),
            public: pair.public_pem,
            fingerprint: pair.fingerprint.to_string(),
        }
    })
}

/// Which pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one whose public half servers know as `deploy`.
    Deploy = 0,
    /// Another.
    Other = 1,
}

/// The settings of a server that takes only signed commands.
pub(crate) const ENCRYPT: &str = "encrypt: on\npub_keys_path: [keys]\n";

impl Sandbox {
    /// A server that takes only signed commands, knows the key `deploy`, and has these further
    /// settings.
    pub(crate) fn signed(settings: &str) -> Self {
        let mut sandbox = Self::new(&format!("{ENCRYPT}{settings}"));
        fs::create_dir(sandbox.key_dir()).expect("a folder for keys");
        sandbox.admit("deploy", &pair(Which::Deploy).public);
        sandbox.start_server();
        sandbox
    }

    /// Where its public keys lie.
    pub(crate) fn key_dir(&self) -> PathBuf {
        self.root().join("keys")
    }

    /// Drops a public key in, as `NAME.pub.pem`.
    pub(crate) fn admit(&self, name: &str, public: &str) {
        self.replace(&self.key_dir().join(format!("{name}.pub.pem")), public);
    }

    /// A file with a private key that only its owner can read; its path.
    pub(crate) fn private_key(&self, name: &str, which: Which) -> String {
        let path = self.root().join(format!("{name}.pem"));
        if !path.exists() {
            write_secret(&path, &pair(which).private);
        }
        path.display().to_string()
    }

    /// Runs the client as the key `deploy`.
    pub(crate) fn sign(&self, arguments: &[&str]) -> Output {
        let key = self.private_key("deploy", Which::Deploy);
        self.client(&[arguments, &["with", &key]].concat())
    }

    /// As [`Sandbox::sign`], with `--json`: the one object it prints.
    pub(crate) fn signed_json(&self, arguments: &[&str]) -> Value {
        let output = self.sign(&[&["--json"], arguments].concat());
        serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }
}

/// Writes a file that only its owner can read.
pub(crate) fn write_secret(path: &Path, text: &str) {
    fs::write(path, "").expect("a new file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our own file");
    fs::write(path, text).expect("our own file");
}

/// A token before it is signed.
pub(crate) struct Forge {
    /// Its header, as text: fields may stand there twice.
    header: Vec<(String, String)>,
    claims: Vec<(String, String)>,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Forge {
    /// A right token for a connection: key `deploy`, and this request and command.
    pub(crate) fn new(hello: &str, id: u64, command: &str) -> Self {
        let hello: Value = serde_json::from_str(hello).expect("a hello");
        let hello = &hello["hello"];
        let now = hello["time"].as_i64().expect("a time");
        let text = |value: &Value| value.to_string();
        let claims = [
            ("iss", json!("deploy").to_string()),
            ("aud", text(&hello["id"])),
            ("nonce", text(&hello["nonce"])),
            ("iat", now.to_string()),
            ("exp", (now + 60).to_string()),
            ("jti", json!(id.to_string()).to_string()),
            ("cmd", command.to_owned()),
        ];
        let header = [
            ("alg", r#""RS256""#.to_owned()),
            ("typ", r#""supervisor-cmd+jwt""#.to_owned()),
            ("kid", r#""deploy""#.to_owned()),
        ];
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        Self {
            header: header.into_iter().map(owned).collect(),
            claims: claims.into_iter().map(owned).collect(),
            algorithm: Algorithm::RS256,
            key: rsa(Which::Deploy),
        }
    }

    /// Puts JSON in place of a field of the header, or adds it.
    pub(crate) fn header(mut self, name: &str, json: &str) -> Self {
        put(&mut self.header, name, json);
        self
    }

    /// Puts JSON in place of a claim, or adds it.
    pub(crate) fn claim(mut self, name: &str, json: &str) -> Self {
        put(&mut self.claims, name, json);
        self
    }

    /// Takes a field of the header away.
    pub(crate) fn without_header(mut self, name: &str) -> Self {
        self.header.retain(|(there, _)| there != name);
        self
    }

    /// Takes a claim away.
    pub(crate) fn without_claim(mut self, name: &str) -> Self {
        self.claims.retain(|(there, _)| there != name);
        self
    }

    /// Writes a field a second time, spelled like this.
    pub(crate) fn header_again(mut self, name: &str, json: &str) -> Self {
        self.header.push((name.to_owned(), json.to_owned()));
        self
    }

    /// Writes a claim a second time, spelled like this.
    pub(crate) fn claim_again(mut self, name: &str, json: &str) -> Self {
        self.claims.push((name.to_owned(), json.to_owned()));
        self
    }

    /// Its times, as seconds from the server's now.
    pub(crate) fn times(self, hello: &str, iat: i64, exp: i64) -> Self {
        let hello: Value = serde_json::from_str(hello).expect("a hello");
        let now = hello["hello"]["time"].as_i64().expect("a time");
        self.claim("iat", &(now + iat).to_string())
            .claim("exp", &(now + exp).to_string())
    }

    /// Signed by this method, the header saying so.
    pub(crate) fn method(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        let name = json!(algorithm).to_string();
        self.header("alg", &name)
    }

    /// Signed by a key that servers know by this name, and saying so.
    pub(crate) fn signed_as(self, name: &str, which: Which) -> Self {
        let name = json!(name).to_string();
        self.header("kid", &name)
            .claim("iss", &name)
            .key(rsa(which))
    }

    /// Signed by this key.
    pub(crate) fn key(mut self, key: EncodingKey) -> Self {
        self.key = key;
        self
    }

    /// What is signed: header and claims.
    pub(crate) fn message(&self) -> String {
        let part = |fields: &[(String, String)]| URL_SAFE_NO_PAD.encode(object(fields));
        format!("{}.{}", part(&self.header), part(&self.claims))
    }

    /// The whole token.
    pub(crate) fn token(&self) -> String {
        let message = self.message();
        let signature = sign(message.as_bytes(), &self.key, self.algorithm).expect("a signature");
        format!("{message}.{signature}")
    }
}

/// The private half of a pair, to sign with.
pub(crate) fn rsa(which: Which) -> EncodingKey {
    EncodingKey::from_rsa_pem(pair(which).private.as_bytes()).expect("a private key")
}

fn put(fields: &mut Vec<(String, String)>, name: &str, json: &str) {
    match fields.iter_mut().find(|(there, _)| there == name) {
        Some((_, value)) => json.clone_into(value),
        None => fields.push((name.to_owned(), json.to_owned())),
    }
}

/// An object whose keys are written as they are: escapes in them stay.
fn object(fields: &[(String, String)]) -> String {
    let field = |(name, value): &(String, String)| format!("\"{name}\":{value}");
    let fields: Vec<String> = fields.iter().map(field).collect();
    format!("{{{}}}", fields.join(","))
}

impl Wire {
    /// Sends a token as a request.
    pub(crate) fn send_token(&mut self, id: u64, token: &str) {
        let request: Map<String, Value> = [
            ("id".to_owned(), json!(id)),
            ("token".to_owned(), json!(token)),
        ]
        .into_iter()
        .collect();
        self.send(format!("{}\n", Value::Object(request)));
    }

    /// Sends a right token of the key `deploy`; returns the answer.
    pub(crate) fn ask_signed(&mut self, id: u64, command: &str) -> Value {
        let token = Forge::new(&self.hello, id, command).token();
        self.send_token(id, &token);
        self.answer().1
    }
}
