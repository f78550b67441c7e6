//! Protected mode: which users of this host command without a signature.

use std::{os::unix::process::CommandExt, process::Stdio};

use super::*;
use crate::control::{asked::Credential, peer::wait_until_nobody_holds};

/// A user of no account.
const OTHER: u32 = 47_111;

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What the server says to another user who asks for `info`; `None` where there can be none.
async fn ask_as_other(address: SocketAddr) -> Option<Value> {
    if own_uid() != 0 {
        eprintln!("skipped: only root can become another user");
        return None;
    }
    let port = address.port();
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; read -r hello <&3; \
         echo '{{\"id\":1,\"command\":{{\"op\":\"info\"}}}}' >&3; read -r answer <&3; \
         printf %s \"$answer\""
    );
    let asking = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new("bash");
        command
            .args(["-c", &script])
            .current_dir("/")
            .stdin(Stdio::null());
        command.uid(OTHER).gid(OTHER).output()
    });
    match within("another user", asking).await.unwrap() {
        Ok(output) => Some(serde_json::from_slice(&output.stdout).unwrap()),
        Err(why) => {
            eprintln!("skipped: no bash: {why}");
            None
        }
    }
}

#[tokio::test]
async fn root_and_the_own_user_command() {
    let mut world = world();
    let mut client = Client::greeted(world.address).await;
    client.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    assert_eq!(asked.issuer.credential, Credential::User(own_uid()));
    assert_ne!(world.control.users_told_by(), "");
}

#[tokio::test]
async fn another_user_is_told_by_its_number_which_fields_would_let_it_in() {
    let mut world = world();
    let Some(answer) = ask_as_other(world.address).await else {
        return;
    };
    assert_eq!(answer["error"]["code"], "protected_mode", "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    for part in [
        &format!("user {OTHER}"),
        "`allow_local_users`",
        "`encrypt: on`",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(world.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_user_that_is_allowed_commands_and_at_once_no_more_when_it_is_not() {
    let mut config = config(Limits::default());
    config.policy.local_users = Owners::new(&[OTHER.to_string()]).unwrap();
    let world = world_with(config, 16);
    let _core = obey(world.asked);
    let Some(answer) = ask_as_other(world.address).await else {
        return;
    };
    assert!(answer["ok"].is_object(), "{answer}");
    world.control.configure(unsigned());
    let answer = ask_as_other(world.address).await.unwrap();
    assert_eq!(answer["error"]["code"], "protected_mode", "{answer}");
}

/// What root sends is not taken for root's when nobody holds its socket any more.
#[tokio::test]
async fn who_is_gone_before_it_was_taken_in_commands_nothing() {
    let config = config(Limits::default());
    let address = config.listeners[0].local_addr().unwrap();
    let stream = StdStream::connect(address).unwrap();
    let own = stream.local_addr().unwrap();
    (&stream)
        .write_all(b"{\"id\":1,\"command\":{\"op\":\"kill\"}}\n")
        .unwrap();
    drop(stream);
    wait_until_nobody_holds(own, address);
    let mut world = world_with(config, 16);
    let mut next = Client::greeted(world.address).await;
    next.ask(1, "info").await;
    let asked = within("a request", world.asked.recv()).await.unwrap();
    assert_eq!(asked.command, Command::Info);
}

#[tokio::test]
async fn the_rules_are_replaced_while_connections_are_open() {
    let world = world();
    let _core = obey(world.asked);
    let mut client = idle_client(world.address).await;
    world.control.configure(encrypted());
    client.ask(2, "info").await;
    client.expect_refusal(json!(2), "unauthorized").await;
    let mut hello = Client::connect(world.address).await;
    assert_eq!(hello.line().await.unwrap()["hello"]["encrypt"], true);
    world.control.configure(unsigned());
    client.ask(3, "info").await;
    client.expect_ok(3).await;
}
