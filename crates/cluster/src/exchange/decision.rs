//! Who lacks what, of the keys that two nodes have in some leaves of one partition.

use koltso_model::{Item, Version, WallTime, digest_word};

use super::{Listed, YOUNG_MS};

/// What decides about single items.
pub struct Views<'a> {
    /// Whether this node is a replica for a `from`.
    pub is_mine: &'a dyn Fn(u8) -> bool,
    /// Whether the peer is one.
    pub is_theirs: &'a dyn Fn(u8) -> bool,
    /// Whether this node is on the way to being one: it may have had a part of it in another life.
    pub is_receiving: &'a dyn Fn(u8) -> bool,
    /// Whether the peer is.
    pub are_receiving: &'a dyn Fn(u8) -> bool,
    /// The newest clock of anything that said "absent" and that this node has dropped.
    pub forgotten: u64,
    /// The same of the peer.
    pub their_forgotten: u64,
    /// This node's data may come from the past: what it has and the peer lacks can have been deleted
    /// there.
    pub doubts_itself: bool,
    /// Now.
    pub wall: WallTime,
}

/// What is to be done about a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Places in the peer's list of what this node lacks, ascending.
    pub wanted: Vec<u32>,
    /// Places in this node's list of what the peer lacks.
    pub given: Vec<u32>,
    /// Places in this node's list of what the peer may have deleted and forgotten: what this node has
    /// from the past, or without being a replica of it.
    pub returned: Vec<u32>,
    /// What differs and is left alone, since it may be on its way.
    pub young: u32,
    /// What differs and makes no difference: what its items add to the roots, by `from`.
    pub harmless: Vec<(u8, u64)>,
}

impl Decision {
    /// Whether nothing is left to do, so that all that differs is harmless.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.wanted.is_empty() && self.given.is_empty() && self.returned.is_empty() && self.young == 0
    }

    /// Whether what differs is harmless or may be on its way, and some of it is.
    #[must_use]
    pub fn is_only_young(&self) -> bool {
        self.wanted.is_empty() && self.given.is_empty() && self.returned.is_empty() && self.young > 0
    }

    fn no_difference(&mut self, item: &Item) {
        let word = digest_word(item.version);
        match self.harmless.iter_mut().find(|(from, _)| *from == item.from) {
            Some((_, words)) => *words ^= word,
            None => self.harmless.push((item.from, word)),
        }
    }
}

/// A place in a list, in the order of the hashes.
fn sorted<'a>(len: usize, item: impl Fn(usize) -> &'a Item) -> Vec<u32> {
    let mut places: Vec<u32> = (0..len as u32).collect();
    places.sort_unstable_by_key(|&place| {
        let Item { hash, version, .. } = *item(place as usize);
        (hash, version)
    });
    places
}

/// Compares what both have. Two keys of one partition whose hashes have the same low bits may be
/// taken for one; then more is sent than needed, and the next comparison sees the rest.
#[must_use]
pub fn decide(own: &[Listed], theirs: &[Item], views: &Views<'_>) -> Decision {
    let mut decision = Decision::default();
    let (mine, yours) = (sorted(own.len(), |at| &own[at].item), sorted(theirs.len(), |at| &theirs[at]));
    let (mut mine, mut yours) = (&mine[..], &yours[..]);
    while let Some(hash) =
        [mine.first().map(|&at| own[at as usize].item.hash), yours.first().map(|&at| theirs[at as usize].hash)]
            .into_iter()
            .flatten()
            .min()
    {
        let of_mine = mine.partition_point(|&at| own[at as usize].item.hash == hash);
        let of_yours = yours.partition_point(|&at| theirs[at as usize].hash == hash);
        of_one_hash(&mine[..of_mine], &yours[..of_yours], (own, theirs), views, &mut decision);
        (mine, yours) = (&mine[of_mine..], &yours[of_yours..]);
    }
    // As a request names places.
    decision.wanted.sort_unstable();
    decision
}

/// The places whose versions the others do not have, in the order of the versions, in which both are.
/// Clients can make as many keys of one hash as they like.
fn lonely(
    (places, version): (&[u32], impl Fn(u32) -> Version),
    (others, other_version): (&[u32], impl Fn(u32) -> Version),
) -> Vec<u32> {
    let mut others = others.iter().map(|&at| other_version(at)).peekable();
    let is_lonely = |at: &u32| {
        let version = version(*at);
        while others.next_if(|&other| other < version).is_some() {}
        others.peek() != Some(&version)
    };
    places.iter().copied().filter(is_lonely).collect()
}

