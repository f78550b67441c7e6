//! server.yml is looked at before a key is used.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{
    keyring::{Keys, Signer, pair},
    *,
};

/// A server.yml that was edited, as far as anybody has looked.
#[derive(Debug, Default)]
struct Edited {
    asked: AtomicUsize,
}

impl ConfigCheck for Edited {
    fn is_current(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        false
    }
}

fn edited(keys: &Keys, limits: Limits) -> (World, mpsc::Receiver<Look>, Arc<Edited>) {
    let (looks, looked) = mpsc::channel(1);
    let check = Arc::new(Edited::default());
    let config = ControlConfig {
        config: Arc::clone(&check) as Arc<dyn ConfigCheck>,
        looks,
        ..keys.config(limits)
    };
    (world_with(config, 16), looked, check)
}

#[tokio::test]
async fn a_token_is_checked_by_what_an_edit_says_that_nobody_has_looked_at_yet() {
    let keys = Keys::new();
    let elsewhere = Keys::new();
    elsewhere.put("deploy.pem", &pair(0).public_pem);
    let (world, mut looks, check) = edited(&keys, Limits::default());
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &Command::Info).await;
    let look = within("a look", looks.recv()).await.unwrap();
    keys.ring.configure(vec![elsewhere.dir.clone()], us());
    look.send(()).unwrap();
    signer.client.expect_ok(1).await;
    // Once: an edit after that is for the next token.
    assert_eq!(check.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn who_is_not_looked_for_in_time_is_busy_and_may_ask_again() {
    let keys = Keys::with_deploy();
    let limits = Limits {
        look_time_max: Duration::from_millis(50),
        ..Limits::default()
    };
    let (world, mut looks, _) = edited(&keys, limits);
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &Command::Info).await;
    signer.client.expect_refusal(json!(1), "busy").await;
    // It still stands in the queue, which is full.
    signer.ask(2, &Command::Info).await;
    signer.client.expect_refusal(json!(2), "busy").await;
    assert!(looks.recv().await.unwrap().is_closed());
    signer.ask(3, &Command::Info).await;
    within("a look", looks.recv())
        .await
        .unwrap()
        .send(())
        .unwrap();
    signer.client.expect_ok(3).await;
}

/// Nor is it carried out when the disk answers after all.
#[tokio::test]
async fn a_token_whose_key_stands_on_a_disk_that_does_not_answer_is_busy() {
    static HANGING: AtomicBool = AtomicBool::new(true);
    fn hangs(_: &fs::File) -> bool {
        while HANGING.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }
    let mut keys = Keys::with_deploy();
    let ring = Ring::new(vec![keys.dir.clone()], us());
    keys.ring = Arc::new(ring.with_writers_seen(hangs));
    let limits = Limits {
        verify_time_max: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut world = world_with(keys.config(limits), 16);
    let mut signers = Vec::new();
    // More than are checked at the same time.
    for _ in 0..6 {
        let mut signer = Signer::deploy(world.address).await;
        signer.ask(1, &Command::Info).await;
        signers.push(signer);
    }
    for signer in &mut signers {
        signer.client.expect_refusal(json!(1), "busy").await;
    }
    HANGING.store(false, Ordering::Relaxed);
    let asked = world.asked.try_recv();
    assert!(asked.is_err(), "{asked:?}");
    let _core = obey(world.asked);
    let mut id = 1;
    loop {
        id += 1;
        signers[0].ask(id, &Command::Info).await;
        // Those that hung come first, and may take their time.
        let line = within("an answer", signers[0].client.line()).await.unwrap();
        assert_eq!(line["id"], id);
        if line.get("ok").is_some() {
            return;
        }
        assert_eq!(line["error"]["code"], "busy");
    }
}

#[tokio::test]
async fn with_nobody_left_to_look_the_server_is_shutting_down() {
    let keys = Keys::with_deploy();
    let (world, mut looks, _) = edited(&keys, Limits::default());
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &Command::Info).await;
    drop(within("a look", looks.recv()).await.unwrap());
    signer
        .client
        .expect_refusal(json!(1), "shutting_down")
        .await;
    drop(looks);
    signer.ask(2, &Command::Info).await;
    signer
        .client
        .expect_refusal(json!(2), "shutting_down")
        .await;
}

#[tokio::test]
async fn unsigned_commands_are_not_looked_for() {
    let keys = Keys::with_deploy();
    let (world, mut looks, check) = edited(&keys, Limits::default());
    world.control.configure(unsigned());
    let _core = obey(world.asked);
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.expect_ok(1).await;
    assert_eq!(check.asked.load(Ordering::Relaxed), 0);
    assert!(looks.try_recv().is_err());
}

/// A check that panics, as a stat of ours never should.
#[derive(Debug)]
struct Broken;

impl ConfigCheck for Broken {
    fn is_current(&self) -> bool {
        panic!("planted");
    }
}

#[tokio::test]
async fn a_panic_while_a_token_is_checked_is_an_internal_error_and_costs_no_turn() {
    let keys = Keys::with_deploy();
    let config = ControlConfig {
        config: Arc::new(Broken),
        ..keys.config(Limits::default())
    };
    let mut world = world_with(config, 16);
    let mut signer = Signer::deploy(world.address).await;
    for id in 1..=10 {
        signer.ask(id, &Command::Info).await;
        signer.client.expect_refusal(json!(id), "internal").await;
    }
    assert!(world.asked.try_recv().is_err());
}
