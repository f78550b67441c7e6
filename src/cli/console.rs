//! Doing and printing: the client but for its command line.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
};

use serde::Serialize;

use super::{Ask, ClientTask, Forget, Keygen, Output, Stream, USAGE, client::ProofArgs};
use crate::control::{
    client::{
        self, Heard, Manner, Waits,
        known_servers::{KnownServers, KnownServersError, ServerId, known_servers_path},
        proof::{Proof, Signing},
        ssh::{Prompts, Ssh},
    },
    keys::{GenerateError, PrivateKey, PrivateKeyError, Written, generate, write_pair},
    render::{self, Events, FAILED, Heading, Style},
};
use crate::trust::Shown;

/// What there is around the client.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// For how long it waits.
    pub waits: Waits,
    /// What reaches hosts behind ssh.
    pub ssh: Ssh,
    /// Where the servers that were met are written down; `None` when there is no place.
    pub known_servers: Option<PathBuf>,
    /// The current directory, where new keys go.
    pub folder: PathBuf,
}

impl Surroundings {
    /// Those of this process. ssh may ask when somebody sits at its input and sees its words.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name| -> Option<OsString> { std::env::var_os(name) };
        let (state, home) = (variable("XDG_STATE_HOME"), variable("HOME"));
        let prompts = match (Stream::of(&io::stdin()), Stream::of(&io::stderr())) {
            (Stream::Terminal, Stream::Terminal) => Prompts::Allowed,
            (Stream::Terminal | Stream::Other, Stream::Terminal | Stream::Other) => Prompts::Never,
        };
        Self {
            waits: Waits::default(),
            ssh: Ssh {
                prompts,
                ..Ssh::default()
            },
            known_servers: known_servers_path(state.as_deref(), home.as_deref()),
            folder: std::env::current_dir().unwrap_or_else(|_| ".".into()),
        }
    }
}

/// Where the client writes.
pub struct Streams<'a> {
    /// Data.
    pub out: &'a mut dyn Write,
    /// How it looks there.
    pub out_style: Style,
    /// Complaints.
    pub err: &'a mut dyn Write,
    /// How they look.
    pub err_style: Style,
}

/// Does what the command line says and returns the exit code.
pub fn perform(task: &ClientTask, surroundings: Surroundings, streams: Streams<'_>) -> u8 {
    let Streams {
        out,
        out_style,
        err,
        err_style,
    } = streams;
    match task {
        ClientTask::Ask { ask, proof } => match manner(proof, surroundings) {
            Ok(manner) => {
                if let Some(signing) = &manner.proof.signing {
                    warn(err, signing.known.warnings());
                }
                carry_out(ask, manner, out, out_style, err, err_style)
            }
            Err(fault) => {
                let _ = print(err, &format!("error: {fault}\n"));
                USAGE
            }
        },
        ClientTask::Keygen(keygen) => make_keys(keygen, &surroundings, out, err),
        ClientTask::Forget(forget) => forget_servers(forget, &surroundings, out, err),
    }
}

/// How the servers are asked; the key is read here, once, before any of them is.
fn manner(args: &ProofArgs, surroundings: Surroundings) -> Result<Manner, PrivateKeyError> {
    let signing = match &args.key {
        Some(path) => Some(Signing {
            key: PrivateKey::read(path)?,
            known: KnownServers::read(surroundings.known_servers),
            strangers: args.strangers,
            downgrade: args.downgrade,
        }),
        None => None,
    };
    Ok(Manner {
        waits: surroundings.waits,
        proof: Proof {
            signing,
            server_id: args.server_id.clone(),
        },
        ssh: surroundings.ssh,
        ready_within: None,
    })
}

/// Asks the hosts and prints each answer as soon as all before it are printed. Returns the exit
/// code: of several hosts the largest.
///
/// When nobody reads what is printed, the hosts are asked all the same: a closed pipe must not
/// keep a command from a host.
pub fn carry_out(
    ask: &Ask,
    manner: impl Into<Manner>,
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
    let mut warned = BTreeSet::new();
    let manner = Manner {
        ready_within: ask.ready_within,
        ..manner.into()
    };
    let mut events = Events::new(heading, out_style);
    client::ask_all(&ask.hosts, &ask.command, manner, |heard| {
        let (answer, warnings) = match heard {
            Heard::Answer(answer, warnings) => (answer, warnings),
            Heard::Event(event) => {
                let line = match ask.output {
                    Output::Json => render::event_json(&event),
                    Output::Text => events.text(&event),
                };
                // Nothing is done by going on when nobody reads.
                return match print(out, &line) {
                    Ok(()) => ControlFlow::Continue(()),
                    written @ Err(_) => {
                        code = code.max(printed(written, err));
                        ControlFlow::Break(())
                    }
                };
            }
        };
        code = code.max(render::exit_code(&ask.command, &answer));
        // What is wrong for all hosts is said once.
        let mut warnings = warnings;
        warnings.retain(|warning| warned.insert(warning.clone()));
        warn(err, warnings);
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
        code = code.max(printed(written, err));
        ControlFlow::Continue(())
    });
    code
}

