//! Reads: whose answer counts, and who is repaired.

use crate::play;

#[test]
fn one_replica_is_asked_for_the_value_and_the_others_for_the_version() {
    play(
        5,
        "up B C D E
         get 3/5       -> value A, version B, version C
         A: has 5
         B: has 5
         C: has 5      -> found 5
         in flight 0
         head 1/3      -> version A
         A: has 5      -> version is 5",
    );
}

#[test]
fn the_newest_answer_wins_and_its_value_is_fetched() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 5
         B: has 7      -> fetch B
         B: has 7      -> repair A 7
         A: applied    -> found 7
         in flight 0",
    );
}

#[test]
fn a_quorum_read_answers_when_a_quorum_has_the_version() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 7
         B: has 5      -> repair B 7
         in flight 1
         B: applied    -> found 7
         in flight 0",
    );
}

#[test]
fn a_quorum_read_takes_another_replica_where_a_repair_fails() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 7
         B: has 5      -> repair B 7
         B: full       -> version C
         C: has 7      -> found 7
         in flight 0",
    );
}

#[test]
fn a_read_below_a_quorum_does_not_wait_for_the_repair() {
    play(
        5,
        "up B C D E
         get 2/5       -> value A, version B
         A: has 7
         B: nothing    -> found 7, repair B 7
         in flight 1
         B: applied
         in flight 0",
    );
}

#[test]
fn a_delete_is_newer_than_the_value_before_it_and_repaired_as_such() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 5
         B: deleted 7  -> repair A deleted 7
         A: applied    -> absent",
    );
}

#[test]
fn a_key_that_nobody_knows_is_absent() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: nothing
         B: nothing    -> absent
         in flight 0",
    );
}

#[test]
fn a_damaged_replica_is_replaced_and_repaired() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: damaged    -> value C
         B: has 5
         C: has 5      -> found 5, repair A 5
         A: applied
         in flight 0",
    );
}

#[test]
fn a_damaged_replica_is_repaired_though_the_read_has_not_enough() {
    play(
        2,
        "up B
         get 2/2       -> value A, version B
         A: damaged
         B: has 5      -> needs 2 misses A, fetch B
         B: has 5      -> repair A 5
         A: applied",
    );
}

/// Seed 22 of the simulation: the other replicas may have the version meanwhile, or nobody who
/// counts ever saw it.
#[test]
fn a_version_whose_value_died_with_its_node_is_read_without_it() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 5
         B: has 7      -> fetch B
         lost B        -> version C
         C: has 5      -> found 5
         in flight 0",
    );
}

/// Found by the simulation: the first repair's confirmation was taken for one of the second.
#[test]
fn a_repair_counts_for_the_version_that_it_brought() {
    play(
        5,
        "up B C D E
         get 3/5       -> value A, version B, version C
         A: has 5
         wait 3        -> version D
         B: nothing
         C: has 5      -> repair B 5
         D: has 7      -> fetch D
         D: has 7      -> repair A 7, repair B 7, repair C 7
         B: applied
         A: applied
         in flight 1
         B: applied    -> found 7
         C: applied
         in flight 0",
    );
}

#[test]
fn a_read_that_fails_says_what_was_wrong_with_its_answers() {
    play(
        3,
        "up B C
         get 2/2       -> value A, version B
         A: has 5
         B: has 7      -> fetch B
         B: damaged    -> needs 2 misses B, repair B 5
         why B Damaged
         B: applied
         in flight 0
         get 2/2       -> value A, version B
         A: has 7
         B: has 5      -> repair B 7
         B: full       -> needs 2 misses  disk full
         why B Refused(DiskFull)",
    );
}
