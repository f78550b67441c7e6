//! Probes against listeners of our own.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use super::*;

const LONG: Duration = Duration::from_secs(20);

const ONE: JobId = JobId(1);

fn listener() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = Some(Ipv4Addr::LOCALHOST.into());
    (listener, Endpoint { host, port })
}

async fn ask(question: Question, time: Duration) -> Result<(), String> {
    let mut probes = Probes::default();
    probes.ask(ONE, question, time);
    let (job, result) = probes.next().await;
    assert_eq!(job, ONE);
    result
}

/// What a server that answers so, whatever it is asked, comes to; and what it was asked.
async fn answered(answer: &'static [u8]) -> (Result<(), String>, String) {
    let (listener, at) = listener();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1_024];
        let read = stream.read(&mut request).unwrap();
        stream.write_all(answer).unwrap();
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let path = "/healthz?x=1".to_owned();
    let result = ask(Question::Http { at, path }, LONG).await;
    (result, server.join().unwrap())
}

#[tokio::test]
async fn a_port_answers_when_somebody_listens() {
    let (listener, at) = listener();
    assert_eq!(ask(Question::Tcp(at), LONG).await, Ok(()));
    let here = Endpoint { host: None, ..at };
    assert_eq!(ask(Question::Tcp(here), LONG).await, Ok(()));
    drop(listener);
    let refused = Err("connection refused".to_owned());
    assert_eq!(ask(Question::Tcp(at), LONG).await, refused);
    assert_eq!(ask(Question::Tcp(here), LONG).await, refused);
}

#[tokio::test]
async fn a_get_is_good_by_its_status_alone() {
    for (answer, expected) in [
        (&b"HTTP/1.1 200 OK\r\n\r\nfine"[..], Ok(())),
        (b"HTTP/1.0 204\n", Ok(())),
        (b"HTTP/1.1 301 Moved\r\nLocation: /x\r\n\r\n", Ok(())),
        (
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
            Err("status 503"),
        ),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Err("status 404")),
        (b"SSH-2.0-OpenSSH\r\n", Err("its answer is not HTTP")),
        (b"HTTP/1.1 2000\r\n", Err("its answer is not HTTP")),
        (b"HTTP/1.1 2", Err("its answer is not HTTP")),
        (b"", Err("the connection was closed without an answer")),
    ] {
        let (result, request) = answered(answer).await;
        assert_eq!(result, expected.map_err(str::to_owned), "{answer:?}");
        assert!(request.starts_with("GET /healthz?x=1 HTTP/1.1\r\nHost: 127.0.0.1:"));
        assert!(request.ends_with("\r\n\r\n"));
    }
}

#[tokio::test]
async fn an_endless_first_line_is_not_read_to_its_end() {
    static ENDLESS: [u8; 100_000] = [b'a'; 100_000];
    let (result, _) = answered(&ENDLESS).await;
    assert_eq!(result, Err("its answer is not HTTP".to_owned()));
}

#[tokio::test]
async fn who_never_answers_has_failed_when_the_time_is_up() {
    let (_listener, at) = listener();
    let path = "/".to_owned();
    let time = Duration::from_millis(50);
    let result = ask(Question::Http { at, path }, time).await;
    assert_eq!(result, Err("no answer within 50ms".to_owned()));
}

#[tokio::test]
async fn what_is_given_up_is_not_heard_of() {
    let (_listener, at) = listener();
    let mut probes = Probes::default();
    probes.ask(ONE, Question::Tcp(at), LONG);
    probes.give_up(ONE);
    probes.give_up(JobId(7));
    probes.ask(JobId(2), Question::Tcp(at), LONG);
    assert_eq!(probes.next().await, (JobId(2), Ok(())));
    let none = timeout(Duration::from_millis(50), probes.next()).await;
    assert!(none.is_err());
}

#[tokio::test]
async fn what_has_no_answer_is_asked_again_by_the_next_program() {
    let (_listener, at) = listener();
    let mut probes = Probes::default();
    probes.ask(ONE, Question::Tcp(at), LONG);
    let handed = probes.hand_over();
    let text = serde_json::to_string(&handed).unwrap();
    let mut next = Probes::taken_over(serde_json::from_str(&text).unwrap());
    assert_eq!(next.next().await, (ONE, Ok(())));
}
