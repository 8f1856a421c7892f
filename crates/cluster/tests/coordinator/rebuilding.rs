//! Replicas that take writes and refuse reads, since they may lack what they once confirmed.

use crate::{play, play_as};

#[test]
fn a_read_takes_another_replica_and_the_next_one_does_not_ask_it() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 5
         B: rebuilding -> version C
         C: has 5      -> found 5
         in flight 0
         get 2/3       -> value A, version C
         A: has 5
         C: has 5      -> found 5
         put 2/3 at 60 -> write A 60, write B 60, write C 60
         A: applied
         B: applied    -> written
         C: applied
         in flight 0",
    );
}

#[test]
fn a_node_that_is_rebuilding_itself_asks_the_others() {
    play(
        3,
        "up B C
         get 1/3       -> value A
         A: rebuilding -> value B
         B: has 5      -> found 5
         get 1/3       -> value B
         B: has 5      -> found 5
         in flight 0",
    );
}

#[test]
fn its_answer_makes_no_quorum_and_who_refused_is_told() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 5
         B: rebuilding -> version C
         C: rebuilding -> needs 2 misses BC
         why B Refused(Rebuilding), C Refused(Rebuilding)
         in flight 0
         get 1/1       -> value A
         A: rebuilding -> needs 1 misses A
         in flight 0",
    );
}

#[test]
fn nothing_is_repaired_because_it_refused() {
    play_as(
        'C',
        3,
        "up A B
         get 2/3       -> value C, version A
         C: rebuilding -> value B
         A: deleted 7
         B: has 5      -> repair B deleted 7
         B: applied    -> absent
         in flight 0",
    );
}

#[test]
fn a_silent_replica_is_waited_for_where_only_a_rebuilding_one_is_left() {
    play(
        3,
        "up B C
         get 2/3       -> value A, version B
         A: has 5
         B: rebuilding -> version C
         C: has 5      -> found 5
         get 2/3       -> value A, version C
         A: has 5
         wait 125      -> version B
         B: rebuilding
         C: has 5      -> found 5
         in flight 0",
    );
}
