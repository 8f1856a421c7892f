//! Proposals: as the leader, or by asking it, until one is made, refused, or the time is over.
//!
//! Invariant: what may have been made is never said to have changed nothing. Tested in `tests/`.

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::error::{ClientWriteError, RaftError};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Inner, ProposeError, TICK, random_id};
use crate::document::{Change, Document};
use crate::messages::{Answer, Body, fits};
use crate::raft::{Command, Outcome, Proposal};

/// A proposal is answered within this time, whatever happens.
pub const PROPOSE_MAX: Duration = Duration::from_secs(3);
/// A leader that was asked by another member gives up earlier, so that its answer still arrives.
const FORWARDED_MAX: Duration = Duration::from_millis(2500);
/// A proposal waits this long until the document that it led to is applied here, too.
const FOLLOW_MAX: Duration = Duration::from_secs(1);

/// What came of an attempt of a proposal.
enum Attempt {
    Done(Result<Box<Document>, ProposeError>),
    /// Nothing was changed; another time it may be.
    Nothing,
    /// It may have been made.
    Unknown,
}

impl Attempt {
    fn of(outcome: Outcome) -> Self {
        Self::Done(match outcome {
            Outcome::Made(document) => Ok(document),
            Outcome::Behind { epoch } => Err(ProposeError::Behind { epoch }),
            Outcome::Refused { why } => Err(ProposeError::Refused(why)),
            Outcome::Nothing => return Self::Unknown,
        })
    }
}

impl Inner {
    /// See [`Council::propose`](super::Council::propose).
    pub(super) async fn propose(&self, base: u64, change: Change) -> Result<Arc<Document>, ProposeError> {
        let deadline = Instant::now() + PROPOSE_MAX;
        let proposal = Proposal { tag: random_id(), base, change };
        fits(&proposal).map_err(ProposeError::Refused)?;
        let mut may_be_made = false;
        while Instant::now() < deadline {
            let Some(number) = self.number() else {
                let is_open = self.peers.store.is_open();
                return Err(if is_open { ProposeError::NoMajority } else { ProposeError::Stopped });
            };
            let attempt = match self.leader() {
                None if self.is_ended() => {
                    return Err(if may_be_made { ProposeError::Unknown } else { ProposeError::Stopped });
                }
                None if self.led.lock().led.elapsed() > self.patience() => break,
                None => Attempt::Nothing,
                Some(leader) if leader == number => self.attempt(proposal.clone(), deadline).await,
                Some(leader) => self.forward(leader, proposal.clone(), deadline).await,
            };
            match attempt {
                Attempt::Done(Ok(document)) => {
                    self.follow(document.epoch(), deadline).await;
                    return Ok(Arc::new(*document));
                }
                // Whoever is here now has not got what an earlier attempt has sent.
                Attempt::Done(Err(ProposeError::NoMajority)) if may_be_made => return Err(ProposeError::Unknown),
                // If an earlier attempt was made, this one would have been known again by its tag;
                // and if it arrives later, it finds this epoch or another one, and is refused, too.
                Attempt::Done(Err(error)) => return Err(error),
                Attempt::Nothing => {}
                Attempt::Unknown => may_be_made = true,
            }
            sleep_until(deadline.min(Instant::now() + TICK / 4)).await;
        }
        Err(if may_be_made { ProposeError::Unknown } else { ProposeError::NoMajority })
    }

    /// Whether Raft has ended, by itself or because it was stopped.
    fn is_ended(&self) -> bool {
        let is_running = self.raft.get().is_none_or(|raft| raft.metrics().borrow().running_state.is_ok());
        !is_running || !self.peers.store.is_open()
    }

    /// Proposes as the leader.
    async fn attempt(&self, proposal: Proposal, deadline: Instant) -> Attempt {
        let Some(raft) = self.raft.get() else { return Attempt::Nothing };
        match timeout_at(deadline, raft.client_write(Command::Propose(proposal))).await {
            Ok(Ok(written)) => Attempt::of(written.data),
            // It may be that it led when it took the proposal, and another leader replaces the
            // entry, or not.
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Attempt::Unknown,
            Ok(Err(_)) | Err(_) => Attempt::Unknown,
        }
    }

    /// Asks the leader to propose.
    async fn forward(&self, leader: u16, proposal: Proposal, deadline: Instant) -> Attempt {
        let limit = deadline.saturating_duration_since(Instant::now());
        match self.peers.ask(leader, &self.seat_of(leader), Body::Propose(proposal), limit).await {
            Ok(Answer::Outcome(outcome)) => Attempt::of(*outcome),
            Ok(Answer::NotLeader) => Attempt::Nothing,
            Ok(Answer::NoMajority) => Attempt::Done(Err(ProposeError::NoMajority)),
            Ok(_) => Attempt::Unknown,
            Err(why) => {
                tracing::debug!("a proposal was not answered: {why}");
                Attempt::Unknown
            }
        }
    }

    /// Waits, for a moment, until a document is applied here.
    async fn follow(&self, epoch: u64, deadline: Instant) {
        let mut changes = self.peers.published.subscribe();
        let applied = changes.wait_for(|document| document.as_ref().is_some_and(|document| document.epoch() >= epoch));
        drop(timeout_at(deadline.min(Instant::now() + FOLLOW_MAX), applied).await);
    }

    /// Answers another member's proposal, as the leader.
    pub(super) async fn serve_proposal(&self, proposal: Proposal) -> Answer {
        if let Err(why) = fits(&proposal) {
            return Answer::Outcome(Box::new(Outcome::Refused { why }));
        }
        if self.leader().is_none_or(|leader| Some(leader) != self.number()) {
            let leads = self.raft.get().is_some_and(|raft| raft.metrics().borrow().state == ServerState::Leader);
            return if leads && self.is_forsaken() { Answer::NoMajority } else { Answer::NotLeader };
        }
        match self.attempt(proposal, Instant::now() + FORWARDED_MAX).await {
            Attempt::Done(Ok(document)) => Answer::Outcome(Box::new(Outcome::Made(document))),
            Attempt::Done(Err(ProposeError::Behind { epoch })) => Answer::Outcome(Box::new(Outcome::Behind { epoch })),
            Attempt::Done(Err(ProposeError::Refused(why))) => Answer::Outcome(Box::new(Outcome::Refused { why })),
            Attempt::Done(Err(_)) | Attempt::Unknown => Answer::Unknown,
            Attempt::Nothing => Answer::NotLeader,
        }
    }
}
