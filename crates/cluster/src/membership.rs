//! Who the members of a cluster are, which of them hold data, and how that changes: a value with a
//! number, its *epoch*.
//!
//! Each node has a *number*, which versions and handshakes carry. Numbers are assigned once and
//! kept: at a cluster's first start all nodes derive them from the same list of addresses, without
//! asking each other. An address that joins later, or another order of the list, never shifts the number
//! of one that has one, and the number of a member that leaves is not given to another. A node has a
//! *place*, too, below [`NODES_MAX`], by which the others keep what they know of it; that of a
//! member that has left is given to another.
//!
//! Placement goes by the *seed* of a node, which stays when its address changes.
//!
//! Owner: made at the start, then shared; each change is a new value. Bounds: [`NODES_MAX`] nodes.
//! Invariants: addresses, numbers and places are distinct; nodes are in the order of their places; one holds
//! data at least; the epoch of a change is one more than that before it.

use koltso_model::{KeyHash, NODES_MAX, NodeId};

use crate::placement::{NodeIndex, NodeSet};
use crate::plan::{Batch, Plan, Stage};

/// The epoch of a cluster whose members have never changed while it served.
pub const FIRST_EPOCH: u64 = 1;

/// Why a list of nodes is no cluster, or a change cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MembershipError {
    /// No nodes, or too many.
    #[error("a cluster has 1 to {NODES_MAX} nodes, not {0}")]
    Count(usize),
    /// The same address twice.
    #[error("{0} is listed twice")]
    Duplicate(String),
    /// The same number twice: such a membership was not made here.
    #[error("the number {0} is assigned twice")]
    Number(u16),
    /// The same place twice, or one that there is not.
    #[error("the place {0} is assigned twice, or beyond {NODES_MAX}")]
    Place(u8),
    /// Somebody is to hold data who is no member, or nobody is.
    #[error("data is to be held by nodes that are no members, or by none")]
    Holders,
    /// A plan is under way.
    #[error("the last plan is not done: wait for it, or cancel it")]
    PlanUnderWay,
    /// No plan is under way.
    #[error("there is no plan")]
    NoPlan,
    /// A stage does not follow the one that a batch has.
    #[error("batch {0} is at another stage")]
    Stage(usize),
    /// A member that holds data, or is to, cannot leave.
    #[error("{0} holds data: drain it first")]
    HoldsData(String),
    /// No member is known by an identity, and none without one is at the address.
    #[error("no member has the identity {0}: join it first")]
    Stranger(NodeId),
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberNode {
    /// The identity of its data folder; [`NodeId::NONE`] as long as it is not known.
    pub id: NodeId,
    /// Its number in versions and handshakes.
    pub number: u16,
    /// Its place.
    pub place: NodeIndex,
    /// Its HTTP address.
    pub url: String,
    /// Where it stands, for placement; empty if nobody said.
    pub zone: String,
    /// What placement knows it by.
    pub seed: u64,
}

impl MemberNode {
    /// A node that placement knows by its address; its place comes with the membership.
    #[must_use]
    pub fn listed(id: NodeId, number: u16, url: String, zone: String) -> Self {
        let seed = KeyHash::of(url.as_bytes()).0;
        Self { id, number, place: NodeIndex(0), url, zone, seed }
    }
}

/// The members; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    epoch: u64,
    /// Whoever does not know this epoch may know other replicas than there are.
    fence: u64,
    nodes: Vec<MemberNode>,
    /// Nodes that were members once. Their numbers stay theirs.
    former: Vec<MemberNode>,
    /// Who holds data, by place.
    holders: NodeSet,
    plan: Option<Plan>,
}

/// splitmix64's finalizer (Steele et al., 2014).
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The first number of an address that is not taken.
fn free_number(url: &str, taken: &[u16]) -> u16 {
    let mut number = mix(KeyHash::of(url.as_bytes()).0) as u16;
    while taken.contains(&number) {
        number = number.wrapping_add(1);
    }
    number
}

