//! Signed commands: their order, and what happens while they are checked.

use tokio::sync::Semaphore;

use super::{
    keyring::{Keys, Signer, line_with},
    *,
};
use crate::{
    control::limits::{VERIFICATIONS_MAX, VERIFY_BATCH_MAX},
    spec::Verb,
};

fn start(number: u64) -> Command {
    Command::Child {
        verb: Verb::Start,
        child: format!("c{number}").parse().unwrap(),
    }
}

#[tokio::test]
async fn signed_and_unsigned_commands_are_handed_over_in_their_order() {
    let keys = Keys::with_deploy();
    let mut world = world_with(
        ControlConfig {
            policy: unsigned(),
            ..keys.config(Limits::default())
        },
        1_024,
    );
    let mut signer = Signer::deploy(world.address).await;
    let count = 5 * u64::try_from(VERIFY_BATCH_MAX).unwrap();
    let lines = (1..=count).map(|id| match id % 20 {
        0 => format!("{{\"id\":{id},\"command\":{{\"op\":\"start\",\"child\":\"c{id}\"}}}}\n"),
        _ => signer.line_of(id, &start(id)),
    });
    let lines: String = lines.collect();
    signer.client.send(lines).await;
    for id in 1..=count {
        let asked = within("a request", world.asked.recv()).await.unwrap();
        assert_eq!(asked.command, start(id));
    }
}

#[tokio::test]
async fn bad_tokens_among_good_ones_cost_the_good_ones_nothing() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    let lines = (1..=40).map(|id| match id % 2 {
        0 => line_with(id, "a.b.c"),
        _ => signer.line_of(id, &start(id)),
    });
    let lines: String = lines.collect();
    signer.client.send(lines).await;
    let mut answered = Vec::new();
    for _ in 1..=40 {
        let line = signer.client.line().await.unwrap();
        let id = line["id"].as_u64().unwrap();
        assert_eq!(line["ok"].is_object(), id % 2 == 1, "{line}");
        answered.push(id);
    }
    answered.sort_unstable();
    assert_eq!(answered, (1..=40).collect::<Vec<u64>>());
    world.control.close().await;
    let expected: Vec<Command> = (1..=40).filter(|id| id % 2 == 1).map(start).collect();
    assert_eq!(within("the core", core).await.unwrap(), expected);
}

#[tokio::test]
async fn ids_increase_from_tokens_to_commands_and_back() {
    let keys = Keys::with_deploy();
    for (first, second) in [(true, false), (false, true), (true, true)] {
        let world = world_with(
            ControlConfig {
                policy: unsigned(),
                ..keys.config(Limits::default())
            },
            16,
        );
        let core = obey(world.asked);
        let mut signer = Signer::deploy(world.address).await;
        let line = |is_signed| match is_signed {
            true => signer.line_of(5, &Command::Info),
            false => "{\"id\":5,\"command\":{\"op\":\"info\"}}\n".to_owned(),
        };
        let lines = line(first) + &line(second);
        signer.client.send(lines).await;
        let refusal = json!({"id":5,"code":"bad_request"});
        let mut lines = vec![signer.client.line().await.unwrap()];
        lines.push(signer.client.line().await.unwrap());
        assert!(lines.iter().any(|line| line["ok"].is_object()), "{lines:?}");
        let told = |line: &Value| json!({"id":line["id"],"code":line["error"]["code"]});
        assert!(lines.iter().any(|line| told(line) == refusal), "{lines:?}");
        signer.client.expect_end().await;
        world.control.close().await;
        assert_eq!(within("the core", core).await.unwrap(), [Command::Info]);
    }
}

#[tokio::test]
async fn a_line_that_is_no_request_is_refused_after_the_tokens_before_it() {
    let keys = Keys::with_deploy();
    for bad in [
        "nonsense\n".to_owned(),
        "x".repeat(3 * protocol::LINE_BYTES_MAX),
    ] {
        let world = keys.world();
        let core = obey(world.asked);
        let mut signer = Signer::deploy(world.address).await;
        let lines = signer.line_of(1, &start(1)) + &signer.line_of(2, &start(2)) + &bad;
        signer.client.send(lines).await;
        let mut done = Vec::new();
        for _ in 0..3 {
            let line = signer.client.line().await.unwrap();
            done.push(line["id"].as_u64().filter(|_| line["ok"].is_object()));
        }
        done.sort_unstable();
        assert_eq!(done, [None, Some(1), Some(2)]);
        signer.client.expect_end().await;
        world.control.close().await;
        assert_eq!(
            within("the core", core).await.unwrap(),
            [start(1), start(2)]
        );
    }
}

#[tokio::test]
async fn who_signs_and_says_that_nothing_follows_still_gets_the_answers() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    let lines: String = (1..=40).map(|id| signer.line_of(id, &start(id))).collect();
    signer.client.send(lines).await;
    signer.client.0.shutdown().await.unwrap();
    for _ in 1..=40 {
        let line = signer.client.line().await.unwrap();
        assert!(line["ok"].is_object(), "{line}");
    }
    signer.client.expect_end().await;
}

