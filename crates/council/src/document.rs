//! What the members agree on, and how a change makes the next one from it: a function, without I/O,
//! so that every member comes to the same document from the same log.
//!
//! Owner: a value, shared behind an `Arc`. Bounds: [`DOCUMENT_BYTES_MAX`], [`TEXT_BYTES_MAX`],
//! [`ENDED_MAX`]. Invariants: a change that succeeds grows the epoch by exactly one; one that fails
//! changes nothing. Tested here and in `wire.rs`.

use std::collections::BTreeMap;

use koltso_cluster::membership::{Membership, MembershipError};
use koltso_cluster::placement::NodeSet;
use koltso_cluster::plan::{BATCHES, Stage};
use koltso_model::NodeId;
use serde::{Deserialize, Serialize};

use crate::wire;

/// Of so many plans that ended the document tells how.
pub const ENDED_MAX: usize = 8;
/// No address and no zone is longer than this.
pub const TEXT_BYTES_MAX: usize = 1024;
/// A document is no larger than this as JSON, so that it fits into a message with much to spare. It
/// grows with the members that have left; some thousand of them are as much as fits.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// How a plan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// All partitions have moved.
    Done,
    /// It was taken back. What had moved moves back by a plan of its own, which then ends as done.
    Cancelled,
}

/// A plan that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedPlan {
    /// The numbers of the members that were to hold data.
    pub target: Vec<u16>,
    /// The epoch in which it ended.
    pub epoch: u64,
    /// How it ended.
    pub how: Ending,
}

/// What the members of a cluster agree on. Its number is the epoch of its membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "wire::WireDocument", try_from = "wire::WireDocument")]
pub struct Document {
    /// Who the members are, which of them hold data, and the plan that changes that.
    pub membership: Membership,
    /// The random identity of the cluster, made when it was formed.
    pub cluster: NodeId,
    /// Whether nothing is to be moved for now.
    pub paused: bool,
    /// How fast partitions move, in bytes a second; `None` leaves it to each member.
    pub move_rate: Option<u64>,
    /// Where each member listens to the others, `HOST:PORT` by its number. A member of the first
    /// list of which nobody said it has none until it has claimed its place.
    pub replicas: BTreeMap<u16, String>,
    /// How the last plans ended, the latest last; at most [`ENDED_MAX`].
    pub ended: Vec<EndedPlan>,
}

/// A change of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Another node becomes a member, which holds no data yet.
    Join {
        /// The identity of its data folder.
        #[serde(with = "wire::identity")]
        id: NodeId,
        /// Its HTTP address.
        url: String,
        /// Where it stands; empty if nobody said.
        zone: String,
        /// Where it listens to the other members, `HOST:PORT`.
        replica: String,
    },
    /// A member that holds no data leaves.
    Leave {
        /// Its number.
        number: u16,
    },
    /// Partitions are to move until these members hold data, and no others.
    Plan {
        /// Their numbers.
        target: Vec<u16>,
    },
    /// Batches of the plan come to their next stages.
    Advance {
        /// The batches with these stages.
        #[serde(with = "wire::stages")]
        batches: Vec<(usize, Stage)>,
    },
    /// The plan is taken back.
    Cancel,
    /// Moving stops for now, or goes on.
    Pause(bool),
    /// How fast partitions move, in bytes a second and not 0; `None` leaves it to each member.
    MoveRate(Option<u64>),
    /// A member is at another address. It is known by its identity; one of the first list, whose
    /// identity is not known yet, by its HTTP address.
    Readdress {
        /// The identity of its data folder.
        #[serde(with = "wire::identity")]
        id: NodeId,
        /// Its HTTP address from now on.
        url: String,
        /// Where it listens to the other members from now on, `HOST:PORT`.
        replica: String,
    },
}

impl Document {
    /// The first document of a cluster.
    pub(crate) fn founded(cluster: NodeId, membership: Membership, replicas: BTreeMap<u16, String>) -> Self {
        Self { membership, cluster, paused: false, move_rate: None, replicas, ended: Vec::new() }
    }

