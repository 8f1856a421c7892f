//! Strangers at the replica port.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{QUORUM, assert_no_panic, listen_as};
use koltso_testkit::server::raise_descriptor_limit;
use koltso_testkit::{Cluster, Random, eventually, volume};

/// Whether the other side ends this connection; reads and drops whatever it says.
fn is_ended(stream: &mut TcpStream, deadline: Instant) -> bool {
    let mut block = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut block) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(_) => return true,
        }
    }
}

/// Sends each of these on a connection of its own; all of them have to be ended by the server. A
/// stranger that says nothing gets 3 s; the rest is for a busy machine.
#[track_caller]
fn assert_all_ended(address: SocketAddr, messages: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let mut open: Vec<(String, TcpStream)> = Vec::new();
    for (what, bytes) in messages {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        // It may be refused before it is whole.
        let _ = stream.write_all(&bytes);
        open.push((what, stream));
    }
    let deadline = Instant::now() + Duration::from_secs(6);
    let kept: Vec<&String> =
        open.iter_mut().filter_map(|(what, stream)| (!is_ended(stream, deadline)).then_some(&*what)).collect();
    assert!(kept.is_empty(), "{} connections of strangers were kept: {:?}", kept.len(), &kept[..kept.len().min(10)]);
}

#[test]
fn strangers_at_the_replica_port_are_shown_out() {
    let mut random = Random::announced("strangers_at_the_replica_port_are_shown_out");
    let cluster = Cluster::of(3);
    let before = cluster.server(0).anonymous_kib();
    let mut messages = vec![
        ("nothing".to_owned(), Vec::new()),
        ("a byte".to_owned(), vec![0]),
        ("an HTTP request".to_owned(), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a TLS hello".to_owned(), vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ("zeros".to_owned(), vec![0; 4096]),
        ("a mebibyte of zeros".to_owned(), vec![0; 1 << 20]),
        ("the largest lengths".to_owned(), vec![0xff; 4096]),
        ("a signed length".to_owned(), [0xff, 0xff, 0xff, 0x7f].repeat(16)),
    ];
    for index in 0..volume(40, 1000) {
        let size = *random.choose(&[1, 4, 8, 16, 17, 64, 300, 5000]);
        messages.push((format!("garbage {index}, {size} bytes"), random.bytes(size)));
    }
    assert_all_ended(cluster.replica_address(0), messages);
    let grown = cluster.server(0).anonymous_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB of memory for strangers");
    cluster.client(1).put_of("key", "value", (3, 3)).expect(201, "PUT 3/3 after the strangers");
    assert!(cluster.log(0).lines().count() < 60, "a flood:\n{}", cluster.log(0));
    assert_no_panic(&cluster);
}

#[test]
fn many_silent_connections_at_the_replica_port_keep_no_peer_out() {
    let mut cluster = Cluster::of(3);
    let address = cluster.replica_address(0);
    let mut silent: Vec<TcpStream> = (0..volume(300, 3000)).flat_map(|_| TcpStream::connect(address)).collect();
    assert!(!silent.is_empty(), "nothing listens at {address}");
    // A peer that comes now has to get in.
    cluster.kill(1);
    cluster.start(1);
    cluster.wait_up();
    cluster.client(1).put_of("key", "value", (3, 3)).expect(201, "PUT 3/3 beside silent strangers");
    let deadline = Instant::now() + Duration::from_secs(6);
    let kept = silent.iter_mut().map(|stream| is_ended(stream, deadline)).filter(|ended| !ended).count();
    assert_eq!(kept, 0, "silent connections that were kept");
}

/// The first bytes that a node sends to a peer which it connects to, as somebody at the peer's
/// address sees them.
fn overheard_hello(listener: &TcpListener) -> Vec<u8> {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if let Ok((mut stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut bytes = vec![0; 4096];
            let count = stream.read(&mut bytes).unwrap_or(0);
            bytes.truncate(count);
            return bytes;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Vec::new()
}

#[test]
fn half_and_twisted_hellos_are_shown_out() {
    let mut random = Random::announced("half_and_twisted_hellos_are_shown_out");
    let mut cluster = Cluster::of(3);
    cluster.kill(2);
    let listener = listen_as(&cluster, 2);
    // Something to say to the third node.
    cluster.client(0).put_of("key", "value", QUORUM).expect(201, "PUT 2/3");
    let hello = overheard_hello(&listener);
    drop(listener);
    assert!(!hello.is_empty(), "a node that connects does not speak first");
    let mut messages = Vec::new();
    let step = (hello.len() / volume(40, 400)).max(1);
    for length in (1..hello.len()).step_by(step) {
        messages.push((format!("{length} of {} bytes of a hello", hello.len()), hello[..length].to_vec()));
    }
    for at in (0..hello.len()).step_by(step) {
        let mut twisted = hello.clone();
        twisted[at] ^= 1 << random.below(8);
        messages.push((format!("a hello with another byte {at}"), twisted));
    }
    for length in [4, 64, 4096] {
        messages.push((
            format!("a hello and {length} bytes of the largest lengths"),
            [&hello[..], &vec![0xff; length]].concat(),
        ));
        messages.push((format!("a hello and {length} bytes of garbage"), [&hello[..], &random.bytes(length)].concat()));
    }
    // It was meant for node 2, so node 1 may take none of it for a peer, not even the true one.
    assert_all_ended(cluster.replica_address(1), messages);
    cluster.start(2);
    cluster.wait_up();
    cluster.client(1).put_of("key", "other", (3, 3)).expect(201, "PUT 3/3 afterwards");
    assert_eq!(cluster.client(2).value_of("key", (3, 3)).as_deref(), Some(&b"other"[..]));
    assert_no_panic(&cluster);
}

/// Connects to an address as fast as it goes, until it is told to stop. Some strangers stay and say
/// nothing, some leave at once, and some have something else to say. How many there were.
fn flood(address: SocketAddr, kind: usize, stop: &AtomicBool) -> usize {
    const STAY: usize = 600;
    let mut held = VecDeque::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stranger) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { continue };
        count += 1;
        match kind {
            0 => held.push_back(stranger),
            1 => drop(stranger),
            _ => {
                let _ = stranger.write_all(b"KOLTSORP and nothing more");
                held.push_back(stranger);
            }
        }
        if held.len() > STAY {
            held.pop_front();
        }
    }
    count
}

#[test]
fn a_flood_of_strangers_keeps_no_member_out() {
    raise_descriptor_limit();
    let mut cluster = Cluster::of(3);
    let (address, stop) = (cluster.replica_address(0), &AtomicBool::new(false));
    let before = cluster.server(0).anonymous_kib();
    std::thread::scope(|scope| {
        let floods: Vec<_> = (0..3).map(|kind| scope.spawn(move || flood(address, kind, stop))).collect();
        let begun = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for round in 0..volume(2, 5) {
                cluster.kill(1);
                cluster.start(1);
                let started = Instant::now();
                eventually("the member is back", Duration::from_secs(20), || cluster.sees(0, 1) && cluster.sees(1, 0));
                println!("back after {:?}", started.elapsed());
                let mut client = cluster.client(1);
                eventually("writes to all", Duration::from_secs(10), || {
                    client.put_of(format!("key{round}"), "value", (3, 3)).status == 201
                });
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let strangers: usize = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
        println!("{strangers} strangers, {:.0} a second", strangers as f64 / begun.elapsed().as_secs_f64());
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let grown = cluster.server(0).anonymous_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB of memory for strangers");
    assert!(cluster.metrics(0).contains("koltso_limits_hit_total{limit=\"strangers\"}"));
    assert!(cluster.log(0).lines().count() < 200, "a flood:\n{}", cluster.log(0));
    assert_no_panic(&cluster);
}
