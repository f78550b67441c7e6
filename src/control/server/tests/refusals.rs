//! What is told of refusals, and how often a peer may be refused.

use super::{
    keyring::{Keys, Signer, line_with, private},
    *,
};
use crate::{
    command::ErrorCode,
    control::{asked::Credential, limits::AUDITED_REFUSALS_PER_PEER_MAX},
};

fn audited(mut config: ControlConfig) -> (World, mpsc::Receiver<Refused>) {
    let (refusals, audit) = mpsc::channel(1_024);
    config.refusals = refusals;
    (world_with(config, 1_024), audit)
}

#[tokio::test]
async fn a_refusal_tells_who_claimed_to_be_whom_and_why_it_was_not_believed() {
    let keys = Keys::with_deploy();
    let (world, mut audit) = audited(keys.config(Limits::default()));
    let mut signer = Signer::connect(world.address, private("deploy", 1)).await;
    signer.ask(1, &Command::Info).await;
    signer.client.expect_refusal(json!(1), "unauthorized").await;
    let refused = within("a refusal", audit.recv()).await.unwrap();
    assert_eq!(
        refused.peer,
        signer.client.0.get_ref().local_addr().unwrap()
    );
    assert_eq!(refused.claimed, Some("deploy".parse().unwrap()));
    assert_eq!((refused.code, refused.more), (ErrorCode::Unauthorized, 0));
    assert_eq!((refused.credential, refused.command), (None, None));
    assert!(refused.why.contains("signature"), "{}", refused.why);
    // No token, with `encrypt: on`.
    signer.client.ask(2, "kill").await;
    signer.client.expect_refusal(json!(2), "unauthorized").await;
    let refused = within("a refusal", audit.recv()).await.unwrap();
    assert!(matches!(refused.command, Some(Command::Kill(_))));
    assert!(matches!(refused.credential, Some(Credential::User(_))));
    assert!(refused.why.contains("not signed"), "{}", refused.why);
}

#[tokio::test]
async fn what_is_forbidden_is_told_with_the_key_that_is() {
    let keys = Keys::with_deploy();
    keys.put("deploy.yml", "allow: []\n");
    let (world, mut audit) = audited(keys.config(Limits::default()));
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &Command::Info).await;
    signer.client.expect_refusal(json!(1), "forbidden").await;
    let refused = within("a refusal", audit.recv()).await.unwrap();
    assert_eq!(refused.code, ErrorCode::Forbidden);
    assert_eq!(refused.command, Some(Command::Info));
    let name = refused.credential.as_ref().and_then(Credential::key_name);
    assert_eq!(name, Some(&"deploy".parse().unwrap()));
}

#[tokio::test]
async fn of_a_flood_the_first_are_told_and_then_their_number() {
    let keys = Keys::with_deploy();
    let limits = Limits {
        failures_per_peer_max: 10_000,
        ..Limits::default()
    };
    let (world, mut audit) = audited(keys.config(limits));
    let mut client = Client::greeted(world.address).await;
    let count = 2 * u64::from(AUDITED_REFUSALS_PER_PEER_MAX);
    for id in 1..=count {
        client.send(line_with(id, "a.b.c")).await;
        client.expect_refusal(json!(id), "unauthorized").await;
    }
    within("closing", world.control.close()).await;
    let (mut told, mut counted) = (0, 0);
    while let Ok(refused) = audit.try_recv() {
        told += 1;
        counted += refused.more + 1;
    }
    assert_eq!(counted, count, "each is told or counted");
    assert!(told < count, "{told}");
}

#[tokio::test]
async fn a_full_audit_trail_is_waited_for_by_nobody() {
    let keys = Keys::with_deploy();
    let (refusals, mut audit) = mpsc::channel(1);
    let config = ControlConfig {
        refusals,
        ..keys.config(Limits::default())
    };
    let world = world_with(config, 16);
    let mut client = Client::greeted(world.address).await;
    for id in 1..=20 {
        client.send(line_with(id, "a.b.c")).await;
        client.expect_refusal(json!(id), "unauthorized").await;
    }
    assert!(audit.try_recv().is_ok());
    assert!(audit.try_recv().is_err());
}

#[tokio::test]
async fn who_fails_too_often_is_busy_and_closed_and_who_signs_rightly_is_obeyed() {
    let keys = Keys::with_deploy();
    let limits = Limits {
        failures_per_peer_max: 4,
        ..Limits::default()
    };
    let world = world_with(keys.config(limits), 16);
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    let mut failing = Client::greeted(world.address).await;
    let (mut id, mut code) = (0, String::new());
    while code != "busy" {
        assert!(matches!(code.as_str(), "" | "unauthorized"), "{code}");
        id += 1;
        failing.send(line_with(id, "a.b.c")).await;
        let line = failing.line().await.unwrap();
        assert_eq!(line["id"], id);
        code = line["error"]["code"].as_str().unwrap().to_owned();
    }
    failing.expect_end().await;
    assert!(id > 4);
    signer.obeyed(1).await;
    Signer::deploy(world.address).await.obeyed(1).await;
    // Also together with those that fail, and after them.
    let bad: String = (2..=9).map(|id| line_with(id, "a.b.c")).collect();
    let lines = bad + &signer.line_of(10, &Command::Info);
    signer.client.send(lines).await;
    let mut codes = Vec::new();
    while let Some(line) = signer.client.line().await {
        let code = line["error"]["code"].as_str().unwrap_or("ok");
        codes.push((line["id"].as_u64().unwrap(), code.to_owned()));
    }
    assert_eq!(codes.len(), 9, "{codes:?}");
    assert!(codes.contains(&(9, "busy".to_owned())), "{codes:?}");
    assert!(codes.contains(&(10, "ok".to_owned())), "{codes:?}");
}

#[tokio::test]
async fn protected_mode_counts_as_failing() {
    let limits = Limits {
        failures_per_peer_max: 4,
        ..Limits::default()
    };
    let mut config = config(limits);
    config.policy = encrypted();
    let world = world_with(config, 16);
    let mut client = Client::greeted(world.address).await;
    let lines: String = (1..=100)
        .map(|id| format!("{{\"id\":{id},\"command\":{{\"op\":\"info\"}}}}\n"))
        .collect();
    client.send(lines).await;
    let mut codes = Vec::new();
    while let Some(line) = client.line().await {
        codes.push(line["error"]["code"].as_str().unwrap().to_owned());
    }
    assert_eq!(codes.pop().unwrap(), "busy");
    assert!(codes.len() >= 4 && codes.iter().all(|code| code == "unauthorized"));
}
