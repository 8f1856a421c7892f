//! How the values of the other crates are written as JSON: on disk, in the log, and in messages.
//!
//! Those crates know nothing of serde, so this has a mirror of each of their types. Whatever is
//! read is hostile until it has become such a value: [`Membership::restored`] checks it.
//!
//! Tested by the round trips below, and by hostile bytes in `tests/damage.rs`.

use std::collections::BTreeMap;

use koltso_cluster::membership::{MemberNode, Membership};
use koltso_cluster::placement::{NodeIndex, NodeSet};
use koltso_cluster::plan::{BATCHES, Batch, Plan, Stage};
use koltso_model::NodeId;
use serde::{Deserialize, Serialize};

use crate::document::{Document, ENDED_MAX, EndedPlan};

/// An identity, as 32 hexadecimal digits.
pub(crate) mod identity {
    use koltso_model::NodeId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(id: &NodeId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<NodeId, D::Error> {
        let text = String::deserialize(from)?;
        NodeId::parse(&text).ok_or_else(|| D::Error::custom("an identity is 32 hexadecimal digits"))
    }
}

/// Batches with the stages they go to.
pub(crate) mod stages {
    use koltso_cluster::plan::Stage;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::WireStage;

    pub(crate) fn serialize<S: Serializer>(batches: &[(usize, Stage)], to: S) -> Result<S::Ok, S::Error> {
        let batches: Vec<(usize, WireStage)> = batches.iter().map(|&(at, stage)| (at, stage.into())).collect();
        batches.serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<(usize, Stage)>, D::Error> {
        let batches = Vec::<(usize, WireStage)>::deserialize(from)?;
        Ok(batches.into_iter().map(|(at, stage)| (at, stage.into())).collect())
    }
}

/// [`Stage`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WireStage {
    Current,
    Copying,
    Joint,
    Moved,
}

impl From<Stage> for WireStage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Current => Self::Current,
            Stage::Copying => Self::Copying,
            Stage::Joint => Self::Joint,
            Stage::Moved => Self::Moved,
        }
    }
}

impl From<WireStage> for Stage {
    fn from(stage: WireStage) -> Self {
        match stage {
            WireStage::Current => Self::Current,
            WireStage::Copying => Self::Copying,
            WireStage::Joint => Self::Joint,
            WireStage::Moved => Self::Moved,
        }
    }
}

/// [`MemberNode`].
#[derive(Serialize, Deserialize)]
struct WireNode {
    #[serde(with = "identity")]
    id: NodeId,
    number: u16,
    place: u8,
    url: String,
    zone: String,
    seed: u64,
}

impl From<&MemberNode> for WireNode {
    fn from(node: &MemberNode) -> Self {
        let MemberNode { id, number, place, url, zone, seed } = node.clone();
        Self { id, number, place: place.0, url, zone, seed }
    }
}

impl From<WireNode> for MemberNode {
    fn from(node: WireNode) -> Self {
        let WireNode { id, number, place, url, zone, seed } = node;
        Self { id, number, place: NodeIndex(place), url, zone, seed }
    }
}

/// [`Plan`].
#[derive(Serialize, Deserialize)]
struct WirePlan {
    target: u64,
    batches: Vec<(WireStage, u64)>,
}

/// [`Membership`].
#[derive(Serialize, Deserialize)]
struct WireMembership {
    epoch: u64,
    fence: u64,
    nodes: Vec<WireNode>,
    former: Vec<WireNode>,
    holders: u64,
    plan: Option<WirePlan>,
}

impl From<&Membership> for WireMembership {
    fn from(membership: &Membership) -> Self {
        let batches = |plan: &Plan| plan.batches.iter().map(|batch| (batch.stage.into(), batch.began)).collect();
        Self {
            epoch: membership.epoch(),
            fence: membership.fence(),
            nodes: membership.nodes().iter().map(WireNode::from).collect(),
            former: membership.former().iter().map(WireNode::from).collect(),
            holders: membership.holders().0,
            plan: membership.plan().map(|plan| WirePlan { target: plan.target.0, batches: batches(plan) }),
        }
    }
}

impl TryFrom<WireMembership> for Membership {
    type Error = String;

    fn try_from(wire: WireMembership) -> Result<Self, String> {
        let plan = match wire.plan {
            None => None,
            Some(plan) => {
                let batches = plan.batches.into_iter().map(|(stage, began)| Batch { stage: stage.into(), began });
                let batches: Vec<Batch> = batches.collect();
                let given = batches.len();
                let batches = batches.try_into().map_err(|_| format!("a plan has {BATCHES} batches, not {given}"))?;
                Some(Plan { target: NodeSet(plan.target), batches })
            }
        };
        // `NodeIndex` shifts by its number: a place beyond a set is refused before it is used.
        if let Some(node) = wire.nodes.iter().find(|node| usize::from(node.place) >= koltso_model::NODES_MAX) {
            return Err(format!("the place {} is beyond {}", node.place, koltso_model::NODES_MAX));
        }
        let nodes = |nodes: Vec<WireNode>| nodes.into_iter().map(MemberNode::from).collect::<Vec<_>>();
        Self::restored((wire.epoch, wire.fence), (nodes(wire.nodes), nodes(wire.former)), (NodeSet(wire.holders), plan))
            .map_err(|e| e.to_string())
    }
}

