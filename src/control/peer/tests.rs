//! Whom a connection is taken for.

use std::{
    net::{Ipv6Addr, TcpStream as StdStream, UdpSocket},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use tokio::{net::TcpListener, time::timeout};

use super::*;

fn ends(peer: &str, local: &str) -> Ends {
    let address = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    Ends::new(address(peer, 5), address(local, 6))
}

#[test]
fn this_host_is_who_comes_from_loopback_or_from_the_address_it_connects_to() {
    for (peer, local) in [
        ("127.0.0.1", "127.0.0.1"),
        ("127.9.9.9", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
    ] {
        let ends = ends(peer, local);
        assert_eq!(ends.origin(Holder::User(7)), Origin::User(7), "{peer}");
        for holder in [Holder::Nobody, Holder::Missing] {
            assert_eq!(ends.origin(holder), Origin::UnknownUser, "{peer}");
        }
    }
    for (peer, local) in [
        ("192.0.2.1", "192.0.2.2"),
        ("0.0.0.0", "127.0.0.1"),
        ("fe80::1", "fe80::2"),
        ("::127.0.0.1", "::1"),
    ] {
        assert_eq!(
            ends(peer, local).origin(Holder::Missing),
            Origin::Remote,
            "{peer}"
        );
    }
}

#[test]
fn who_comes_from_here_under_another_address_is_neither_a_user_nor_another_host() {
    let ends = ends("192.0.2.1", "192.0.2.2");
    for holder in [Holder::User(0), Holder::Nobody] {
        assert_eq!(ends.origin(holder), Origin::UnknownUser);
    }
}

#[test]
fn only_a_connected_socket_that_somebody_holds_has_a_user() {
    let ends = ends("127.0.0.1", "127.0.0.1");
    let socket = Socket {
        state: 1,
        own: ends.peer,
        other: ends.local,
        uid: 0,
        inode: 9,
    };
    for state in 0..=u8::MAX {
        let held = Socket { state, ..socket };
        let is_connected = matches!(state, 1 | 4 | 5);
        let expected = if is_connected {
            Holder::User(0)
        } else {
            Holder::Nobody
        };
        assert_eq!(held.holder(&ends), expected, "{state}");
        let orphan = Socket { inode: 0, ..held };
        assert_eq!(orphan.holder(&ends), Holder::Nobody, "{state}");
    }
    for other in [
        Socket {
            own: ends.local,
            ..socket
        },
        Socket {
            other: "127.0.0.1:7".parse().unwrap(),
            ..socket
        },
        Socket {
            other: "0.0.0.0:0".parse().unwrap(),
            state: 10,
            ..socket
        },
    ] {
        assert_eq!(other.holder(&ends), Holder::Missing, "{other:?}");
    }
}

#[test]
fn the_number_that_stands_for_those_without_one_is_nobody() {
    let users = |overflow| Users {
        source: Source::None(String::new()),
        overflow,
    };
    let nobody = Holder::User(65_534);
    assert_eq!(users(Some(65_534)).believed(nobody), Holder::Nobody);
    assert_eq!(
        users(Some(65_534)).believed(Holder::User(0)),
        Holder::User(0)
    );
    assert_eq!(users(None).believed(nobody), nobody);
}

#[test]
fn a_namespace_has_a_number_for_everyone_or_it_has_not() {
    assert!(maps_everyone("         0          0 4294967295\n"));
    assert!(maps_everyone("0 0 1000\n1000 100000 4294966295\n"));
    for map in ["", "0 1000 1\n", "0 100000 65536\n", "garbage\n", "0 0 x\n"] {
        assert!(!maps_everyone(map), "{map:?}");
    }
}

/// A connection taken in as the server does it.
async fn accepted(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let accepted = timeout(Duration::from_secs(20), listener.accept()).await;
    accepted.expect("nobody came").unwrap()
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn own() -> Origin {
    Origin::User(rustix::process::geteuid().as_raw())
}

/// Each way to ask that there is here.
fn every_source(listener: SocketAddr) -> Vec<Users> {
    let mut all = vec![Users::new(Some(listener))];
    if let Source::Diag(_) = all[0].source {
        all.push(Users {
            source: Source::Table,
            overflow: None,
        });
    }
    all.retain(|users| match &users.source {
        Source::Diag(_) | Source::Table => true,
        Source::None(why) => {
            eprintln!("skipped: {why}");
            false
        }
    });
    all
}

#[tokio::test]
async fn our_own_connection_is_ours() {
    let (listener, address) = listener().await;
    for mut users in every_source(address) {
        let _client = StdStream::connect(address).unwrap();
        let (stream, peer) = accepted(&listener).await;
        assert_eq!(users.origin(&stream, peer).await, own(), "{users:?}");
    }
}

#[tokio::test]
async fn who_only_reads_any_more_is_still_known() {
    let (listener, address) = listener().await;
    for mut users in every_source(address) {
        let client = StdStream::connect(address).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (stream, peer) = accepted(&listener).await;
        assert_eq!(users.origin(&stream, peer).await, own(), "{users:?}");
    }
}

#[tokio::test]
async fn who_has_closed_before_it_was_taken_in_counts_as_nobody() {
    let (listener, address) = listener().await;
    for mut users in every_source(address) {
        drop(StdStream::connect(address).unwrap());
        let (stream, peer) = accepted(&listener).await;
        wait_until_nobody_holds(peer, address);
        assert_eq!(users.origin(&stream, peer).await, Origin::UnknownUser);
    }
}

fn connect_from(own: SocketAddr, address: SocketAddr) -> rustix::io::Result<StdStream> {
    let client = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&client, &own)?;
    connect(&client, &address)?;
    Ok(client.into())
}

/// An address of this machine that is not a loopback one.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: only a route is chosen.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test]
async fn an_address_of_this_host_that_is_not_the_one_it_connects_to_hides_the_user_and_no_more() {
    let (listener, address) = listener().await;
    let mut users = Users::new(Some(address));
    let (Source::Diag(_), Some(outer)) = (&users.source, outer_address()) else {
        return eprintln!("skipped: no sock_diag, or no address but loopback");
    };
    let client = match connect_from(SocketAddr::new(outer, 0), address) {
        Ok(client) => client,
        Err(why) => return eprintln!("skipped: not routed: {why}"),
    };
    let (stream, peer) = accepted(&listener).await;
    assert_eq!(peer.ip(), outer);
    assert_eq!(users.origin(&stream, peer).await, Origin::UnknownUser);
    drop(client);
}

/// Its addresses and ports may be anybody's again, and what it wrote can still be read.
#[tokio::test]
async fn who_was_reset_before_it_was_taken_in_counts_as_nobody_though_another_has_its_port() {
    let (listener, address) = listener().await;
    for mut users in every_source(address) {
        // An address of its own, so that no other test is given the port meanwhile.
        let client = connect_from("127.93.7.1:0".parse().unwrap(), address).unwrap();
        let port = client.local_addr().unwrap();
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        wait_until_nobody_holds(port, address);
        let _again = connect_from(port, address).unwrap();
        let (stream, peer) = accepted(&listener).await;
        assert_eq!(peer, port);
        assert_eq!(users.origin(&stream, peer).await, Origin::UnknownUser);
        let (stream, peer) = accepted(&listener).await;
        assert_eq!(users.origin(&stream, peer).await, own());
    }
}

#[tokio::test]
async fn an_ipv6_socket_that_speaks_ipv4_is_known_too() {
    let (listener, address) = listener().await;
    for mut users in every_source(address) {
        let client = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        let mapped: Ipv6Addr = "::ffff:127.0.0.1".parse().unwrap();
        connect(&client, &SocketAddr::new(mapped.into(), address.port())).unwrap();
        let (stream, peer) = accepted(&listener).await;
        assert_eq!(users.origin(&stream, peer).await, own(), "{users:?}");
    }
}

#[tokio::test]
async fn a_socket_that_is_bound_to_the_loopback_interface_is_known_too() {
    let (listener, address) = listener().await;
    let mut users = Users::new(Some(address));
    let Source::Diag(_) = users.source else {
        return eprintln!("skipped: no sock_diag here");
    };
    let client = tokio::net::TcpSocket::new_v4().unwrap();
    if let Err(why) = client.bind_device(Some(b"lo")) {
        return eprintln!("skipped: cannot bind to an interface: {why}");
    }
    let _client = client.connect(address).await.unwrap();
    let (stream, peer) = accepted(&listener).await;
    assert_eq!(users.origin(&stream, peer).await, own());
}

#[tokio::test]
async fn another_user_is_told_from_root() {
    const OTHER: u32 = 47_110;
    if own() != Origin::User(0) {
        return eprintln!("skipped: only root can become another user");
    }
    let (listener, address) = listener().await;
    for mut users in every_source(address) {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; read -r line",
            address.port()
        );
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .current_dir("/")
            .stdin(Stdio::piped());
        let Ok(mut other) = command.uid(OTHER).gid(OTHER).spawn() else {
            return eprintln!("skipped: no bash here");
        };
        let (stream, peer) = accepted(&listener).await;
        assert_eq!(users.origin(&stream, peer).await, Origin::User(OTHER));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}

#[tokio::test]
async fn where_nothing_can_be_asked_every_user_is_unknown() {
    let (listener, address) = listener().await;
    let mut users = Users {
        source: Source::None("forbidden".to_owned()),
        overflow: None,
    };
    assert_eq!(users.told_by(), "none: forbidden");
    let _client = StdStream::connect(address).unwrap();
    let (stream, peer) = accepted(&listener).await;
    assert_eq!(users.origin(&stream, peer).await, Origin::UnknownUser);
}
