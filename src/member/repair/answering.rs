//! The thread that answers one peer which compares with this node.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use koltso_cluster::exchange::answering::Answering;
use koltso_cluster::exchange::pair::Pair;
use koltso_cluster::placement::NodeIndex;
use koltso_cluster::plausibility::is_plausible;
use koltso_model::{ExchangeReply, ExchangeRequest, Outcome, Refused, VALUE_MAX_LIMIT};
use koltso_net::replica::blocking::{self, AnswerConfig};
use koltso_net::replica::frame::exchange::Asked;
use koltso_net::replica::{LostReason, PeerIdentity};

use super::Repair;
use crate::replica::clock::{now_wall, told_ms};

/// How long a peer is kept waiting for the rate, which gives up after a while.
const REST_MAX: Duration = Duration::from_secs(5);

/// Whether the answer costs what the rate bounds.
const fn brings_records(request: &ExchangeRequest) -> bool {
    matches!(request, ExchangeRequest::Fetch { .. } | ExchangeRequest::Give(_))
}

/// Answers until the connection ends, or until it is to stop.
pub(super) fn run(
    repair: &Arc<Repair>,
    node: NodeIndex,
    (peer, socket, read_so_far): (PeerIdentity, TcpStream, Vec<u8>),
    stop: Arc<AtomicBool>,
) {
    let identity = repair.cluster.identity();
    let config = AnswerConfig { identity: &identity, value_max: VALUE_MAX_LIMIT, stop: stop.clone() };
    let mut connection = blocking::Answering::new(peer, socket, &read_so_far, &config);
    let mut answering = Answering::new(Pair::new(repair.cluster.topology.clone(), node));
    let mut here = repair.here();
    let ended = loop {
        let answered = match connection.next_request() {
            Err(LostReason::Violation(sentence)) => {
                repair
                    .cluster
                    .peers
                    .refused(&format!("{} broke the protocol: {sentence}", repair.cluster.peers.url(node)));
                return;
            }
            Err(lost) => break lost.to_string(),
            Ok(Asked::Ping { clock, .. }) => {
                if is_plausible(clock, now_wall()) {
                    repair.clock.observe(clock);
                }
                connection.pong(told_ms(), repair.clock.last())
            }
            // Whoever wants a single key asks a core.
            Ok(Asked::Execute(_)) => connection.answer(&Outcome::Refused(Refused::NotReady)),
            // It would wait for longer than it does for an answer.
            Ok(Asked::Exchange(request)) if brings_records(&request) && repair.owes() > REST_MAX => {
                connection.reply(&ExchangeReply::NotReady)
            }
            Ok(Asked::Exchange(request)) => {
                if let (ExchangeRequest::Roots { told, .. }, Some(standing)) = (&request, repair.cluster.standing()) {
                    standing.told(&peer, told);
                    repair.look_at_standing();
                }
                let asked = (connection.asker_epoch(), &request);
                match answering.answer(now_wall(), asked, &mut repair.board(), &mut here) {
                    Err(sentence) => {
                        repair.cluster.peers.refused(&format!("{} {sentence}", repair.cluster.peers.url(node)));
                        return;
                    }
                    Ok(reply) => {
                        let moved = answering.take_figures();
                        let mut figures = repair.cluster.repairs.of(node);
                        figures.records_sent += moved.sent;
                        figures.bytes_sent += moved.bytes_sent;
                        figures.records_received += moved.received;
                        figures.bytes_received += moved.bytes_received;
                        drop(figures);
                        let replied = connection.reply(&reply);
                        // Afterwards: at a low rate the peer would not wait for so long.
                        let bytes = moved.bytes_sent + moved.bytes_received;
                        if bytes > 0 {
                            repair.rest(repair.spend(bytes).min(REST_MAX), &stop);
                        }
                        replied
                    }
                }
            }
        };
        if let Err(lost) = answered {
            break lost.to_string();
        }
    };
    tracing::debug!("{} compares no more: {ended}", repair.cluster.peers.url(node));
}
