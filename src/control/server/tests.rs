//! The server over loopback, with a task that plays the core.

use std::{
    cell::Cell,
    future::Future,
    io::Read,
    net::{Ipv4Addr, TcpStream as StdStream},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::Instant,
};

mod dropped_keys;
mod floods;
mod gone;
mod keyring;
mod local_users;
mod looks;
mod parking;
mod refusals;
mod signed;
mod signed_order;
mod streams;

use super::{
    super::limits::{
        CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, EVENT_BYTES_WAITING_MAX, FAILURES_PER_PEER_MAX,
        FAILURES_REFILL_PER_S, FIRST_REQUEST_TIME_MAX, IDLE_TIME_MAX, IN_FLIGHT_MAX,
        KEYS_PER_CONNECTION_MAX, LOOKS_IN_FLIGHT_MAX, WRITE_TIME_MAX,
    },
    *,
};
use crate::{
    command::{Answer, Command, Done, ErrorCode, Failure, Op},
    spec::RunId,
    trust::Owners,
};

thread_local! {
    /// How many connections are yet to meet a panic; each test has a thread of its own.
    static PANICS_PLANTED: Cell<u32> = const { Cell::new(0) };
}

/// A fault where a connection is taken in, if a test wants one.
pub(super) fn panic_if_planted() {
    let left = PANICS_PLANTED.get();
    if left > 0 {
        PANICS_PLANTED.set(left - 1);
        panic!("planted");
    }
}

/// What every wait in these tests is bounded by.
const PATIENCE: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, wait).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took too long"),
    }
}

struct World {
    control: Control,
    asked: mpsc::Receiver<Asked>,
    address: SocketAddr,
}

/// The server's id.
const ID: &str = "0b6e8c1e-0000-4000-8000-000000000000";

/// A server.yml that nobody edits.
#[derive(Debug)]
struct Unedited;

impl ConfigCheck for Unedited {
    fn is_current(&self) -> bool {
        true
    }
}

/// Root, the user of these tests and nobody else.
fn us() -> Owners {
    Owners::new(&[]).unwrap()
}

fn unsigned() -> Policy {
    Policy {
        encrypt: false,
        allow_unsigned_remote: false,
        local_users: us(),
    }
}

fn encrypted() -> Policy {
    Policy {
        encrypt: true,
        ..unsigned()
    }
}

fn config(limits: Limits) -> ControlConfig {
    ControlConfig {
        listeners: vec![StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()],
        name: "here".to_owned(),
        id: ID.to_owned(),
        version: "1.0.0".to_owned(),
        policy: unsigned(),
        ring: Arc::new(Ring::new(Vec::new(), us())),
        config: Arc::new(Unedited),
        looks: mpsc::channel(1).0,
        refusals: mpsc::channel(1).0,
        limits,
    }
}

fn world_with(config: ControlConfig, queue: usize) -> World {
    let (requests, asked) = mpsc::channel(queue);
    let control = Control::start(config, requests).unwrap();
    let address = control.addresses()[0];
    World {
        control,
        asked,
        address,
    }
}

fn world() -> World {
    world_with(config(Limits::default()), 1_024)
}

/// Answers every command as done, until the control plane is gone.
fn obey(mut asked: mpsc::Receiver<Asked>) -> JoinHandle<Vec<Command>> {
    tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(Asked { command, reply, .. }) = asked.recv().await {
            reply.send(Ok(done(&command)));
            all.push(command);
        }
        all
    })
}

fn done(command: &Command) -> Answer {
    Answer::Done(Done {
        op: command.op(),
        child: "web".parse().unwrap(),
        pid: Some(7),
        run: Some(RunId(1)),
        exit: None,
        message: "done".to_owned(),
    })
}

/// An answer as long as this.
fn long(command: &Command, bytes: usize) -> Answer {
    let Answer::Done(mut long) = done(command) else {
        panic!("not done");
    };
    long.message = "x".repeat(bytes);
    Answer::Done(long)
}

struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = within("connecting", TcpStream::connect(address)).await;
        Self(BufReader::new(stream.unwrap()))
    }

    /// Connects and reads the hello.
    async fn greeted(address: SocketAddr) -> Self {
        let mut client = Self::connect(address).await;
        let hello = client.line().await.unwrap();
        assert_eq!(hello["hello"]["protocol"], 1, "{hello}");
        client
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("sending", self.0.write_all(bytes.as_ref()))
            .await
            .unwrap();
    }

    async fn ask(&mut self, id: u64, op: &str) {
        self.send(format!("{{\"id\":{id},\"command\":{{\"op\":\"{op}\"}}}}\n"))
            .await;
    }

    /// The next line; `None` at a clean end.
    async fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let count = within("a line", self.0.read_line(&mut line)).await.unwrap();
        (count > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    async fn expect_refusal(&mut self, id: Value, code: &str) {
        let line = self.line().await.unwrap_or(Value::Null);
        assert_eq!(
            (&line["id"], &line["error"]["code"]),
            (&id, &json!(code)),
            "{line}"
        );
    }

    async fn expect_ok(&mut self, id: u64) {
        let line = self.line().await.unwrap_or(Value::Null);
        assert_eq!(line["id"], id, "{line}");
        assert!(line["ok"].is_object(), "{line}");
    }

    async fn expect_end(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = within("the end", self.0.read_to_end(&mut rest)).await;
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

#[tokio::test]
async fn the_hello_tells_who_serves_and_has_a_nonce_of_its_own() {
    let world = world();
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let hello = Client::connect(world.address).await.line().await.unwrap()["hello"].clone();
        assert_eq!(hello["protocol"], 1);
        assert_eq!(hello["server"], "here");
        assert_eq!(hello["id"], ID);
        assert_eq!(hello["version"], "1.0.0");
        assert_eq!(hello["encrypt"], false);
        let now = crate::clock::wall().0 / 1_000;
        assert!((now - hello["time"].as_i64().unwrap()).abs() < 60);
        nonces.push(hello["nonce"].as_str().unwrap().to_owned());
    }
    assert_ne!(nonces[0], nonces[1]);
}

#[tokio::test]
async fn a_command_is_handed_over_and_its_answer_comes_back() {
    let world = world();
    let core = obey(world.asked);
    let mut client = Client::greeted(world.address).await;
    client
        .send("{\"id\":5,\"command\":{\"op\":\"restart\",\"child\":\"web\"}}\n")
        .await;
    assert_eq!(
        client.line().await.unwrap(),
        json!({"id":5,"ok":{"op":"restart","child":"web","pid":7,"run":1,"message":"done"}})
    );
    world.control.close().await;
    assert_eq!(within("the core", core).await.unwrap().len(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_handed_over_in_order_and_answered_in_any() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    let lines: String = ["start", "stop", "restart"]
        .iter()
        .zip([3, 7, 20])
        .map(|(op, id)| {
            format!("{{\"id\":{id},\"command\":{{\"op\":\"{op}\",\"child\":\"web\"}}}}\n")
        })
        .collect();
    client.send(lines).await;
    let mut taken = Vec::new();
    for op in [Op::Start, Op::Stop, Op::Restart] {
        let asked = within("a request", world.asked.recv()).await.unwrap();
        assert_eq!(asked.command.op(), op);
        taken.push(asked);
    }
    for (asked, id) in taken.into_iter().rev().zip([20, 7, 3]) {
        asked.reply.send(Ok(done(&asked.command)));
        client.expect_ok(id).await;
    }
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let world = world();
    let _core = obey(world.asked);
    let mut client = Client::greeted(world.address).await;
    for byte in b"{\"id\":1,\"command\":{\"op\":\"info\"}}\r\n" {
        client.send([*byte]).await;
    }
    client.expect_ok(1).await;
}

#[tokio::test]
async fn a_posted_web_page_is_cut_off_at_its_first_line() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\r\n\
             {\"id\":1,\"command\":{\"op\":\"kill\",\"stop_children\":true}}\n",
        )
        .await;
    client.expect_refusal(Value::Null, "bad_request").await;
    client.expect_end().await;
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn nothing_after_a_line_that_is_no_request_is_carried_out() {
    let mut world = world();
    for (line, id) in [
        ("garbage", Value::Null),
        ("", Value::Null),
        ("{\"id\":1,\"command\":{\"op\":\"info\",\"x\":1}}", json!(1)),
        ("\u{0}\u{0}", Value::Null),
    ] {
        let mut client = Client::greeted(world.address).await;
        client
            .send(format!(
                "{line}\n{{\"id\":2,\"command\":{{\"op\":\"kill\"}}}}\n"
            ))
            .await;
        client.expect_refusal(id, "bad_request").await;
        client.expect_end().await;
    }
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn what_was_asked_before_a_bad_line_is_still_answered() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.send("nonsense\n").await;
    client.expect_refusal(Value::Null, "bad_request").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(done(&asked.command)));
    client.expect_ok(1).await;
    client.expect_end().await;
}

#[tokio::test]
async fn ids_that_do_not_increase_are_refused() {
    for second in [1, 0] {
        let world = world();
        let _core = obey(world.asked);
        let mut client = Client::greeted(world.address).await;
        client.ask(1, "info").await;
        client.expect_ok(1).await;
        client.ask(second, "info").await;
        client.expect_refusal(json!(second), "bad_request").await;
        client.expect_end().await;
    }
}

#[tokio::test]
async fn half_a_line_is_never_carried_out() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client
        .send("{\"id\":1,\"command\":{\"op\":\"kill\"}}")
        .await;
    client.0.shutdown().await.unwrap();
    client.expect_end().await;
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_line_may_have_64_kib_and_not_one_byte_more() {
    let world = world();
    let _core = obey(world.asked);
    let command = "{\"id\":1,\"command\":{\"op\":\"info\"}}";
    let fill = |bytes: usize| format!("{command}{}", " ".repeat(bytes - command.len()));

    let mut client = Client::greeted(world.address).await;
    client.send(fill(protocol::LINE_BYTES_MAX) + "\n").await;
    client.expect_ok(1).await;

    for line in [
        fill(protocol::LINE_BYTES_MAX + 1) + "\n",
        fill(protocol::LINE_BYTES_MAX + 1),
        "x".repeat(3 * protocol::LINE_BYTES_MAX),
    ] {
        let mut client = Client::greeted(world.address).await;
        client.send(line).await;
        client.expect_refusal(Value::Null, "too_large").await;
        client.expect_end().await;
    }
}

#[tokio::test]
async fn more_requests_in_flight_than_allowed_are_busy() {
    let limits = Limits {
        in_flight_max: 2,
        looks_in_flight_max: IN_FLIGHT_MAX,
        ..Limits::default()
    };
    let mut world = world_with(config(limits), 16);
    let mut client = Client::greeted(world.address).await;
    for id in 1..=3 {
        client.ask(id, "info").await;
    }
    client.expect_refusal(json!(3), "busy").await;
    for id in 1..=2 {
        let asked = within("a request", world.asked.recv()).await.unwrap();
        asked.reply.send(Ok(done(&asked.command)));
        client.expect_ok(id).await;
    }
    client.ask(4, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(done(&asked.command)));
    client.expect_ok(4).await;
}

#[tokio::test]
async fn a_full_queue_is_busy_and_a_closed_one_is_shutting_down() {
    let mut world = world_with(config(Limits::default()), 1);
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.ask(2, "info").await;
    client.expect_refusal(json!(2), "busy").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(done(&asked.command)));
    client.expect_ok(1).await;
    drop(world.asked);
    client.ask(3, "info").await;
    client.expect_refusal(json!(3), "shutting_down").await;
}

#[tokio::test]
async fn a_dropped_reply_is_an_internal_error() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    drop(within("a request", world.asked.recv()).await);
    client.expect_refusal(json!(1), "internal").await;
}

