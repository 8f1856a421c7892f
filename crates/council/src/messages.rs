//! The messages between members, as JSON: a request says from whom it is and for whom, by number
//! and identity, and each gets an answer.
//!
//! Bounds: [`MESSAGE_BYTES_MAX`], checked before anything is read; [`ENTRIES_MAX`]. Invariant: what
//! [`checked`] and [`checked_answer`] let through cannot break an assumption of openraft, in which a violation would be a
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
/// No proposal is larger: a change names at most all nodes and batches, and each text in it is bounded.
pub(crate) const PROPOSAL_BYTES_MAX: usize = 64 << 10;
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

/// Refuses a proposal whose entry would have no place in a message or in the log.
pub(crate) fn fits(proposal: &Proposal) -> Result<(), String> {
    let bytes = serde_json::to_vec(proposal).map_err(|e| format!("the change cannot be written: {e}"))?.len();
    match bytes > PROPOSAL_BYTES_MAX {
        true => Err(format!("the change has {bytes} bytes, more than {PROPOSAL_BYTES_MAX}")),
        false => Ok(()),
    }
}

/// Refuses what no member answers.
pub(crate) fn checked_answer(answer: &Answer) -> Result<(), String> {
    let vote = match answer {
        Answer::Vote(VoteResponse { vote, last_log_id, .. }) => {
            sane(last_log_id)?;
            vote
        }
        Answer::Append(AppendResponse::HigherVote(vote)) | Answer::Snapshot(SnapshotResponse { vote }) => vote,
        // Entries are sent and taken as a whole.
        Answer::Append(AppendResponse::PartialSuccess(_)) => return Err("a part of what was sent was taken".to_owned()),
        _ => return Ok(()),
    };
    if vote.leader_id.term >= NUMBER_MAX {
        return Err("a term is too high".to_owned());
    }
    Ok(())
}

fn sane(id: &Option<LogId>) -> Result<(), String> {
    match id {
        Some(id) if id.index >= NUMBER_MAX || id.leader_id.term >= NUMBER_MAX => {
            Err("an entry's index or term is too high".to_owned())
        }
        _ => Ok(()),
    }
}

/// Refuses what no member sends.
pub(crate) fn checked(request: &Request) -> Result<(), String> {
    let sender = |vote: &Vote| match vote.leader_id.node_id == u64::from(request.from) {
        true if vote.leader_id.term < NUMBER_MAX => Ok(()),
        true => Err("a term is too high".to_owned()),
        false => Err(format!("{} speaks for {}", request.from, vote.leader_id.node_id)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Change;
    use koltso_cluster::plan::Stage;

    #[test]
    fn a_change_that_no_member_would_send_is_refused_before_it_is_in_the_log() {
        let proposal = |change| Proposal { tag: NodeId(1), base: 1, change };
        assert_eq!(fits(&proposal(Change::Plan { target: (0..64).collect() })), Ok(()));
        assert_eq!(
            fits(&proposal(Change::Advance { batches: (0..64).map(|batch| (batch, Stage::Moved)).collect() })),
            Ok(())
        );
        let refused = fits(&proposal(Change::Plan { target: vec![60_000; 20_000] }));
        assert!(refused.as_ref().is_err_and(|why| why.ends_with("more than 65536")), "{refused:?}");
    }

    #[test]
    fn an_answer_that_openraft_would_fall_over_is_refused() {
        let vote = |term| Vote { leader_id: openraft::LeaderId::new(term, 2), committed: false };
        let answered = |answer: AppendResponse| checked_answer(&Answer::Append(answer));
        assert_eq!(answered(AppendResponse::Success), Ok(()));
        assert_eq!(answered(AppendResponse::HigherVote(vote(7))), Ok(()));
        assert!(answered(AppendResponse::HigherVote(vote(u64::MAX))).is_err());
        assert!(answered(AppendResponse::PartialSuccess(None)).is_err());
        assert!(checked_answer(&Answer::Snapshot(SnapshotResponse { vote: vote(u64::MAX) })).is_err());
        let granted = |term| VoteResponse { vote: vote(term), vote_granted: true, last_log_id: None };
        assert!(
            checked_answer(&Answer::Vote(granted(7))).is_ok()
                && checked_answer(&Answer::Vote(granted(1 << 62))).is_err()
        );
    }
}
