//! Clients that go away while they wait for an answer.

use rustix::net::sockopt::set_socket_linger;

use super::*;

#[tokio::test]
async fn one_that_has_closed_its_half_is_answered_and_one_that_is_gone_is_given_up() {
    let mut world = world();
    let mut patient = Client::greeted(world.address).await;
    let mut gone = Client::greeted(world.address).await;
    let mut replies = Vec::new();
    for client in [&mut patient, &mut gone] {
        client.ask(1, "info").await;
        client.0.get_mut().shutdown().await.unwrap();
        let asked = within("the core", world.asked.recv()).await.unwrap();
        replies.push(asked.reply);
    }
    // As the system does it for a process that has died and whose host asks again.
    let socket = gone.0.into_inner().into_std().unwrap();
    set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    drop(socket);
    let is_noticed = async {
        while !replies[1].is_unheard() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the end of who is gone", is_noticed).await;
    assert!(!replies[0].is_unheard());
    replies.remove(0).send(Ok(done(&Command::Info)));
    assert_eq!(patient.line().await.unwrap()["id"], 1);
    assert_eq!(patient.line().await, None);
}
