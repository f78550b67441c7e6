//! Floods: who signs is served all the while.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{
    keyring::{Keys, Signer, line_with, private},
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

/// How many connections flood.
const FLOODS: usize = 100;

/// How many turns may pass, from a token being sent to its answer having come: a few of each
/// connection, for each may take one while the token is on its way to the queue, and one in it.
/// At 100 microseconds each that is far below a second; time itself is not measured here, where
/// client, flood and server share a thread, and the machine is shared with other tests.
const TURNS_MAX: usize = 5 * FLOODS;

/// Counts the turns that are taken.
#[derive(Debug, Default)]
struct Turns(AtomicUsize);

impl ConfigCheck for Turns {
    fn is_current(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// A hundred connections of the same peer send tokens that look real, as many as are taken.
async fn good_ones_wait_for_few(failures_per_peer_max: u32) {
    let keys = Keys::with_deploy();
    let limits = Limits {
        failures_per_peer_max,
        ..Limits::default()
    };
    let turns = Arc::new(Turns::default());
    let config = ControlConfig {
        config: Arc::clone(&turns) as Arc<dyn ConfigCheck>,
        ..keys.config(limits)
    };
    let world = world_with(config, 1_024);
    let _core = obey(world.asked);
    let mut first = Signer::deploy(world.address).await;
    first.obeyed(1).await;
    let bad = first.token_by(&private("deploy", 1), 1, &Command::Info);
    let lines = (1..=2 * u64::try_from(VERIFY_BATCH_MAX).unwrap()).map(|id| line_with(id, &bad));
    let lines: Arc<str> = lines.collect::<String>().into();
    let mut floods = JoinSet::new();
    for _ in 0..FLOODS {
        floods.spawn(flood(world.address, Arc::clone(&lines)));
    }
    let taken = || turns.0.load(Ordering::Relaxed);
    let mut most = 0;
    for id in 2..=12 {
        let before = taken();
        first.obeyed(id).await;
        most = most.max(taken() - before);
        let mut newcomer = Signer::deploy(world.address).await;
        let before = taken();
        newcomer.obeyed(1).await;
        most = most.max(taken() - before);
    }
    floods.shutdown().await;
    assert!(most <= TURNS_MAX, "{most} of {} turns", taken());
    // All is well afterwards.
    first.obeyed(13).await;
    within("closing", world.control.close()).await;
}

#[tokio::test]
async fn a_flood_of_bad_tokens_keeps_nobody_from_being_served() {
    good_ones_wait_for_few(FAILURES_PER_PEER_MAX).await;
}

#[tokio::test]
async fn a_flood_that_patience_does_not_end_keeps_nobody_from_being_served() {
    good_ones_wait_for_few(u32::MAX).await;
}

#[tokio::test]
async fn who_has_shown_nothing_yet_takes_a_turn_for_each_token() {
    let keys = Keys::with_deploy();
    let turns = Arc::new(Turns::default());
    let config = ControlConfig {
        config: Arc::clone(&turns) as Arc<dyn ConfigCheck>,
        ..keys.config(Limits::default())
    };
    let world = world_with(config, 16);
    let _core = obey(world.asked);
    let mut signer = Signer::deploy(world.address).await;
    let count = u64::try_from(VERIFY_BATCH_MAX).unwrap();
    for (first, is_proven) in [(1, false), (100, true)] {
        let before = turns.0.load(Ordering::Relaxed);
        let bad = first..first + count;
        let lines: String = bad.clone().map(|id| line_with(id, "a.b.c")).collect();
        signer.client.send(lines).await;
        for id in bad {
            signer
                .client
                .expect_refusal(json!(id), "unauthorized")
                .await;
        }
        let taken = turns.0.load(Ordering::Relaxed) - before;
        assert_eq!(taken == VERIFY_BATCH_MAX, !is_proven, "{taken}");
        signer.obeyed(50 + first).await;
    }
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
