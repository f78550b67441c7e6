//! Answers of the kernel, made by hand and real ones.

use std::net::{TcpListener, TcpStream};

use super::{super::wait_until_nobody_holds, *};

fn ends(peer: &str, local: &str) -> Ends {
    Ends::new(peer.parse().unwrap(), local.parse().unwrap())
}

/// An answer as the kernel makes it.
fn answer(sequence: u32, ends: &Ends, state: u8, uid: u32, inode: u32) -> Vec<u8> {
    let family: u8 = if ends.peer.is_ipv4() { 2 } else { 10 };
    let mut bytes = Vec::new();
    bytes.extend(88_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(0_u16.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(4711_u32.to_ne_bytes());
    bytes.extend([family, state, 0, 0]);
    bytes.extend(ends.peer.port().to_be_bytes());
    bytes.extend(ends.local.port().to_be_bytes());
    bytes.extend(octets(ends.peer.ip()));
    bytes.extend(octets(ends.local.ip()));
    bytes.extend([0; 12]);
    bytes.extend([0; 12]);
    bytes.extend(uid.to_ne_bytes());
    bytes.extend(inode.to_ne_bytes());
    bytes
}

fn said(message: &[u8]) -> Result<Option<Said>, Errno> {
    read(message, 7)
}

#[test]
fn a_request_is_laid_out_as_the_header_says() {
    let request = request(7, &ends("127.0.0.1:258", "127.0.0.1:772"), 3);
    let mut expected = vec![72, 0, 0, 0, 20, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    expected.extend([2, 6, 0, 0, 255, 255, 255, 255, 1, 2, 3, 4]);
    for _ in 0..2 {
        expected.extend([127, 0, 0, 1]);
        expected.extend([0; 12]);
    }
    expected.extend([3, 0, 0, 0]);
    expected.extend([255; 8]);
    if cfg!(target_endian = "little") {
        assert_eq!(request[..], expected[..]);
    }
}

#[test]
fn an_answer_is_read_with_both_its_addresses() {
    for (peer, local) in [
        ("127.0.0.1:5", "127.0.0.1:6"),
        ("[::1]:5", "[::1]:6"),
        ("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:6"),
    ] {
        let ends = ends(peer, local);
        let Ok(Some(Said::This(socket))) = said(&answer(7, &ends, 1, 1000, 9)) else {
            panic!("{peer}");
        };
        assert_eq!(socket.holder(&ends), Holder::User(1000));
    }
}

#[test]
fn an_answer_to_another_request_is_passed_over() {
    let ends = ends("127.0.0.1:5", "127.0.0.1:6");
    assert_eq!(said(&answer(6, &ends, 1, 0, 9)), Ok(None));
}

#[test]
fn an_answer_that_is_cut_off_anywhere_is_none() {
    let whole = answer(7, &ends("127.0.0.1:5", "127.0.0.1:6"), 1, 0, 9);
    for length in 0..whole.len() {
        assert_eq!(said(&whole[..length]), Err(Errno::BADMSG), "{length}");
        // The same, with a header that fits.
        let mut cut = whole[..length].to_vec();
        if let Some(head) = cut.get_mut(..4) {
            head.copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
        }
        assert_eq!(said(&cut), Err(Errno::BADMSG), "{length}");
    }
}

#[test]
fn an_answer_whose_length_is_a_lie_is_none() {
    let mut lie = answer(7, &ends("127.0.0.1:5", "127.0.0.1:6"), 1, 0, 9);
    for length in [0, 15, 89, u32::MAX] {
        lie[..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(said(&lie), Err(Errno::BADMSG), "{length}");
    }
}

#[test]
fn an_answer_of_another_family_is_none() {
    let mut other = answer(7, &ends("127.0.0.1:5", "127.0.0.1:6"), 1, 0, 9);
    other[HEADER_BYTES] = 1;
    assert_eq!(said(&other), Err(Errno::AFNOSUPPORT));
}

#[test]
fn an_error_is_told_and_success_without_a_socket_is_none() {
    let mut error = answer(7, &ends("127.0.0.1:5", "127.0.0.1:6"), 0, 0, 0);
    error[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
    for (code, errno) in [
        (-2, Errno::NOENT),
        (-1, Errno::PERM),
        (0, Errno::BADMSG),
        (5, Errno::BADMSG),
        (i32::MIN, Errno::BADMSG),
    ] {
        error[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&i32::to_ne_bytes(code));
        assert_eq!(said(&error), Ok(Some(Said::Error(errno))), "{code}");
    }
}

/// A client, the accepted socket, and both ends.
fn connected(address: &str) -> (TcpStream, TcpStream, Ends) {
    let listener = TcpListener::bind(address).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let ends = Ends::new(peer, accepted.local_addr().unwrap());
    (client, accepted, ends)
}

fn diag() -> Option<Diag> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let diag = Diag::open().and_then(|mut diag| {
        diag.try_out(listener.local_addr().unwrap())?;
        Ok(diag)
    });
    match diag {
        Ok(diag) => Some(diag),
        Err(why) => {
            eprintln!("skipped: no sock_diag here: {why}");
            None
        }
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn the_peers_user_is_told_over_both_families() {
    let Some(mut diag) = diag() else { return };
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (_client, _accepted, ends) = connected(address);
        assert_eq!(diag.holder(&ends), Holder::User(own_uid()), "{address}");
    }
}

#[test]
fn a_socket_that_nobody_holds_any_more_is_not_root_s() {
    let Some(mut diag) = diag() else { return };
    let (client, accepted, ends) = connected("127.0.0.1:0");
    drop(client);
    wait_until_nobody_holds(ends.peer, ends.local);
    // An orphan: FIN-WAIT.
    assert_eq!(diag.holder(&ends), Holder::Nobody);
    drop(accepted);
    wait_until_nobody_holds(ends.local, ends.peer);
    // TIME-WAIT.
    assert_eq!(diag.holder(&ends), Holder::Nobody);
}

#[test]
fn a_listener_on_the_peer_s_port_is_not_the_peer() {
    let Some(mut diag) = diag() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listens = listener.local_addr().unwrap();
    let ends = Ends::new(listens, "127.0.0.1:9".parse().unwrap());
    assert!(matches!(diag.ask(&ends, 0), Ok(Said::This(socket)) if socket.state == LISTEN));
    assert_eq!(diag.holder(&ends), Holder::Missing);
}

#[test]
fn a_trial_with_what_does_not_listen_fails() {
    let Some(mut diag) = diag() else { return };
    let (_client, _accepted, ends) = connected("127.0.0.1:0");
    assert_eq!(diag.try_out(ends.peer), Err(Errno::NOENT));
}
