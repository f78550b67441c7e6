//! Text in, a checked configuration or diagnostics out.
//!
//! Invariants: what comes out is valid as a whole, or nothing comes out (I6); every fault of a
//! file is told at once, each with its place; equal meaning gives an equal digest; no input makes
//! this code panic, recurse without bound, or take more than a moment.
//!
//! Reading order: [`Diagnostic`]; `node` and `tree` (bytes to values with places), `rules` and
//! `values` (what every field's check is made of), `child` with `command`, `depends`, `output`,
//! `hooks` and `restart`, `server` with `server_fields`, `key_scope`, `digest`; `fault` holds every message, `suggest` and
//! `keys` what they guess.
//!
//! Absent on purpose: files, the clock, the environment, users and directories that exist. All
//! facts come in as arguments; whether a path or a user exists is found out when it is used.

mod child;
mod command;
mod depends;
mod diagnostic;
mod digest;
mod fault;
mod hooks;
mod key_scope;
mod keys;
mod node;
mod output;
mod probe;
mod restart;
mod rules;
mod server;
mod server_fields;
mod stop;
mod suggest;
mod tree;
mod values;

pub use child::{ChildContext, Defaults, child, child_keys};
pub use diagnostic::{Diagnostic, Place};
pub use key_scope::{ChildPattern, KeyScope, key_scope};
pub use server::{
    Host, PORT_DEFAULT, RESCAN_DEFAULT, ServerSpec, default_runtime_dir, server, server_keys,
};

use std::path::Path;

use diagnostic::{Source, Span};
use fault::Fault;

/// The most bytes a child file may have. A reader need not read more than one byte beyond.
pub const CHILD_BYTES_MAX: usize = 64 << 10;

/// The most bytes `server.yml` may have. A reader need not read more than one byte beyond.
pub const SERVER_BYTES_MAX: usize = 1 << 20;

/// The most bytes a key's scope may have. A reader need not read more than one byte beyond.
pub const KEY_SCOPE_BYTES_MAX: usize = 64 << 10;

/// A file's text, less its byte order mark, once its path, size and encoding are known to be good.
fn text_of<'b>(path: &Path, bytes: &'b [u8], bytes_max: usize) -> Result<&'b str, Vec<Diagnostic>> {
    let whole = |fault: Fault| vec![Diagnostic::of_file(path, fault.to_string(), fault.help())];
    if bytes.len() > bytes_max {
        return Err(whole(Fault::TooLarge { max: bytes_max }));
    }
    // Every path that comes out is made of this one and of text: what `serde` can write down.
    if path.to_str().is_none() {
        return Err(whole(Fault::PathNotUtf8));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let start = error.valid_up_to();
        let fault = Fault::NotUtf8 {
            byte: bytes.get(start).copied().unwrap_or_default(),
        };
        // What stands before the place is the same in the lossy text.
        let text = String::from_utf8_lossy(bytes);
        let source = Source { path, text: &text };
        vec![source.diagnostic(
            Span {
                start,
                end: start + 1,
            },
            &fault,
        )]
    })
}
