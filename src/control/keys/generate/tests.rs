//! Pairs of keys, and the two files they are written into.

use std::{os::unix::fs::PermissionsExt as _, sync::OnceLock};

use super::*;
use crate::control::keys::{PrivateKey, PublicKey};

fn pair() -> &'static KeyPair {
    static PAIR: OnceLock<KeyPair> = OnceLock::new();
    PAIR.get_or_init(|| generate(Bits::B2048).unwrap())
}

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_numbers_of_bits_are_those_of_the_command_line() {
    assert_eq!(Bits::default(), Bits::B4096);
    for (text, bits) in [
        ("2048", Bits::B2048),
        ("3072", Bits::B3072),
        ("4096", Bits::B4096),
    ] {
        assert_eq!(text.parse(), Ok(bits));
        assert_eq!(bits.to_string(), text);
    }
    for text in [
        "", "1024", "8192", "2049", "02048", "+2048", " 4096", "4096\n", "many",
    ] {
        assert_eq!(text.parse::<Bits>(), Err(BitsError(text.to_owned())));
    }
}

#[test]
fn a_pair_of_every_size_is_one_that_client_and_server_take() {
    for bits in Bits::ALL {
        let made;
        let pair = match bits {
            Bits::B2048 => pair(),
            Bits::B3072 | Bits::B4096 => {
                made = generate(bits).unwrap();
                &made
            }
        };
        assert!(
            pair.private_pem
                .starts_with("-----BEGIN PRIVATE KEY-----\n")
        );
        assert!(pair.public_pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        let public = PublicKey::from_pem(pair.public_pem.as_bytes()).unwrap();
        let private =
            PrivateKey::from_pem(name("a"), Path::new("a.pem"), pair.private_pem.as_bytes())
                .unwrap();
        assert_eq!(public.bits(), bits.count());
        assert_eq!(private.bits(), bits.count());
        assert_eq!(public.fingerprint(), &pair.fingerprint);
        assert_eq!(private.fingerprint(), &pair.fingerprint);
    }
}

#[test]
fn no_two_pairs_are_alike() {
    let other = generate(Bits::B2048).unwrap();
    assert_ne!(other.fingerprint, pair().fingerprint);
}

#[test]
fn a_pair_shows_no_secret() {
    let shown = format!("{:?}", pair());
    assert!(shown.contains(pair().fingerprint.as_str()), "{shown}");
    assert!(!shown.contains("BEGIN"), "{shown}");
}

#[test]
fn a_pair_is_written_into_two_files_that_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let written = write_pair(folder.path(), &name("deploy"), pair()).unwrap();
    assert_eq!(
        written,
        Written {
            private: folder.path().join("deploy.pem"),
            public: folder.path().join("deploy.pub.pem"),
        }
    );
    assert_eq!(names(folder.path()), ["deploy.pem", "deploy.pub.pem"]);
    assert_eq!(
        (mode(&written.private), mode(&written.public)),
        (0o600, 0o644)
    );
    let private = PrivateKey::read(&written.private).unwrap();
    let public = PublicKey::from_pem(&fs::read(&written.public).unwrap()).unwrap();
    assert_eq!(private.fingerprint(), public.fingerprint());
    let of = |path: &Path| KeyName::of_file(path).unwrap().unwrap();
    assert_eq!(of(&written.private), of(&written.public));
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_beside_it() {
    for there in ["deploy.pem", "deploy.pub.pem"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(there);
        fs::write(&path, "precious").unwrap();
        let refused = write_pair(folder.path(), &name("deploy"), pair()).unwrap_err();
        assert!(
            matches!(&refused, GenerateError::Exists { path: told } if *told == path),
            "{refused}"
        );
        assert_eq!(names(folder.path()), [there]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}

#[test]
fn a_link_is_not_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("x");
    std::os::unix::fs::symlink(&target, folder.path().join("deploy.pem")).unwrap();
    let refused = write_pair(folder.path(), &name("deploy"), pair()).unwrap_err();
    assert!(matches!(refused, GenerateError::Exists { .. }), "{refused}");
    assert!(!target.exists());
    assert_eq!(names(folder.path()), ["deploy.pem"]);
}

#[test]
fn a_file_that_appears_meanwhile_is_not_overwritten_either() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pem");
    fs::write(&path, "precious").unwrap();
    let refused = NewFile::create(path.clone(), Access::Owner)
        .map(drop)
        .unwrap_err();
    assert!(matches!(refused, GenerateError::Exists { .. }), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn what_was_made_goes_again_when_the_rest_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pem");
    let mut file = NewFile::create(path.clone(), Access::Owner).unwrap();
    assert_eq!(mode(&path), 0o600);
    file.write(b"secret").unwrap();
    drop(file);
    assert_eq!(names(folder.path()), [""; 0]);
    let missing = folder.path().join("missing");
    let refused = write_pair(&missing, &name("a"), pair()).unwrap_err();
    assert!(matches!(refused, GenerateError::Write { .. }), "{refused}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_name_whose_private_half_would_pass_for_a_public_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = write_pair(folder.path(), &name("deploy.pub"), pair()).unwrap_err();
    assert!(matches!(refused, GenerateError::Name { .. }), "{refused}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn the_working_directory_is_a_folder_too() {
    assert!(sync(Path::new("")).is_ok());
}