/// About the places of one hash, by version.
fn of_one_hash(mine: &[u32], yours: &[u32], (own, theirs): (&[Listed], &[Item]), views: &Views<'_>, to: &mut Decision) {
    let (my, your) = (|at: u32| &own[at as usize].item, |at: u32| &theirs[at as usize]);
    let lonely_mine = lonely((mine, |at| my(at).version), (yours, |at| your(at).version));
    let lonely_yours = lonely((yours, |at| your(at).version), (mine, |at| my(at).version));
    // Of one on either side the newer wins, as if they were of one key; if they are not, the next
    // comparison sees it. Of several it cannot be told which are of one key.
    let are_several = lonely_mine.len() > 1 || lonely_yours.len() > 1;
    // What a node is on the way to it has only when nothing is missing: there, nobody waits for what may be
    // on its way.
    let is_young = |item: &Item| {
        let moves = (views.is_receiving)(item.from) || (views.are_receiving)(item.from);
        !moves && item.version.unix_ms().abs_diff(views.wall.ms()) < YOUNG_MS
    };
    // Whoever is no replica of it was never told of a delete, and has nothing that the replicas had not.
    let may_be_deleted = |item: &Item| {
        let doubted = views.doubts_itself || !(views.is_mine)(item.from) || (views.is_receiving)(item.from);
        doubted && !item.absent && item.version.clock <= views.their_forgotten
    };
    for &at in &lonely_mine {
        let item = my(at);
        if !are_several && lonely_yours.last().is_some_and(|&other| your(other).version > item.version) {
            continue;
        }
        let older = lonely_yours.first().is_some_and(|&other| your(other).version < item.version);
        if !older && !(views.is_theirs)(item.from) {
            // Theirs to have is what they are replicas of.
            continue;
        }
        if is_young(item) {
            to.young += 1;
        } else if !older && item.absent && item.version.clock <= views.their_forgotten {
            to.no_difference(item);
        } else if !older && may_be_deleted(item) {
            to.returned.push(at);
        } else {
            to.given.push(at);
        }
    }
    for &at in &lonely_yours {
        let item = your(at);
        if !are_several && lonely_mine.last().is_some_and(|&other| my(other).version > item.version) {
            continue;
        }
        let older = lonely_mine.first().is_some_and(|&other| my(other).version < item.version);
        if !older && !(views.is_mine)(item.from) {
            continue;
        }
        let is_from_replica = (views.is_theirs)(item.from) && !(views.are_receiving)(item.from);
        if !older && !is_from_replica && !item.absent && item.version.clock <= views.forgotten {
            // It may have been deleted since: its holder finds out.
            continue;
        }
        if is_young(item) {
            to.young += 1;
        } else if !older && item.absent && item.version.clock <= views.forgotten {
            to.no_difference(item);
        } else {
            to.wanted.push(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use koltso_model::Version;

    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn item(hash: u32, age_ms: u64, from: u8) -> Item {
        Item { hash, version: Version::new(WallTime::from_ms(NOW_MS - age_ms).0, 1), from, absent: false }
    }

    fn absent(item: Item) -> Item {
        Item { absent: true, ..item }
    }

    fn clock(age_ms: u64) -> u64 {
        WallTime::from_ms(NOW_MS - age_ms).0
    }

    fn decided(own: &[Item], theirs: &[Item], change: impl FnOnce(&mut Views<'_>)) -> Decision {
        let own: Vec<Listed> = own.iter().map(|&item| Listed { item, key: Bytes::new() }).collect();
        let mut views = Views {
            is_mine: &|from| from != 2,
            is_theirs: &|from| from != 1,
            is_receiving: &|_| false,
            are_receiving: &|_| false,
            forgotten: 0,
            their_forgotten: 0,
            doubts_itself: false,
            wall: WallTime::from_ms(NOW_MS),
        };
        change(&mut views);
        decide(&own, theirs, &views)
    }

    fn nothing(_: &mut Views<'_>) {}

    #[test]
    fn what_only_one_has_goes_to_the_other_if_that_is_a_replica() {
        let (old, both) = (item(5, 60_000, 3), item(9, 60_000, 3));
        assert_eq!(decided(&[old, both], &[both], nothing).given, [0]);
        assert_eq!(decided(&[both], &[both, old], nothing).wanted, [1]);
        assert!(decided(&[item(5, 60_000, 1)], &[], nothing).is_settled(), "theirs it is not");
        assert!(decided(&[], &[item(5, 60_000, 2)], nothing).is_settled(), "mine it is not");
        let wanted = decided(&[], &[item(9, 60_000, 3), both, item(7, 60_000, 3), old], nothing).wanted;
        assert_eq!(wanted, [0, 1, 2, 3], "in the order in which they are asked for");
    }

    #[test]
    fn the_newer_of_two_wins_whoever_is_a_replica_of_it() {
        let old = item(5, 60_000, 3);
        for from in [1, 2, 3] {
            let new = item(5, 30_000, from);
            assert_eq!(decided(&[old], &[new], nothing), Decision { wanted: vec![0], ..Decision::default() });
            assert_eq!(decided(&[new], &[old], nothing), Decision { given: vec![0], ..Decision::default() });
        }
    }

    #[test]
    fn what_may_be_on_its_way_is_left_alone_and_what_is_from_the_future_is_not() {
        assert_eq!(decided(&[item(5, 100, 3)], &[], nothing).young, 1);
        assert_eq!(decided(&[item(5, 60_000, 3)], &[item(5, 100, 3)], nothing).young, 1);
        let mut ahead = item(5, 0, 3);
        ahead.version.clock = WallTime::from_ms(NOW_MS + 3_600_000).0;
        assert_eq!(decided(&[ahead], &[], nothing).given, [0]);
    }

    #[test]
    fn a_node_that_receives_gets_what_is_young_and_doubts_what_it_had() {
        let (young, old) = (item(5, 100, 3), item(6, 60_000, 3));
        let receiving = |own: &[Item], theirs: &[Item], mine: &dyn Fn(u8) -> bool, yours: &dyn Fn(u8) -> bool| {
            let own: Vec<Listed> = own.iter().map(|&item| Listed { item, key: Bytes::new() }).collect();
            let clock = clock(60_000);
            let views = Views {
                is_mine: &|_| true,
                is_theirs: &|_| true,
                is_receiving: mine,
                are_receiving: yours,
                forgotten: clock,
                their_forgotten: clock,
                doubts_itself: false,
                wall: WallTime::from_ms(NOW_MS),
            };
            decide(&own, theirs, &views)
        };
        let (no, yes) = (|_: u8| false, |from: u8| from == 3);
        assert_eq!(receiving(&[], &[young], &yes, &no).wanted, [0]);
        assert_eq!(receiving(&[young], &[], &no, &yes).given, [0]);
        assert_eq!(receiving(&[], &[young], &no, &no).young, 1);
        // What it had in another life may have been deleted since, and the delete forgotten.
        assert_eq!(receiving(&[old], &[], &yes, &no).returned, [0]);
        assert!(receiving(&[], &[old], &no, &yes).is_settled(), "its holder finds out");
        assert_eq!(receiving(&[], &[old], &yes, &no).wanted, [0]);
    }

    #[test]
    fn a_forgotten_delete_is_no_difference_and_explains_the_roots() {
        let gone = absent(item(5, 60_000, 3));
        let explained = Decision { harmless: vec![(3, digest_word(gone.version))], ..Decision::default() };
        assert_eq!(decided(&[gone], &[], |views| views.their_forgotten = clock(60_000)), explained);
        assert_eq!(decided(&[], &[gone], |views| views.forgotten = clock(60_000)), explained);
        assert_eq!(decided(&[gone], &[], |views| views.their_forgotten = clock(60_001)).given, [0]);
        assert_eq!(decided(&[], &[gone], |views| views.forgotten = clock(60_001)).wanted, [0]);
        // An older value is there that it has to delete.
        let old = item(5, 90_000, 3);
        assert_eq!(decided(&[gone], &[old], |views| views.their_forgotten = clock(0)).given, [0]);
        assert_eq!(decided(&[old], &[gone], |views| views.forgotten = clock(0)).wanted, [0]);
    }

    #[test]
    fn a_node_that_doubts_itself_does_not_bring_back_what_may_be_deleted() {
        let doubted = |forgotten| {
            decided(&[item(5, 60_000, 3)], &[], |views| {
                views.doubts_itself = true;
                views.their_forgotten = forgotten;
            })
        };
        assert_eq!(doubted(clock(60_000)), Decision { returned: vec![0], ..Decision::default() });
        assert_eq!(doubted(clock(60_001)), Decision { given: vec![0], ..Decision::default() });
    }

    /// As a client can make them: comparing each with each would take hours, and one a round days.
    #[test]
    fn many_keys_with_the_same_hash_are_brought_at_once() {
        const KEYS: u64 = 400_000;
        let of = |odd: u64| -> Vec<Item> {
            (0..KEYS).filter(|n| n % 2 == odd || n % 1000 == 0).map(|n| item(5, 60_000 + n, 3)).collect()
        };
        let (own, theirs) = (of(0), of(1));
        let decision = decided(&own, &theirs, nothing);
        assert_eq!(decision.given.len() as u64, KEYS / 2 - KEYS / 1000);
        assert_eq!(decision.wanted.len() as u64, KEYS / 2);
        assert!(decided(&own, &own, nothing).is_settled());
    }

    #[test]
    fn what_is_left_at_a_node_that_is_no_replica_does_not_come_back() {
        let (mine_not, theirs_not) = (item(5, 60_000, 2), item(5, 60_000, 1));
        let forgotten = |own: &[Item], theirs: &[Item], age_ms| {
            decided(own, theirs, |views| (views.forgotten, views.their_forgotten) = (clock(age_ms), clock(age_ms)))
        };
        assert_eq!(forgotten(&[mine_not], &[], 60_000), Decision { returned: vec![0], ..Decision::default() });
        assert_eq!(forgotten(&[mine_not], &[], 60_001), Decision { given: vec![0], ..Decision::default() });
        assert!(forgotten(&[], &[theirs_not], 60_000).is_settled());
        assert_eq!(forgotten(&[], &[theirs_not], 60_001).wanted, [0]);
    }

    #[test]
    fn keys_with_the_same_hash_do_not_hide_each_other_for_long() {
        let (a, b) = (item(5, 60_000, 3), item(5, 50_000, 3));
        assert_eq!(decided(&[a], &[a, b], nothing).wanted, [1]);
        assert_eq!(decided(&[a, b], &[b], nothing).given, [0]);
        assert!(decided(&[a, b], &[b, a], nothing).is_settled());
    }
}
