//! Where a server is: the HOST of the command line, checked.
//!
//! Pure: nothing is looked up here. A host in hand cannot be mistaken for an option by a program
//! it is handed to (it never begins with `-`), and holds no character a name cannot have.
//!
//! Source: DESIGN, section 6; RFC 952, RFC 1123, RFC 4007 (zones).

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The port a server listens on unless told otherwise.
pub const PORT: u16 = crate::config::PORT_DEFAULT;

/// Where a server behind ssh listens unless told otherwise, as seen from the host logged in to.
pub const SSH_ADDRESS: &str = "localhost";

/// The most characters a host name may have.
const NAME_CHARS_MAX: usize = 253;

/// A place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Nothing was said: 127.0.0.1, then ::1, on the usual port.
    ThisHost,
    /// Over TCP.
    Tcp(TcpHost),
    /// Through the system's ssh.
    Ssh(SshHost),
}

/// An address or a name, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpHost {
    /// As it was given; what answers are headed by.
    pub text: String,
    /// An IPv4 address, an IPv6 address with or without a zone, or a name; no brackets.
    pub name: String,
    /// The port.
    pub port: u16,
}

/// `ssh://[user@]host[:ssh-port][/[addr:]port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshHost {
    /// As it was given; what answers are headed by.
    pub text: String,
    /// As whom to log in; ssh's choice when absent.
    pub user: Option<String>,
    /// The host to log in to, an address without brackets or a name.
    pub name: String,
    /// ssh's port; ssh's choice when absent.
    pub ssh_port: Option<u16>,
    /// Where the server listens, as seen from that host.
    pub address: Option<String>,
    /// The server's port.
    pub port: u16,
}

/// Why a text is not a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing at all.
    #[error("a host must not be empty")]
    Empty,
    /// It could be taken for an option.
    #[error("`{0}` is not a host: it begins with `-`")]
    Option(String),
    /// It has a character that no name has.
    #[error("`{text}` is not a host: `{}` cannot stand in a name", .bad.escape_debug())]
    BadChar {
        /// The host.
        text: String,
        /// The character.
        bad: char,
    },
    /// It is too long for a name.
    #[error("a host name has at most {NAME_CHARS_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// There is a dot too many.
    #[error("`{0}` is not a host: something is missing beside a dot")]
    EmptyLabel(String),
    /// A bracket without its other half, or something other than an IPv6 address in them.
    #[error("`{0}` is not a host: brackets hold an IPv6 address, as in `[::1]:33889`")]
    Brackets(String),
    /// It looks like an IPv6 address and is none.
    #[error(
        "`{0}` is not a host: it is no IPv6 address, and a name has one `:` only, before its port\n\
         hint: an IPv6 address with a port stands in brackets, as in `[::1]:33889`"
    )]
    NotIpv6(String),
    /// A port that is none.
    #[error("`{port}` in `{text}` is not a port: a port is a number from 1 to 65535")]
    Port {
        /// The host.
        text: String,
        /// What stands for the port.
        port: String,
    },
    /// A way of connecting that there is not.
    #[error("`{0}` is not a host: the only scheme there is, is `ssh://`")]
    Scheme(String),
    /// A user that ssh would not take.
    #[error("`{0}` is not a host: the user before `@` is made of letters, digits and `_ . -`")]
    User(String),
}

impl Host {
    /// What the server there is known as in `known_servers`: one text for one place, however it
    /// is written. `None` when nothing was said; see [`known_as_address`].
    #[must_use]
    pub fn known_as(&self) -> Option<String> {
        match self {
            Self::ThisHost => None,
            Self::Tcp(host) => Some(host.known_as()),
            Self::Ssh(host) => Some(host.known_as()),
        }
    }
}

impl TcpHost {
    /// As [`Host::known_as`].
    #[must_use]
    pub fn known_as(&self) -> String {
        place(&self.name, self.port)
    }
}

