//! The control plane stops where it is, and goes on: here, or as another program would.

use std::os::fd::OwnedFd;

use super::{
    keyring::{Keys, Signer},
    *,
};

/// As another program goes on with it: through what is written down.
async fn another(world: World, config: ControlConfig) -> (World, HandedControl) {
    another_after(|| (), world, config).await
}

/// Goes on with what is parked, through what is written down.
pub(super) async fn go_on(
    control: Control,
    config: ControlConfig,
) -> (Control, mpsc::Receiver<Asked>, HandedControl) {
    let handed = within("leaving", control.hand_over()).await.unwrap();
    let mut bytes = Vec::new();
    ciborium::into_writer(&handed, &mut bytes).unwrap();
    let read: HandedControl = ciborium::from_reader(bytes.as_slice()).unwrap();
    let copies: std::collections::BTreeMap<i32, OwnedFd> = handed
        .passed()
        .map(|passed| {
            let held = passed.held().unwrap();
            let number = std::os::fd::AsRawFd::as_raw_fd(&held);
            (number, held.try_clone_to_owned().unwrap())
        })
        .collect();
    let claim = |number: i32| copies[&number].try_clone();
    let config = ControlConfig {
        listeners: Vec::new(),
        ..config
    };
    let (requests, asked) = mpsc::channel(1_024);
    let control = Control::take_over(config, read, requests, &claim).unwrap();
    (control, asked, handed)
}

/// As that, and this happens while all is parked.
async fn another_after(
    meanwhile: impl FnOnce(),
    world: World,
    config: ControlConfig,
) -> (World, HandedControl) {
    let World {
        control,
        mut asked,
        address,
    } = world;
    within("parking", control.park()).await.unwrap();
    meanwhile();
    let mut waiting = Vec::new();
    while let Ok(next) = asked.try_recv() {
        waiting.push(next);
    }
    assert!(waiting.is_empty(), "{waiting:?}");
    let (control, asked, handed) = go_on(control, config).await;
    let world = World {
        control,
        asked,
        address,
    };
    (world, handed)
}

#[tokio::test]
async fn half_a_line_goes_on_here_and_in_another_program() {
    for goes_over in [false, true] {
        let mut world = world();
        let mut client = Client::greeted(world.address).await;
        client.send("{\"id\":1,\"command\":").await;
        let mut quiet = Client::greeted(world.address).await;
        if goes_over {
            (world, _) = another(world, config(Limits::default())).await;
        } else {
            within("parking", world.control.park()).await.unwrap();
            world.control.unpark();
        }
        let core = obey(world.asked);
        client.send("{\"op\":\"info\"}}\n").await;
        client.expect_ok(1).await;
        client.ask(1, "info").await;
        client.expect_refusal(json!(1), "bad_request").await;
        quiet.ask(1, "info").await;
        quiet.expect_ok(1).await;
        Client::greeted(world.address).await.ask(1, "info").await;
        within("closing", world.control.close()).await;
        drop(core);
    }
}

#[tokio::test]
async fn nobody_is_heard_while_all_is_parked_and_who_connects_waits() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    within("parking", world.control.park()).await.unwrap();
    client.ask(1, "info").await;
    let mut waits = Client::connect(world.address).await;
    assert!(
        timeout(Duration::from_millis(50), waits.line())
            .await
            .is_err()
    );
    assert!(world.asked.try_recv().is_err());
    world.control.unpark();
    let _core = obey(world.asked);
    client.expect_ok(1).await;
    assert!(waits.line().await.unwrap()["hello"].is_object());
}

#[tokio::test]
async fn an_answer_that_comes_while_all_is_parked_is_written_and_one_that_comes_later_too() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.ask(2, "check").await;
    let first = within("a request", world.asked.recv()).await.unwrap();
    let second = within("a request", world.asked.recv()).await.unwrap();
    let answer = || first.reply.send(Ok(done(&first.command)));
    let address = second.reply.hand_over();
    let (world, _) = another_after(answer, world, config(Limits::default())).await;
    client.expect_ok(1).await;
    world.control.reply(address).send(Ok(done(&second.command)));
    client.expect_ok(2).await;
}

