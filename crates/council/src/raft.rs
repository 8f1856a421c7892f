//! The types that openraft is used with, and the state that its log leads to.
//!
//! Owner: values. Bounds: [`TAGS_MAX`] proposals are remembered. Invariant: [`State::apply`] is a
//! function of the state and the entry, so that all members come to the same state.

use std::collections::VecDeque;

use koltso_model::NodeId;
use serde::{Deserialize, Serialize};

use crate::document::{Change, Document};
use crate::wire;

/// So many proposals that succeeded are known again when they come a second time, as they do when
/// their answer was lost: more than a member makes in the time for which it repeats one.
pub(crate) const TAGS_MAX: usize = 64;

/// Raft's number of a member: the member's own.
pub(crate) type RaftId = u64;
pub(crate) type LogId = openraft::LogId<RaftId>;
pub(crate) type Vote = openraft::Vote<RaftId>;
pub(crate) type Entry = openraft::Entry<Config>;
pub(crate) type StoredMembership = openraft::StoredMembership<RaftId, Seat>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, Seat>;
pub(crate) type Snapshot = openraft::Snapshot<Config>;
pub(crate) type StorageError = openraft::StorageError<RaftId>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<Config>;
pub(crate) type AppendResponse = openraft::raft::AppendEntriesResponse<RaftId>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<RaftId>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<RaftId>;
pub(crate) type SnapshotResponse = openraft::raft::SnapshotResponse<RaftId>;
pub(crate) type Node = openraft::Raft<Config>;

openraft::declare_raft_types!(
    /// How openraft is used.
    pub(crate) Config:
        D = Command,
        R = Outcome,
        NodeId = RaftId,
        Node = Seat,
        SnapshotData = State,
);

/// What Raft's own list of members says of one, for as long as the document does not say it better.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    /// Where it listens to the others.
    pub replica: String,
    /// The identity of its data folder; none as long as it is not known.
    #[serde(with = "wire::identity")]
    pub id: NodeId,
}

/// A change as somebody proposed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// Random, to know it again.
    #[serde(with = "wire::identity")]
    pub tag: NodeId,
    /// The epoch of the document that it changes.
    pub base: u64,
    pub change: Change,
}

/// An entry of the log that is not Raft's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// The first document. If there is one already, it changes nothing.
    Found(Box<Document>),
    Propose(Proposal),
}

/// What came of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It was Raft's own, or changed nothing.
    Nothing,
    /// The document after it.
    Made(Box<Document>),
    /// The document is at another epoch.
    Behind { epoch: u64 },
    /// It is not possible, for the reason in this sentence.
    Refused { why: String },
}

/// What the log leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub document: Option<Document>,
    /// The tags of the proposals that were made last; at most [`TAGS_MAX`].
    tags: VecDeque<Tag>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tag(#[serde(with = "wire::identity")] NodeId);

impl State {
    /// Does what an entry says.
    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let proposal = match command {
            Command::Found(document) if self.document.is_none() => {
                self.document = Some((**document).clone());
                return Outcome::Made(document.clone());
            }
            Command::Found(_) => return Outcome::Nothing,
            Command::Propose(proposal) => proposal,
        };
        let Some(document) = &self.document else {
            return Outcome::Refused { why: "the cluster is not formed yet".to_owned() };
        };
        if self.tags.contains(&Tag(proposal.tag)) {
            return Outcome::Made(Box::new(document.clone()));
        }
        if proposal.base != document.epoch() {
            return Outcome::Behind { epoch: document.epoch() };
        }
        match document.after(&proposal.change) {
            Err(why) => Outcome::Refused { why },
            Ok(next) => {
                self.tags.push_back(Tag(proposal.tag));
                self.tags.drain(..self.tags.len().saturating_sub(TAGS_MAX));
                self.document = Some(next.clone());
                Outcome::Made(Box::new(next))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use koltso_cluster::membership::{FIRST_EPOCH, Membership};
    use std::collections::BTreeMap;

    fn proposal(tag: u128, base: u64) -> Command {
        Command::Propose(Proposal { tag: NodeId(tag), base, change: Change::Pause(true) })
    }

    #[test]
    fn of_two_proposals_for_one_epoch_the_first_is_made_and_one_that_comes_twice_is_made_once() {
        let first = Membership::first(&["http://a:1".into()]).expect("a cluster");
        let document = Document::founded(NodeId(7), first, BTreeMap::new());
        let mut state = State::default();
        assert!(matches!(state.apply(&proposal(1, FIRST_EPOCH)), Outcome::Refused { .. }));
        assert_eq!(state.apply(&Command::Found(Box::new(document.clone()))), Outcome::Made(Box::new(document.clone())));
        let other = Document { cluster: NodeId(8), ..document };
        assert_eq!(state.apply(&Command::Found(Box::new(other))), Outcome::Nothing);
        assert!(matches!(state.apply(&proposal(1, FIRST_EPOCH)), Outcome::Made(made) if made.epoch() == 2));
        assert_eq!(state.apply(&proposal(2, FIRST_EPOCH)), Outcome::Behind { epoch: 2 });
        assert!(matches!(state.apply(&proposal(1, FIRST_EPOCH)), Outcome::Made(made) if made.epoch() == 2));
        for tag in 10..10 + TAGS_MAX as u128 {
            let base = state.document.as_ref().map(Document::epoch).expect("founded");
            assert!(matches!(state.apply(&proposal(tag, base)), Outcome::Made(_)));
        }
        assert_eq!(state.tags.len(), TAGS_MAX);
        assert_eq!(state.apply(&proposal(1, FIRST_EPOCH)), Outcome::Behind { epoch: 2 + TAGS_MAX as u64 });
    }
}