    /// Its number.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.membership.epoch()
    }

    /// The numbers of the members at some places.
    fn numbers(&self, places: NodeSet) -> Vec<u16> {
        let nodes = self.membership.nodes().iter();
        nodes.filter(|node| places.contains(node.place)).map(|node| node.number).collect()
    }

    /// The document after a change, or the sentence that says why there is none.
    pub(crate) fn after(&self, change: &Change) -> Result<Self, String> {
        let text = |error: MembershipError| error.to_string();
        let mut next = self.clone();
        match change {
            Change::Join { id, url, zone, replica } => {
                check_texts(&[url, zone, replica])?;
                next.membership = self.joined(*id, url, zone)?;
                if let Some(node) = next.membership.at(url) {
                    next.replicas.insert(node.number, replica.clone());
                }
            }
            Change::Leave { number } => {
                let node = self.membership.nodes().iter().find(|node| node.number == *number);
                let node = node.ok_or_else(|| format!("no member has the number {number}"))?;
                next.membership = self.membership.left(node.place).map_err(text)?;
                next.replicas.remove(number);
            }
            Change::Plan { target } => {
                let nodes = self.membership.nodes();
                if let Some(stranger) = target.iter().find(|&&number| nodes.iter().all(|node| node.number != number)) {
                    return Err(format!("no member has the number {stranger}"));
                }
                let target = nodes.iter().filter(|node| target.contains(&node.number)).map(|node| node.place);
                next.membership = self.membership.planned(target.collect()).map_err(text)?;
            }
            Change::Advance { batches } => {
                if batches.is_empty() || batches.len() > BATCHES {
                    return Err(format!("1 to {BATCHES} batches come to another stage at once, not {}", batches.len()));
                }
                next.membership = self.membership.advanced(batches).map_err(text)?;
                if next.membership.plan().is_none() {
                    next.end(self, Ending::Done);
                }
            }
            Change::Cancel => {
                next.membership = self.membership.cancelled().map_err(text)?;
                next.end(self, Ending::Cancelled);
            }
            Change::Pause(paused) => {
                (next.membership, next.paused) = (self.membership.touched(), *paused);
            }
            Change::MoveRate(Some(0)) => {
                return Err("nothing moves at 0 bytes a second: pause the plan instead".to_owned());
            }
            Change::MoveRate(rate) => {
                (next.membership, next.move_rate) = (self.membership.touched(), *rate);
            }
            Change::Readdress { id, url, replica } => {
                check_texts(&[url, replica])?;
                next.membership = self.membership.readdressed(*id, url).map_err(text)?;
                if let Some(node) = next.membership.at(url) {
                    next.replicas.insert(node.number, replica.clone());
                }
            }
        }
        let bytes = serde_json::to_vec(&next).map_or(usize::MAX, |json| json.len());
        if bytes > DOCUMENT_BYTES_MAX {
            return Err(format!("the document would have {bytes} bytes, more than {DOCUMENT_BYTES_MAX}"));
        }
        Ok(next)
    }

    fn joined(&self, id: NodeId, url: &str, zone: &str) -> Result<Membership, String> {
        if id == NodeId::NONE {
            return Err(format!("the identity of {url} is not known: ask it first"));
        }
        // A message is for a number and an identity, so no identity has two numbers.
        if let Some(node) = self.membership.nodes().iter().find(|node| node.id == id) {
            return Err(format!("{url} is a member already, as {}", node.url));
        }
        if let Some(node) = self.membership.former().iter().find(|node| node.id == id && node.url != url) {
            return Err(format!(
                "the node at {url} was a member at {}: start it there, or with an empty data folder",
                node.url
            ));
        }
        self.membership.joined(id, url, zone).map_err(|e| e.to_string())
    }

    /// Remembers how the plan of the document before this one ended.
    fn end(&mut self, before: &Self, how: Ending) {
        let target = before.membership.plan().map(|plan| before.numbers(plan.target)).unwrap_or_default();
        self.ended.push(EndedPlan { target, epoch: self.epoch(), how });
        let forgotten = self.ended.len().saturating_sub(ENDED_MAX);
        self.ended.drain(..forgotten);
    }
}

