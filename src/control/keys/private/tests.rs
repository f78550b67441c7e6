//! Whose file a key may stand in, and what may stand there.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
};

use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use tempfile::TempDir;

use super::*;
use crate::control::keys::{KeyNameError, PublicKey, UnfitKey, fixture};

const PKCS1: &str = fixture!("test-only-2048-pkcs1.private.pem");
const PKCS8: &str = fixture!("test-only-2048-pkcs8.private.pem");

/// A folder for one test, with files of given modes.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn from(text: impl AsRef<[u8]>) -> Result<PrivateKey, PrivateKeyError> {
    PrivateKey::from_pem(
        "deploy".parse().unwrap(),
        Path::new("/keys/deploy.pem"),
        text.as_ref(),
    )
}

fn fault(text: impl AsRef<[u8]>) -> PrivateKeyError {
    from(text).expect_err("no key that is taken")
}

#[test]
fn keys_that_openssl_made_are_read_in_both_forms_and_are_one_key() {
    let folder = Folder::new();
    for (bits, pkcs1, pkcs8, public) in [
        (2048, PKCS1, PKCS8, fixture!("2048-spki.pem")),
        (
            3072,
            fixture!("test-only-3072-pkcs1.private.pem"),
            fixture!("test-only-3072-pkcs8.private.pem"),
            fixture!("3072-spki.pem"),
        ),
        (
            4096,
            fixture!("test-only-4096-pkcs1.private.pem"),
            fixture!("test-only-4096-pkcs8.private.pem"),
            fixture!("4096-spki.pem"),
        ),
    ] {
        let public = PublicKey::from_pem(public.as_bytes()).unwrap();
        for (name, text) in [("pkcs1", pkcs1), ("pkcs8", pkcs8)] {
            let path = folder.file(&format!("{name}.pem"), text, 0o600);
            let key = PrivateKey::read(&path).unwrap();
            assert_eq!(key.name().as_str(), name);
            assert_eq!(key.path(), path);
            assert_eq!(key.bits(), bits);
            assert_eq!(key.fingerprint(), public.fingerprint());
        }
    }
}

#[test]
fn text_around_the_key_does_no_harm() {
    for text in [
        fixture!("test-only-text-around.private.pem").to_owned(),
        format!("Bag Attributes\n    friendlyName: x\n{PKCS8}\n# end\n"),
        format!("{PKCS8}{}", fixture!("certificate.pem")),
        format!("{}{PKCS1}", fixture!("2048-spki.pem")),
        PKCS8.replace('\n', "\r\n"),
    ] {
        let key = from(&text).unwrap();
        assert_eq!(key.fingerprint(), from(PKCS8).unwrap().fingerprint());
    }
}

#[test]
fn a_key_file_that_group_or_others_can_use_is_refused_with_the_command_that_mends_it() {
    let folder = Folder::new();
    for mode in [
        0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777, 0o444,
    ] {
        let path = folder.file(&format!("deploy-{mode:o}.pem"), PKCS8, mode);
        let refused = PrivateKey::read(&path).unwrap_err();
        assert!(
            matches!(refused, PrivateKeyError::Mode { mode: told, .. } if told == mode),
            "{refused}"
        );
        let message = refused.to_string();
        assert!(message.contains(&format!("mode {mode:04o}")), "{message}");
        let command = format!("chmod 600 {}", path.display());
        assert!(message.contains(&command), "{message}");
    }
    let public = folder.file("deploy.pub.pem", PKCS8, 0o644);
    let message = PrivateKey::read(&public).unwrap_err().to_string();
    assert!(
        message.contains("by its name it is the public half"),
        "{message}"
    );
    for mode in [0o600, 0o400, 0o700] {
        let path = folder.file(&format!("deploy-{mode:o}.pem"), PKCS8, mode);
        assert!(PrivateKey::read(&path).is_ok(), "{mode:o}");
    }
}

#[test]
fn the_file_behind_a_link_is_what_is_looked_at() {
    let folder = Folder::new();
    folder.file("open.pem", PKCS8, 0o644);
    folder.file("shut.pem", PKCS8, 0o600);
    symlink("open.pem", folder.path("a.pem")).unwrap();
    symlink("shut.pem", folder.path("b.pem")).unwrap();
    symlink("nothing.pem", folder.path("c.pem")).unwrap();
    let read = |name: &str| PrivateKey::read(&folder.path(name));
    assert!(matches!(read("a.pem"), Err(PrivateKeyError::Mode { .. })));
    assert_eq!(read("b.pem").unwrap().name().as_str(), "b");
    assert!(matches!(
        read("c.pem"),
        Err(PrivateKeyError::Missing { .. })
    ));
}

#[test]
fn root_may_sign_with_the_key_of_a_user() {
    let folder = Folder::new();
    let path = folder.file("deploy.pem", PKCS8, 0o600);
    if !crate::trust::tests::as_root("giving a file away") {
        return;
    }
    std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    assert_eq!(PrivateKey::read(&path).unwrap().name().as_str(), "deploy");
}

