//! Who is told a command, and how: every rule, and what a server may try.

use std::{fs, path::PathBuf, sync::OnceLock};

use super::*;
use crate::{
    control::{
        keys::{Bits, KeyPair, PublicKey, generate},
        protocol::PROTOCOL,
        token::Unverified,
    },
    spec::Verb,
};

const ID: &str = "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";
const PLACE: &str = "web1:33889";
const REQUEST: u64 = 1;

fn pair() -> &'static KeyPair {
    static PAIR: OnceLock<KeyPair> = OnceLock::new();
    PAIR.get_or_init(|| generate(Bits::B2048).unwrap())
}

/// A client with a key, and its `known_servers`.
struct Bed {
    _dir: tempfile::TempDir,
    path: PathBuf,
    proof: Proof,
}

impl Bed {
    fn new() -> Self {
        Self::with("")
    }

    /// With this in `known_servers`.
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known_servers");
        if !text.is_empty() {
            fs::write(&path, text).unwrap();
        }
        let pem = pair().private_pem.as_bytes();
        let name = "deploy".parse().unwrap();
        let key = PrivateKey::from_pem(name, "/keys/deploy.pem".as_ref(), pem).unwrap();
        let known = KnownServers::read(Some(path.clone()));
        let signing = Signing {
            key,
            known,
            strangers: Strangers::default(),
            downgrade: Downgrade::default(),
        };
        Self {
            _dir: dir,
            path,
            proof: Proof {
                signing: Some(signing),
                server_id: None,
            },
        }
    }

    fn signing(&mut self) -> &mut Signing {
        self.proof.signing.as_mut().unwrap()
    }

    fn strict(mut self) -> Self {
        self.signing().strangers = Strangers::Refused;
        self
    }

    fn allow_unsigned(mut self) -> Self {
        self.signing().downgrade = Downgrade::Allowed;
        self
    }

    fn pinned(mut self, id: &str) -> Self {
        self.proof.server_id = Some(id.parse().unwrap());
        self
    }

    fn known(&self) -> String {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        server: "web1".to_owned(),
        id: ID.to_owned(),
        version: "1.0.0".to_owned(),
        encrypt: true,
        nonce: "q1dXxOZ6oJ2oM1n0y4m1c0m2T3l5b7f9h1j3k5l7n9o".to_owned(),
        time: 1_700_000_000,
    }
}

fn unsigned() -> Hello {
    Hello {
        encrypt: false,
        ..hello()
    }
}

fn command() -> Command {
    Command::Child {
        verb: Verb::Restart,
        child: "web".parse().unwrap(),
    }
}

struct Sent {
    line: String,
    signed: Signed,
    warnings: Vec<String>,
}

fn request(proof: &Proof, hello: &Hello) -> Result<Sent, (String, String)> {
    let mut warnings = Vec::new();
    let met = Met {
        host: "web1",
        place: PLACE,
        hello,
    };
    match proof.request(met, REQUEST, &command(), &mut warnings) {
        Ok((line, signed)) => Ok(Sent {
            line: String::from_utf8(line).unwrap(),
            signed,
            warnings,
        }),
        Err(refusal) => Err((refusal.code, refusal.message)),
    }
}

fn sent(proof: &Proof, hello: &Hello) -> Sent {
    request(proof, hello).unwrap_or_else(|(code, message)| panic!("{code}: {message}"))
}

fn refused(proof: &Proof, hello: &Hello) -> (String, String) {
    match request(proof, hello) {
        Ok(sent) => panic!("sent {}", sent.line),
        Err(refused) => refused,
    }
}

const PLAIN: &str = "{\"id\":1,\"command\":{\"op\":\"restart\",\"child\":\"web\"}}\n";