#[tokio::test]
async fn a_command_whose_client_is_gone_is_carried_out() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    drop(client);
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(done(&asked.command)));
    let core = obey(world.asked);
    let mut next = Client::greeted(world.address).await;
    next.ask(1, "info").await;
    next.expect_ok(1).await;
    drop(core);
}

#[tokio::test]
async fn who_says_that_nothing_follows_still_gets_the_answer() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.0.shutdown().await.unwrap();
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(done(&asked.command)));
    client.expect_ok(1).await;
    client.expect_end().await;
}

// I10
#[tokio::test]
async fn with_encrypt_on_unsigned_commands_and_tokens_are_unauthorized() {
    let mut world = world_with(
        ControlConfig {
            policy: encrypted(),
            ..config(Limits::default())
        },
        16,
    );
    let mut client = Client::connect(world.address).await;
    assert_eq!(client.line().await.unwrap()["hello"]["encrypt"], true);
    client.ask(1, "kill").await;
    let unsigned = client.line().await.unwrap();
    client.send("{\"id\":2,\"token\":\"a.b.c\"}\n").await;
    let token = client.line().await.unwrap();
    assert_eq!(unsigned["error"]["code"], "unauthorized");
    assert_eq!(unsigned["error"], token["error"]);
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn who_may_not_command_is_not_kept_for_asking() {
    let limits = Limits {
        first_request_time_max: Duration::from_millis(300),
        failures_per_peer_max: u32::MAX,
        ..Limits::default()
    };
    let world = world_with(
        ControlConfig {
            policy: encrypted(),
            ..config(limits)
        },
        16,
    );
    let mut client = Client::greeted(world.address).await;
    for id in 1.. {
        let request = format!("{{\"id\":{id},\"token\":\"x\"}}\n");
        if client.0.write_all(request.as_bytes()).await.is_err() {
            break;
        }
        let line = client.line().await.unwrap();
        if line["error"]["code"] == "timeout" {
            client.expect_end().await;
            break;
        }
        assert_eq!(line["error"]["code"], "unauthorized");
    }
}

#[tokio::test]
async fn who_says_nothing_is_sent_away() {
    let limits = Limits {
        first_request_time_max: Duration::from_millis(50),
        ..Limits::default()
    };
    let world = world_with(config(limits), 16);
    let mut silent = Client::greeted(world.address).await;
    silent.expect_refusal(Value::Null, "timeout").await;
    silent.expect_end().await;
    let mut dripping = Client::greeted(world.address).await;
    dripping.send("{\"id\":1,").await;
    dripping.expect_refusal(Value::Null, "timeout").await;
    dripping.expect_end().await;
}

#[tokio::test]
async fn an_idle_connection_ends_but_not_while_it_waits_for_an_answer() {
    let limits = Limits {
        idle_time_max: Duration::from_millis(100),
        ..Limits::default()
    };
    let mut world = world_with(config(limits), 16);
    let mut client = Client::greeted(world.address).await;
    let began = Instant::now();
    client.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    let silence = timeout(Duration::from_millis(400), client.line()).await;
    assert!(silence.is_err(), "{silence:?}");
    asked.reply.send(Ok(done(&asked.command)));
    client.expect_ok(1).await;
    assert!(began.elapsed() >= Duration::from_millis(400));
    client.expect_refusal(Value::Null, "timeout").await;
    client.expect_end().await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let limits = Limits {
        connections_max: 8,
        connections_per_peer_max: 4,
        ..Limits::default()
    };
    let world = world_with(config(limits), 16);
    let _core = obey(world.asked);
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(Client::greeted(world.address).await);
    }
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.expect_ok(1).await;
    silent[0].expect_refusal(Value::Null, "busy").await;
    silent[0].expect_end().await;
}

