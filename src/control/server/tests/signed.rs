//! Signed commands: which are carried out, and which are not (I10).

use super::{
    keyring::{Keys, Signer, line_with, pair, private},
    *,
};
use crate::{
    control::{asked::Credential, token::LIFETIME_MAX_S},
    spec::Verb,
};

const KILL: Command = Command::Kill(crate::command::KillChildren::AsConfigured);

fn restart(child: &str) -> Command {
    Command::Child {
        verb: Verb::Restart,
        child: child.parse().unwrap(),
    }
}

#[tokio::test]
async fn a_command_that_is_rightly_signed_is_carried_out_and_says_who_gave_it() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(7, &restart("web")).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    assert_eq!(asked.command, restart("web"));
    let credential = Credential::Key {
        name: "deploy".parse().unwrap(),
        fingerprint: pair(0).fingerprint.clone(),
    };
    assert_eq!(asked.issuer.credential, credential);
    assert_eq!(
        asked.issuer.peer,
        signer.client.0.get_ref().local_addr().unwrap()
    );
    asked.reply.send(Ok(done(&asked.command)));
    signer.client.expect_ok(7).await;
}

// I10
#[tokio::test]
async fn a_token_works_once() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    let line = signer.line_of(1, &KILL);
    signer.client.send(&line).await;
    signer.client.expect_ok(1).await;
    signer.client.send(&line).await;
    signer.client.expect_refusal(json!(1), "bad_request").await;
    signer.client.expect_end().await;
    world.control.close().await;
    assert_eq!(within("the core", core).await.unwrap(), [KILL]);
}

#[tokio::test]
async fn a_token_under_another_id_is_refused() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    let token = signer.token(1, &KILL);
    signer.client.send(line_with(2, &token)).await;
    signer.client.expect_refusal(json!(2), "unauthorized").await;
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_token_of_another_connection_is_refused() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let seen = Signer::deploy(world.address).await;
    let mut thief = Signer::deploy(world.address).await;
    thief.client.send(seen.line_of(1, &KILL)).await;
    thief.client.expect_refusal(json!(1), "unauthorized").await;
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_token_for_another_server_is_refused() {
    let keys = Keys::with_deploy();
    let mut world = world_with(
        ControlConfig {
            id: "another".to_owned(),
            ..keys.config(Limits::default())
        },
        16,
    );
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &KILL).await;
    signer.client.expect_refusal(json!(1), "unauthorized").await;
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn all_failures_look_the_same() {
    let keys = Keys::with_deploy();
    keys.put("other.pem", &pair(1).public_pem);
    keys.put("bad.pem", "no key");
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    let good = signer.token(1, &KILL);
    let (signed, _) = good.rsplit_once('.').unwrap();
    let tokens = [
        "".to_owned(),
        "a.b.c".to_owned(),
        format!("{signed}."),
        format!("{signed}.AAAA"),
        // Another's key, a name that has no key, one that has a bad one, and no name.
        signer.token_by(&private("deploy", 1), 5, &KILL),
        signer.token_by(&private("unknown", 0), 6, &KILL),
        signer.token_by(&private("bad", 0), 7, &KILL),
        signer.token_by(&private("other", 0), 8, &KILL),
    ];
    let mut errors = Vec::new();
    for (id, token) in (1..).zip(&tokens) {
        signer.client.send(line_with(id, token)).await;
        let line = signer.client.line().await.unwrap();
        assert_eq!(line["id"], id, "{line}");
        errors.push(line["error"].clone());
    }
    signer.client.ask(99, "kill").await;
    errors.push(signer.client.line().await.unwrap()["error"].clone());
    assert_eq!(errors[0]["code"], "unauthorized");
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_token_is_checked_whatever_encrypt_says() {
    let keys = Keys::with_deploy();
    let mut world = world_with(
        ControlConfig {
            policy: unsigned(),
            ..keys.config(Limits::default())
        },
        16,
    );
    let mut signer = Signer::deploy(world.address).await;
    signer.client.send(line_with(1, "a.b.c")).await;
    signer.client.expect_refusal(json!(1), "unauthorized").await;
    signer.ask(2, &KILL).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    assert!(matches!(asked.issuer.credential, Credential::Key { .. }));
    // An unsigned one is taken for what it is.
    signer.client.ask(3, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    assert!(matches!(asked.issuer.credential, Credential::User(_)));
}

#[tokio::test]
async fn a_key_that_is_dropped_in_works_at_once_and_one_that_is_deleted_does_not() {
    let keys = Keys::new();
    let world = keys.world();
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &Command::Info).await;
    signer.client.expect_refusal(json!(1), "unauthorized").await;
    keys.put("deploy.pub.pem", &pair(0).public_pem);
    signer.obeyed(2).await;
    keys.remove("deploy.pub.pem");
    signer.ask(3, &Command::Info).await;
    signer.client.expect_refusal(json!(3), "unauthorized").await;
}

#[tokio::test]
async fn what_a_key_s_scope_does_not_hold_is_forbidden_and_says_why() {
    let keys = Keys::with_deploy();
    keys.put(
        "deploy.yml",
        "allow: [check, restart]\nchildren: [\"web-*\"]\n",
    );
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &KILL).await;
    let refused = signer.client.line().await.unwrap();
    assert_eq!(refused["error"]["code"], "forbidden");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("key `deploy` may not `kill`"), "{message}");
    signer.ask(2, &restart("db")).await;
    signer.client.expect_refusal(json!(2), "forbidden").await;
    signer.ask(3, &restart("web-1")).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    assert_eq!(asked.command, restart("web-1"));
}

#[tokio::test]
async fn a_key_is_good_from_where_its_scope_says() {
    let keys = Keys::with_deploy();
    keys.put("deploy.yml", "from: [192.0.2.0/24]\n");
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &Command::Info).await;
    signer.client.expect_refusal(json!(1), "forbidden").await;
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_token_that_has_expired_is_refused() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    let expected = crate::control::token::Expected {
        audience: ID,
        nonce: &signer.nonce,
        id: 1,
        now: clock::wall().0.div_euclid(1_000) - i64::try_from(LIFETIME_MAX_S).unwrap(),
    };
    let token = crate::control::token::sign(&private("deploy", 0), &KILL, &expected).unwrap();
    signer.client.send(line_with(1, &token)).await;
    signer.client.expect_refusal(json!(1), "unauthorized").await;
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn more_keys_than_may_sign_on_a_connection_are_busy() {
    let keys = Keys::new();
    let name = |number: usize| format!("key{number}");
    for number in 0..=KEYS_PER_CONNECTION_MAX {
        keys.put(&format!("{}.pem", name(number)), &pair(0).public_pem);
    }
    let world = keys.world();
    let _core = obey(world.asked);
    let mut signer = Signer::connect(world.address, private("key0", 0)).await;
    for number in 0..=KEYS_PER_CONNECTION_MAX {
        let id = u64::try_from(number).unwrap();
        let token = signer.token_by(&private(&name(number), 0), id, &Command::Info);
        signer.client.send(line_with(id, &token)).await;
        match number < KEYS_PER_CONNECTION_MAX {
            true => signer.client.expect_ok(id).await,
            false => signer.client.expect_refusal(json!(id), "busy").await,
        }
    }
    signer.obeyed(100).await;
}
