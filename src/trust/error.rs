//! Why something is not used: the faults of the trust check, each with the way out.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Why a file or directory is not used.
///
/// The text is one line, and where we know the way out a second one that begins with `help:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A path that does not begin at the root.
    #[error("{} cannot be looked at: the path is not absolute", Shown(path))]
    NotAbsolute {
        /// As given.
        path: PathBuf,
    },
    /// There is no such thing.
    #[error("{} does not exist", Shown(path))]
    Missing {
        /// The first part of the way that is not there.
        path: PathBuf,
    },
    /// A link to nothing.
    #[error(
        "the link {} points to nothing: {} does not exist\nhelp: remove the link, or create what it points to",
        Shown(link),
        Shown(path)
    )]
    Dangling {
        /// The last link on the way.
        link: PathBuf,
        /// The first part of the way that is not there.
        path: PathBuf,
    },
    /// Links that lead in a circle, or too many of them.
    #[error(
        "{} leads through more than {links_max} links\nhelp: see whether they form a circle: `namei -l {}`",
        Shown(path),
        quoted(path)
    )]
    Links {
        /// As given.
        path: PathBuf,
        /// How many are followed.
        links_max: u32,
    },
    /// A way with too many parts.
    #[error("{} leads through more than {steps_max} directories", Shown(path))]
    Deep {
        /// As given.
        path: PathBuf,
        /// How many are looked at.
        steps_max: u32,
    },
    /// A part of the way, or what should be a directory, is none.
    #[error("{} is a {kind}, not a directory", Shown(path))]
    NotDirectory {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// What should be a file is none.
    #[error(
        "{} is a {kind}, not a regular file\nhelp: move it elsewhere, or give it another name",
        Shown(path)
    )]
    NotRegular {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// More than is ever read.
    #[error(
        "{} is too large: it has {bytes} bytes, at most {bytes_max} are read",
        Shown(path)
    )]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size, or as much as was seen.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A directory with more in it than is ever listed.
    #[error("{} holds more than {names_max} files", Shown(path))]
    Crowded {
        /// Which.
        path: PathBuf,
        /// The bound.
        names_max: usize,
    },
    /// It belongs to somebody who could change it.
    #[error(
        "{} is not trusted: the {kind} belongs to `{user}` (uid {uid})\nhelp: `{}`, or in server.yml `trusted_owners: [{user}]`",
        Shown(path),
        chown(path, *kind, own_name)
    )]
    Owner {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: Kind,
        /// Whose it is.
        uid: u32,
        /// Whose it is, as people say.
        user: String,
        /// Whose it should be.
        own_name: String,
    },
    /// Somebody besides its owner may write it.
    #[error(
        "{} is not trusted: {by} may write the {kind} (mode {mode:04o}, owner `{user}`)\nhelp: `{}`",
        Shown(path),
        by.remedy(path)
    )]
    Writable {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: Kind,
        /// Its permission bits.
        mode: u32,
        /// Whose it is.
        user: String,
        /// Who may write it.
        by: Writers,
    },
    /// A file with several names, in a directory where anybody may give it one.
    #[error(
        "{} is not trusted: the file has {links} hard links and anybody may have made this one\nhelp: if you did not, remove it: `rm {}`; else write it anew under one name",
        Shown(path),
        quoted(path)
    )]
    HardLinks {
        /// Which.
        path: PathBuf,
        /// How many names it has.
        links: u64,
    },
    /// It was replaced or written each time it was looked at.
    #[error("{} changes faster than it can be checked", Shown(path))]
    Changing {
        /// Which.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {action} {}: {}", Shown(path), Errno(*errno))]
    System {
        /// Which.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why.
        errno: rustix::io::Errno,
    },
    /// `trusted_owners` names nobody.
    #[error(
        "there is no user `{}` in /etc/passwd\nhelp: name a user that exists, or give its number",
        name.escape_debug()
    )]
    UnknownUser {
        /// Whom.
        name: String,
    },
    /// The users are not to be had.
    #[error("cannot read `/etc/passwd`: {why}")]
    Passwd {
        /// Why.
        why: String,
    },
}