fn few(connections_per_peer_max: usize) -> Limits {
    Limits {
        connections_max: 2 * connections_per_peer_max,
        connections_per_peer_max,
        ..Limits::default()
    }
}

/// Connects, gives a command and reads its answer.
async fn idle_client(address: SocketAddr) -> Client {
    let mut client = Client::greeted(address).await;
    client.ask(1, "info").await;
    client.expect_ok(1).await;
    client
}

impl Client {
    /// Told `busy` and ended without a reset.
    async fn expect_room_made(&mut self) {
        self.expect_refusal(Value::Null, "busy").await;
        assert_eq!(self.line().await, None);
    }
}

#[tokio::test]
async fn connections_that_wait_for_an_answer_are_not_pushed_out_and_the_next_is_busy() {
    let mut world = world_with(config(few(3)), 16);
    let mut waiting = Vec::new();
    let mut taken = Vec::new();
    for _ in 0..3 {
        let mut client = Client::greeted(world.address).await;
        client.ask(1, "info").await;
        taken.push(within("a request", world.asked.recv()).await.unwrap());
        waiting.push(client);
    }
    let mut refused = Client::connect(world.address).await;
    refused.expect_refusal(Value::Null, "busy").await;
    refused.expect_end().await;
    for Asked { command, reply, .. } in taken {
        reply.send(Ok(done(&command)));
    }
    for client in &mut waiting {
        client.expect_ok(1).await;
    }
}

