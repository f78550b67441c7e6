//! Floods: who signs is served all the while.

use super::{
    keyring::{Keys, Signer, line_with, pair, private},
    *,
};
use crate::control::limits::VERIFY_BATCH_MAX;

/// Sends tokens as fast as they are taken, on one connection after another.
async fn flood(address: SocketAddr, lines: Arc<str>) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            tokio::task::yield_now().await;
            continue;
        };
        // An error is the end of a connection.
        while stream.write_all(lines.as_bytes()).await.is_ok() {
            let mut answers = [0; 64 * 1024];
            match stream.read(&mut answers).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}

/// A hundred connections of the same peer send bad tokens: that look real, and that do not.
async fn good_ones_are_answered_within_a_second(failures_per_peer_max: u32) {
    let keys = Keys::with_deploy();
    keys.put("other.pem", &pair(1).public_pem);
    let limits = Limits {
        failures_per_peer_max,
        ..Limits::default()
    };
    let world = world_with(keys.config(limits), 1_024);
    let _core = obey(world.asked);
    let mut first = Signer::connect(world.address, private("deploy", 0)).await;
    first.obeyed(1).await;
    let bad = first.token_by(&private("deploy", 1), 1, &Command::Info);
    let lines = (1..=2 * u64::try_from(VERIFY_BATCH_MAX).unwrap()).map(|id| line_with(id, &bad));
    let lines: Arc<str> = lines.collect::<String>().into();
    let mut floods = JoinSet::new();
    for _ in 0..100 {
        floods.spawn(flood(world.address, Arc::clone(&lines)));
    }
    let mut slowest = Duration::ZERO;
    for id in 2..=20 {
        let began = Instant::now();
        first.obeyed(id).await;
        Signer::deploy(world.address).await.obeyed(1).await;
        slowest = slowest.max(began.elapsed());
        tokio::task::yield_now().await;
    }
    floods.shutdown().await;
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // All is well afterwards.
    first.obeyed(21).await;
    within("closing", world.control.close()).await;
}

#[tokio::test]
async fn a_flood_of_bad_tokens_keeps_nobody_from_being_served() {
    good_ones_are_answered_within_a_second(FAILURES_PER_PEER_MAX).await;
}

#[tokio::test]
async fn a_flood_that_patience_does_not_end_keeps_nobody_from_being_served() {
    good_ones_are_answered_within_a_second(u32::MAX).await;
}

#[tokio::test]
async fn connections_that_sign_leave_room_for_others_of_their_address() {
    let keys = Keys::with_deploy();
    let world = world_with(keys.config(few(4)), 16);
    let _core = obey(world.asked);
    let mut signers = Vec::new();
    for _ in 0..4 {
        let mut signer = Signer::deploy(world.address).await;
        signer.obeyed(1).await;
        signers.push(signer);
    }
    // As many silent ones as the address may have, less the slot in reserve.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(Client::greeted(world.address).await);
    }
    for signer in &mut signers {
        signer.obeyed(2).await;
    }
    silent[0].ask(1, "info").await;
    silent[0].expect_refusal(json!(1), "unauthorized").await;
}

#[tokio::test]
async fn a_key_s_longest_idle_connection_makes_room_for_its_next() {
    let keys = Keys::with_deploy();
    let limits = Limits {
        connections_max: 16,
        connections_per_peer_max: 3,
        ..Limits::default()
    };
    let world = world_with(keys.config(limits), 16);
    let _core = obey(world.asked);
    let mut signers = Vec::new();
    for _ in 0..4 {
        let mut signer = Signer::deploy(world.address).await;
        signer.obeyed(1).await;
        signers.push(signer);
    }
    signers[0].client.expect_room_made().await;
    for signer in &mut signers[1..] {
        signer.obeyed(2).await;
    }
}

#[tokio::test]
async fn a_key_whose_connections_are_all_at_work_is_busy() {
    let keys = Keys::with_deploy();
    let limits = Limits {
        connections_max: 16,
        connections_per_peer_max: 2,
        ..Limits::default()
    };
    let mut world = world_with(keys.config(limits), 16);
    let mut signers = Vec::new();
    let mut taken = Vec::new();
    for _ in 0..2 {
        let mut signer = Signer::deploy(world.address).await;
        signer.ask(1, &Command::Info).await;
        taken.push(within("a request", world.asked.recv()).await.unwrap());
        signers.push(signer);
    }
    let mut third = Signer::deploy(world.address).await;
    third.ask(1, &Command::Info).await;
    third.client.expect_refusal(json!(1), "busy").await;
    third.client.expect_end().await;
    assert!(world.asked.try_recv().is_err());
    for Asked { command, reply, .. } in taken {
        reply.send(Ok(done(&command)));
    }
    for signer in &mut signers {
        signer.client.expect_ok(1).await;
    }
}
