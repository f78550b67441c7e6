//! Other hosts and other users, on one machine.
//!
//! - A [`Network`] is a host of its own, as far as addresses go: a network namespace, which is
//!   gone when its test is, links and addresses with it. Whatever runs in [`Network::run`], and
//!   whatever is started there, is on that host; nothing outside is touched.
//! - [`as_user`] runs something as another user of this host.
//!
//! Namespaces and users are the thread's that takes them on, so tests may run side by side. A
//! `/proc/sys/net` that is written there is the namespace's own.
//!
//! Sources: network_namespaces(7), veth(4), setns(2), credentials(7).

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use rustix::{
    process::{Gid, Uid},
    thread::{
        LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

use supervisor_rs::process::open_for_writing;

use crate::sandbox::{PATIENCE, skip, wait_for};

/// A host of its own.
pub(crate) struct Network {
    /// Keeps the namespaces, and ends when this test does: it reads what nobody writes.
    holder: Child,
}

/// What one host calls the other: [`Network::linked`].
pub(crate) const NEAR_V4: &str = "10.77.0.1";
/// The other host.
pub(crate) const FAR_V4: &str = "10.77.0.2";
/// As [`NEAR_V4`].
pub(crate) const NEAR_V6: &str = "fd00:77::1";
/// As [`FAR_V4`].
pub(crate) const FAR_V6: &str = "fd00:77::2";
/// What each calls its end of the link.
pub(crate) const LINK: &str = "link0";

impl Network {
    /// A host without a link to any other; `None`, having said so, where that cannot be.
    pub(crate) fn alone() -> Option<Self> {
        Self::prepared("true")
    }

    /// As [`Network::alone`], having run this script there. What it mounts is seen by none but
    /// what is started [within](Network::entrance) it.
    pub(crate) fn prepared(script: &str) -> Option<Self> {
        let network = Self::try_prepared(script);
        if network.is_none() {
            skip("a network namespace needs root, `unshare` and `ip`");
        }
        network
    }

    fn try_prepared(script: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let script = format!("ip link set lo up && {script} && echo ready && exec cat");
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let stdout = holder.stdout.take().expect("asked for");
        let network = Self { holder };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).ok()?;
        (line == "ready\n").then_some(network)
    }

    /// Two hosts with a link between them: the near one and the far one.
    pub(crate) fn linked() -> Option<(Self, Self)> {
        let (near, far) = (Self::alone()?, Self::alone()?);
        let pid = far.holder.id().to_string();
        near.run(|| {
            let peer = ["type", "veth", "peer", "name", LINK, "netns", &pid];
            ip(&[&["link", "add", LINK][..], &peer].concat());
            address(NEAR_V4, NEAR_V6);
        });
        far.run(|| address(FAR_V4, FAR_V6));
        Some((near, far))
    }

    /// Does something on that host.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.holder.id());
        let namespace = File::open(path).expect("a holder that lives");
        in_thread(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may");
            body()
        })
    }

    /// What a program is started by that is to see this host's mounts too.
    pub(crate) fn entrance(&self) -> [String; 3] {
        let place = |kind, name| format!("--{kind}=/proc/{}/ns/{name}", self.holder.id());
        [
            "nsenter".to_owned(),
            place("net", "net"),
            place("mount", "mnt"),
        ]
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _may_have_ended = self.holder.kill();
        let _reaped = self.holder.wait();
    }
}

/// Gives this host's end of the link its addresses, and waits for nothing.
fn address(v4: &str, v6: &str) {
    ip(&["link", "set", LINK, "up"]);
    ip(&["addr", "add", &format!("{v4}/24"), "dev", LINK]);
    // Nobody else can have it: without looking for duplicates it can be used at once.
    ip(&["addr", "add", &format!("{v6}/64"), "dev", LINK, "nodad"]);
}

/// Runs `ip`, which must do it.
pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output();
    let output = output.expect("`ip` is installed");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// Whether tests can be somebody else.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Does something as a user of this host with no right but to be there, in the group of the
/// same number and in no other.
pub(crate) fn as_user<T: Send>(uid: u32, body: impl FnOnce() -> T + Send) -> T {
    in_thread(|| {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        set_thread_groups(&[]).expect("root may");
        set_thread_res_gid(group, group, group).expect("root may");
        set_thread_res_uid(user, user, user).expect("root may");
        body()
    })
}

/// What a thread takes on, its test must not have afterwards.
fn in_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(body).join() {
        Ok(value) => value,
        Err(panic) => resume_unwind(panic),
    })
}

/// A program of ours in a sandbox, where every user of this host can run it.
pub(crate) fn for_everybody(program: &str, dir: &Path) -> PathBuf {
    let name = Path::new(program).file_name().expect("a program");
    let copy = dir.join(name);
    // The way to the original may be closed to others. A link, unlike a copy, is never open for
    // writing, which it must not be when it is executed.
    if !copy.exists() && fs::hard_link(program, &copy).is_err() {
        fs::copy(program, &copy).expect("room for a program");
        let written = File::open(&copy).expect("our own");
        wait_for("the copy to be closed", PATIENCE, || {
            !open_for_writing(&written)
        });
    }
    // The sandbox may be closed to others, as the system's habit is (`umask`).
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).expect("our own");
    copy
}

/// A user of this machine that nobody is: its number stands in no list, and tests that use
/// different ones do not meet.
pub(crate) const STRANGERS: u32 = 54_000;

#[test]
fn a_network_reaches_its_link_and_nothing_else() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    use std::net::{TcpListener, TcpStream};
    let listener = far.run(|| TcpListener::bind((FAR_V4, 0)).unwrap());
    let place = listener.local_addr().unwrap();
    assert!(TcpStream::connect(place).is_err(), "not from outside");
    let seen = near.run(|| TcpStream::connect(place).unwrap().local_addr().unwrap());
    assert_eq!(seen.ip().to_string(), NEAR_V4);
    let six = far.run(|| TcpListener::bind((FAR_V6, 0)).unwrap());
    let place = six.local_addr().unwrap();
    let seen = near.run(|| TcpStream::connect(place).unwrap().local_addr().unwrap());
    assert_eq!(seen.ip().to_string(), NEAR_V6);
}

#[test]
fn who_is_somebody_else_is_so_for_a_moment_and_alone() {
    if !is_root() {
        return skip("only root can be somebody else");
    }
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("secret");
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    let (uid, opened) = as_user(STRANGERS, || {
        let output = Command::new("id").arg("-u").output().unwrap();
        (output.stdout, fs::read(&closed).is_ok())
    });
    assert_eq!((uid, opened), (b"54000\n".to_vec(), false));
    assert!(is_root() && fs::read(&closed).is_ok());
}