#[tokio::test]
async fn idle_connections_keep_nobody_out_and_see_a_clean_end() {
    let world = world_with(config(few(3)), 16);
    let _core = obey(world.asked);
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(idle_client(world.address).await);
    }
    let (gone, kept) = idle.split_at_mut(17);
    for client in gone {
        client.expect_room_made().await;
    }
    for client in kept {
        client.ask(2, "info").await;
        client.expect_ok(2).await;
    }
}

#[tokio::test]
async fn the_connection_that_has_been_idle_longest_makes_room() {
    let world = world_with(config(few(3)), 16);
    let _core = obey(world.asked);
    let mut first = idle_client(world.address).await;
    let mut second = idle_client(world.address).await;
    let mut third = idle_client(world.address).await;
    first.ask(2, "info").await;
    first.expect_ok(2).await;
    let _fourth = idle_client(world.address).await;
    second.expect_room_made().await;
    for client in [&mut first, &mut third] {
        client.ask(3, "info").await;
        client.expect_ok(3).await;
    }
}

#[tokio::test]
async fn who_makes_room_is_gone_before_the_newcomer_is_greeted() {
    let world = world_with(config(few(1)), 16);
    let _core = obey(world.asked);
    let idle = idle_client(world.address).await;
    let _newcomer = Client::greeted(world.address).await;
    // Without waiting: the descriptor of the one is free when another is used.
    let mut idle = idle.0.into_inner().into_std().unwrap();
    let mut said = String::new();
    idle.read_to_string(&mut said).unwrap();
    let told: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["error"]["code"], "busy");
    // Nobody is there: the first byte is answered with a reset.
    let _ = idle.write(b"x");
    assert!(idle.write(b"x").is_err());
}

/// The newcomer is there before the command is, so that room is asked for first.
#[tokio::test]
async fn a_command_that_has_arrived_is_carried_out_whoever_needs_the_slot() {
    for _ in 0..50 {
        let world = world_with(config(few(1)), 16);
        let core = obey(world.asked);
        let client = idle_client(world.address).await;
        let stream = client.0.into_inner().into_std().unwrap();
        // Nothing is waited for here, so that the server does not run in between.
        let newcomer = StdStream::connect(world.address).unwrap();
        (&stream)
            .write_all(b"{\"id\":2,\"command\":{\"op\":\"kill\"}}\n")
            .unwrap();
        let mut client = Client(BufReader::new(TcpStream::from_std(stream).unwrap()));
        client.expect_ok(2).await;
        newcomer.set_nonblocking(true).unwrap();
        let mut newcomer = Client(BufReader::new(TcpStream::from_std(newcomer).unwrap()));
        newcomer.expect_refusal(Value::Null, "busy").await;
        world.control.close().await;
        let kill = Command::Kill(crate::command::KillChildren::AsConfigured);
        assert_eq!(
            within("the core", core).await.unwrap(),
            [Command::Info, kill]
        );
    }
}

