//! What a node that rebuilds waits for, in a sentence, where that is more than time: other whole
//! nodes.
//!
//! Values only. Tested below and in `tests/cluster_hostile/standing.rs`.

use koltso_cluster::standing::whole_needed;

/// The other nodes, as a node that rebuilds knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// They have said that they are whole, and live.
    pub whole: usize,
    /// They are away, or have not said how they stand: they may be whole.
    pub unknown: usize,
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// In words.
    pub sentence: String,
    /// No node that comes back can bring it.
    pub for_good: bool,
}

/// What a node that rebuilds misses, of so many nodes with itself; `None` if it only takes time.
pub fn missing(nodes: usize, others: Others) -> Option<Missing> {
    let (needed, Others { whole, unknown }) = (whole_needed(nodes), others);
    if whole >= needed {
        return None;
    }
    let for_good = whole + unknown < needed;
    let sentence = if for_good {
        format!(
            "this node must be compared with {needed} whole nodes to become whole, and only {whole} can be: what no whole node \
             has is lost. Put the right folders of the others back if they are anywhere; koltso cluster recover (of a later \
             version) is what gives up what is lost"
        )
    } else {
        format!("this node must be compared with {needed} whole nodes to become whole, and {whole} can be reached now")
    };
    Some(Missing { sentence, for_good })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_for_good_is_told_from_what_comes_back() {
        let of = |nodes, whole, unknown| missing(nodes, Others { whole, unknown }).map(|missing| missing.for_good);
        assert_eq!(of(3, 2, 0), None);
        assert_eq!(of(3, 1, 1), Some(false), "the third may come back whole");
        assert_eq!(of(3, 1, 0), Some(true), "the third was emptied, too");
        assert_eq!((of(2, 1, 0), of(2, 0, 1), of(2, 0, 0)), (None, Some(false), Some(true)));
        assert_eq!((of(5, 3, 0), of(5, 2, 0), of(5, 2, 1)), (None, Some(true), Some(false)));
        let lost = missing(3, Others { whole: 1, unknown: 0 }).expect("missing").sentence;
        assert!(lost.contains("2 whole nodes") && lost.contains("only 1") && lost.contains("koltso cluster recover"));
    }
}