impl Membership {
    /// Of a list of nodes, who all hold data, and of those that were in it once. Their places are those of
    /// their addresses among the others.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn from_parts(
        epoch: u64,
        mut nodes: Vec<MemberNode>,
        mut former: Vec<MemberNode>,
    ) -> Result<Self, MembershipError> {
        nodes.sort_by(|one, other| one.url.cmp(&other.url));
        former.sort_by(|one, other| one.url.cmp(&other.url));
        for (place, node) in nodes.iter_mut().enumerate() {
            node.place = NodeIndex(u8::try_from(place).unwrap_or(u8::MAX));
        }
        let holders = nodes.iter().map(|node| node.place).take(NODES_MAX).collect();
        Self { epoch, fence: 0, nodes, former, holders, plan: None }.checked()
    }

    /// From all its parts, as they were written down.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn restored(
        (epoch, fence): (u64, u64),
        (nodes, former): (Vec<MemberNode>, Vec<MemberNode>),
        (holders, plan): (NodeSet, Option<Plan>),
    ) -> Result<Self, MembershipError> {
        Self { epoch, fence, nodes, former, holders, plan }.checked()
    }

    /// The same, if it is one.
    fn checked(mut self) -> Result<Self, MembershipError> {
        let Self { nodes, former, .. } = &mut self;
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            return Err(MembershipError::Count(nodes.len()));
        }
        nodes.sort_by_key(|node| node.place);
        let mut urls: Vec<&str> = nodes.iter().chain(&*former).map(|node| &node.url[..]).collect();
        urls.sort_unstable();
        if let Some(twice) = urls.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MembershipError::Duplicate(twice[0].to_owned()));
        }
        let mut numbers: Vec<u16> = nodes.iter().chain(&*former).map(|node| node.number).collect();
        numbers.sort_unstable();
        if let Some(twice) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MembershipError::Number(twice[0]));
        }
        if let Some(last) = nodes.last().filter(|node| node.place.at() >= NODES_MAX) {
            return Err(MembershipError::Place(last.place.0));
        }
        if let Some(twice) = nodes.windows(2).find(|pair| pair[0].place == pair[1].place) {
            return Err(MembershipError::Place(twice[0].place.0));
        }
        let members = self.members();
        let holders = std::iter::once(self.holders).chain(self.plan.as_ref().map(|plan| plan.target));
        if holders.into_iter().any(|holders| holders.is_empty() || !holders.without(members).is_empty()) {
            return Err(MembershipError::Holders);
        }
        Ok(self)
    }

    /// The first membership of a cluster: the nodes with these addresses, in any order. Every node
    /// that is given the same list makes the same.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn first(urls: &[String]) -> Result<Self, MembershipError> {
        Self::of_list(FIRST_EPOCH, urls, Vec::new())
    }

    /// The same with this list of addresses, in any order. Addresses that are known keep their
    /// numbers; new ones get numbers that nobody ever had.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn relisted(&self, urls: &[String]) -> Result<Self, MembershipError> {
        Self::of_list(self.epoch, urls, self.nodes.iter().chain(&self.former).collect())
    }

    fn of_list(epoch: u64, urls: &[String], known: Vec<&MemberNode>) -> Result<Self, MembershipError> {
        let mut urls = urls.to_vec();
        urls.sort();
        if let Some(pair) = urls.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MembershipError::Duplicate(pair[0].clone()));
        }
        let mut taken: Vec<u16> = known.iter().map(|node| node.number).collect();
        let mut nodes = Vec::new();
        for url in &urls {
            let node = match known.iter().find(|node| node.url == *url) {
                Some(&node) => node.clone(),
                None => {
                    // Of two that collide, the one with the later address takes the next free one.
                    let number = free_number(url, &taken);
                    taken.push(number);
                    MemberNode::listed(NodeId::NONE, number, url.clone(), String::new())
                }
            };
            nodes.push(node);
        }
        let former = known.into_iter().filter(|node| !urls.contains(&node.url)).cloned().collect();
        Self::from_parts(epoch, nodes, former)
    }

    /// The number of this membership: it grows with each change while the cluster serves.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The epoch that coordinators have to know for partitions that do not move.
    #[must_use]
    pub const fn fence(&self) -> u64 {
        self.fence
    }

    /// Its nodes, in the order of their places.
    #[must_use]
    pub fn nodes(&self) -> &[MemberNode] {
        &self.nodes
    }

    /// Nodes that were members once and are no longer.
    #[must_use]
    pub fn former(&self) -> &[MemberNode] {
        &self.former
    }

    /// The places of all members.
    #[must_use]
    pub fn members(&self) -> NodeSet {
        self.nodes.iter().map(|node| node.place).collect()
    }

    /// Who holds data; where a plan is under way, before it.
    #[must_use]
    pub const fn holders(&self) -> NodeSet {
        self.holders
    }

    /// What is under way.
    #[must_use]
    pub const fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// The member at an address.
    #[must_use]
    pub fn at(&self, url: &str) -> Option<&MemberNode> {
        self.nodes.iter().find(|node| node.url == url)
    }

    /// The same with the identity of the node at an address, which has to be listed.
    #[must_use]
    pub fn with_identity(mut self, url: &str, id: NodeId) -> Self {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.url == url) {
            node.id = id;
        }
        self
    }

    // ---- changes while the cluster serves ----

    fn changed(&self) -> Self {
        Self { epoch: self.epoch + 1, ..self.clone() }
    }

    /// The same members with the next epoch, for a change of what is agreed on beside them.
    #[must_use]
    pub fn touched(&self) -> Self {
        self.changed()
    }

    /// With a member at another address. It is known by its identity and keeps its number, place and
    /// seed, so no data moves. A listed member whose identity is not known yet is known by its address
    /// and gets the identity.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn readdressed(&self, id: NodeId, url: &str) -> Result<Self, MembershipError> {
        let mut next = self.changed();
        let known = next.nodes.iter().position(|node| node.id == id && id != NodeId::NONE);
        let unknown = || next.nodes.iter().position(|node| node.url == url && node.id == NodeId::NONE);
        let Some(at) = known.or_else(unknown) else { return Err(MembershipError::Stranger(id)) };
        next.nodes[at].id = id;
        url.clone_into(&mut next.nodes[at].url);
        next.checked()
    }

    /// With another member, which holds no data yet. One that was a member once has its number again.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn joined(&self, id: NodeId, url: &str, zone: &str) -> Result<Self, MembershipError> {
        let mut next = self.changed();
        let again = next.former.iter().position(|node| node.url == url && node.id == id);
        let taken: Vec<u16> = self.nodes.iter().chain(&self.former).map(|node| node.number).collect();
        let place = (0..NODES_MAX as u8).map(NodeIndex).find(|&place| !self.members().contains(place));
        let place = place.ok_or(MembershipError::Count(NODES_MAX + 1))?;
        let node = match again {
            Some(at) => next.former.remove(at),
            None => MemberNode::listed(id, free_number(url, &taken), url.to_owned(), String::new()),
        };
        next.nodes.push(MemberNode { place, zone: zone.to_owned(), ..node });
        next.checked()
    }

    /// Without a member that holds no data.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn left(&self, place: NodeIndex) -> Result<Self, MembershipError> {
        let mut next = self.changed();
        let Some(at) = next.nodes.iter().position(|node| node.place == place) else {
            return Err(MembershipError::Place(place.0));
        };
        let node = next.nodes.remove(at);
        let is_target = self.plan.as_ref().is_some_and(|plan| plan.target.contains(place));
        if self.holders.contains(place) || is_target {
            return Err(MembershipError::HoldsData(node.url));
        }
        next.former.push(node);
        next.former.sort_by(|one, other| one.url.cmp(&other.url));
        next.checked()
    }

    /// With a plan by which these members hold data in the end, of which nothing has been done yet.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn planned(&self, target: NodeSet) -> Result<Self, MembershipError> {
        if self.plan.is_some() {
            return Err(MembershipError::PlanUnderWay);
        }
        let mut next = self.changed();
        next.plan = Some(Plan::new(target, next.epoch));
        next.checked()
    }

    /// With batches, each named once, at the stages that follow those they have. Where all have moved, the
    /// plan is done.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn advanced(&self, batches: &[(usize, Stage)]) -> Result<Self, MembershipError> {
        let mut next = self.changed();
        let Some(plan) = &mut next.plan else { return Err(MembershipError::NoPlan) };
        for &(number, stage) in batches {
            // (No two stages have one epoch: of each, those who do not know it are refused.)
            let at = plan.batches.get(number).filter(|batch| batch.began < next.epoch).map(|batch| batch.stage);
            let follows = match at {
                Some(Stage::Current) => Stage::Copying,
                Some(Stage::Copying) => Stage::Joint,
                Some(Stage::Joint) => Stage::Moved,
                Some(Stage::Moved) | None => return Err(MembershipError::Stage(number)),
            };
            if stage != follows {
                return Err(MembershipError::Stage(number));
            }
            plan.batches[number] = Batch { stage, began: next.epoch };
        }
        if plan.is_done() {
            next.holders = plan.target;
            next.end_plan();
        }
        next.checked()
    }

    fn end_plan(&mut self) {
        let began = self.plan.iter().flat_map(|plan| plan.batches.iter()).map(|batch| batch.began);
        self.fence = began.max().unwrap_or(0).max(self.fence);
        self.plan = None;
    }

    /// With the plan taken back: what has moved moves back, and all else is as it was.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn cancelled(&self) -> Result<Self, MembershipError> {
        let mut next = self.changed();
        let Some(plan) = &mut next.plan else { return Err(MembershipError::NoPlan) };
        std::mem::swap(&mut plan.target, &mut next.holders);
        for batch in &mut plan.batches {
            let stage = match batch.stage {
                // It reads from what is the target now, and nothing was taken away from there.
                Stage::Current | Stage::Copying | Stage::Joint => Stage::Moved,
                Stage::Moved => Stage::Current,
            };
            // Of one that has moved or not begun, the replicas stay what they are.
            let is_same = matches!(batch.stage, Stage::Current | Stage::Moved);
            *batch = Batch { stage, began: if is_same { batch.began } else { next.epoch } };
        }
        if plan.is_done() {
            next.holders = plan.target;
            next.end_plan();
        }
        next.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn urls(hosts: &[u8]) -> Vec<String> {
        hosts.iter().map(|host| format!("http://node-{host}:1337")).collect()
    }

    fn numbers(membership: &Membership) -> Vec<(String, u16)> {
        membership.nodes().iter().map(|node| (node.url.clone(), node.number)).collect()
    }

    proptest! {
        #[test]
        fn numbers_never_shift_whoever_joins_or_leaves(
            lists in prop::collection::vec(prop::collection::hash_set(0_u8..80, 1..20), 1..8),
        ) {
            let mut membership: Option<Membership> = None;
            let mut given = std::collections::BTreeMap::new();
            for list in lists {
                let list = urls(&list.into_iter().collect::<Vec<_>>());
                let next = match &membership {
                    None => Membership::first(&list),
                    Some(before) => before.relisted(&list),
                };
                let next = next.expect("distinct addresses");
                prop_assert_eq!(next.nodes().len(), list.len());
                for (url, number) in numbers(&next) {
                    prop_assert_eq!(*given.entry(url).or_insert(number), number);
                }
                let mut all: Vec<u16> = given.values().copied().collect();
                all.sort_unstable();
                all.dedup();
                prop_assert_eq!(all.len(), given.len(), "nobody has a number that another had");
                membership = Some(next);
            }
        }

        #[test]
        fn the_first_numbers_depend_on_the_set_of_addresses_alone(hosts in prop::collection::hash_set(any::<u8>(), 1..64)) {
            let list = urls(&hosts.into_iter().collect::<Vec<_>>());
            let mut turned = list.clone();
            turned.reverse();
            prop_assert_eq!(Membership::first(&list), Membership::first(&turned));
        }
    }

    #[test]
    fn a_node_that_joins_or_another_order_shifts_no_number() {
        let first = Membership::first(&urls(&[2, 3, 4])).expect("valid");
        // It sorts before all others, which a position would have shifted.
        let joined = first.relisted(&urls(&[4, 3, 1, 2])).expect("valid");
        let kept: Vec<_> = numbers(&joined).into_iter().filter(|(url, _)| !url.contains("-1:")).collect();
        assert_eq!(kept, numbers(&first));
        let left = joined.relisted(&urls(&[2, 4])).expect("valid");
        assert_eq!(left.former().len(), 2);
        let back = left.relisted(&urls(&[2, 3, 4])).expect("valid");
        assert_eq!(numbers(&back), numbers(&first));
    }

    #[test]
    fn a_list_that_is_no_cluster_is_refused() {
        assert_eq!(Membership::first(&[]).err(), Some(MembershipError::Count(0)));
        let twice = urls(&[1, 2, 1]);
        assert_eq!(Membership::first(&twice).err(), Some(MembershipError::Duplicate(twice[0].clone())));
        let many: Vec<u8> = (0..=NODES_MAX as u8).collect();
        assert_eq!(Membership::first(&urls(&many)).err(), Some(MembershipError::Count(NODES_MAX + 1)));
        let node = |url: &str| MemberNode::listed(NodeId::NONE, 7, url.into(), String::new());
        let same = Membership::from_parts(1, vec![node("a")], vec![node("b")]);
        assert_eq!(same.err(), Some(MembershipError::Number(7)));
    }

    /// Makes a change, or leaves all as it was.
    fn changed(before: &Membership, what: u8, drawn: u64) -> Result<Membership, MembershipError> {
        let place = NodeIndex((drawn % 8) as u8);
        match what {
            0 => before.joined(NodeId(drawn.into()), &format!("http://joined-{}:1", drawn % 9), ""),
            1 => before.left(place),
            2 => before.planned(NodeSet(drawn % 256)),
            3 => before.cancelled(),
            _ => {
                let Some(plan) = before.plan() else { return before.advanced(&[(0, Stage::Copying)]) };
                let next = |stage| match stage {
                    Stage::Current => Stage::Copying,
                    Stage::Copying => Stage::Joint,
                    Stage::Joint | Stage::Moved => Stage::Moved,
                };
                let some = (0..crate::plan::BATCHES).filter(|batch| (drawn >> batch) & 1 == 0);
                let some = some.filter(|&batch| plan.batches[batch].stage != Stage::Moved);
                before.advanced(&some.map(|batch| (batch, next(plan.batches[batch].stage))).collect::<Vec<_>>())
            }
        }
    }

    proptest! {
        #[test]
        fn changes_follow_each_other_and_nobody_gets_the_number_of_another(
            changes in prop::collection::vec((0_u8..9, any::<u64>()), 0..80),
        ) {
            let mut members = Membership::first(&urls(&[1, 2, 3])).expect("valid");
            let mut given = std::collections::BTreeMap::new();
            for (what, drawn) in changes {
                let Ok(next) = changed(&members, what, drawn) else { continue };
                prop_assert_eq!(next.epoch(), members.epoch() + 1);
                prop_assert!(next.fence() >= members.fence() && next.fence() <= next.epoch());
                prop_assert!(!next.holders().is_empty() && next.holders().without(next.members()).is_empty());
                for node in next.nodes().iter().chain(next.former()) {
                    let known = (node.id, node.url.clone());
                    prop_assert_eq!(given.entry(node.number).or_insert(known.clone()), &known);
                }
                // A partition whose replicas are others than before is fenced off from whoever does not know.
                let me = &members.nodes()[0].url;
                if next.at(me).is_some() {
                    let of = |members: &Membership| crate::placement::Topology::of_partitions(members, me, 64);
                    let (old, new) = (of(&members), of(&next));
                    for partition in 0..64_u64 {
                        let hash = KeyHash(partition << 52);
                        let same = |from| old.readers(hash, from) == new.readers(hash, from)
                            && old.writers(hash, from) == new.writers(hash, from);
                        let both = old.replicas_max().min(new.replicas_max()) as u8;
                        let is_fenced = new.fence(hash) == next.epoch();
                        prop_assert!(is_fenced || (1..=both).all(same), "{} of {:?}", partition, next);
                    }
                }
                members = next;
            }
        }
    }

    #[test]
    fn what_cannot_be_changed_is_said() {
        let members = Membership::first(&urls(&[1, 2, 3])).expect("valid");
        let holders = |places: &[u8]| places.iter().map(|&place| NodeIndex(place)).collect::<NodeSet>();
        assert_eq!(members.left(NodeIndex(0)), Err(MembershipError::HoldsData("http://node-1:1337".to_owned())));
        assert_eq!(members.left(NodeIndex(9)), Err(MembershipError::Place(9)));
        assert_eq!(members.planned(holders(&[7])), Err(MembershipError::Holders));
        assert_eq!(members.planned(NodeSet::default()), Err(MembershipError::Holders));
        assert_eq!(members.cancelled(), Err(MembershipError::NoPlan));
        assert_eq!(members.advanced(&[(0, Stage::Copying)]), Err(MembershipError::NoPlan));
        let again = members.joined(NodeId(4), "http://node-2:1337", "");
        assert_eq!(again, Err(MembershipError::Duplicate("http://node-2:1337".to_owned())));
        let planned = members.planned(holders(&[0, 1])).expect("valid");
        assert_eq!(planned.planned(holders(&[0, 2])), Err(MembershipError::PlanUnderWay));
        assert_eq!(planned.advanced(&[(5, Stage::Joint)]), Err(MembershipError::Stage(5)));
        assert_eq!(planned.advanced(&[(64, Stage::Copying)]), Err(MembershipError::Stage(64)));
        assert_eq!(planned.advanced(&[(5, Stage::Copying), (5, Stage::Joint)]), Err(MembershipError::Stage(5)));
        assert_eq!(planned.cancelled().expect("taken back").plan(), None);
    }

    #[test]
    fn what_has_moved_moves_back_when_a_plan_is_cancelled_and_all_else_stays() {
        let members = Membership::first(&urls(&[1, 2, 3])).expect("valid");
        let (three, two) = (members.holders(), NodeSet(0b011));
        let batches = |numbers: std::ops::Range<usize>, stage| numbers.map(|n| (n, stage)).collect::<Vec<_>>();
        let planned = members.planned(two).expect("valid");
        let copying = planned.advanced(&batches(0..3, Stage::Copying)).expect("the next stage");
        let joint = copying.advanced(&batches(0..2, Stage::Joint)).expect("the next stage");
        let moved = joint.advanced(&batches(0..1, Stage::Moved)).expect("the next stage");
        let back = moved.cancelled().expect("taken back");
        let plan = back.plan().expect("one batch has to go back");
        assert_eq!((back.holders(), plan.target), (two, three));
        let stages: Vec<Stage> = plan.batches[..4].iter().map(|batch| batch.stage).collect();
        assert_eq!(stages, [Stage::Current, Stage::Moved, Stage::Moved, Stage::Moved]);
        assert_eq!(plan.batches[0].began, moved.epoch(), "it stays where it is");
        assert_eq!((plan.batches[1].began, plan.batches[2].began), (back.epoch(), back.epoch()));
        let done = [Stage::Copying, Stage::Joint, Stage::Moved]
            .into_iter()
            .fold(back, |members, stage| members.advanced(&[(0, stage)]).expect("the next stage"));
        assert_eq!((done.holders(), done.plan(), done.fence()), (three, None, done.epoch()));
    }

    #[test]
    fn a_member_at_another_address_keeps_its_number_place_and_seed() {
        let first = Membership::first(&urls(&[1, 2, 3])).expect("valid");
        let claimed = first.readdressed(NodeId(9), "http://node-2:1337").expect("listed, with no identity yet");
        let before = claimed.at("http://node-2:1337").expect("listed").clone();
        assert_eq!((before.id, claimed.epoch()), (NodeId(9), first.epoch() + 1));
        let moved = claimed.readdressed(NodeId(9), "http://moved:1").expect("known by its identity");
        let expected = MemberNode { url: "http://moved:1".to_owned(), ..before };
        assert_eq!((moved.at("http://moved:1"), moved.nodes().len()), (Some(&expected), 3));
        assert_eq!((moved.holders(), moved.epoch()), (first.holders(), first.epoch() + 2));
        for (id, url) in [(8, "http://node-9:1"), (8, "http://moved:1"), (0, "http://node-9:1")] {
            assert_eq!(moved.readdressed(NodeId(id), url), Err(MembershipError::Stranger(NodeId(id))));
        }
        let taken = "http://node-1:1337";
        assert_eq!(moved.readdressed(NodeId(9), taken), Err(MembershipError::Duplicate(taken.to_owned())));
    }

    #[test]
    fn a_touched_membership_differs_in_its_epoch_only() {
        let first = Membership::first(&urls(&[1, 2, 3])).expect("valid");
        let touched = first.touched();
        assert_eq!(touched.epoch(), first.epoch() + 1);
        assert_eq!(Membership { epoch: first.epoch(), ..touched }, first);
    }

    #[test]
    fn an_identity_belongs_to_an_address() {
        let first = Membership::first(&urls(&[1, 2])).expect("valid");
        let known = first.clone().with_identity("http://node-2:1337", NodeId(9));
        assert_eq!(known.nodes()[1].id, NodeId(9));
        assert_eq!((known.nodes()[0].id, numbers(&known)), (NodeId::NONE, numbers(&first)));
        let listed_again = known.relisted(&urls(&[1, 2, 3])).expect("valid");
        assert_eq!(listed_again.nodes()[1].id, NodeId(9));
    }
}
