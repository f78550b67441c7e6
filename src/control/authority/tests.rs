//! Who is let in, and what those are told who are not.

use super::*;

const US: u32 = 1_000;
const ALLOWED: u32 = 1_001;

fn policy(encrypt: bool, allow_unsigned_remote: bool) -> Policy {
    let own = rustix::process::geteuid().as_raw();
    assert!(
        own != US && own != ALLOWED,
        "this test's users are not its own"
    );
    Policy {
        encrypt,
        allow_unsigned_remote,
        local_users: Owners::new(&[ALLOWED.to_string()]).unwrap(),
    }
}

fn judged(policy: Policy, origin: Origin) -> Result<Credential, ErrorCode> {
    let judged = Authority::new(policy).unsigned(origin, Command::Info);
    judged
        .map(|authorised| authorised.credential)
        .map_err(|denial| denial.failure.code)
}

#[test]
fn with_encrypt_off_root_the_own_user_and_whom_server_yml_names_command() {
    let own = rustix::process::geteuid().as_raw();
    for uid in [0, own, ALLOWED] {
        let credential = judged(policy(false, false), Origin::User(uid));
        assert_eq!(credential, Ok(Credential::User(uid)));
    }
    for origin in [Origin::User(US), Origin::UnknownUser, Origin::Remote] {
        let judged = judged(policy(false, false), origin);
        assert_eq!(judged, Err(ErrorCode::ProtectedMode), "{origin:?}");
    }
}

#[test]
fn allow_unsigned_remote_lets_other_hosts_in_and_no_other_user_of_this_one() {
    assert_eq!(
        judged(policy(false, true), Origin::Remote),
        Ok(Credential::Reach)
    );
    for origin in [Origin::User(US), Origin::UnknownUser] {
        let judged = judged(policy(false, true), origin);
        assert_eq!(judged, Err(ErrorCode::ProtectedMode), "{origin:?}");
    }
}

// I10
#[test]
fn with_encrypt_on_nothing_unsigned_is_taken() {
    for origin in [
        Origin::User(0),
        Origin::User(ALLOWED),
        Origin::UnknownUser,
        Origin::Remote,
    ] {
        let judged = judged(policy(true, true), origin);
        assert_eq!(judged, Err(ErrorCode::Unauthorized), "{origin:?}");
    }
}

fn denial(policy: Policy, origin: Origin) -> Box<Denial> {
    let judged = Authority::new(policy).unsigned(origin, Command::Info);
    judged.unwrap_err()
}

#[test]
fn who_is_not_let_in_is_told_the_way_in() {
    for (origin, parts) in [
        (
            Origin::User(US),
            &[
                "user 1000",
                "`allow_local_users`",
                "`encrypt: on`",
                "`pub_keys_path`",
            ][..],
        ),
        (
            Origin::UnknownUser,
            &[
                "cannot be told",
                "`peer users`",
                "`allow_local_users`",
                "`encrypt: on`",
            ],
        ),
        (
            Origin::Remote,
            &[
                "another",
                "`allow_unsigned_remote: true`",
                "ssh",
                "`encrypt: on`",
            ],
        ),
    ] {
        let denial = denial(policy(false, false), origin);
        for part in parts {
            let message = &denial.failure.message;
            assert!(message.contains(part), "{part} in {message}");
        }
        assert!(denial.failure.message.starts_with(&denial.why));
        assert_eq!(denial.command, Some(Command::Info));
    }
}

#[test]
fn a_user_is_told_by_name_too_where_it_has_one() {
    let users = "root:x:0:0::/:/bin/sh\ndaemon:x:1:1::/:/bin/false\n";
    if !std::fs::read_to_string("/etc/passwd").is_ok_and(|text| text.contains("daemon:x:1:")) {
        return eprintln!("skipped: no user as in {users:?}");
    }
    let message = denial(policy(false, false), Origin::User(1))
        .failure
        .message;
    assert!(message.contains("`daemon` (user 1)"), "{message}");
    assert!(message.contains("add `daemon`"), "{message}");
}

#[test]
fn with_encrypt_on_a_peer_learns_nothing_and_the_log_does() {
    let denials = [Origin::User(US), Origin::UnknownUser, Origin::Remote]
        .map(|origin| denial(policy(true, false), origin));
    for denial in denials {
        assert_eq!(denial.failure.message, UNAUTHORIZED);
        assert!(denial.why.contains("`encrypt` is on"), "{}", denial.why);
    }
}
