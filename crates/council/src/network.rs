//! How a member reaches the others: openraft's network over the caller's transport.
//!
//! Where a member is and who it is says the newest document; Raft's own list, which says it too,
//! may be older. Owner: openraft's tasks and the council's. Tested through the council, in
//! `tests/`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use koltso_model::NodeId;
use openraft::OptionalSend;
use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};

use crate::council::Transport;
use crate::document::Document;
use crate::machine::Published;
use crate::messages::{Answer, Body, MESSAGE_BYTES_MAX, Request, checked_answer, read};
use crate::raft::{
    AppendRequest, AppendResponse, Config, Seat, Snapshot, SnapshotResponse, Vote, VoteRequest, VoteResponse,
};
use crate::store::SharedStore;

/// After a member could not be reached, it is asked again this much later.
const BACKOFF: Duration = Duration::from_millis(200);

/// What is needed to ask another member.
#[derive(Clone)]
pub(crate) struct Peers {
    pub transport: Arc<dyn Transport>,
    pub store: SharedStore,
    pub published: Published,
    pub id: NodeId,
    /// Where the members of the first list are, for as long as there is no document.
    pub first: Arc<BTreeMap<u16, String>>,
}

impl Peers {
    pub(crate) fn document(&self) -> Option<Arc<Document>> {
        self.published.borrow().clone()
    }

    /// Sends a message and waits for its answer; `seat` is what is known of a member that is in no
    /// document here.
    pub(crate) async fn ask(&self, to: u16, seat: &Seat, body: Body, limit: Duration) -> Result<Answer, String> {
        let owner = self.store.with(|store| Ok(store.owner())).map_err(|e| e.to_string())?;
        let from = owner.ok_or("this node has no number yet")?.number;
        let document = self.document();
        let known = document.as_ref().and_then(|document| document.replicas.get(&to));
        let address = known.or(Some(&seat.replica).filter(|address| !address.is_empty())).or(self.first.get(&to));
        let address = address.cloned().unwrap_or_default();
        let node = document.as_ref().and_then(|document| identity_of(document, to));
        let to_id = node.filter(|&id| id != NodeId::NONE).unwrap_or(seat.id);
        let cluster = document.map_or(NodeId::NONE, |document| document.cluster);
        let request = Request { from, from_id: self.id, to, to_id, cluster, body };
        let bytes = serde_json::to_vec(&request).map_err(|e| e.to_string())?;
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(format!("a message would have {} bytes, more than {MESSAGE_BYTES_MAX}", bytes.len()));
        }
        let answer = tokio::time::timeout(limit, self.transport.call(to, &address, bytes)).await;
        match read(&answer.map_err(|_| format!("member {to} has not answered within {limit:?}"))??)? {
            Answer::Error(why) => Err(format!("member {to}: {why}")),
            answer => checked_answer(&answer).map(|()| answer).map_err(|why| format!("member {to}: {why}")),
        }
    }
}

/// The identity that a document has for a number.
pub(crate) fn identity_of(document: &Document, number: u16) -> Option<NodeId> {
    document.membership.nodes().iter().find(|node| node.number == number).map(|node| node.id)
}

impl RaftNetworkFactory<Config> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, seat: &Seat) -> Peer {
        // Numbers are u16: Raft has no others.
        Peer { peers: self.clone(), number: u16::try_from(target).unwrap_or(u16::MAX), seat: seat.clone() }
    }
}

/// One other member, for openraft.
pub(crate) struct Peer {
    peers: Peers,
    number: u16,
    seat: Seat,
}

type Failed = RPCError<u64, Seat, RaftError<u64>>;

fn unreachable(why: String) -> Unreachable {
    Unreachable::new(&io::Error::other(why))
}

fn confused() -> Unreachable {
    unreachable("an answer to another question".to_owned())
}

impl Peer {
    async fn ask(&self, body: Body, option: &RPCOption) -> Result<Answer, Unreachable> {
        self.peers.ask(self.number, &self.seat, body, option.hard_ttl()).await.map_err(unreachable)
    }
}

impl RaftNetwork<Config> for Peer {
    async fn append_entries(&mut self, request: AppendRequest, option: RPCOption) -> Result<AppendResponse, Failed> {
        match self.ask(Body::Append(request), &option).await? {
            Answer::Append(answer) => Ok(answer),
            _ => Err(confused().into()),
        }
    }

    async fn vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, Failed> {
        match self.ask(Body::Vote(request), &option).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(confused().into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse, StreamingError<Config, Fatal<u64>>> {
        let body = Body::Snapshot { vote, meta: snapshot.meta, state: snapshot.snapshot };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            answer = self.ask(body, &option) => match answer? {
                Answer::Snapshot(answer) => Ok(answer),
                _ => Err(confused().into()),
            },
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