impl SshHost {
    /// As [`Host::known_as`]. As whom one logs in makes no difference to who listens there.
    #[must_use]
    pub fn known_as(&self) -> String {
        let login = match self.ssh_port {
            Some(port) => place(&self.name, port),
            None => place_name(&self.name),
        };
        let address = self.address.as_deref().unwrap_or(SSH_ADDRESS);
        format!("ssh://{login}/{}", place(address, self.port))
    }
}

/// What the server at an address is known as, when no host was given.
#[must_use]
pub fn known_as_address(address: SocketAddr) -> String {
    place(&address.ip().to_string(), address.port())
}

fn place(name: &str, port: u16) -> String {
    format!("{}:{port}", place_name(name))
}

/// A name in lower case, an IPv6 address in brackets and in its shortest form.
fn place_name(name: &str) -> String {
    let (address, zone) = match name.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (name, None),
    };
    match (address.parse::<Ipv6Addr>(), zone) {
        (Ok(address), Some(zone)) => format!("[{address}%{zone}]"),
        (Ok(address), None) => format!("[{address}]"),
        (Err(_), _) => name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase(),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisHost => f.write_str("127.0.0.1"),
            Self::Tcp(host) => f.write_str(&host.text),
            Self::Ssh(host) => f.write_str(&host.text),
        }
    }
}

impl std::str::FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let shown = || text.escape_debug().to_string();
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.starts_with('-') {
            return Err(HostError::Option(shown()));
        }
        if let Some(rest) = strip_scheme(text, "ssh") {
            return parse_ssh(text, rest).map(Self::Ssh);
        }
        if text.contains("://") {
            return Err(HostError::Scheme(shown()));
        }
        let (name, port) = name_and_port(text)?;
        Ok(Self::Tcp(TcpHost {
            text: text.to_owned(),
            name,
            port: port.unwrap_or(PORT),
        }))
    }
}

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (before, rest) = text.split_once("://")?;
    before.eq_ignore_ascii_case(scheme).then_some(rest)
}

fn parse_ssh(text: &str, rest: &str) -> Result<SshHost, HostError> {
    let (login, server) = match rest.split_once('/') {
        Some((login, server)) => (login, Some(server).filter(|server| !server.is_empty())),
        None => (rest, None),
    };
    let (user, host) = match login.rsplit_once('@') {
        Some((user, host)) => (Some(checked_user(text, user)?), host),
        None => (None, login),
    };
    let (name, ssh_port) = name_and_port(host)?;
    let (address, port) = match server {
        None => (None, PORT),
        Some(server) if server.bytes().all(|byte| byte.is_ascii_digit()) => {
            (None, checked_port(text, server)?)
        }
        Some(server) => {
            let (address, port) = name_and_port(server)?;
            (Some(address), port.unwrap_or(PORT))
        }
    };
    Ok(SshHost {
        text: text.to_owned(),
        user,
        name,
        ssh_port,
        address,
        port,
    })
}

fn checked_user(text: &str, user: &str) -> Result<String, HostError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if user.is_empty() || user.starts_with('-') || !user.chars().all(allowed) {
        return Err(HostError::User(text.escape_debug().to_string()));
    }
    Ok(user.to_owned())
}

fn checked_port(text: &str, port: &str) -> Result<u16, HostError> {
    let wrong = || HostError::Port {
        text: text.escape_debug().to_string(),
        port: port.escape_debug().to_string(),
    };
    // `u16::from_str` takes a leading `+`.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(wrong()),
        Ok(port) => Ok(port),
    }
}

fn name_and_port(text: &str) -> Result<(String, Option<u16>), HostError> {
    let shown = || text.escape_debug().to_string();
    if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest
            .split_once(']')
            .ok_or_else(|| HostError::Brackets(shown()))?;
        if !is_ipv6(address) {
            return Err(HostError::Brackets(shown()));
        }
        let port = match after.strip_prefix(':') {
            Some(port) => Some(checked_port(text, port)?),
            None if after.is_empty() => None,
            None => return Err(HostError::Brackets(shown())),
        };
        return Ok((address.to_owned(), port));
    }
    if text.matches(':').count() > 1 {
        if is_ipv6(text) {
            return Ok((text.to_owned(), None));
        }
        return Err(HostError::NotIpv6(shown()));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(checked_port(text, port)?)),
        None => (text, None),
    };
    check_name(name)?;
    Ok((name.to_owned(), port))
}