/// The command comes when room was asked for, and all orders of the two are tried.
#[tokio::test]
async fn who_is_told_busy_was_not_obeyed_and_who_was_obeyed_is_answered() {
    for delay in 0..60 {
        let world = world_with(config(few(1)), 16);
        let core = obey(world.asked);
        let mut client = idle_client(world.address).await;
        let newcomer = StdStream::connect(world.address).unwrap();
        for _ in 0..delay % 6 {
            tokio::task::yield_now().await;
        }
        // An error means that the end was seen already.
        let _ = client
            .0
            .write_all(b"{\"id\":2,\"command\":{\"op\":\"kill\"}}\n")
            .await;
        let line = client.line().await.unwrap();
        drop((client, newcomer));
        world.control.close().await;
        let obeyed = within("the core", core).await.unwrap().len() == 2;
        assert_eq!(obeyed, line["ok"].is_object(), "{line}");
        assert_eq!(!obeyed, line["error"]["code"] == "busy", "{line}");
    }
}

#[tokio::test]
async fn half_a_line_keeps_no_slot() {
    let world = world_with(config(few(2)), 16);
    let _core = obey(world.asked);
    let mut crowd = Vec::new();
    for _ in 0..6 {
        let mut client = idle_client(world.address).await;
        client.send("{\"id\":2,").await;
        crowd.push(client);
    }
    let (gone, kept) = crowd.split_at_mut(4);
    for client in gone {
        client.expect_room_made().await;
    }
    for client in kept {
        client.send("\"command\":{\"op\":\"info\"}}\n").await;
        client.expect_ok(2).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_read_yet_arrives_before_the_end() {
    const BYTES: usize = 100 * 1024;
    let mut world = world_with(config(few(1)), 16);
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(long(&asked.command, BYTES)));
    let _newcomer = loop {
        let mut newcomer = Client::connect(world.address).await;
        if newcomer.line().await.unwrap()["hello"].is_object() {
            break newcomer;
        }
    };
    let answer = client.line().await.unwrap();
    assert_eq!(answer["ok"]["message"].as_str().unwrap().len(), BYTES);
    client.expect_room_made().await;
}

#[tokio::test]
async fn an_answer_that_is_not_written_yet_keeps_its_connection() {
    let mut world = world_with(config(few(1)), 16);
    let mut deaf = Client::greeted(world.address).await;
    deaf.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    asked.reply.send(Ok(long(&asked.command, 32 * 1024 * 1024)));
    for _ in 0..3 {
        let mut refused = Client::connect(world.address).await;
        refused.expect_refusal(Value::Null, "busy").await;
    }
    let answer = deaf.line().await.unwrap();
    assert_eq!(
        answer["ok"]["message"].as_str().unwrap().len(),
        32 * 1024 * 1024
    );
}

#[tokio::test]
async fn who_may_not_command_keeps_no_slot_by_asking() {
    let limits = few(2);
    let world = world_with(
        ControlConfig {
            policy: encrypted(),
            ..config(limits)
        },
        16,
    );
    let mut crowd = Vec::new();
    for _ in 0..8 {
        let mut client = Client::greeted(world.address).await;
        client.ask(1, "info").await;
        crowd.push(client);
    }
    let newcomer = Client::greeted(world.address).await;
    drop(newcomer);
}

#[tokio::test]
async fn a_panic_while_a_connection_is_taken_in_costs_that_connection_alone() {
    let mut world = world();
    let mut before = Client::greeted(world.address).await;
    before.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    PANICS_PLANTED.set(3);
    for _ in 0..3 {
        let mut unlucky = Client::connect(world.address).await;
        unlucky.expect_end().await;
    }
    assert_eq!(PANICS_PLANTED.get(), 0);
    let mut after = Client::greeted(world.address).await;
    asked.reply.send(Ok(done(&asked.command)));
    before.expect_ok(1).await;
    let _core = obey(world.asked);
    after.ask(1, "info").await;
    after.expect_ok(1).await;
    within("closing", world.control.close()).await;
    before.expect_end().await;
}

#[tokio::test]
async fn after_a_panic_the_end_is_not_waited_for() {
    let world = world();
    PANICS_PLANTED.set(1);
    Client::connect(world.address).await.expect_end().await;
    within("closing", world.control.close()).await;
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_off_and_slows_nobody() {
    let limits = Limits {
        write_time_max: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut world = world_with(config(limits), 16);
    let mut deaf = Client::greeted(world.address).await;
    deaf.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    let Answer::Done(mut huge) = done(&asked.command) else {
        panic!("not done");
    };
    huge.message = "x".repeat(32 * 1024 * 1024);
    asked.reply.send(Ok(Answer::Done(huge)));
    let _core = obey(world.asked);
    let mut other = Client::greeted(world.address).await;
    let began = Instant::now();
    let mut id = 0;
    while began.elapsed() < Duration::from_millis(600) {
        id += 1;
        other.ask(id, "info").await;
        other.expect_ok(id).await;
    }
    let mut read = Vec::new();
    let _ = within("the end", deaf.0.read_to_end(&mut read)).await;
    assert!(read.len() < 32 * 1024 * 1024);
}

#[tokio::test]
async fn a_peer_that_asks_for_much_and_reads_nothing_is_given_little() {
    for command in [
        "{\"op\":\"check\"}",
        "{\"op\":\"stop\",\"all\":true}",
        "{\"op\":\"start\",\"all\":true}",
        "{\"op\":\"kill\",\"stop_children\":true}",
    ] {
        let mut world = world();
        let mut deaf = Client::greeted(world.address).await;
        let lines = (1..=2_000).map(|id| format!("{{\"id\":{id},\"command\":{command}}}\n"));
        deaf.send(lines.collect::<String>()).await;
        let mut taken = Vec::new();
        for _ in 0..LOOKS_IN_FLIGHT_MAX {
            taken.push(within("a request", world.asked.recv()).await.unwrap());
        }
        // A whole exchange with somebody else later there is still no third one.
        let mut other = Client::greeted(world.address).await;
        other.ask(1, "info").await;
        let asked = within("a request", world.asked.recv()).await.unwrap();
        assert_eq!(asked.command, Command::Info);
        asked.reply.send(Ok(done(&asked.command)));
        other.expect_ok(1).await;
        assert!(world.asked.try_recv().is_err(), "{command}");
        // It gets all of them, in order, as it reads.
        for Asked { command, reply, .. } in taken {
            reply.send(Ok(done(&command)));
        }
        let _core = obey(world.asked);
        for id in 1..=2_000 {
            deaf.expect_ok(id).await;
        }
    }
}

#[tokio::test]
async fn a_stop_of_all_waits_for_no_look_and_no_start() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    let mut id = 0;
    let mut ask = |op: &str, rest: &str| {
        id += 1;
        format!("{{\"id\":{id},\"command\":{{\"op\":\"{op}\"{rest}}}}}\n")
    };
    let mut lines = String::new();
    for _ in 0..LOOKS_IN_FLIGHT_MAX {
        lines += &ask("check", "");
        lines += &ask("start", ",\"all\":true");
    }
    lines += &ask("stop", ",\"all\":true");
    client.send(lines).await;
    let mut taken = Vec::new();
    for _ in 0..id {
        taken.push(within("a request", world.asked.recv()).await.unwrap());
    }
    assert_eq!(taken.last().unwrap().command, Command::StopAll);
}

#[tokio::test]
async fn a_look_that_is_held_back_at_the_end_is_answered_too() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    let looks = u64::try_from(LOOKS_IN_FLIGHT_MAX).unwrap();
    for id in 1..=looks + 1 {
        client.ask(id, "check").await;
    }
    let mut taken = Vec::new();
    for _ in 0..looks {
        taken.push(within("a request", world.asked.recv()).await.unwrap());
    }
    within("closing", world.control.close()).await;
    for id in 1..=looks + 1 {
        client.expect_refusal(json!(id), "shutting_down").await;
    }
    client.expect_end().await;
}

#[tokio::test]
async fn a_long_answer_arrives_whole() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    let Answer::Done(mut huge) = done(&asked.command) else {
        panic!("not done");
    };
    huge.message = "y".repeat(8 * 1024 * 1024);
    asked.reply.send(Ok(Answer::Done(huge)));
    let line = client.line().await.unwrap();
    assert_eq!(
        line["ok"]["message"].as_str().unwrap().len(),
        8 * 1024 * 1024
    );
}

