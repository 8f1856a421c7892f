//! The messages between members, as JSON: a request says from whom it is and for whom, by number
//! and identity, and each gets an answer.
//!
//! Bounds: [`MESSAGE_BYTES_MAX`], checked before anything is read; [`ENTRIES_MAX`]. Invariant: what
//! [`checked`] lets through cannot break an assumption of openraft, in which a violation would be a
//! panic. Tested by hostile bytes in `tests/damage.rs`.

use koltso_model::NodeId;
use serde::{Deserialize, Serialize};

use crate::raft::{
    AppendRequest, AppendResponse, LogId, Outcome, Proposal, SnapshotMeta, SnapshotResponse, State, Vote, VoteRequest,
    VoteResponse,
};
use crate::wire;

/// No request and no answer is larger.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// No message has more entries of the log.
pub(crate) const ENTRIES_MAX: usize = 1024;
/// Of the entries that are sent together, those after this many bytes wait for the next message.
pub(crate) const ENTRIES_BYTES_MAX: usize = 1 << 20;
/// Terms and indexes stay below, so that what is one more never overflows.
const NUMBER_MAX: u64 = 1 << 62;

const _: () = assert!(2 * ENTRIES_BYTES_MAX + crate::document::DOCUMENT_BYTES_MAX < MESSAGE_BYTES_MAX);

/// A message to another member.
#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub from: u16,
    #[serde(with = "wire::identity")]
    pub from_id: NodeId,
    pub to: u16,
    /// For whom it is; none if the sender does not know.
    #[serde(with = "wire::identity")]
    pub to_id: NodeId,
    /// Of which cluster the sender is; none if it does not know yet.
    #[serde(with = "wire::identity")]
    pub cluster: NodeId,
    pub body: Body,
}

/// What it is about.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Body {
    /// Whether the other is there.
    Ping,
    Vote(VoteRequest),
    Append(AppendRequest),
    Snapshot {
        vote: Vote,
        meta: SnapshotMeta,
        state: Box<State>,
    },
    Propose(Proposal),
}

/// The answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Pong,
    Vote(VoteResponse),
    Append(AppendResponse),
    Snapshot(SnapshotResponse),
    Outcome(Box<Outcome>),
    /// The member does not lead, and has changed nothing.
    NotLeader,
    /// The member would lead, but reaches no majority, and has changed nothing.
    NoMajority,
    /// Whether the change will be made is not known.
    Unknown,
    /// Nothing was done, for the reason in this sentence.
    Error(String),
}

impl Answer {
    pub(crate) fn written(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|_| b"{\"error\":\"the answer cannot be written\"}".to_vec())
    }
}

/// Reads a request or an answer.
pub(crate) fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(format!("a message has {} bytes, more than {MESSAGE_BYTES_MAX}", bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|e| format!("a message cannot be read: {e}"))
}

/// Refuses what no member sends.
pub(crate) fn checked(request: &Request) -> Result<(), String> {
    let sender = |vote: &Vote| match vote.leader_id.node_id == u64::from(request.from) {
        true if vote.leader_id.term < NUMBER_MAX => Ok(()),
        true => Err("a term is too high".to_owned()),
        false => Err(format!("{} speaks for {}", request.from, vote.leader_id.node_id)),
    };
    let sane = |id: &Option<LogId>| match id {
        Some(id) if id.index >= NUMBER_MAX || id.leader_id.term >= NUMBER_MAX => {
            Err("an entry's index or term is too high".to_owned())
        }
        _ => Ok(()),
    };
    let committed = |vote: &Vote| match vote.committed {
        true => Ok(()),
        false => Err("a message of a leader whom nobody elected".to_owned()),
    };
    match &request.body {
        Body::Ping | Body::Propose(_) => Ok(()),
        Body::Vote(vote) => {
            if vote.vote.committed {
                return Err("a candidate who is elected already".to_owned());
            }
            sane(&vote.last_log_id).and(sender(&vote.vote))
        }
        Body::Append(append) => {
            sender(&append.vote)?;
            committed(&append.vote)?;
            sane(&append.prev_log_id)?;
            sane(&append.leader_commit)?;
            if append.entries.len() > ENTRIES_MAX {
                return Err(format!("{} entries at once, more than {ENTRIES_MAX}", append.entries.len()));
            }
            let mut before = append.prev_log_id;
            for entry in &append.entries {
                let follows = before.map_or(0, |before| before.index + 1);
                let is_newer = before.is_none_or(|before| before.leader_id <= entry.log_id.leader_id);
                if entry.log_id.index != follows || !is_newer || entry.log_id.leader_id > append.vote.leader_id {
                    return Err(format!("an entry has the index {} where {follows} follows", entry.log_id.index));
                }
                before = Some(entry.log_id);
            }
            Ok(())
        }
        Body::Snapshot { vote, meta, .. } => {
            sender(vote)?;
            committed(vote)?;
            sane(&meta.last_log_id)?;
            sane(meta.last_membership.log_id())?;
            match meta.last_log_id {
                Some(last) if last.leader_id <= vote.leader_id && *meta.last_membership.log_id() <= Some(last) => {
                    Ok(())
                }
                _ => Err("a snapshot that is of no leader's log".to_owned()),
            }
        }
    }
}
