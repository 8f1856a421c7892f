//! Impostors at a peer's address.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::{QUORUM, assert_no_panic, listen_as, secret_file};
use koltso_testkit::cluster::numbered;
use koltso_testkit::{Client, Cluster, Random};

/// Answers every connection to a peer's replica address in its own way until dropped.
struct Impostor {
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Impostor {
    fn at(listener: TcpListener, behave: impl Fn(TcpStream, &AtomicBool) + Send + Sync + 'static) -> Impostor {
        listener.set_nonblocking(true).unwrap();
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stop_, connections_) = (Arc::clone(&stop), Arc::clone(&connections));
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                while !stop_.load(Ordering::SeqCst) {
                    if let Ok((stream, _)) = listener.accept() {
                        connections_.fetch_add(1, Ordering::SeqCst);
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                        let (behave, stop) = (&behave, &stop_);
                        scope.spawn(move || behave(stream, stop));
                    } else {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            });
        });
        Impostor { stop, connections, thread: Some(thread) }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

fn hand_on(mut stream: TcpStream, stop: &AtomicBool, answer: impl Fn(&[u8]) -> Vec<u8>) {
    let mut block = [0; 4096];
    while !stop.load(Ordering::SeqCst) {
        match stream.read(&mut block) {
            Ok(0) => return,
            Ok(count) => {
                if stream.write_all(&answer(&block[..count])).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

#[test]
fn an_impostor_at_a_peers_address_costs_the_others_nothing() {
    type Behaviour = Box<dyn Fn(TcpStream, &AtomicBool) + Send + Sync>;
    let garbage = |mut stream: TcpStream, stop: &AtomicBool| {
        let mut random = Random::seeded(7);
        while !stop.load(Ordering::SeqCst) && stream.write_all(&random.bytes(500)).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let behaviours: Vec<(&str, Behaviour)> = vec![
        ("speaks garbage", Box::new(garbage)),
        ("answers with garbage", Box::new(|stream, stop| hand_on(stream, stop, |_| Random::seeded(9).bytes(64)))),
        ("echoes", Box::new(|stream, stop| hand_on(stream, stop, <[u8]>::to_vec))),
        ("never answers", Box::new(|stream, stop| hand_on(stream, stop, |_| Vec::new()))),
        ("closes at once", Box::new(|stream, _| drop(stream))),
        (
            "speaks HTTP",
            Box::new(|stream, stop| hand_on(stream, stop, |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let secret = secret_file(folder.path(), "secret", "a secret that only the nodes of this cluster know");
    let flags = format!("--cluster-secret-file {}", secret.display());
    let mut cluster = Cluster::with(3, &flags);
    cluster.kill(2);
    for (what, behaviour) in behaviours {
        let impostor = Impostor::at(listen_as(&cluster, 2), behaviour);
        let mut clients: Vec<Client> = [0, 1].iter().map(|&index| cluster.client(index)).collect();
        let records = numbered("impostor", 100, what);
        let mut longest = Duration::ZERO;
        for (turn, (key, value)) in records.iter().enumerate() {
            let start = Instant::now();
            clients[turn % 2].put_of(key, value, QUORUM).expect(201, &format!("PUT beside a peer that {what}"));
            let got = clients[(turn + 1) % 2].value_of(key, QUORUM);
            assert_eq!(got.as_ref(), Some(value), "beside a peer that {what}");
            longest = longest.max(start.elapsed());
        }
        assert!(longest < Duration::from_millis(1500), "a PUT and a GET took {longest:?} beside a peer that {what}");
        let start = Instant::now();
        clients[0].put_of("all", "value", (3, 3)).expect(504, &format!("PUT 3/3 with a peer that {what}"));
        assert!(start.elapsed() < Duration::from_millis(2500), "{what}: {:?}", start.elapsed());
        assert!(!cluster.sees(0, 2), "a peer that {what} is up: {}", cluster.peer(0, 2));
        assert!(impostor.connections.load(Ordering::SeqCst) < 500, "a flood of connections to a peer that {what}");
    }
    for index in [0, 1] {
        let log = cluster.log(index);
        assert!(log.lines().count() < 200, "a flood of {} lines in the log of node {index}", log.lines().count());
    }
    cluster.start(2);
    cluster.wait_up();
    cluster.client(2).put_of("all", "value", (3, 3)).expect(201, "PUT 3/3 with the true peer");
    assert_no_panic(&cluster);
}