#[tokio::test]
async fn at_the_end_given_answers_arrive_and_the_rest_is_shutting_down() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    let mut idle = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    client.ask(2, "kill").await;
    let first = within("a request", world.asked.recv()).await.unwrap();
    let last_words = within("a request", world.asked.recv()).await.unwrap();
    last_words.reply.send(Ok(done(&last_words.command)));
    within("closing", world.control.close()).await;
    client.expect_ok(2).await;
    client.expect_refusal(json!(1), "shutting_down").await;
    client.expect_end().await;
    idle.expect_end().await;
    first.reply.send(Ok(done(&first.command)));
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[tokio::test]
async fn the_end_waits_for_nobody_who_does_not_read() {
    // Were its answer waited for, the end would take longer than this test does.
    let limits = Limits {
        close_time_max: Duration::from_millis(200),
        write_time_max: 2 * PATIENCE,
        ..Limits::default()
    };
    let mut world = world_with(config(limits), 16);
    let mut deaf = Client::greeted(world.address).await;
    deaf.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    let Answer::Done(mut huge) = done(&asked.command) else {
        panic!("not done");
    };
    huge.message = "z".repeat(32 * 1024 * 1024);
    asked.reply.send(Ok(Answer::Done(huge)));
    within("closing", world.control.close()).await;
}

