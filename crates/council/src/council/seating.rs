//! Raft's own list of members, which the leader keeps in step with the document, a change at a time.
//!
//! Invariant: nobody gets a vote who is absent, and no voters are chosen of whom a majority is absent.
//! Tested in `tests/`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{First, Inner, TICK, random_id};
use crate::document::Document;
use crate::messages::{Answer, Body};
use crate::raft::{Command, Node, Seat};
use crate::voters::chosen;

/// A member that is asked whether it is there answers within this time, or counts as absent.
const PING_MAX: Duration = Duration::from_millis(500);
/// A member that has left hears of it for so long before nothing is sent to it any more.
const FAREWELL: Duration = Duration::from_secs(1);
/// Raft's own list changes within this time, or the change is tried again.
const SEATING_MAX: Duration = Duration::from_secs(3);
/// A member may lack so many entries and still get a vote.
const LAG_MAX: u64 = 64;

impl Inner {
    pub(super) async fn keep_the_seats(self: Arc<Self>) {
        let mut changes = self.peers.published.subscribe();
        // Members that have left, and since when that is known here.
        let mut leaving: BTreeMap<u64, Instant> = BTreeMap::new();
        loop {
            drop(timeout(TICK, changes.changed()).await);
            let Some(raft) = self.raft.get() else { continue };
            let leads = self.leader().is_some_and(|leader| Some(leader) == self.number());
            if !leads {
                leaving.clear();
                continue;
            }
            match timeout(SEATING_MAX, self.seat_members(raft, &mut leaving)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("Raft's members stay as they are for now: {error}"),
                Err(_) => tracing::debug!("Raft's members stay as they are for now: no majority"),
            }
        }
    }

    /// Makes the next change that brings Raft's members to those of the document, if there is one.
    async fn seat_members(
        &self,
        raft: &Node,
        leaving: &mut BTreeMap<u64, Instant>,
    ) -> Result<(), RaftError<u64, ClientWriteError<u64, Seat>>> {
        let Some(document) = self.peers.document() else {
            if let Some(First { membership, replicas }) = self.first.clone() {
                let document = Document::founded(random_id(), membership, replicas);
                raft.client_write(Command::Found(Box::new(document))).await?;
            }
            return Ok(());
        };
        let metrics = raft.metrics().borrow().clone();
        let members = metrics.membership_config.membership();
        let configs = members.get_joint_config();
        let voters = configs.last().cloned().unwrap_or_default();
        if configs.len() > 1 {
            // The leader before this one was lost between the two steps of a change.
            raft.change_membership(voters, true).await?;
            return Ok(());
        }
        let nodes = document.membership.nodes();
        if let Some(node) = nodes.iter().find(|node| members.get_node(&node.number.into()).is_none()) {
            let replica = document.replicas.get(&node.number).cloned().unwrap_or_default();
            raft.add_learner(node.number.into(), Seat { replica, id: node.id }, false).await?;
            return Ok(());
        }
        let is_member = |id: u64| nodes.iter().any(|node| u64::from(node.number) == id);
        let gone = members.nodes().map(|(&id, _)| id).filter(|&id| !is_member(id));
        let now = Instant::now();
        let gone: BTreeSet<u64> = gone.filter(|&id| leaving.entry(id).or_insert(now).elapsed() >= FAREWELL).collect();
        // One that has left and still votes, for the time of its farewell, is replaced afterwards.
        if voters.iter().all(|id| is_member(*id) || gone.contains(id)) {
            let next = self.next_voters(&document, &voters, &metrics).await;
            if next != voters {
                raft.change_membership(next, true).await?;
                return Ok(());
            }
        }
        let gone: BTreeSet<u64> = gone.into_iter().filter(|id| !voters.contains(id)).collect();
        if !gone.is_empty() {
            raft.change_membership(ChangeMembers::RemoveNodes(gone), true).await?;
        }
        leaving.retain(|&id, _| members.get_node(&id).is_some() && !is_member(id));
        Ok(())
    }

    /// Who shall vote. Members are asked first whether they are there: nobody absent gets a vote, and
    /// nothing changes unless a majority of the next voters is there, since without them the change, and
    /// all that follows it, would never be decided.
    async fn next_voters(
        &self,
        document: &Document,
        voters: &BTreeSet<u64>,
        metrics: &openraft::RaftMetrics<u64, Seat>,
    ) -> BTreeSet<u64> {
        let zones: Vec<(u16, &str)> =
            document.membership.nodes().iter().map(|node| (node.number, &node.zone[..])).collect();
        let current: BTreeSet<u16> = voters.iter().filter_map(|&id| u16::try_from(id).ok()).collect();
        let is_up_to_date = |number: u16| {
            let matching = metrics.replication.as_ref().and_then(|all| all.get(&number.into()).copied().flatten());
            matching.is_some_and(|id| id.index + LAG_MAX >= metrics.last_log_index.unwrap_or(0))
        };
        let wanted = chosen(&zones, &current, is_up_to_date);
        if wanted == current {
            return voters.clone();
        }
        let asked = zones.iter().map(|&(number, _)| number).filter(|&n| current.contains(&n) || is_up_to_date(n));
        let present = self.present(asked).await;
        let next = chosen(&zones, &current, |number| is_up_to_date(number) && present.contains(&number));
        if next.intersection(&present).count() * 2 <= next.len() {
            tracing::debug!("the voters stay as they are: no majority of {next:?} is there");
            return voters.clone();
        }
        next.into_iter().map(u64::from).collect()
    }

    /// Which of these members answer, this one included; all are asked at once.
    async fn present(&self, numbers: impl Iterator<Item = u16>) -> BTreeSet<u16> {
        let mut asked = JoinSet::new();
        for number in numbers {
            let (peers, seat, is_me) = (self.peers.clone(), self.seat_of(number), self.number() == Some(number));
            asked.spawn(async move {
                let is_there =
                    is_me || matches!(peers.ask(number, &seat, Body::Ping, PING_MAX).await, Ok(Answer::Pong));
                is_there.then_some(number)
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }
}
