//! A world with keys: directories, key pairs, tokens.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::OnceLock};

use tempfile::TempDir;

use super::*;
use crate::control::{
    keys::{Bits, KeyPair, PrivateKey, generate},
    token::{Expected, sign},
};

/// Key pairs, made once for all tests.
pub(super) fn pair(which: usize) -> &'static KeyPair {
    static PAIRS: OnceLock<[KeyPair; 2]> = OnceLock::new();
    let pairs = PAIRS.get_or_init(|| [(); 2].map(|()| generate(Bits::B2048).unwrap()));
    &pairs[which]
}

/// A private key of this name.
pub(super) fn private(name: &str, which: usize) -> PrivateKey {
    let path = PathBuf::from(format!("{name}.pem"));
    let pem = pair(which).private_pem.as_bytes();
    PrivateKey::from_pem(name.parse().unwrap(), &path, pem).unwrap()
}

/// A directory of keys, and the ring over it.
pub(super) struct Keys {
    _keep: TempDir,
    pub(super) dir: PathBuf,
    pub(super) ring: Arc<Ring>,
}

impl Keys {
    pub(super) fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let dir = keep.path().canonicalize().unwrap().join("keys");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        let ring = Arc::new(Ring::new(vec![dir.clone()], us()));
        Self {
            _keep: keep,
            dir,
            ring,
        }
    }

    /// One key, `deploy`.
    pub(super) fn with_deploy() -> Self {
        let keys = Self::new();
        keys.put("deploy.pem", &pair(0).public_pem);
        keys
    }

    /// Puts a file there as a whole.
    pub(super) fn put(&self, name: &str, text: &str) {
        let new = self.dir.join(format!(".{name}"));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(new, self.dir.join(name)).unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join(name)).unwrap();
    }

    /// A control plane that takes nothing but what these keys sign.
    pub(super) fn config(&self, limits: Limits) -> ControlConfig {
        ControlConfig {
            policy: encrypted(),
            ring: Arc::clone(&self.ring),
            ..config(limits)
        }
    }

    pub(super) fn world(&self) -> World {
        world_with(self.config(Limits::default()), 1_024)
    }
}

/// A client that signs.
pub(super) struct Signer {
    pub(super) client: Client,
    pub(super) nonce: String,
    key: PrivateKey,
}

impl Signer {
    pub(super) async fn connect(address: SocketAddr, key: PrivateKey) -> Self {
        let mut client = Client::connect(address).await;
        let hello = client.line().await.unwrap();
        let nonce = hello["hello"]["nonce"].as_str().unwrap().to_owned();
        Self { client, nonce, key }
    }

    /// As `deploy`.
    pub(super) async fn deploy(address: SocketAddr) -> Self {
        Self::connect(address, private("deploy", 0)).await
    }

    /// A token for this request of this connection.
    pub(super) fn token(&self, id: u64, command: &Command) -> String {
        self.token_by(&self.key, id, command)
    }

    pub(super) fn token_by(&self, key: &PrivateKey, id: u64, command: &Command) -> String {
        let expected = Expected {
            audience: ID,
            nonce: &self.nonce,
            id,
            now: clock::wall().0.div_euclid(1_000),
        };
        sign(key, command, &expected).unwrap()
    }

    pub(super) fn line_of(&self, id: u64, command: &Command) -> String {
        line_with(id, &self.token(id, command))
    }

    pub(super) async fn ask(&mut self, id: u64, command: &Command) {
        let line = self.line_of(id, command);
        self.client.send(line).await;
    }

    /// Asks, and reads that it is done.
    pub(super) async fn obeyed(&mut self, id: u64) {
        self.ask(id, &Command::Info).await;
        self.client.expect_ok(id).await;
    }
}

pub(super) fn line_with(id: u64, token: &str) -> String {
    format!("{{\"id\":{id},\"token\":\"{token}\"}}\n")
}