fn check_texts(texts: &[&String]) -> Result<(), String> {
    match texts.iter().find(|text| text.len() > TEXT_BYTES_MAX) {
        None => Ok(()),
        Some(text) => Err(format!("an address or zone has {} bytes, more than {TEXT_BYTES_MAX}", text.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founded() -> Document {
        let urls: Vec<String> = (1..4).map(|host| format!("http://node-{host}:1")).collect();
        Document::founded(NodeId(7), Membership::first(&urls).expect("distinct"), BTreeMap::new())
    }

    fn after(document: &Document, change: Change) -> Document {
        let next = document.after(&change).expect("possible");
        assert_eq!(next.epoch(), document.epoch() + 1, "{change:?}");
        next
    }

    fn join(id: u128, url: &str) -> Change {
        Change::Join { id: NodeId(id), url: url.into(), zone: "b".into(), replica: format!("{url}-r") }
    }

    fn all(document: &Document, stage: Stage) -> Document {
        after(document, Change::Advance { batches: (0..BATCHES).map(|at| (at, stage)).collect() })
    }

    #[test]
    fn a_member_joins_gets_data_gives_it_back_and_leaves() {
        let joined = after(&founded(), join(9, "http://four:1"));
        let four = joined.membership.at("http://four:1").expect("joined").number;
        assert_eq!(joined.replicas[&four], "http://four:1-r");
        let before: Vec<u16> = joined.numbers(joined.membership.holders());
        let everybody: Vec<u16> = joined.membership.nodes().iter().map(|node| node.number).collect();
        let mut document = after(&joined, Change::Plan { target: everybody.clone() });
        for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
            assert!(document.after(&Change::Leave { number: four }).is_err(), "it is to hold data");
            document = all(&document, stage);
        }
        assert_eq!(document.membership.holders().len(), 4);
        let done = EndedPlan { target: everybody, epoch: document.epoch(), how: Ending::Done };
        assert_eq!(document.ended, [done]);
        document = after(&document, Change::Plan { target: before.clone() });
        document = after(&document, Change::Cancel);
        let cancelled = EndedPlan { target: before.clone(), epoch: document.epoch(), how: Ending::Cancelled };
        assert_eq!((document.ended.len(), &document.ended[1]), (2, &cancelled));
        document = after(&document, Change::Plan { target: before });
        for stage in [Stage::Copying, Stage::Joint, Stage::Moved] {
            document = all(&document, stage);
        }
        document = after(&document, Change::Leave { number: four });
        assert!(!document.replicas.contains_key(&four) && document.membership.former().len() == 1);
        // The same identity at the same address has its number again, at another it has none.
        let again = after(&document, join(9, "http://four:1"));
        assert_eq!(again.membership.at("http://four:1").expect("joined").number, four);
        assert!(document.after(&join(9, "http://five:1")).expect_err("two numbers").contains("http://four:1"));
    }

    #[test]
    fn the_last_plans_that_ended_are_remembered_and_no_more() {
        let mut document = founded();
        let target: Vec<u16> = document.numbers(NodeSet(0b011));
        for _ in 0..ENDED_MAX + 3 {
            document = after(&document, Change::Plan { target: target.clone() });
            document = after(&document, Change::Cancel);
        }
        assert_eq!(document.ended.len(), ENDED_MAX);
        assert_eq!(document.ended.last().map(|ended| ended.epoch), Some(document.epoch()));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_sentence() {
        let document = founded();
        let (long, far) = ("x".repeat(TEXT_BYTES_MAX + 1), "http://four:1".to_owned());
        let taken = after(&document, join(9, &far));
        for (from, change, part) in [
            (&document, join(0, &far), "identity"),
            (&taken, join(9, "http://five:1"), "already"),
            (&document, join(8, &long), "1024"),
            (&document, Change::Leave { number: 1 }, "no member has the number 1"),
            (&document, Change::Plan { target: vec![1] }, "no member has the number 1"),
            (&document, Change::Plan { target: vec![] }, "by none"),
            (&document, Change::Cancel, "no plan"),
            (&document, Change::Advance { batches: vec![] }, "batches"),
            (&document, Change::MoveRate(Some(0)), "pause"),
            (&document, Change::Readdress { id: NodeId(5), url: far.clone(), replica: far.clone() }, "join it first"),
        ] {
            let error = from.after(&change).expect_err("refused");
            assert!(error.contains(part), "{change:?}: {error}");
        }
    }

    #[test]
    fn a_document_that_is_too_large_is_refused() {
        let mut document = founded();
        for id in 1.. {
            let padding = "x".repeat(TEXT_BYTES_MAX - 20);
            let joined = match document.after(&join(id, &format!("http://{padding}-{id}"))) {
                Ok(joined) => joined,
                Err(error) => {
                    assert!(id > 100 && error.contains("1048576"), "{id}: {error}");
                    break;
                }
            };
            let number = joined.membership.nodes().iter().find(|node| node.id == NodeId(id)).expect("joined").number;
            document = after(&joined, Change::Leave { number });
        }
    }
}