impl TrustError {
    /// What is said when it is server.yml that is not used: it cannot name its own owners, and
    /// what does not exist was named on the command line.
    #[must_use]
    pub fn of_server_file(&self) -> String {
        let text = self.to_string();
        let first = text.lines().next().unwrap_or_default();
        match self {
            Self::Missing { .. } => {
                format!("{first}\nhelp: name the server file: `supervisor-rs-server SERVER.yml`")
            }
            Self::Owner {
                path,
                kind,
                own_name,
                ..
            } => format!("{first}\nhelp: `{}`", chown(path, *kind, own_name)),
            Self::NotRegular {
                path,
                kind: Kind::Directory,
            } => format!(
                "{first}\nhelp: name the file in it, such as {}",
                Shown(&path.join("server.yml"))
            ),
            Self::NotAbsolute { .. }
            | Self::Dangling { .. }
            | Self::Links { .. }
            | Self::Deep { .. }
            | Self::NotDirectory { .. }
            | Self::NotRegular { .. }
            | Self::TooLarge { .. }
            | Self::Crowded { .. }
            | Self::Writable { .. }
            | Self::HardLinks { .. }
            | Self::Changing { .. }
            | Self::System { .. }
            | Self::UnknownUser { .. }
            | Self::Passwd { .. } => text,
        }
    }

    /// Whether it says that there is nothing there, rather than something bad.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Dangling { .. })
    }
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the word itself")]
pub enum Kind {
    File,
    Directory,
    Link,
    Fifo,
    Socket,
    Device,
    Other,
}

impl From<rustix::fs::FileType> for Kind {
    fn from(kind: rustix::fs::FileType) -> Self {
        use rustix::fs::FileType;
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Link,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            FileType::Unknown => Self::Other,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Link => "link",
            Self::Fifo => "FIFO",
            Self::Socket => "socket",
            Self::Device => "device",
            Self::Other => "thing of an unknown kind",
        })
    }
}

/// Who besides the owner may write something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// A group that is not the owner's primary one.
    Group {
        /// Which.
        gid: u32,
    },
    /// Everybody.
    Others,
    /// Everybody, and a group too.
    Both {
        /// Which.
        gid: u32,
    },
    /// Whom an access control list names (acl(5)).
    List,
}

impl Writers {
    fn remedy(self, path: &Path) -> String {
        let path = quoted(path);
        match self {
            Self::Group { .. } => format!("chmod g-w {path}"),
            Self::Others => format!("chmod o-w {path}"),
            Self::Both { .. } => format!("chmod go-w {path}"),
            Self::List => format!("setfacl -b {path} && chmod g-w {path}"),
        }
    }
}

impl fmt::Display for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group { gid } => write!(f, "the group {gid}"),
            Self::Others => f.write_str("everybody"),
            Self::Both { gid } => write!(f, "everybody and the group {gid}"),
            Self::List => f.write_str("somebody in its access control list"),
        }
    }
}

/// The command that gives it to the right owner.
fn chown(path: &Path, kind: Kind, own_name: &str) -> String {
    let link = if kind == Kind::Link { " -h" } else { "" };
    format!("chown{link} {own_name} {}", quoted(path))
}

/// A path in backticks, with nothing in it that a terminal or a log would obey.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", harmless(&self.0.to_string_lossy()))
    }
}

fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// A path as a shell takes it; control characters, which no shell command should be pasted
/// with, are escaped.
pub fn quoted(path: &Path) -> String {
    harmless(&shell_words::quote(&path.to_string_lossy()))
}

/// The system's words for an error, without the number.
struct Errno(rustix::io::Errno);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from(self.0).to_string();
        let words = text.split(" (os error").next().unwrap_or(&text);
        let mut chars = words.chars();
        match chars.next() {
            Some(first) => write!(f, "{}{}", first.to_lowercase(), chars.as_str()),
            None => Ok(()),
        }
    }
}
