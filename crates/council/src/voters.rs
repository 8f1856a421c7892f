//! Who votes: up to [`VOTERS_MAX`] members, spread over the zones. All others learn what was
//! decided.
//!
//! Functions of who is there, so that each leader comes to the same choice. They change as little
//! as they can: a voter is replaced only when it has left, or when another zone gets a voter for it
//! that makes the spread more even. A voter that is dead stays one until somebody removes it.
//!
//! Tested below.

use std::collections::{BTreeMap, BTreeSet};

/// No more members than this vote: two of five may be lost, and more would only make it slower.
pub const VOTERS_MAX: usize = 5;

/// The voters among members (number and zone), given those that vote now. Nobody becomes one who is
/// not `ready`, that is, reachable and up to date.
pub(crate) fn chosen(members: &[(u16, &str)], current: &BTreeSet<u16>, ready: impl Fn(u16) -> bool) -> BTreeSet<u16> {
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|&(number, _)| number);
    let mut voters: BTreeSet<u16> =
        members.iter().map(|&(number, _)| number).filter(|number| current.contains(number)).collect();
    let seats = members.len().min(VOTERS_MAX);
    loop {
        let mut per_zone: BTreeMap<&str, usize> = members.iter().map(|&(_, zone)| (zone, 0)).collect();
        for &(number, zone) in &members {
            *per_zone.entry(zone).or_default() += usize::from(voters.contains(&number));
        }
        let candidates = members.iter().filter(|&&(number, _)| !voters.contains(&number) && ready(number));
        let candidate = candidates.min_by_key(|&&(number, zone)| (per_zone[zone], number)).copied();
        // Of the zone with the most voters, the one with the highest number would go.
        let given = members.iter().filter(|(number, _)| voters.contains(number));
        let surplus = given.max_by_key(|&&(number, zone)| (per_zone[zone], number)).copied();
        match (candidate, surplus) {
            (Some((number, _)), _) if voters.len() < seats => voters.insert(number),
            (_, Some((surplus, _))) if voters.len() > VOTERS_MAX => voters.remove(&surplus),
            (Some((number, to)), Some((surplus, from))) if per_zone[from] > per_zone[to] + 1 => {
                voters.remove(&surplus);
                voters.insert(number)
            }
            _ => return voters,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(numbers: &[u16]) -> BTreeSet<u16> {
        numbers.iter().copied().collect()
    }

    #[test]
    fn voters_are_spread_over_the_zones_then_taken_by_number() {
        let members = [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c"), (7, "a")];
        assert_eq!(chosen(&members, &set(&[]), |_| true), set(&[1, 2, 4, 5, 6]));
        assert_eq!(chosen(&members[..4], &set(&[]), |_| true), set(&[1, 2, 3, 4]));
        let one_zone = [(9, ""), (3, ""), (1, ""), (2, ""), (8, ""), (7, "")];
        assert_eq!(chosen(&one_zone, &set(&[]), |_| true), set(&[1, 2, 3, 7, 8]));
    }

    #[test]
    fn nobody_loses_a_vote_to_a_member_that_changes_nothing_in_the_spread() {
        let members = [(1, ""), (2, ""), (3, ""), (4, ""), (5, ""), (6, "")];
        let current = set(&[2, 3, 4, 5, 6]);
        assert_eq!(chosen(&members, &current, |_| true), current);
        let zones = [(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a"), (6, "b")];
        assert_eq!(chosen(&zones, &set(&[1, 2, 3, 4, 5]), |_| true), set(&[1, 2, 3, 4, 6]));
        assert_eq!(chosen(&zones, &set(&[1, 2, 3, 4, 5]), |number| number != 6), set(&[1, 2, 3, 4, 5]));
    }

    #[test]
    fn whoever_left_votes_no_more_and_one_who_is_ready_follows() {
        let members = [(1, ""), (3, ""), (4, ""), (5, ""), (6, ""), (7, "")];
        assert_eq!(chosen(&members, &set(&[1, 2, 3, 4, 5]), |number| number == 7), set(&[1, 3, 4, 5, 7]));
        assert_eq!(chosen(&members, &set(&[1, 2, 3, 4, 5]), |_| false), set(&[1, 3, 4, 5]));
    }

    proptest! {
        #[test]
        fn a_choice_is_stable_and_as_even_as_can_be(
            zones in prop::collection::vec(0_u8..4, 1..20), current in any::<u32>(),
        ) {
            let names = ["a", "b", "c", "d"];
            let members: Vec<(u16, &str)> =
                zones.iter().enumerate().map(|(at, &zone)| (at as u16, names[usize::from(zone)])).collect();
            let current = (0..20).filter(|bit| current & (1 << bit) != 0).collect();
            let voters = chosen(&members, &current, |_| true);
            prop_assert_eq!(voters.len(), members.len().min(VOTERS_MAX));
            prop_assert_eq!(&chosen(&members, &voters, |_| true), &voters);
            let count = |zone: &str, of: &dyn Fn(u16) -> bool| {
                members.iter().filter(|&&(number, at)| at == zone && of(number)).count()
            };
            for one in names {
                for other in names {
                    let (has, gets) =
                        (count(one, &|number| voters.contains(&number)), count(other, &|number| voters.contains(&number)));
                    let left = count(other, &|number| !voters.contains(&number));
                    prop_assert!(left == 0 || has <= gets + 1, "{one} has {has}, {other} {gets} and {left} more");
                }
            }
        }
    }
}