#[tokio::test]
async fn signed_looks_are_held_back_like_others_and_nothing_overtakes_them() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    let looks = u64::try_from(LOOKS_IN_FLIGHT_MAX).unwrap();
    let lines: String = (1..=looks + 1)
        .map(|id| signer.line_of(id, &Command::Info))
        .collect();
    let lines = lines + &signer.line_of(50, &start(50));
    signer.client.send(lines).await;
    let mut taken = Vec::new();
    for _ in 0..looks {
        taken.push(within("a request", world.asked.recv()).await.unwrap());
    }
    // A whole exchange later there is still no other.
    let mut other = Signer::deploy(world.address).await;
    other.ask(1, &start(1)).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    assert_eq!(asked.command, start(1));
    asked.reply.send(Ok(done(&asked.command)));
    other.client.expect_ok(1).await;
    assert!(world.asked.try_recv().is_err());
    for Asked { command, reply, .. } in taken {
        reply.send(Ok(done(&command)));
    }
    for expected in [Command::Info, start(50)] {
        let asked = within("a request", world.asked.recv()).await.unwrap();
        assert_eq!(asked.command, expected);
    }
}

/// All turns, so that tokens wait.
async fn all_turns(world: &World) -> tokio::sync::OwnedSemaphorePermit {
    let turns: Arc<Semaphore> = Arc::clone(&world.control.shared.tokens.turns);
    let all = u32::try_from(VERIFICATIONS_MAX).unwrap();
    within("all turns", turns.acquire_many_owned(all))
        .await
        .unwrap()
}

/// Waits until what was sent just now is read: a whole exchange of another connection later.
async fn until_read(world: &World) {
    let mut other = Client::greeted(world.address).await;
    other.ask(1, "info").await;
    other.expect_refusal(json!(1), "unauthorized").await;
}

#[tokio::test]
async fn at_the_end_what_is_being_checked_is_shutting_down_and_not_carried_out() {
    let keys = Keys::with_deploy();
    let mut world = keys.world();
    let mut signer = Signer::deploy(world.address).await;
    signer.ask(1, &start(1)).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(done(&asked.command)));
    signer.client.expect_ok(1).await;
    let turns = all_turns(&world).await;
    let lines = signer.line_of(2, &start(2)) + &signer.line_of(3, &start(3));
    signer.client.send(lines).await;
    until_read(&world).await;
    within("closing", world.control.close()).await;
    for id in 2..=3 {
        signer
            .client
            .expect_refusal(json!(id), "shutting_down")
            .await;
    }
    signer.client.expect_end().await;
    drop(turns);
    assert!(world.asked.recv().await.is_none());
}

#[tokio::test]
async fn who_has_signed_nothing_yet_makes_room_while_its_token_waits() {
    let keys = Keys::with_deploy();
    let world = world_with(keys.config(few(1)), 16);
    let mut signer = Signer::deploy(world.address).await;
    let turns = all_turns(&world).await;
    signer.ask(1, &start(1)).await;
    let _newcomer = Client::greeted(world.address).await;
    signer.client.expect_room_made().await;
    drop(turns);
    world.control.close().await;
    let mut asked = world.asked;
    assert!(asked.recv().await.is_none());
}

#[tokio::test]
async fn who_has_signed_before_is_not_pushed_out_while_its_token_waits() {
    let keys = Keys::with_deploy();
    let world = world_with(keys.config(few(1)), 16);
    let _core = obey(world.asked);
    let mut signers = Vec::new();
    for _ in 0..2 {
        // The second is another peer's, for the first has signed.
        let mut signer = Signer::deploy(world.address).await;
        if signers.is_empty() {
            signer.obeyed(1).await;
        }
        signers.push(signer);
    }
    let turns = Arc::clone(&world.control.shared.tokens.turns);
    let all = u32::try_from(VERIFICATIONS_MAX).unwrap();
    let turns = within("all turns", turns.acquire_many_owned(all))
        .await
        .unwrap();
    signers[0].ask(2, &start(2)).await;
    // The silent one makes room, not the one at work.
    let _newcomer = Client::greeted(world.address).await;
    signers[1].client.expect_room_made().await;
    drop(turns);
    signers[0].client.expect_ok(2).await;
}

#[tokio::test]
async fn a_connection_whose_tokens_wait_is_not_read_from() {
    let keys = Keys::with_deploy();
    let world = keys.world();
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    let turns = Arc::clone(&world.control.shared.tokens.turns);
    let all = u32::try_from(VERIFICATIONS_MAX).unwrap();
    let turns = within("all turns", turns.acquire_many_owned(all))
        .await
        .unwrap();
    signer.ask(1, &start(1)).await;
    // More than all buffers on the way hold does not get through.
    let junk = vec![b' '; 64 * 1024 * 1024];
    let sent = timeout(Duration::from_millis(500), signer.client.0.write_all(&junk)).await;
    assert!(sent.is_err(), "{sent:?}");
    drop(turns);
    let mut lines = vec![signer.client.line().await.unwrap()];
    lines.push(signer.client.line().await.unwrap());
    assert!(lines.iter().any(|line| line["ok"].is_object()), "{lines:?}");
    let is_too_large = |line: &Value| line["error"]["code"] == "too_large";
    assert!(lines.iter().any(is_too_large), "{lines:?}");
}