/// An IPv6 address, with or without a zone such as `%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let zone_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    address.parse::<Ipv6Addr>().is_ok()
        && zone.is_none_or(|zone| !zone.is_empty() && zone.chars().all(zone_char))
}

fn check_name(name: &str) -> Result<(), HostError> {
    let shown = || name.escape_debug().to_string();
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    if name.parse::<Ipv4Addr>().is_ok() {
        return Ok(());
    }
    if name.starts_with('-') {
        return Err(HostError::Option(shown()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        return Err(HostError::BadChar { text: shown(), bad });
    }
    if name.len() > NAME_CHARS_MAX {
        return Err(HostError::TooLong(name.len()));
    }
    let labels = name.strip_suffix('.').unwrap_or(name);
    if labels.split('.').any(str::is_empty) {
        return Err(HostError::EmptyLabel(shown()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> (String, u16) {
        match text.parse() {
            Ok(Host::Tcp(host)) => {
                assert_eq!(host.text, text);
                (host.name, host.port)
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    fn ssh(text: &str) -> SshHost {
        match text.parse() {
            Ok(Host::Ssh(host)) => host,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn refused(text: &str) -> HostError {
        match text.parse::<Host>() {
            Ok(host) => panic!("{text} was taken as {host:?}"),
            Err(fault) => fault,
        }
    }

    #[test]
    fn addresses_and_names_come_with_or_without_a_port() {
        for (text, name, port) in [
            ("127.0.0.1", "127.0.0.1", PORT),
            ("127.0.0.1:1", "127.0.0.1", 1),
            ("localhost", "localhost", PORT),
            ("web-1.example.org:65535", "web-1.example.org", 65535),
            ("example.org.", "example.org.", PORT),
            ("my_host", "my_host", PORT),
            ("1", "1", PORT),
            ("::1", "::1", PORT),
            ("2001:db8::1:3388", "2001:db8::1:3388", PORT),
            ("[::1]", "::1", PORT),
            ("[::1]:7", "::1", 7),
            ("fe80::1%eth0", "fe80::1%eth0", PORT),
            ("[fe80::1%eth0.5]:9", "fe80::1%eth0.5", 9),
        ] {
            assert_eq!(tcp(text), (name.to_owned(), port), "{text}");
        }
    }

    #[test]
    fn what_could_be_an_option_is_refused() {
        for text in [
            "-",
            "-oProxyCommand=x",
            "--json",
            "-h:1",
            "ssh://-oProxyCommand=x",
        ] {
            assert!(matches!(refused(text), HostError::Option(_)), "{text}");
        }
        for text in [
            "ssh://-l@host",
            "ssh://a@b@host",
            "ssh://@host",
            "ssh://a b@host",
        ] {
            assert!(matches!(refused(text), HostError::User(_)), "{text}");
        }
        assert!(matches!(refused("ssh://h/-x:1"), HostError::Option(_)));
    }

    #[test]
    fn what_is_no_host_is_refused_with_its_reason() {
        assert_eq!(refused(""), HostError::Empty);
        assert_eq!(refused(":1"), HostError::Empty);
        assert_eq!(refused("ssh://"), HostError::Empty);
        assert_eq!(refused("ssh:///1"), HostError::Empty);
        assert!(matches!(refused("http://x"), HostError::Scheme(_)));
        for text in [
            "a b",
            "a;b",
            "a/b",
            "$(x)",
            "a\0",
            "höst",
            "a@b",
            "a\u{1b}[0m",
        ] {
            assert!(matches!(refused(text), HostError::BadChar { .. }), "{text}");
        }
        for text in [
            "[::1",
            "[localhost]",
            "[::1]x",
            "[127.0.0.1]:1",
            "[]",
            "[::1%]",
        ] {
            assert!(matches!(refused(text), HostError::Brackets(_)), "{text}");
        }
        for text in ["a:1:2", "::g", "1:2:3", "fe80::1%", "::1:33889"] {
            assert!(matches!(refused(text), HostError::NotIpv6(_)), "{text}");
        }
        for text in [
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:-1",
            "a:x",
            "[::1]:",
            "ssh://h:0",
        ] {
            assert!(matches!(refused(text), HostError::Port { .. }), "{text}");
        }
        for text in [".", "a..b", ".a"] {
            assert!(matches!(refused(text), HostError::EmptyLabel(_)), "{text}");
        }
        assert_eq!(refused(&"x".repeat(254)), HostError::TooLong(254));
        for text in ["a\u{1b}[2J", "-\u{1b}[2J"] {
            assert!(!refused(text).to_string().contains('\u{1b}'));
        }
    }

    #[test]
    fn ssh_hosts_are_read_in_all_their_parts() {
        let plain = ssh("ssh://host");
        assert_eq!(
            (
                plain.user,
                plain.name.as_str(),
                plain.ssh_port,
                plain.address,
                plain.port
            ),
            (None, "host", None, None, PORT)
        );
        let full = ssh("SSH://deploy@web1:2222/10.0.0.5:4000");
        assert_eq!(full.user.as_deref(), Some("deploy"));
        assert_eq!((full.name.as_str(), full.ssh_port), ("web1", Some(2222)));
        assert_eq!(
            (full.address.as_deref(), full.port),
            (Some("10.0.0.5"), 4000)
        );
        let port = ssh("ssh://[::1]:22/4000");
        assert_eq!(
            (port.name.as_str(), port.address, port.port),
            ("::1", None, 4000)
        );
        assert_eq!(ssh("ssh://host/").port, PORT);
        assert_eq!(ssh("ssh://host/[::1]:5").address.as_deref(), Some("::1"));
        assert_eq!(ssh("ssh://host/::1").address.as_deref(), Some("::1"));
    }

    #[test]
    fn one_place_is_known_by_one_text_however_it_is_written() {
        let known = |text: &str| text.parse::<Host>().unwrap().known_as().unwrap();
        for (texts, place) in [
            (
                &["web1", "WEB1", "web1.", "web1:33889", "Web1.:33889"][..],
                "web1:33889",
            ),
            (&["web1:4000"], "web1:4000"),
            (&["127.0.0.1"], "127.0.0.1:33889"),
            (
                &["::1", "[::1]", "[::1]:33889", "0:0:0:0:0:0:0:1", "[0::1]"],
                "[::1]:33889",
            ),
            (&["2001:DB8::A"], "[2001:db8::a]:33889"),
            (&["FE80::1%eth0", "[fe80::1%eth0]"], "[fe80::1%eth0]:33889"),
            (
                &[
                    "ssh://web1",
                    "SSH://Web1/",
                    "ssh://me@web1",
                    "ssh://you@web1/33889",
                    "ssh://web1/localhost",
                    "ssh://web1/LOCALHOST:33889",
                ],
                "ssh://web1/localhost:33889",
            ),
            (&["ssh://me@web1:22/[0::1]:7"], "ssh://web1:22/[::1]:7"),
            (&["ssh://[::1]/7", "ssh://::1/7"], "ssh://[::1]/localhost:7"),
        ] {
            for text in texts {
                assert_eq!(known(text), place, "{text}");
                // It is a host again, so that it can be given to `--forget`.
                assert_eq!(known(&known(text)), place, "{text}");
            }
        }
        assert_eq!(Host::ThisHost.known_as(), None);
        for (address, place) in [
            ("127.0.0.1:33889", "127.0.0.1:33889"),
            ("[::1]:33889", "[::1]:33889"),
        ] {
            assert_eq!(known_as_address(address.parse().unwrap()), place);
        }
    }
}
