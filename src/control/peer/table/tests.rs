//! Tables made by hand, and the real one.

use std::net::{TcpListener, TcpStream};

use super::{super::wait_until_nobody_holds, *};

const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                    uid  timeout inode\n";

fn ends(peer: &str, local: &str) -> Ends {
    Ends::new(peer.parse().unwrap(), local.parse().unwrap())
}

fn line(own: &str, other: &str, state: &str, uid: u32, inode: u64) -> String {
    format!(
        "   3: {own} {other} {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 {inode} \
         1 0000000000000000 20 4 30 10 -1\n"
    )
}

fn found(lines: &str) -> Holder {
    let ends = ends("127.0.0.1:8080", "127.0.0.1:33889");
    search((HEAD.to_owned() + lines).as_bytes(), &ends)
}

/// As this machine writes an address of the loopback.
fn loopback(port: u16) -> String {
    format!("{:08X}:{port:04X}", u32::from_ne_bytes([127, 0, 0, 1]))
}

#[test]
fn a_held_socket_gives_its_user() {
    let (peer, local) = (loopback(8080), loopback(33889));
    assert_eq!(
        found(&line(&peer, &local, "01", 1000, 9)),
        Holder::User(1000)
    );
    assert_eq!(found(""), Holder::Missing);
    // The other end is ours.
    assert_eq!(found(&line(&local, &peer, "01", 1000, 9)), Holder::Missing);
}

#[test]
fn what_nobody_holds_or_is_not_connected_is_not_root_s() {
    let (peer, local) = (loopback(8080), loopback(33889));
    assert_eq!(found(&line(&peer, &local, "05", 0, 0)), Holder::Nobody);
    for state in ["02", "03", "06", "07", "08", "09", "0A", "0B", "0C"] {
        let line = line(&peer, &local, state, 0, 9);
        assert_eq!(found(&line), Holder::Nobody, "{state}");
    }
}

#[test]
fn one_that_is_gone_does_not_hide_the_one_that_is() {
    let (peer, local) = (loopback(8080), loopback(33889));
    let both = line(&peer, &local, "06", 0, 0) + &line(&peer, &local, "01", 7, 9);
    assert_eq!(found(&both), Holder::User(7));
}

#[test]
fn what_is_no_line_of_a_table_is_passed_over() {
    let (peer, local) = (loopback(8080), loopback(33889));
    let good = line(&peer, &local, "01", 7, 9);
    for length in 0..good.trim_end().len() {
        if let Some(Socket { .. }) = socket(&good[..length]) {
            assert!(length > good.find("        0 ").unwrap(), "{length}");
        }
    }
    for junk in [
        "\n",
        "\u{fe}\n",
        ": : : :\n",
        "1: 0:0 0:0 01\n",
        "   3: 7F:1 7F:1 01\n",
    ] {
        assert_eq!(
            found(&(junk.to_owned() + &good)),
            Holder::User(7),
            "{junk:?}"
        );
    }
    let long = "x".repeat(5_000) + "\n";
    assert_eq!(found(&(long + &good)), Holder::User(7));
}

#[test]
fn addresses_are_those_of_the_kernel() {
    assert_eq!(
        address(&loopback(80)),
        Some("127.0.0.1:80".parse().unwrap())
    );
    let six: String = "::ffff:10.0.0.1"
        .parse::<std::net::Ipv6Addr>()
        .unwrap()
        .octets()
        .chunks(4)
        .map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())))
        .collect();
    assert_eq!(
        address(&format!("{six}:0050")),
        Some("10.0.0.1:80".parse().unwrap())
    );
    for bad in [
        "",
        ":",
        "0100007F",
        "0100007F:",
        "G100007F:0050",
        "0100007F:10000",
        "é100007:1",
    ] {
        assert_eq!(address(bad), None, "{bad}");
    }
}

#[test]
fn the_real_table_tells_the_peers_user_until_nobody_holds_its_socket() {
    if File::open(TCP).is_err() {
        eprintln!("skipped: no {TCP} here");
        return;
    }
    let own = rustix::process::geteuid().as_raw();
    for listens in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(listens).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let ends = Ends::new(peer, accepted.local_addr().unwrap());
        assert_eq!(holder(&ends), Holder::User(own), "{listens}");
        drop(client);
        wait_until_nobody_holds(ends.peer, ends.local);
        assert_eq!(holder(&ends), Holder::Nobody, "{listens}");
    }
}