/// [`Document`].
#[derive(Serialize, Deserialize)]
pub(crate) struct WireDocument {
    membership: WireMembership,
    #[serde(with = "identity")]
    cluster: NodeId,
    paused: bool,
    move_rate: Option<u64>,
    replicas: BTreeMap<u16, String>,
    ended: Vec<EndedPlan>,
}

impl From<Document> for WireDocument {
    fn from(document: Document) -> Self {
        let Document { membership, cluster, paused, move_rate, replicas, ended } = document;
        Self { membership: WireMembership::from(&membership), cluster, paused, move_rate, replicas, ended }
    }
}

impl TryFrom<WireDocument> for Document {
    type Error = String;

    fn try_from(wire: WireDocument) -> Result<Self, String> {
        let WireDocument { membership, cluster, paused, move_rate, replicas, ended } = wire;
        let membership = Membership::try_from(membership)?;
        if ended.len() > ENDED_MAX {
            return Err(format!("{} plans that ended are remembered, more than {ENDED_MAX}", ended.len()));
        }
        Ok(Self { membership, cluster, paused, move_rate, replicas, ended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Change;
    use proptest::prelude::*;

    /// A change that may or may not be possible, from a drawn number.
    fn drawn_change(document: &Document, what: u8, drawn: u64) -> Change {
        let numbers: Vec<u16> = document.membership.nodes().iter().map(|node| node.number).collect();
        let some = |mask: u64| numbers.iter().enumerate().filter(move |(at, _)| mask & (1 << at) != 0);
        let url = format!("http://drawn-{}:1", drawn % 11);
        match what {
            0 => Change::Join { id: NodeId(drawn.into()), url, zone: "z".into(), replica: format!("r{drawn}:1") },
            1 => Change::Leave { number: numbers[drawn as usize % numbers.len()] },
            2 => Change::Plan { target: some(drawn).map(|(_, &number)| number).collect() },
            3 => Change::Cancel,
            4 => Change::Pause(drawn & 1 == 0),
            5 => Change::MoveRate((drawn & 3 != 0).then_some(drawn)),
            _ => {
                let stage = |at: usize| document.membership.plan().map(|plan| plan.batches[at].stage);
                let next = |at| match stage(at) {
                    Some(Stage::Current) | None => Stage::Copying,
                    Some(Stage::Copying) => Stage::Joint,
                    Some(Stage::Joint | Stage::Moved) => Stage::Moved,
                };
                let batches = (0..BATCHES).filter(|&at| stage(at) != Some(Stage::Moved));
                Change::Advance { batches: batches.map(|at| (at, next(at))).collect() }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_reads_back_the_same(changes in prop::collection::vec((0_u8..9, any::<u64>()), 0..40)) {
            let urls: Vec<String> = (0..4).map(|host| format!("http://first-{host}:1")).collect();
            let first = Membership::first(&urls).expect("distinct");
            let mut document = Document::founded(NodeId(7), first, BTreeMap::new());
            for (what, drawn) in changes {
                let change = drawn_change(&document, what, drawn);
                let text = serde_json::to_string(&change).expect("a change has no part that cannot be written");
                prop_assert_eq!(&serde_json::from_str::<Change>(&text).expect("just written"), &change);
                if let Ok(next) = document.after(&change) {
                    prop_assert_eq!(next.epoch(), document.epoch() + 1);
                    document = next;
                }
                let text = serde_json::to_string(&document).expect("a document has no part that cannot be written");
                prop_assert_eq!(&serde_json::from_str::<Document>(&text).expect("just written"), &document);
            }
        }
    }

    #[test]
    fn what_is_no_membership_is_refused_with_a_reason() {
        let first = Membership::first(&["http://a:1".into(), "http://b:1".into()]).expect("distinct");
        let text = serde_json::to_string(&Document::founded(NodeId(7), first, BTreeMap::new())).expect("written");
        for (from, to) in [
            ("\"place\":1", "\"place\":200"),
            ("\"place\":1", "\"place\":0"),
            ("\"holders\":3", "\"holders\":0"),
            ("\"holders\":3", "\"holders\":255"),
            ("\"plan\":null", "\"plan\":{\"target\":3,\"batches\":[]}"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{from}");
            assert!(serde_json::from_str::<Document>(&changed).is_err(), "{to}");
        }
    }
}
