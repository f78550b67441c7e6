//! Whatever a line from a client is, it is read rightly or refused in a few words.
//!
//! - What is a request is the same request after it was written and read again.
//! - It is what a plain JSON reader makes of the line.
//! - A refusal is short, drives no terminal, and goes over the wire as one line; the id it names
//!   is the line's.

use serde_json::{Value, json};
use supervisor_rs::{
    command::{Command, ErrorCode, Failure},
    control::protocol::{
        Body, LINE_BYTES_MAX, Request, ServerLine, parse_request, parse_server_line, write_failure,
        write_request,
    },
};

/// Panics when one of the properties does not hold.
pub fn holds(line: &[u8]) {
    if line.len() > LINE_BYTES_MAX {
        return;
    }
    let plain: Option<Value> = serde_json::from_slice(line).ok();
    match parse_request(line) {
        Ok(request) => {
            is_written_and_read_again(&request);
            is_plain(&request, &plain.expect("a request is JSON"));
        }
        Err(refusal) => {
            super::text::is_message(&refusal.message);
            if let (Some(id), Some(plain)) = (refusal.id, plain) {
                assert_eq!(plain["id"], json!(id));
            }
            goes_over_the_wire(refusal.id, refusal.message);
        }
    }
}

fn is_written_and_read_again(request: &Request) {
    let line = match &request.body {
        Body::Command(command) => {
            let mut line = Vec::new();
            write_request(&mut line, request.id, command);
            assert_eq!(line.pop(), Some(b'\n'));
            line
        }
        Body::Token(token) => json!({"id": request.id, "token": token}).to_string().into(),
    };
    assert!(!line.contains(&b'\n'));
    assert_eq!(parse_request(&line).as_ref(), Ok(request));
}

/// The request is what the line says to a reader that knows nothing of requests.
fn is_plain(request: &Request, plain: &Value) {
    let fields = plain.as_object().expect("a request is an object");
    assert_eq!(fields.len(), 2, "{plain}");
    assert_eq!(plain["id"], json!(request.id));
    match &request.body {
        Body::Token(token) => assert_eq!(plain["token"], json!(token)),
        Body::Command(command) => {
            let written = &plain["command"];
            assert_eq!(written["op"], json!(command.op().as_str()));
            let child = match command {
                Command::Child { child, .. }
                | Command::CheckOne(child)
                | Command::Why(child)
                | Command::Wait { child, .. } => Some(json!(child)),
                Command::Events { child, .. } => child.as_ref().map(|child| json!(child)),
                Command::StartAll
                | Command::StopAll
                | Command::Check { .. }
                | Command::Info
                | Command::Kill(_)
                | Command::Upgrade => None,
            };
            assert_eq!(written.get("child"), child.as_ref());
        }
    }
}

fn goes_over_the_wire(id: Option<u64>, message: String) {
    let mut line = Vec::new();
    let failure = Failure {
        code: ErrorCode::BadRequest,
        message,
    };
    write_failure(&mut line, id, &failure);
    assert_eq!(line.pop(), Some(b'\n'));
    assert!(!line.contains(&b'\n') && line.len() <= LINE_BYTES_MAX);
    match parse_server_line(&line).expect("a client reads it") {
        ServerLine::Error { id: told, .. } => assert_eq!(told, id),
        other => panic!("{other:?}"),
    }
}
