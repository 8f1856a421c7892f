//! The last resort: a cluster whose majority of voters is gone for good goes on without it.
//!
//! Raft changes nothing without a majority, and rightly so: whoever is gone may have agreed on
//! something that nobody who is left has heard of. [`recover`] decides that it never happened.
//!
//! Tested in `tests/councils.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use koltso_cluster::membership::Membership;
use koltso_model::NodeId;

use crate::raft::{LogId, Seat, StoredMembership, Vote};
use crate::store::{Store, StoreError};

/// The epoch, the term and the index of the log go on this much higher, beyond whatever the lost
/// majority can have agreed on without this member.
pub const RECOVERY_LEAP: u64 = 1 << 20;

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder knows no document.
    #[error("this folder knows no document: recover with the folder of a node that has been a member")]
    NoDocument,
    /// A survivor is no member.
    #[error("{0} is no member of the document in this folder")]
    Stranger(u16),
}

/// What a recovery has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The number of this member, which is the only voter from now on.
    pub number: u16,
    /// The epoch of the document that was known to be agreed on.
    pub agreed_epoch: u64,
    /// Entries of the log that were not known to be agreed on. They count from now on.
    pub unconfirmed: usize,
    /// The epoch of the document with which it goes on.
    pub epoch: u64,
    /// Members of the document that are neither this one nor survivors. Data that only they hold is
    /// not served; they have to be removed, or to come back.
    pub absent: Vec<u16>,
}

/// Makes a member go on alone, **and gives up whatever it has not heard of**. For a cluster whose
/// majority of voters is lost for good; offline, while neither this node nor any other runs.
///
/// What may be lost: each change that the lost voters have agreed on without this member. If
/// partitions moved in such a change, this document names replicas that do not have the newest
/// data, or no data, and **reads may miss acknowledged writes until the members have compared
/// them**. What this member had in its log and nobody had confirmed to it becomes true. Choose the
/// survivor with the highest epoch.
///
/// The document keeps everything else: the members, who holds data, and the plan. Its epoch goes on
/// [`RECOVERY_LEAP`] higher, so that nobody takes an older document for a newer one. The survivors
/// take over this document when they start, whatever they had. So does any other member that comes
/// back, **except** if a majority of the old voters comes back together and goes on by itself: then
/// there are two clusters under one name. Never start those again with their folders before they
/// can reach this one.
///
/// It may be repeated if it was interrupted.
///
/// # Errors
/// See [`RecoverError`].
pub fn recover(folder: &Path, survivors: &[u16]) -> Result<Report, RecoverError> {
    let mut store = Store::open(folder)?;
    let owner = store.owner().ok_or(RecoverError::NoDocument)?;
    let mut applied = store.applied().clone();
    let agreed = applied.state.document.as_ref().map_or(0, |document| document.epoch());
    let unconfirmed = store.entries().values().filter(|entry| Some(entry.log_id) > applied.last);
    let unconfirmed: Vec<_> = unconfirmed.cloned().collect();
    for entry in &unconfirmed {
        applied.apply(entry);
    }
    let document = applied.state.document.as_mut().ok_or(RecoverError::NoDocument)?;
    let old = &document.membership;
    let numbers: BTreeSet<u16> = old.nodes().iter().map(|node| node.number).collect();
    if let Some(&stranger) = survivors.iter().chain([&owner.number]).find(|number| !numbers.contains(number)) {
        return Err(RecoverError::Stranger(stranger));
    }
    let epoch = old.epoch() + RECOVERY_LEAP;
    let membership = Membership::restored(
        // Whoever knows an older epoch only may know other replicas than these, so all have to
        // learn it.
        (epoch, epoch),
        (old.nodes().to_vec(), old.former().to_vec()),
        (old.holders(), old.plan().cloned()),
    );
    document.membership = membership.expect("the parts of a membership, with another epoch");
    let seats: BTreeMap<u64, Seat> = survivors
        .iter()
        .chain([&owner.number])
        .map(|&number| {
            let node = document.membership.nodes().iter().find(|node| node.number == number);
            let id = node.map_or(NodeId::NONE, |node| node.id);
            (number.into(), Seat { replica: document.replicas.get(&number).cloned().unwrap_or_default(), id })
        })
        .collect();
    let me = u64::from(owner.number);
    let last_id = store.last_id().max(applied.last);
    let term = store.vote().map_or(0, |vote| vote.leader_id.term).max(last_id.map_or(0, |id| id.leader_id.term));
    let index = last_id.map_or(0, |id| id.index).max(applied.last.map_or(0, |id| id.index));
    let leader = openraft::CommittedLeaderId::new(term + RECOVERY_LEAP, me);
    let last = LogId::new(leader, index + RECOVERY_LEAP);
    applied.last = Some(last);
    applied.members = StoredMembership::new(Some(last), openraft::Membership::new(vec![BTreeSet::from([me])], seats));
    store.restart_from(applied, Vote::new(term + RECOVERY_LEAP, me))?;
    let absent = numbers.into_iter().filter(|number| *number != owner.number && !survivors.contains(number)).collect();
    Ok(Report { number: owner.number, agreed_epoch: agreed, unconfirmed: unconfirmed.len(), epoch, absent })
}
