//! A server that answers every request with the same few bytes: it measures what the connection
//! loop itself costs.
//!
//! `constant [PORT] [uring|plain|legacy]` runs one thread. `uring` uses the ring flags of Koltso,
//! `plain` uses none.

use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use koltso_net::http::{Head, Reply};
use koltso_net::server::{Admit, Event, Limits, Outcome, Service, Shared, serve};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

struct Constant;

impl Service for Constant {
    type Admitted = ();

    fn admit(&self, _: &Head<'_>, _: &mut Reply<'_>) -> Admit<()> {
        Admit::Body(())
    }

    fn call(&self, _: &Head<'_>, _: &[u8], reply: &mut Reply<'_>) -> Outcome {
        reply.value(b"\"1\"", b"hello, world");
        Outcome::Done
    }

    fn call_admitted(&self, (): (), _: Bytes, reply: &mut Reply<'_>) -> Outcome {
        reply.value(b"\"1\"", b"hello, world");
        Outcome::Done
    }

    fn finished(&self, _: u16, _: Duration) {}

    fn event(&self, _: Event) {}

    fn hand_off(&self, _: std::net::TcpStream, _: Vec<u8>) {}
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let port = arguments.get(1).map_or(Ok(8080), |port| port.parse());
    let port: u16 = port.map_err(std::io::Error::other)?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let server = serve(listener, Rc::new(Constant), Limits::default(), Shared::new());
    match arguments.get(2).map_or("uring", String::as_str) {
        "legacy" => RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(server),
        "plain" => RuntimeBuilder::<IoUringDriver>::new().enable_timer().build()?.block_on(server),
        _ => {
            let mut ring = io_uring::IoUring::builder();
            ring.setup_coop_taskrun().setup_single_issuer().setup_taskrun_flag();
            let runtime = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring);
            runtime.enable_timer().build()?.block_on(server)
        }
    }
}
