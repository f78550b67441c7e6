//! A key that is dropped closes what it has opened.

use std::fs;

use super::{
    keyring::{Keys, Signer, line_with, pair, private},
    *,
};

/// Told why, and ended.
async fn expect_dropped(client: &mut Client) {
    client.expect_refusal(Value::Null, "unauthorized").await;
    client.expect_end().await;
}

#[tokio::test]
async fn a_deleted_key_closes_what_it_has_open_whether_or_not_answers_are_due() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let mut idle = Signer::deploy(world.address).await;
    let mut waits = Signer::deploy(world.address).await;
    idle.ask(1, &Command::Info).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(done(&asked.command)));
    idle.client.expect_ok(1).await;
    waits.ask(1, &Command::Info).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    keys.remove("deploy.pem");
    world.control.recheck_keys();
    expect_dropped(&mut idle.client).await;
    expect_dropped(&mut waits.client).await;
    asked.reply.send(Ok(done(&asked.command)));
}

#[tokio::test]
async fn a_replaced_key_and_another_scope_close_what_was_open() {
    let changes: [fn(&Keys); 3] = [
        |keys| keys.put("deploy.pem", &pair(1).public_pem),
        |keys| keys.put("deploy.yml", "allow: [info]\n"),
        |keys| {
            let owners_only = std::os::unix::fs::PermissionsExt::from_mode(0o666);
            fs::set_permissions(keys.dir.join("deploy.pem"), owners_only).unwrap();
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let keys = Keys::with_deploy();
        let world = keys.world();
        let _core = obey(world.asked);
        let mut signer = Signer::deploy(world.address).await;
        signer.obeyed(1).await;
        eprintln!("change {number}");
        change(&keys);
        world.control.recheck_keys();
        expect_dropped(&mut signer.client).await;
    }
}

#[tokio::test]
async fn what_other_keys_have_open_stays() {
    let keys = Keys::with_deploy();
    keys.put("other.pem", &pair(1).public_pem);
    let world = keys.world();
    let _core = obey(world.asked);
    let mut deploy = Signer::deploy(world.address).await;
    let mut other = Signer::connect(world.address, private("other", 1)).await;
    let mut silent = Client::greeted(world.address).await;
    deploy.obeyed(1).await;
    other.obeyed(1).await;
    keys.remove("deploy.pem");
    world.control.recheck_keys();
    expect_dropped(&mut deploy.client).await;
    other.obeyed(2).await;
    silent.ask(1, "info").await;
    silent.expect_refusal(json!(1), "unauthorized").await;
}

#[tokio::test]
async fn any_of_the_keys_that_have_signed_closes_a_connection() {
    for gone in ["deploy", "other"] {
        let keys = Keys::with_deploy();
        keys.put("other.pem", &pair(1).public_pem);
        let world = keys.world();
        let _core = obey(world.asked);
        let mut signer = Signer::deploy(world.address).await;
        signer.obeyed(1).await;
        let token = signer.token_by(&private("other", 1), 2, &Command::Info);
        signer.client.send(line_with(2, &token)).await;
        signer.client.expect_ok(2).await;
        keys.remove(&format!("{gone}.pem"));
        world.control.recheck_keys();
        expect_dropped(&mut signer.client).await;
    }
}

#[tokio::test]
async fn a_key_that_is_there_again_opens_a_new_connection() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    signer.obeyed(1).await;
    keys.remove("deploy.pem");
    world.control.recheck_keys();
    expect_dropped(&mut signer.client).await;
    keys.put("deploy.pem", &pair(0).public_pem);
    Signer::deploy(world.address).await.obeyed(1).await;
}

#[tokio::test]
async fn a_key_whose_file_was_moved_before_it_went_closes_what_it_has_open() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let _core = obey(world.asked);
    let mut before = Signer::deploy(world.address).await;
    before.obeyed(1).await;
    fs::rename(keys.dir.join("deploy.pem"), keys.dir.join("deploy.pub.pem")).unwrap();
    let mut after = Signer::deploy(world.address).await;
    after.obeyed(1).await;
    keys.remove("deploy.pub.pem");
    world.control.recheck_keys();
    expect_dropped(&mut after.client).await;
    expect_dropped(&mut before.client).await;
}

#[tokio::test]
async fn a_key_that_moves_and_goes_while_its_token_is_checked_commands_nothing() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let find = || keys.ring.find(&"deploy".parse().unwrap()).unwrap();
    let in_hand = find();
    fs::rename(keys.dir.join("deploy.pem"), keys.dir.join("deploy.pub.pem")).unwrap();
    let moved = find();
    world.control.drop_keys(&[moved]);
    assert!(world.control.shared.guests.is_dropped(&in_hand));
    keys.remove("deploy.pub.pem");
    world
        .control
        .shared
        .guests
        .drop_keys(&keys.ring.refresh().dropped);
    keys.put("deploy.pem", &pair(0).public_pem);
    assert!(!world.control.shared.guests.is_dropped(&find()));
}

/// The supervisor drops it after the token was found right and before its command is taken up.
#[tokio::test]
async fn a_key_that_is_dropped_while_its_token_is_checked_commands_nothing() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let key = keys.ring.find(&"deploy".parse().unwrap()).unwrap();
    let mut signer = Signer::deploy(world.address).await;
    // The ring still has it, as it had when the token was checked.
    world.control.drop_keys(&[Arc::clone(&key)]);
    signer.ask(1, &Command::Info).await;
    signer.client.expect_refusal(json!(1), "unauthorized").await;
    assert!(world.asked.try_recv().is_err());
    drop(key);
}

#[tokio::test]
async fn many_looks_at_once_are_one_or_two() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    signer.obeyed(1).await;
    for _ in 0..1_000 {
        world.control.recheck_keys();
    }
    keys.remove("deploy.pem");
    world.control.recheck_keys();
    expect_dropped(&mut signer.client).await;
    within("closing", world.control.close()).await;
}