#[test]
fn a_signed_command_is_one_that_the_server_accepts() {
    let bed = Bed::new();
    let hello = hello();
    let sent = sent(&bed.proof, &hello);
    assert_eq!((sent.signed, sent.warnings.len()), (Signed::Yes, 0));
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        id: u64,
        token: String,
    }
    assert!(sent.line.ends_with("}\n"));
    let line: Line = serde_json::from_str(&sent.line).unwrap();
    assert_eq!(line.id, REQUEST);
    let token = Unverified::parse(&line.token).unwrap();
    assert_eq!(token.key_name().as_str(), "deploy");
    let key = PublicKey::from_pem(pair().public_pem.as_bytes()).unwrap();
    let expected = |audience, nonce, now| Expected {
        audience,
        nonce,
        id: REQUEST,
        now,
    };
    // The time is the server's, whatever this host's clock says.
    let good = expected(ID, hello.nonce.as_str(), hello.time);
    assert_eq!(token.verify(&key, &good).unwrap(), command());
    // It is good for that server, that connection and that time alone.
    for bad in [
        expected(OTHER, hello.nonce.as_str(), hello.time),
        expected(ID, "another", hello.time),
        expected(ID, hello.nonce.as_str(), hello.time + 3_600),
    ] {
        assert!(token.verify(&key, &bad).is_err(), "{bad:?}");
    }
}

#[test]
fn without_a_key_a_command_is_sent_plain_and_no_server_written_down() {
    let proof = Proof::default();
    let sent = sent(&proof, &unsigned());
    assert_eq!((sent.line.as_str(), sent.signed), (PLAIN, Signed::No));
    // Such a server may greet with what could not be signed.
    let odd = Hello {
        id: "i".to_owned(),
        nonce: String::new(),
        time: -1,
        ..unsigned()
    };
    assert!(request(&proof, &odd).is_ok());
}

#[test]
fn a_missing_key_is_told_with_how_to_give_one() {
    assert_eq!(
        refused(&Proof::default(), &hello()),
        (
            "unauthorized".to_owned(),
            "`web1` takes only signed commands (`encrypt: on`): `with KEY.pem` is missing\n\
             hint: `SUPERVISOR_RS_KEY` names a key for all commands; \
             `supervisor-rs-client keygen NAME` makes one"
                .to_owned()
        )
    );
}

#[test]
fn a_server_that_claims_to_need_no_signature_is_told_nothing() {
    let bed = Bed::new();
    let (code, message) = refused(&bed.proof, &unsigned());
    assert_eq!(code, "unauthorized");
    assert_eq!(
        message,
        "`web1` says that it takes unsigned commands (`encrypt: off`), but a key was given \
         (`/keys/deploy.pem`); nothing was sent\n\
         hint: this may be somebody on the way who wants a command without its signature; set \
         `encrypt: on` in its server.yml and start it anew, or send the command unsigned: with \
         `--allow-unsigned`, or without a key (`with`, `SUPERVISOR_RS_KEY`)"
    );
    assert_eq!(bed.known(), "", "nor is it believed to be the one there");
}

#[test]
fn an_unsigned_command_may_be_allowed_and_is_then_plain() {
    let bed = Bed::new().allow_unsigned();
    let plain = sent(&bed.proof, &unsigned());
    assert_eq!((plain.line.as_str(), plain.signed), (PLAIN, Signed::No));
    assert_eq!(bed.known(), "");
    // Where a signature is asked for, there is one all the same.
    assert_eq!(sent(&bed.proof, &hello()).signed, Signed::Yes);
    // A server that is known is not another's prey for that.
    let bed = Bed::with(&format!("{PLACE} {OTHER}\n")).allow_unsigned();
    assert_eq!(refused(&bed.proof, &unsigned()).0, "server_changed");
}

#[test]
fn a_first_contact_is_written_down_before_anything_is_sent() {
    let bed = Bed::with("# mine\n");
    assert!(sent(&bed.proof, &hello()).warnings.is_empty());
    assert_eq!(bed.known(), format!("{PLACE} {ID}"));
    // And is known from then on, in either case of its letters.
    let upper = Hello {
        id: ID.to_uppercase(),
        ..hello()
    };
    let again = Bed::with(&format!("{PLACE} {ID}\n"));
    assert_eq!(sent(&again.proof, &upper).signed, Signed::Yes);
    assert_eq!(again.known(), format!("{PLACE} {ID}"));
}