#[test]
fn a_path_that_is_no_file_is_told_as_what_it_is() {
    let folder = Folder::new();
    let path = folder.path("a.pem");
    assert!(matches!(
        PrivateKey::read(&path),
        Err(PrivateKeyError::Missing { .. })
    ));
    fs::create_dir(&path).unwrap();
    let refused = PrivateKey::read(&path).unwrap_err();
    assert!(
        matches!(refused, PrivateKeyError::Directory { .. }),
        "{refused}"
    );
    let socket = folder.path("s.pem");
    let _listener = UnixListener::bind(&socket).unwrap();
    let device = folder.path("null.pem");
    symlink("/dev/null", &device).unwrap();
    for path in [socket, device] {
        let refused = PrivateKey::read(&path).unwrap_err();
        assert!(
            matches!(refused, PrivateKeyError::NotAFile { .. }),
            "{refused}"
        );
    }
    let beyond = folder.file("file", "", 0o600).join("x.pem");
    let refused = PrivateKey::read(&beyond).unwrap_err();
    assert!(matches!(refused, PrivateKeyError::Open { .. }), "{refused}");
}

#[test]
fn a_fifo_that_nobody_writes_to_does_not_hang_the_client() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = Folder::new();
    let path = folder.path("fifo.pem");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let refused = PrivateKey::read(&path).unwrap_err();
    assert!(
        matches!(refused, PrivateKeyError::NotAFile { .. }),
        "{refused}"
    );
}

#[test]
fn a_file_that_is_too_large_is_refused() {
    let folder = Folder::new();
    let limit = usize::try_from(PRIVATE_KEY_BYTES_MAX).unwrap();
    let padded = |bytes: usize| PKCS8.to_owned() + &"\n".repeat(bytes - PKCS8.len());
    let path = folder.file("a.pem", padded(limit), 0o600);
    assert!(PrivateKey::read(&path).is_ok());
    let path = folder.file("a.pem", padded(limit + 1), 0o600);
    let refused = PrivateKey::read(&path).unwrap_err();
    assert!(
        matches!(refused, PrivateKeyError::TooLarge { .. }),
        "{refused}"
    );
}

