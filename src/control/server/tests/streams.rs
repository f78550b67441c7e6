//! Streams: parts before the answer, for those who read them and for those who do not.

use super::{super::super::asked::NotTaken, parking::go_on, *};

const FOLLOW: &str = "{\"id\":1,\"command\":{\"op\":\"events\",\"follow\":true}}\n";

/// A connection that follows, and where it is told.
async fn following(world: &mut World) -> (Client, crate::control::asked::Reply) {
    let mut client = Client::greeted(world.address).await;
    client.send(FOLLOW).await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    (client, asked.reply)
}

fn event(seq: u64) -> Value {
    json!({"seq": seq, "text": "x".repeat(1_000)})
}

#[tokio::test]
async fn parts_of_a_stream_come_in_order_and_the_answer_last() {
    let mut world = world();
    let (mut client, mut reply) = following(&mut world).await;
    client.ask(2, "info").await;
    for seq in 1..=200 {
        reply.tell(&event(seq)).unwrap();
    }
    reply.send(Ok(done(&Command::Info)));
    for seq in 1..=200 {
        let line = client.line().await.unwrap();
        assert_eq!(line, json!({"id": 1, "event": event(seq)}));
    }
    client.expect_ok(1).await;
    let other = within("a request", world.asked.recv()).await.unwrap();
    other.reply.send(Ok(done(&Command::Info)));
    client.expect_ok(2).await;
}

#[tokio::test]
async fn who_does_not_read_a_stream_takes_bounded_memory_and_is_told_where_it_ends() {
    let mut world = world();
    let (mut client, mut reply) = following(&mut world).await;
    // Nobody else's turn comes meanwhile, so that nothing is read.
    let bytes = json!({"id": 1, "event": event(1)}).to_string().len() + 1;
    let mut told = 0;
    let not_taken = loop {
        match reply.tell(&event(told + 1)) {
            Ok(()) => told += 1,
            Err(not_taken) => break not_taken,
        }
    };
    assert_eq!(not_taken, NotTaken::Behind);
    let told_bytes = usize::try_from(told).unwrap() * bytes;
    assert!(told_bytes <= EVENT_BYTES_WAITING_MAX, "{told_bytes}");
    assert!(
        told_bytes + 8 * bytes > EVENT_BYTES_WAITING_MAX,
        "{told_bytes}"
    );
    // One more that would fit leaves no gap all the same.
    assert_eq!(reply.tell(&json!(1)), Err(NotTaken::CutOff));
    reply.send(Err(Failure::new(ErrorCode::Busy, "too slow")));
    for seq in 1..=told {
        let line = client.line().await.unwrap();
        assert_eq!(line["event"]["seq"], seq);
    }
    client.expect_refusal(json!(1), "busy").await;
    // What was read counts no more.
    client.send(FOLLOW.replace("\"id\":1", "\"id\":2")).await;
    let again = within("a request", world.asked.recv()).await.unwrap();
    let mut reply = again.reply;
    for seq in 1..=told {
        reply.tell(&event(seq)).unwrap();
    }
}

#[tokio::test]
async fn a_stream_whose_client_is_gone_is_told_so() {
    let mut world = world();
    let (client, mut reply) = following(&mut world).await;
    drop(client);
    within("the end of the connection", async {
        while !reply.is_unheard() {
            let _may_be_taken = reply.tell(&event(1));
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(reply.tell(&event(2)), Err(NotTaken::Gone));
    assert_eq!(reply.tell(&event(3)), Err(NotTaken::CutOff));
}

#[tokio::test]
async fn a_stream_goes_on_in_another_program() {
    let mut world = world();
    let (mut client, mut reply) = following(&mut world).await;
    reply.tell(&event(1)).unwrap();
    within("parking", world.control.park()).await.unwrap();
    reply.tell(&event(2)).unwrap();
    let address = reply.hand_over();
    let config = config(Limits::default());
    let (control, _asked, _handed) = go_on(world.control, config).await;
    let mut reply = control.reply(address);
    reply.tell(&event(3)).unwrap();
    for seq in 1..=3 {
        assert_eq!(client.line().await.unwrap()["event"]["seq"], seq);
    }
    reply.send(Ok(done(&Command::Info)));
    client.expect_ok(1).await;
}