#[test]
fn another_server_in_a_known_place_is_told_nothing() {
    let bed = Bed::with(&format!("{PLACE} {OTHER}\n"));
    assert_eq!(
        refused(&bed.proof, &hello()),
        (
            "server_changed".to_owned(),
            format!(
                "another server than before listens at `web1`: it was {OTHER}, now it is {ID}; \
                 nothing was sent\n\
                 hint: if it was set up anew, `supervisor-rs-client --forget web1:33889` lets it \
                 in (a fixed `id` in its server.yml spares this); if not, somebody stands in its \
                 place: `supervisor-rs-client info` on that host shows its id"
            )
        )
    );
    assert_eq!(bed.known(), format!("{PLACE} {OTHER}"));
}

#[test]
fn another_client_that_met_another_server_meanwhile_is_heeded() {
    let bed = Bed::new();
    fs::write(&bed.path, format!("{PLACE} {OTHER}\n")).unwrap();
    assert_eq!(refused(&bed.proof, &hello()).0, "server_changed");
    assert_eq!(bed.known(), format!("{PLACE} {OTHER}"));
}

#[test]
fn strict_refuses_a_stranger_and_says_how_to_let_it_in() {
    let bed = Bed::new().strict();
    assert_eq!(
        refused(&bed.proof, &hello()),
        (
            "server_changed".to_owned(),
            format!(
                "the server at `web1` is not known, and `--strict` was given; nothing was sent\n\
                 hint: it calls itself {ID}: if `supervisor-rs-client info` on that host says \
                 the same, `--server-id {ID}` lets it in and writes it down"
            )
        )
    );
    assert_eq!(bed.known(), "");
    let known = Bed::with(&format!("{PLACE} {ID}\n")).strict();
    assert!(request(&known.proof, &hello()).is_ok());
    // As it says.
    let pinned = Bed::new().strict().pinned(ID);
    assert!(request(&pinned.proof, &hello()).is_ok());
    assert_eq!(pinned.known(), format!("{PLACE} {ID}"));
}

#[test]
fn a_pinned_server_is_the_only_one_that_is_told_anything() {
    for bed in [
        Bed::new(),
        Bed::with(&format!("{PLACE} {ID}\n")),
        Bed::new().allow_unsigned(),
    ] {
        let before = bed.known();
        let bed = bed.pinned(OTHER);
        for hello in [hello(), unsigned()] {
            let (code, message) = refused(&bed.proof, &hello);
            assert_eq!(code, "server_changed");
            let words = format!(
                "`web1` is the server {ID}, not {OTHER} as `--server-id` asks; nothing was sent\n"
            );
            assert!(message.starts_with(&words), "{message}");
        }
        assert_eq!(bed.known(), before);
    }
    // Unsigned commands, too.
    let proof = Proof {
        signing: None,
        server_id: Some(OTHER.parse().unwrap()),
    };
    assert_eq!(refused(&proof, &unsigned()).0, "server_changed");
    let proof = Proof {
        signing: None,
        server_id: Some(ID.parse().unwrap()),
    };
    assert!(request(&proof, &unsigned()).is_ok());
}

#[test]
fn a_pin_counts_for_more_than_what_was_written_down_and_changes_nothing_of_it() {
    let bed = Bed::with(&format!("{PLACE} {OTHER}\n")).pinned(ID);
    let sent = sent(&bed.proof, &hello());
    assert_eq!(sent.signed, Signed::Yes);
    assert_eq!(sent.warnings.len(), 1);
    assert!(sent.warnings[0].contains(OTHER), "{:?}", sent.warnings);
    assert!(sent.warnings[0].contains("--forget web1:33889"));
    assert_eq!(bed.known(), format!("{PLACE} {OTHER}"));
}

/// A client whose `known_servers` cannot be read.
fn blind() -> Bed {
    let mut bed = Bed::new();
    fs::create_dir(&bed.path).unwrap();
    let known = KnownServers::read(Some(bed.path.clone()));
    bed.signing().known = known;
    bed
}

#[test]
fn what_cannot_be_read_is_a_warning_but_refused_where_it_must_be_known() {
    let bed = blind();
    let said = bed.proof.signing.as_ref().unwrap().known.warnings();
    assert_eq!(said.len(), 1, "where it is read, once for all hosts");
    assert!(sent(&bed.proof, &hello()).warnings.is_empty());
    let (code, message) = refused(&blind().strict().proof, &hello());
    assert_eq!(code, "server_changed");
    assert!(message.contains("is not a regular file"), "{message}");
    assert!(message.contains("`--server-id UUID`"), "{message}");
    assert!(request(&blind().strict().pinned(ID).proof, &hello()).is_ok());
}

