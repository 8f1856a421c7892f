//! Either end of a connection by hand: handshakes, frames, and what comes back, on a socket that
//! blocks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{EPOCHS, LIMITS, SKEW_MAX, VALUE_MAX, identity, introduction, text_of};
use koltso_net::replica::blocking::DialConfig;
use koltso_net::replica::frame::{HEADER, Parsed, encode_request};
use koltso_net::replica::handshake::{Acceptor, Dialer, Dialing, Progress};
use koltso_net::replica::{Features, Identity, NoMemory, PeerIdentity, Purpose, Request, frame};
use koltso_testkit::wall_ms;

/// To node 2, remembering nobody.
pub(crate) fn dialing(identity: &Identity, purpose: Purpose) -> Dialing<'_> {
    Dialing { identity, acquaintances: &NoMemory, expected: 2, purpose, skew_max: SKEW_MAX }
}

/// As [`dialing`], on a thread.
pub(crate) fn dial_config(address: SocketAddr, identity: &Identity, purpose: Purpose) -> DialConfig<'_> {
    DialConfig {
        address,
        identity,
        acquaintances: &NoMemory,
        peer_number: 2,
        purpose,
        value_max: VALUE_MAX,
        wall_ms,
        skew_max: SKEW_MAX,
        timeout: Duration::from_secs(5),
        stop: None,
    }
}

/// What node 2 knows of node 1 after a handshake.
pub(crate) fn dialer(purpose: Purpose) -> PeerIdentity {
    PeerIdentity {
        node: 1,
        introduction: introduction(1),
        features: Features::KNOWN,
        skew: None,
        purpose,
        changed: false,
        doubts_us: false,
        heard_us_ms: 0,
        epoch: 1,
    }
}

/// A connection whose handshake as node 1 was done by hand.
pub(crate) fn raw(address: SocketAddr) -> TcpStream {
    dialed_by_hand(address, Purpose::Requests)
}

/// As [`raw`], for something else.
pub(crate) fn dialed_by_hand(address: SocketAddr, purpose: Purpose) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (us, mut out, mut read) = (identity(1), Vec::new(), Vec::new());
    let mut dialer = Dialer::start(dialing(&us, purpose), wall_ms(), &[1; 32], &mut out);
    loop {
        socket.write_all(&out).unwrap();
        out.clear();
        let mut buffer = [0; 1000];
        let count = socket.read(&mut buffer).unwrap();
        read.extend_from_slice(&buffer[..count]);
        match dialer.feed(&read, Duration::ZERO, &mut out).unwrap() {
            Progress::More { consumed } => drop(read.drain(..consumed)),
            Progress::Done { .. } => {
                socket.write_all(&out).unwrap();
                return socket;
            }
        }
    }
}

/// A node 2 by hand: accepts once, shakes hands, and goes on as `then` likes.
pub(crate) fn raw_peer(then: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (us, mut out, mut read) = (identity(2), Vec::new(), Vec::new());
        let mut acceptor = Acceptor::new(&us, &[1, 2, 3], &NoMemory, [2; 32]);
        loop {
            // Byte by byte, so that no frame is taken.
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            read.push(byte[0]);
            let fed = acceptor.feed(&read, wall_ms(), &mut out).unwrap();
            socket.write_all(&out).unwrap();
            out.clear();
            match fed {
                Progress::More { consumed } => drop(read.drain(..consumed)),
                Progress::Done { .. } => return then(socket),
            }
        }
    });
    (address, thread)
}

pub(crate) fn frame_of(number: u64, request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_request(&mut out, number, EPOCHS.0, request);
    out
}

/// Reads one reply: its number and text.
pub(crate) fn reply_from(socket: &mut TcpStream) -> (u64, String) {
    let mut bytes = vec![0; HEADER];
    socket.read_exact(&mut bytes).unwrap();
    match frame::parse_reply(&bytes, LIMITS) {
        Parsed::Partial { need } => {
            bytes.resize(need, 0);
            socket.read_exact(&mut bytes[HEADER..]).unwrap();
        }
        Parsed::Complete { .. } => {}
        Parsed::Bad(violation) => panic!("{violation}"),
    }
    match frame::parse_reply(&bytes, LIMITS) {
        Parsed::Complete { frame, len } if len == bytes.len() => (frame.number, text_of(&frame.reply)),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn assert_ended(socket: &mut TcpStream) {
    match socket.read(&mut [0; 100]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("more came: {other:?}"),
    }
}
