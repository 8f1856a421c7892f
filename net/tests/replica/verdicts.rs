//! What the two sides of a handshake think of each other's data folders, and when they know it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    DRIVERS, PING, Server, When, closed, dial_config, dialer, frame_of, identity, introduction, link_remembering,
    link_to, on_both, read, until,
};
use koltso_net::replica::blocking::{Connection, DialConfig};
use koltso_net::replica::{Acquaintances, Introduction, Judged, NoMemory, PeerIdentity, Purpose, ReplicaEvent};
use koltso_testkit::wall_ms;

/// Thinks the same of everybody, and has heard what they say.
#[derive(Debug)]
struct Thinks(Judged);

impl Acquaintances for Thinks {
    fn judge(&self, peer: u16, said: &Introduction) -> Judged {
        assert_eq!(*said, introduction(peer));
        self.0
    }

    fn heard_ms(&self, _: u16) -> u64 {
        0
    }
}

fn thinks(changed: bool) -> Arc<dyn Acquaintances> {
    Arc::new(Thinks(if changed { Judged::Changed } else { Judged::Known }))
}

fn server_that(driver: crate::Driver, acquaintances: Arc<dyn Acquaintances>) -> Server {
    Server::remembering(driver, "127.0.0.1:0".parse().unwrap(), identity(2), When::Now, wall_ms, acquaintances)
}

/// All four cases: whether the dialer has another folder than the acceptor remembers, and the other
/// way round.
const CASES: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

#[test]
fn both_sides_know_of_each_others_doubts_before_any_frame() {
    on_both(|driver| async move {
        for (dialer_changed, acceptor_changed) in CASES {
            let mut server = server_that(driver, thinks(dialer_changed));
            let (link, seen) = link_remembering(Arc::new(server.address), identity(1), thinks(acceptor_changed));
            link.request(1, &read(b"x", true)).unwrap();
            // (The handler checks that it was told before the first reply.)
            until("answered", || !seen.replies.borrow().is_empty()).await;
            let who = seen.who.get().unwrap();
            assert_eq!(
                (who.introduction, who.changed, who.doubts_us),
                (introduction(2), acceptor_changed, dialer_changed)
            );
            let expected =
                PeerIdentity { changed: dialer_changed, doubts_us: acceptor_changed, ..dialer(Purpose::Requests) };
            closed(&link, &seen).await;
            server.stop();
            let events = server.events.lock().unwrap();
            let connected = events.iter().position(|event| *event == ReplicaEvent::Connected(expected));
            assert!(connected.is_some(), "{events:?}");
        }
    });
}

#[test]
fn a_thread_that_dials_knows_it_too() {
    for driver in DRIVERS {
        for (dialer_changed, acceptor_changed) in CASES {
            let server = server_that(driver, thinks(dialer_changed));
            let (us, remembered) = (identity(1), thinks(acceptor_changed));
            let config =
                DialConfig { acquaintances: &*remembered, ..dial_config(server.address, &us, Purpose::Requests) };
            let connection = Connection::dial(&config).unwrap();
            let peer = connection.peer();
            assert_eq!(
                (peer.introduction, peer.changed, peer.doubts_us),
                (introduction(2), acceptor_changed, dialer_changed)
            );
            let doubts =
                PeerIdentity { changed: dialer_changed, doubts_us: acceptor_changed, ..dialer(Purpose::Requests) };
            server.wait_for(&ReplicaEvent::Connected(doubts));
        }
    }
}

#[test]
fn one_identity_at_two_places_is_refused_by_whoever_notices() {
    let elsewhere = "one identity, two places: node 1 has a copy of a data folder that node 2 knows elsewhere";
    let other_way = "one identity, two places: node 2 has a copy of a data folder that node 1 knows elsewhere";
    let copies = "one identity, two places: node 2 and node 1 have copies of one data folder";
    for driver in DRIVERS {
        let server = server_that(driver, Arc::new(Thinks(Judged::TwoPlaces)));
        let us = identity(1);
        let error = Connection::dial(&dial_config(server.address, &us, Purpose::Requests)).unwrap_err();
        assert_eq!(error.to_string(), format!("it refused: {elsewhere}"));
        server.wait_for(&ReplicaEvent::Refused(elsewhere.to_owned()));
        drop(server);

        let server = server_that(driver, Arc::new(NoMemory));
        let remembered = Thinks(Judged::TwoPlaces);
        let config = dial_config(server.address, &us, Purpose::Requests);
        let error = Connection::dial(&DialConfig { acquaintances: &remembered, ..config }).unwrap_err();
        assert_eq!(error.to_string(), other_way);
        server.wait_for(&ReplicaEvent::Refused(format!("the other side refused: {other_way}")));
        let mut copy = identity(1);
        copy.introduction = introduction(2);
        let error = Connection::dial(&dial_config(server.address, &copy, Purpose::Requests)).unwrap_err();
        assert_eq!(error.to_string(), format!("it refused: {copies}"));
        server.wait_for(&ReplicaEvent::Refused(copies.to_owned()));
    }
}

#[test]
fn a_connection_for_comparing_replicas_is_given_away_with_what_was_read() {
    for driver in DRIVERS {
        let mut server = Server::start(driver);
        let us = identity(1);
        let mut connection = Connection::dial(&dial_config(server.address, &us, Purpose::Exchange)).unwrap();
        let ping = frame_of(7, &PING);
        connection.send(&ping).unwrap();
        let (peer, mut socket, mut bytes) = server.given.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(peer, dialer(Purpose::Exchange));
        server.wait_for(&ReplicaEvent::Connected(peer));
        // It has given up its seat, and is no connection of the server any more.
        server.wait_for(&ReplicaEvent::Closed);
        assert_eq!(server.shared.connections(), 0);
        // Whoever has the socket can wait for the rest, whatever the driver.
        while bytes.len() < ping.len() {
            let mut more = vec![0; 100];
            let count = std::io::Read::read(&mut socket, &mut more).unwrap();
            assert!(count > 0, "the end");
            bytes.extend_from_slice(&more[..count]);
        }
        assert_eq!(bytes, ping);
        // It lives on when the server has stopped, until its owner drops it.
        server.stop();
        socket.write_all(b"x").unwrap();
        drop(socket);
        assert!(connection.receive(|_| ()).is_err());
    }
}

#[test]
fn other_connections_are_served_while_one_is_given_away() {
    on_both(|driver| async move {
        let mut server = Server::start(driver);
        let (link, seen) = link_to(server.address);
        link.request(1, &PING).unwrap();
        until("answered", || seen.replies.borrow().len() == 1).await;
        let address = server.address;
        let thread = std::thread::spawn(move || {
            let us = identity(1);
            let made: Vec<_> =
                (0..20).map(|_| Connection::dial(&dial_config(address, &us, Purpose::Exchange)).unwrap()).collect();
            made.len()
        });
        assert_eq!(thread.join().unwrap(), 20);
        link.request(2, &PING).unwrap();
        link.release();
        until("answered", || seen.replies.borrow().len() == 2).await;
        assert_eq!(seen.connected.get(), 1);
        closed(&link, &seen).await;
        server.stop();
        assert_eq!(server.given.try_iter().count(), 20);
        assert_eq!(server.count(&ReplicaEvent::Closed), 21);
    });
}