#[test]
fn what_cannot_be_written_is_a_warning_and_the_command_goes_on() {
    let mut bed = Bed::new();
    let file = bed.path.parent().unwrap().join("file");
    fs::create_dir(&file).unwrap();
    let path = file.join("known_servers");
    bed.signing().known = KnownServers::read(Some(path));
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "in the folder's place").unwrap();
    let sent = sent(&bed.proof, &hello());
    assert_eq!(sent.signed, Signed::Yes);
    assert_eq!(sent.warnings.len(), 1);
    let words = "the server at `web1` is not written down: cannot write `";
    assert!(sent.warnings[0].starts_with(words), "{:?}", sent.warnings);
}

#[test]
fn nothing_odd_in_a_hello_is_signed_or_written_down() {
    let long = "n".repeat(NONCE_CHARS_MAX + 1);
    let odd = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        hello
    };
    let ids = ["", "i", "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5\nx:1 y"];
    let nonces = ["", "a b", "a=", "a+/", "a\n", "\u{e9}", long.as_str()];
    let times = [-1, i64::MIN, i64::MAX, TIME_MAX + 1];
    let mut hellos = Vec::new();
    for id in ids {
        hellos.push((odd(&|hello| hello.id = id.to_owned()), "its id"));
    }
    for nonce in nonces {
        hellos.push((odd(&|hello| hello.nonce = nonce.to_owned()), "its nonce"));
    }
    for time in times {
        hellos.push((odd(&|hello| hello.time = time), "its time"));
    }
    for (hello, says) in hellos {
        let bed = Bed::new();
        let (code, message) = refused(&bed.proof, &hello);
        assert_eq!(code, "unreachable", "{hello:?}");
        assert!(message.contains(says), "{message}");
        assert_eq!(bed.known(), "");
    }
    let edges = Hello {
        nonce: "-".repeat(NONCE_CHARS_MAX),
        time: 0,
        ..hello()
    };
    assert!(request(&Bed::new().proof, &edges).is_ok());
}

fn refusal(code: &str) -> Refusal {
    let line = format!(r#"{{"id":1,"error":{{"code":"{code}","message":"no"}}}}"#);
    match protocol::parse_server_line(line.as_bytes()).unwrap() {
        protocol::ServerLine::Error { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_that_is_refused_is_told_with_name_file_fingerprint_and_what_the_server_needs() {
    let bed = Bed::new();
    let refused = bed.proof.explain(refusal("unauthorized"), Signed::Yes);
    let message = format!(
        "no\nsigned as `deploy` with `/keys/deploy.pem`, fingerprint {}\n\
         hint: the server needs this key's public half as `deploy.pem` or `deploy.pub.pem` in a \
         directory of its `pub_keys_path`; its log has the reason",
        pair().fingerprint
    );
    assert_eq!(refused.message, message);
    // Programs read the same.
    let raw: serde_json::Value = serde_json::from_str(refused.raw.get()).unwrap();
    assert_eq!(raw["message"], message);
    assert_eq!(raw["code"], "unauthorized");
}

#[test]
fn other_refusals_are_handed_on_as_they_came() {
    let bed = Bed::new();
    for (code, signed) in [
        ("forbidden", Signed::Yes),
        ("not_running", Signed::Yes),
        ("from_the_future", Signed::Yes),
        ("unauthorized", Signed::No),
    ] {
        let refused = bed.proof.explain(refusal(code), signed);
        assert_eq!(
            (refused.code.as_str(), refused.message.as_str()),
            (code, "no")
        );
    }
    let without = Proof::default();
    let refused = without.explain(refusal("unauthorized"), Signed::Yes);
    assert_eq!(refused.message, "no");
}

#[test]
fn no_look_at_a_key_shows_it() {
    let bed = Bed::new();
    let shown = format!("{:?}", bed.proof);
    let secret = pair().private_pem.lines().nth(1).unwrap();
    assert!(!shown.contains(secret));
    assert!(!shown.contains("PRIVATE"));
}