#[test]
fn a_file_name_that_gives_no_key_name_is_refused_with_the_names_that_do() {
    let folder = Folder::new();
    for name in ["id_rsa", "deploy.key", "deploy.PEM", "deploy.pem.bak"] {
        let path = folder.file(name, PKCS8, 0o600);
        let refused = PrivateKey::read(&path).unwrap_err();
        assert!(
            matches!(refused, PrivateKeyError::NotPemName { .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains("end in `.pem`"), "{refused}");
    }
    let long = format!("{}.pem", "x".repeat(65));
    for (name, why) in [
        (".pem", KeyNameError::Empty),
        ("a b.pem", KeyNameError::BadChar(' ')),
        ("-x.pem", KeyNameError::BadStart('-')),
        (long.as_str(), KeyNameError::TooLong(65)),
    ] {
        let path = folder.file(name, PKCS8, 0o600);
        let refused = PrivateKey::read(&path).unwrap_err();
        assert!(
            matches!(&refused, PrivateKeyError::Name { fault, .. } if *fault == why),
            "{refused}"
        );
        assert!(
            refused.to_string().contains("1 to 64 letters, digits"),
            "{refused}"
        );
    }
}

#[test]
fn a_public_key_is_told_from_a_private_one() {
    for text in [
        fixture!("2048-spki.pem"),
        fixture!("2048-pkcs1.pem"),
        fixture!("ec-spki.pem"),
    ] {
        let refused = fault(text);
        assert!(
            matches!(refused, PrivateKeyError::PublicKey { .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains("the private one"), "{refused}");
    }
}

#[test]
fn an_encrypted_key_is_refused_with_the_command_that_decrypts_it() {
    for text in [
        fixture!("test-only-encrypted-pkcs1.private.pem"),
        fixture!("test-only-encrypted-pkcs8.private.pem"),
    ] {
        let refused = fault(text);
        assert!(
            matches!(refused, PrivateKeyError::Encrypted { .. }),
            "{refused}"
        );
        let message = refused.to_string();
        assert!(
            message.contains("`openssl rsa -in /keys/deploy.pem -out"),
            "{message}"
        );
        assert!(message.contains("ssh://"), "{message}");
    }
}

#[test]
fn a_key_in_the_form_of_openssh_is_refused() {
    let refused = fault(fixture!("test-only-openssh.private.pem"));
    assert!(
        matches!(refused, PrivateKeyError::OpenSsh { .. }),
        "{refused}"
    );
}

#[test]
fn a_key_that_is_not_rsa_is_refused_by_its_name() {
    for (text, name) in [
        (fixture!("test-only-ec.private.pem"), "EC"),
        (fixture!("test-only-ed25519.private.pem"), "Ed25519"),
    ] {
        let refused = fault(text);
        assert!(
            matches!(&refused, PrivateKeyError::NotRsa { algorithm, .. } if algorithm == name),
            "{refused}"
        );
    }
}

#[test]
fn a_key_that_servers_would_refuse_is_refused() {
    for (text, why) in [
        (fixture!("test-only-1024.private.pem"), UnfitKey::Bits(1024)),
        (
            fixture!("test-only-exponent-3.private.pem"),
            UnfitKey::Exponent(3),
        ),
    ] {
        let refused = fault(text);
        assert!(
            matches!(&refused, PrivateKeyError::Unfit { source, .. } if *source == why),
            "{refused}"
        );
    }
}

#[test]
fn what_is_no_key_file_is_refused() {
    for text in [
        "",
        "hello",
        fixture!("certificate.pem"),
        fixture!("openssh.pub"),
    ] {
        let refused = fault(text);
        assert!(
            matches!(refused, PrivateKeyError::NoKey { .. }),
            "{refused}"
        );
    }
    assert!(matches!(
        fault(b"\x30\x82\xff"),
        PrivateKeyError::NotText { .. }
    ));
    let two = format!("{PKCS8}{}", fixture!("test-only-ec.private.pem"));
    assert!(matches!(fault(two), PrivateKeyError::SeveralKeys { .. }));
}

#[test]
fn a_damaged_key_is_refused() {
    let cut = &PKCS8[..PKCS8.len() / 2];
    assert!(matches!(fault(cut), PrivateKeyError::Pem { .. }));
    let wrong = PKCS8.replacen("MII", "M*I", 1);
    assert!(matches!(fault(wrong), PrivateKeyError::Pem { .. }));
    let crossed = PKCS1.replace("RSA PRIVATE KEY", "PRIVATE KEY");
    assert!(matches!(fault(crossed), PrivateKeyError::Malformed { .. }));
    let crossed = PKCS8.replace("PRIVATE KEY", "RSA PRIVATE KEY");
    assert!(matches!(fault(crossed), PrivateKeyError::Malformed { .. }));
}

#[test]
fn a_key_whose_numbers_do_not_belong_together_is_refused() {
    let der = Pem::parse(PKCS1).unwrap().blocks[0].decode().unwrap();
    let key = pkcs1::RsaPrivateKey::from_der(&der).unwrap();
    let other = Pem::parse(fixture!("test-only-3072-pkcs1.private.pem"))
        .unwrap()
        .blocks[0]
        .decode()
        .unwrap();
    let other = pkcs1::RsaPrivateKey::from_der(&other).unwrap();
    let text = |key: &pkcs1::RsaPrivateKey<'_>| {
        use rsa::pkcs8::der::EncodePem;
        key.to_pem(LineEnding::LF).unwrap()
    };
    assert!(from(text(&key)).is_ok());
    for wrong in [
        pkcs1::RsaPrivateKey {
            private_exponent: other.private_exponent,
            ..key.clone()
        },
        pkcs1::RsaPrivateKey {
            prime1: other.prime1,
            ..key.clone()
        },
        pkcs1::RsaPrivateKey {
            prime2: key.prime1,
            ..key.clone()
        },
        pkcs1::RsaPrivateKey {
            exponent1: key.exponent2,
            ..key.clone()
        },
        pkcs1::RsaPrivateKey {
            coefficient: key.prime1,
            ..key.clone()
        },
    ] {
        let refused = fault(text(&wrong));
        assert!(
            matches!(refused, PrivateKeyError::Inconsistent { .. }),
            "{refused}"
        );
    }
}

#[test]
fn nothing_that_is_secret_is_shown() {
    let key = from(PKCS8).unwrap();
    let shown = format!("{key:?}");
    assert!(
        shown.contains("deploy") && shown.contains("SHA256:"),
        "{shown}"
    );
    let der = rsa::RsaPrivateKey::from_pkcs8_pem(PKCS8).unwrap();
    let der = der.to_pkcs8_der().unwrap();
    let numbers = format!("{:?}", &der.as_bytes()[200..208]);
    assert!(!shown.contains(numbers.trim_matches(['[', ']'])), "{shown}");
    assert!(shown.len() < 600, "{shown}");
    for text in [
        PKCS8.replacen("MII", "MIJ", 1),
        PKCS8.replacen("BEGIN", "BEGUN", 1),
        PKCS8.replacen("KEY-----\n", "KEY-----\nX", 1),
    ] {
        let refused = fault(&text);
        let shown = format!("{refused} {refused:?}");
        assert!(
            PKCS8
                .lines()
                .filter(|line| line.len() == 64)
                .all(|line| !shown.contains(&line[8..32])),
            "{shown}"
        );
    }
}

#[test]
fn messages_can_be_pasted_whatever_a_file_is_called() {
    let folder = Folder::new();
    let path = folder.path("it's here; rm -rf");
    fs::create_dir(&path).unwrap();
    let path = folder.file("it's here; rm -rf/a.pem", PKCS8, 0o644);
    let message = PrivateKey::read(&path).unwrap_err().to_string();
    let command = message.split('`').nth_back(1).unwrap();
    let words = shell_words::split(command).unwrap();
    assert_eq!(words, ["chmod", "600", path.to_str().unwrap()]);
    let refused = PrivateKey::read(Path::new("/x\u{1b}[2J\n.pem")).unwrap_err();
    assert!(!refused.to_string().contains('\u{1b}'), "{refused}");
}
