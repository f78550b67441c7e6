//! Keys of the one file that somebody may write into the other by mistake.
//!
//! Only messages use them ("this key belongs in …"); what a file may hold is said by its table of
//! rules, and a test holds the two against each other.

/// Keys that somebody may write into a child's file by mistake.
pub(super) const SERVER_KEYS: &[&str] = &[
    "loadpaths",
    "mode",
    "startup",
    "encrypt",
    "pub_keys_path",
    "listener_addr",
    "ipv6",
    "listener_port",
    "id",
    "state_dir",
    "runtime_dir",
    "log_dir",
    "on_exit",
    "allow_unsigned_remote",
    "allow_local_users",
    "trusted_owners",
    "rescan",
    "defaults",
];

/// Keys of a child's file that have no business at the root of `server.yml`.
pub(super) const CHILD_KEYS: &[&str] = &["command"];

/// Keys that apply to every child only as defaults.
pub(super) const DEFAULT_KEYS: &[&str] = &[
    "output",
    "repeat",
    "hooks",
    "restart",
    "stop",
    "ready",
    "health",
    "depends_on",
    "workdir",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::{child_keys, server_keys};

    #[test]
    fn every_key_of_the_other_file_is_known_here() {
        // `name` is no key of a child: its file's name is, so nothing better can be said of it.
        let of_server: BTreeSet<&str> = server_keys().filter(|key| *key != "name").collect();
        assert_eq!(of_server, SERVER_KEYS.iter().copied().collect());
        let of_child: BTreeSet<&str> = child_keys().collect();
        let here: BTreeSet<&str> = CHILD_KEYS.iter().chain(DEFAULT_KEYS).copied().collect();
        assert_eq!(of_child, here);
    }
}
