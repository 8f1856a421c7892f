//! A way into the control plane: the data port, whose cores hand connections over, or a listener of
//! its own. Each has connections and work of its own, so that nobody at one of them keeps people
//! out of the other.
//!
//! ```text
//! let in ─▶ Asking ─request─▶ Served ─answer─▶ Taking ─▶ Leaving ─▶ closed
//!              └───── shown out, when others come and it is full ─────┘
//! ```
//!
//! Bounds: connections ([`Crowd`]); [`SERVED_MAX`] requests that are being worked on, the others
//! wait their turn; [`REQUEST_TIMEOUT`] for the head of a request, [`ANSWER_TIMEOUT`] for its
//! answer; what a client that leaves still sends. Tested in `tests/under_attack/pages.rs`.

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Uri;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use koltso_net::http::query;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::admin::crowd::{Crowd, Entered, Place, Stage};
use crate::admin::stream::{Stream, end_output};
use crate::node::{Handover, Node};

/// The most requests of an entrance that are worked on at a time.
const SERVED_MAX: usize = 64;
/// The time within which the head of a request must arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The time within which it must be answered; the longest capture takes 300 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(330);
/// How long a client may be silent after its answer.
const LINGER: Duration = Duration::from_secs(1);
/// The most bytes that are read and discarded then, about.
const LINGER_BYTES_MAX: usize = 64 << 20;
/// The pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// See the module.
pub struct Entrance {
    router: Router,
    node: Arc<Node>,
    crowd: Rc<Crowd>,
    work: Semaphore,
}

impl Entrance {
    /// An entrance with room for `places` connections.
    pub fn new(node: Arc<Node>, router: Router, places: usize) -> Rc<Self> {
        Rc::new(Self { router, node, crowd: Crowd::new(places), work: Semaphore::new(SERVED_MAX) })
    }

    /// Lets a connection in, and serves it on this thread.
    pub async fn admit(self: &Rc<Self>, handover: Handover) {
        let place = match self.crowd.enter(Instant::now()) {
            Entered::In(place) => place,
            Entered::Instead(place) => {
                self.node.page_limit_hit();
                // So that the other one's socket is closed.
                tokio::task::yield_now().await;
                place
            }
            Entered::Full => return self.node.page_limit_hit(),
        };
        let this = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = this.serve(handover, &place) => {}
                () = place.shown_out() => {}
            }
        });
    }

    /// Lets in who connects to a listener.
    pub async fn accept(self: Rc<Self>, listener: TcpListener) {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
            return;
        };
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    if let Ok(socket) = socket.into_std() {
                        self.admit(Handover { socket, read_so_far: Vec::new() }).await;
                    }
                }
                Err(_) => {
                    self.node.page_limit_hit();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, handover: Handover, place: &Place) {
        let Ok(socket) = handover.socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(handover.socket))
        else {
            return;
        };
        // hyper closes what it is given, so it is given a share of the socket.
        let socket = Rc::new(socket);
        // hyper drops what it could not write at once if the client offers another protocol (`Upgrade`,
        // as Java does) and the body of its request is not read, as that of a refused one: so that it can.
        if !matches!(timeout(REQUEST_TIMEOUT, socket.writable()).await, Ok(Ok(()))) {
            return;
        }
        let is_patient = Rc::new(Cell::new(false));
        let stream = Stream::new(handover.read_so_far, Rc::clone(&socket), Rc::clone(&is_patient));
        let service = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|request| {
            is_patient.set(!may_be_capture(&request));
            let service = &service;
            async move {
                place.set(Stage::Served);
                let permit = self.work.acquire().await;
                let response = service.call(normalised(request)).await;
                place.set(Stage::Taking);
                drop(permit);
                response
            }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
        // A client that goes away or is too slow gets no answer; nobody else is affected.
        let _ = timeout(ANSWER_TIMEOUT, http.serve_connection(TokioIo::new(stream), service)).await;
        place.set(Stage::Leaving);
        linger(&socket).await;
    }
}

/// Whether a request may be one for a capture, which takes its time and ends early when its client
/// goes away.
fn may_be_capture<B>(request: &hyper::Request<B>) -> bool {
    let path = query::normalised(request.uri().path());
    path.is_ok_and(|path| path.strip_prefix("/debug/pprof/").is_some_and(|name| !name.is_empty()))
}

/// A request whose path is written without needless escapes, as the routes are.
fn normalised<B>(mut request: hyper::Request<B>) -> hyper::Request<B> {
    if request.uri().path().contains('%')
        && let Ok(path) = query::normalised(request.uri().path())
    {
        let target = request.uri().query().map_or_else(|| path.to_string(), |query| format!("{path}?{query}"));
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = target.parse().ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Ends a connection in stages, as the data plane does: ends the output, then reads and discards
/// what the client still sends, so that no reset destroys the answer.
async fn linger(socket: &TcpStream) {
    // hyper may have ended the output, and then this is no error, or the client is gone.
    if end_output(socket).is_err() {
        return;
    }
    let begun = Instant::now();
    let (mut left, mut buffer) = (LINGER_BYTES_MAX, vec![0; 16 << 10]);
    while left > 0 && begun.elapsed() < REQUEST_TIMEOUT {
        if !matches!(timeout(LINGER, socket.readable()).await, Ok(Ok(()))) {
            return;
        }
        match socket.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => left = left.saturating_sub(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
