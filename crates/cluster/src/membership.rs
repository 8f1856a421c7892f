//! Who the members of a cluster are, as a value.
//!
//! Each node has a *number*, which versions and handshakes carry. Numbers are assigned once and
//! kept: at a cluster's first start all nodes derive them from the same list of addresses, without
//! asking each other; from then on each node's data folder knows them. An address that joins the
//! list later, or another order of it, never shifts the number of one that has one, and the number
//! of an address that leaves is not given to another.
//!
//! Owner: made at the start, then shared. Bounds: [`NODES_MAX`] nodes. Invariants: addresses and
//! numbers are distinct; nodes are in the order of their addresses. Deliberately absent, until
//! members change while the cluster serves: an epoch beyond the first, and the membership before
//! it.

use koltso_model::{KeyHash, NODES_MAX, NodeId};

/// The epoch of a cluster whose members have never changed while it served.
pub const FIRST_EPOCH: u64 = 1;

/// Why a list of nodes is no cluster.
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
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberNode {
    /// The identity of its data folder; [`NodeId::NONE`] as long as it is not known.
    pub id: NodeId,
    /// Its number in versions and handshakes.
    pub number: u16,
    /// Its HTTP address.
    pub url: String,
    /// Where it stands, for placement; empty if nobody said.
    pub zone: String,
}

/// The members; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    epoch: u64,
    nodes: Vec<MemberNode>,
    /// Nodes that were listed once. Their numbers stay theirs.
    former: Vec<MemberNode>,
}

/// splitmix64's finalizer (Steele et al., 2014).
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Membership {
    /// From its parts, as they were written down.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn from_parts(
        epoch: u64,
        mut nodes: Vec<MemberNode>,
        mut former: Vec<MemberNode>,
    ) -> Result<Self, MembershipError> {
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            return Err(MembershipError::Count(nodes.len()));
        }
        nodes.sort_by(|one, other| one.url.cmp(&other.url));
        former.sort_by(|one, other| one.url.cmp(&other.url));
        let mut urls: Vec<&str> = nodes.iter().chain(&former).map(|node| &node.url[..]).collect();
        urls.sort_unstable();
        if let Some(twice) = urls.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MembershipError::Duplicate(twice[0].to_owned()));
        }
        let mut numbers: Vec<u16> = nodes.iter().chain(&former).map(|node| node.number).collect();
        numbers.sort_unstable();
        if let Some(twice) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MembershipError::Number(twice[0]));
        }
        Ok(Self { epoch, nodes, former })
    }

    /// The first membership of a cluster: the nodes with these addresses, in any order. Every node
    /// that is given the same list makes the same.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn first(urls: &[String]) -> Result<Self, MembershipError> {
        Self { epoch: FIRST_EPOCH, nodes: Vec::new(), former: Vec::new() }.relisted(urls)
    }

    /// The same with this list of addresses, in any order. Addresses that are known keep their
    /// numbers; new ones get numbers that nobody ever had.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub fn relisted(&self, urls: &[String]) -> Result<Self, MembershipError> {
        let mut urls = urls.to_vec();
        urls.sort();
        if let Some(pair) = urls.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MembershipError::Duplicate(pair[0].clone()));
        }
        let known: Vec<&MemberNode> = self.nodes.iter().chain(&self.former).collect();
        let mut taken: Vec<u16> = known.iter().map(|node| node.number).collect();
        let mut nodes = Vec::new();
        for url in &urls {
            let node = match known.iter().find(|node| node.url == *url) {
                Some(&node) => node.clone(),
                None => {
                    // Of two that collide, the one with the later address takes the next free one.
                    let mut number = mix(KeyHash::of(url.as_bytes()).0) as u16;
                    while taken.contains(&number) {
                        number = number.wrapping_add(1);
                    }
                    taken.push(number);
                    MemberNode { id: NodeId::NONE, number, url: url.clone(), zone: String::new() }
                }
            };
            nodes.push(node);
        }
        let former = known.into_iter().filter(|node| !urls.contains(&node.url)).cloned().collect();
        Self::from_parts(self.epoch, nodes, former)
    }

    /// The number of this membership: it grows with each change while the cluster serves.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its nodes, in the order of their addresses.
    #[must_use]
    pub fn nodes(&self) -> &[MemberNode] {
        &self.nodes
    }

    /// Nodes that were listed once and are no longer.
    #[must_use]
    pub fn former(&self) -> &[MemberNode] {
        &self.former
    }

    /// The same with the identity of the node at an address, which has to be listed.
    #[must_use]
    pub fn with_identity(mut self, url: &str, id: NodeId) -> Self {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.url == url) {
            node.id = id;
        }
        self
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
        let node = |url: &str| MemberNode { id: NodeId::NONE, number: 7, url: url.into(), zone: String::new() };
        let same = Membership::from_parts(1, vec![node("a")], vec![node("b")]);
        assert_eq!(same.err(), Some(MembershipError::Number(7)));
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
