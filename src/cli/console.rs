//! Asking and printing: the client but for its command line.

use std::io::{self, Write};

use super::{Ask, Output};
use crate::control::{
    client::{self, Waits},
    render::{self, FAILED, Heading, Style},
};

/// Asks the hosts and prints each answer as soon as all before it are printed. Returns the exit
/// code: of several hosts the largest.
///
/// When nobody reads what is printed, the hosts are asked all the same: a closed pipe must not
/// keep a command from a host.
pub fn carry_out(
    ask: &Ask,
    waits: Waits,
    out: &mut (impl Write + ?Sized),
    out_style: Style,
    err: &mut (impl Write + ?Sized),
    err_style: Style,
) -> u8 {
    let heading = match ask.hosts.len() {
        1 => Heading::None,
        _ => Heading::Host,
    };
    let mut code = 0;
    client::ask_all(&ask.hosts, &ask.command, waits, |answer| {
        code = code.max(render::exit_code(&ask.command, &answer));
        let written = match ask.output {
            Output::Json => print(out, &render::json(&ask.command, &answer)),
            Output::Text => {
                let said = render::text(&ask.command, &answer, heading, out_style);
                let complaint = render::text(&ask.command, &answer, heading, err_style).err;
                // A complaint that cannot be made is no reason for another.
                let _ = print(err, &complaint);
                print(out, &said.out)
            }
        };
        match written {
            Err(fault) if fault.kind() != io::ErrorKind::BrokenPipe => {
                code = code.max(FAILED);
                let _ = print(err, &format!("error: cannot print the answer: {fault}\n"));
            }
            Ok(()) | Err(_) => {}
        }
    });
    code
}

fn print(to: &mut (impl Write + ?Sized), text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}