#[tokio::test]
async fn a_slow_reader_does_not_hold_it_up_and_gets_every_byte() {
    const LONG: usize = 4 * 1024 * 1024;
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(long(&asked.command, LONG)));
    // It is being written: the client reads nothing.
    let (world, _) = another(world, config(Limits::default())).await;
    let line = client.line().await.unwrap();
    assert_eq!(line["ok"]["message"].as_str().unwrap().len(), LONG);
    drop(world);
}

#[tokio::test]
async fn a_client_that_is_gone_is_answered_into_nothing() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    drop(client);
    let address = asked.reply.hand_over();
    let (world, handed) = another(world, config(Limits::default())).await;
    assert!(handed.connections() <= 1);
    world.control.reply(address).send(Ok(done(&asked.command)));
    within("closing", world.control.close()).await;
}

#[tokio::test]
async fn refusals_are_counted_on() {
    let limits = Limits {
        failures_per_peer_max: 2,
        ..Limits::default()
    };
    let refusing = |limits| ControlConfig {
        policy: encrypted(),
        ..config(limits)
    };
    let world = world_with(refusing(limits), 16);
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.expect_refusal(json!(1), "unauthorized").await;
    client.ask(2, "info").await;
    client.expect_refusal(json!(2), "unauthorized").await;
    let (_world, _) = another(world, refusing(limits)).await;
    client.ask(3, "info").await;
    client.expect_refusal(json!(3), "busy").await;
    client.expect_end().await;
}

#[tokio::test]
async fn a_connection_keeps_its_key_and_ends_with_it() {
    for is_there in [true, false] {
        let keys = Keys::with_deploy();
        let mut world = keys.world();
        let mut signer = Signer::deploy(world.address).await;
        signer.ask(1, &Command::Info).await;
        let asked = within("a request", world.asked.recv()).await.unwrap();
        asked.reply.send(Ok(done(&asked.command)));
        signer.client.expect_ok(1).await;
        let ring = Arc::new(Ring::new(vec![keys.dir.clone()], us()));
        let next = ControlConfig {
            ring,
            ..keys.config(Limits::default())
        };
        let (world, _) = another(world, next).await;
        if !is_there {
            keys.remove("deploy.pem");
        }
        world.control.recheck_keys();
        let _core = obey(world.asked);
        if is_there {
            signer.obeyed(2).await;
            keys.remove("deploy.pem");
            world.control.recheck_keys();
        }
        let why = Value::Null;
        signer.client.expect_refusal(why, "unauthorized").await;
        signer.client.expect_end().await;
    }
}

#[tokio::test]
async fn a_key_that_goes_while_all_is_parked_ends_its_connection() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    signer.obeyed(1).await;
    within("parking", world.control.park()).await.unwrap();
    keys.remove("deploy.pem");
    world.control.recheck_keys();
    let idle = async {
        while !world.control.is_quiet() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within("the look", idle).await;
    world.control.unpark();
    let why = Value::Null;
    signer.client.expect_refusal(why, "unauthorized").await;
    signer.client.expect_end().await;
}

#[tokio::test]
async fn tokens_that_were_read_are_checked_by_the_next_program() {
    let keys = Keys::with_deploy();
    // Nobody looks at server.yml here, so that the check is under way for as long as one likes.
    #[derive(Debug)]
    struct Edited;
    impl ConfigCheck for Edited {
        fn is_current(&self) -> bool {
            false
        }
    }
    let (looks, mut looked) = mpsc::channel(8);
    let first = ControlConfig {
        config: Arc::new(Edited),
        looks,
        ..keys.config(Limits::default())
    };
    let world = world_with(first, 16);
    let mut signer = Signer::deploy(world.address).await;
    for id in 1..=5 {
        signer.ask(id, &Command::Info).await;
    }
    let look = within("a look", looked.recv()).await.unwrap();
    assert!(!world.control.is_quiet(), "a token is being checked");
    let (world, _) = another(world, keys.config(Limits::default())).await;
    drop(look);
    let core = obey(world.asked);
    for id in 1..=5 {
        signer.client.expect_ok(id).await;
    }
    within("closing", world.control.close()).await;
    assert_eq!(within("the core", core).await.unwrap().len(), 5);
}

#[tokio::test]
async fn an_end_while_all_is_parked_ends_it() {
    let world = world();
    let mut client = Client::greeted(world.address).await;
    within("parking", world.control.park()).await.unwrap();
    within("closing", world.control.close()).await;
    client.expect_end().await;
}