fn make_keys(
    keygen: &Keygen,
    surroundings: &Surroundings,
    out: &mut (impl Write + ?Sized),
    err: &mut (impl Write + ?Sized),
) -> u8 {
    #[derive(Serialize)]
    struct Made<'a> {
        ok: bool,
        op: &'a str,
        name: &'a str,
        bits: u32,
        fingerprint: &'a str,
        private: String,
        public: String,
    }
    let made = generate(keygen.bits).and_then(|pair| {
        let written = write_pair(&surroundings.folder, &keygen.name, &pair)?;
        Ok::<_, GenerateError>((pair, written))
    });
    let (pair, Written { private, public }) = match made {
        Ok(made) => made,
        Err(fault) => {
            let _ = print(err, &format!("error: {fault}\n"));
            return FAILED;
        }
    };
    let name = keygen.name.as_str();
    let text = match keygen.output {
        Output::Json => json_line(&Made {
            ok: true,
            op: "keygen",
            name,
            bits: keygen.bits.count(),
            fingerprint: pair.fingerprint.as_str(),
            private: private.display().to_string(),
            public: public.display().to_string(),
        }),
        Output::Text => format!(
            "private key  {} (mode 0600; it stays with you)\n\
             public key   {}\n\
             fingerprint  {} (RSA, {} bits)\n\
             next: copy {name}.pub.pem into a directory of the server's `pub_keys_path`, then\n\
             \x20     supervisor-rs-client check on HOST with {name}.pem\n",
            Shown(&private),
            Shown(&public),
            pair.fingerprint,
            keygen.bits
        ),
    };
    printed(print(out, &text), err)
}

fn forget_servers(
    forget: &Forget,
    surroundings: &Surroundings,
    out: &mut (impl Write + ?Sized),
    err: &mut (impl Write + ?Sized),
) -> u8 {
    #[derive(Serialize)]
    struct Forgotten<'a> {
        host: String,
        ok: bool,
        op: &'a str,
        known_as: &'a str,
        ids: Vec<String>,
    }
    let places: Vec<String> = forget
        .hosts
        .iter()
        .filter_map(|host| host.known_as())
        .collect();
    let path = surroundings.known_servers.as_deref();
    let forgotten = path
        .ok_or(KnownServersError::NoPlace)
        .and_then(|path| KnownServers::forget(path, &places));
    let forgotten: Vec<Vec<ServerId>> = match forgotten {
        Ok(forgotten) => forgotten,
        Err(fault) => {
            let _ = print(err, &format!("error: {fault}\n"));
            return FAILED;
        }
    };
    let mut code = 0;
    for ((host, place), ids) in forget.hosts.iter().zip(&places).zip(forgotten) {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        if ids.is_empty() {
            code = FAILED;
        }
        let written = match forget.output {
            Output::Json => {
                let host = host.to_string();
                print(
                    out,
                    &json_line(&Forgotten {
                        host,
                        ok: true,
                        op: "forget",
                        known_as: place,
                        ids,
                    }),
                )
            }
            Output::Text if ids.is_empty() => {
                // Nothing to be done about a complaint that cannot be made.
                let _ = print(err, &format!("no server is known at `{place}`\n"));
                Ok(())
            }
            Output::Text => print(
                out,
                &format!("forgot the server at `{place}`: {}\n", ids.join(", ")),
            ),
        };
        code = code.max(printed(written, err));
    }
    code
}

fn json_line(object: &impl Serialize) -> String {
    serde_json::to_string(object).expect("string keys") + "\n"
}

fn warn(err: &mut (impl Write + ?Sized), warnings: Vec<String>) {
    for warning in warnings {
        // A warning that cannot be given is no reason for another.
        let _ = print(err, &format!("warning: {warning}\n"));
    }
}

/// The exit code that printing makes. Broken pipes are silent.
fn printed(written: io::Result<()>, err: &mut (impl Write + ?Sized)) -> u8 {
    match written {
        Err(fault) if fault.kind() != io::ErrorKind::BrokenPipe => {
            let _ = print(err, &format!("error: cannot print the answer: {fault}\n"));
            FAILED
        }
        Ok(()) | Err(_) => 0,
    }
}

fn print(to: &mut (impl Write + ?Sized), text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

#[cfg(test)]
mod tests;