#[tokio::test]
async fn several_listeners_are_served_at_once() {
    let second = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut config = config(Limits::default());
    config.listeners.push(second);
    let world = world_with(config, 16);
    let addresses = world.control.addresses().to_vec();
    let _core = obey(world.asked);
    for address in addresses {
        let mut client = Client::greeted(address).await;
        client.ask(1, "info").await;
        client.expect_ok(1).await;
    }
}

#[test]
fn few_open_files_mean_few_connections_and_many_mean_no_more_than_ever() {
    assert_eq!(Limits::for_open_files(u64::MAX), Limits::default());
    assert_eq!(Limits::for_open_files(256), Limits::default());
    for (files, all, peer) in [(16, 16, 8), (2, 2, 1), (0, 2, 1)] {
        let limits = Limits::for_open_files(files);
        let found = (limits.connections_max, limits.connections_per_peer_max);
        assert_eq!(found, (all, peer), "{files}");
    }
}

#[test]
fn a_documented_number_of_children_can_run_beside_all_connections() {
    for (files, children) in [(96, 19), (256, 139), (1024, 715), (0, 0)] {
        let limits = Limits::for_open_files(files / 4);
        assert_eq!(limits.children_beside(files), children, "{files}");
    }
}

#[test]
fn the_protocol_page_has_the_limits_that_are() {
    let page = include_str!("../../../docs/PROTOCOL.md");
    let seconds = |time: Duration| format!("{} s", time.as_secs());
    for (what, limit) in [
        (
            "length of a request line",
            format!("{} bytes", protocol::LINE_BYTES_MAX),
        ),
        ("connections", CONNECTIONS_MAX.to_string()),
        (
            "connections of one peer: a user of its host, an IPv4 address, an IPv6 /64, a key",
            CONNECTIONS_PER_PEER_MAX.to_string(),
        ),
        (
            "requests of a connection without an answer",
            IN_FLIGHT_MAX.to_string(),
        ),
        (
            "`check`, `info` and `events` without `follow` among them",
            LOOKS_IN_FLIGHT_MAX.to_string(),
        ),
        (
            "what is told and not read (`events`)",
            format!(
                "{} MiB on a connection",
                EVENT_BYTES_WAITING_MAX / 1024 / 1024
            ),
        ),
        (
            "until the first request that is allowed",
            seconds(FIRST_REQUEST_TIME_MAX),
        ),
        ("without a request or an answer", seconds(IDLE_TIME_MAX)),
        ("reading 64 KiB of answers", seconds(WRITE_TIME_MAX)),
        (
            "requests of one peer that are refused because of who sends them",
            format!("{FAILURES_PER_PEER_MAX}, and {FAILURES_REFILL_PER_S} each second"),
        ),
        (
            "keys that sign on one connection",
            KEYS_PER_CONNECTION_MAX.to_string(),
        ),
    ] {
        let row = format!("| {what} | {limit} |");
        assert!(page.contains(&row), "{row}");
    }
}
