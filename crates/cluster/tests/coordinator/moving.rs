//! A key whose replicas move from A, B and C to B, C and D while it is written and read.

use crate::{play, play_moving, play_moving_as};

#[test]
fn a_write_reaches_a_quorum_of_both_and_a_read_asks_those_that_have_it_all() {
    play_moving(
        "up B C D
         put 2/3 at 40 -> write A 40, write B 40, write C 40
         A: applied
         B: applied    -> written
         C: applied
         stage Copying
         put 2/3 at 50 -> write A 50, write B 50, write C 50, write D 50
         A: applied
         B: applied
         D: applied    -> written
         C: applied
         in flight 0
         get 2/3       -> value A, version B
         A: has 50
         B: has 50     -> found 50
         in flight 0",
    );
}

#[test]
fn a_joint_read_needs_a_quorum_of_both_and_repairs_both() {
    play_moving(
        "up B C D
         stage Copying
         stage Joint
         get 2/3       -> value A, version B, version C
         A: has 50
         B: has 40
         C: has 40     -> repair B 50, repair C 50
         B: applied
         C: applied    -> found 50
         in flight 0
         get 2/3       -> value A, version B, version C
         lost B        -> value D
         A: has 50
         C: has 50
         D: nothing    -> repair D 50
         D: applied    -> found 50
         in flight 0",
    );
}

#[test]
fn once_moved_nobody_asks_the_old_ones() {
    play_moving(
        "up B C D
         stage Copying
         stage Joint
         stage Moved
         put 2/3 at 50 -> write B 50, write C 50, write D 50
         B: applied
         C: applied    -> written
         D: applied
         get 1/3       -> value B
         B: has 50     -> found 50
         in flight 0",
    );
}

#[test]
fn a_write_that_meets_a_replica_that_knows_more_begins_again_and_keeps_what_was_confirmed() {
    play_moving(
        "up B C D
         put 2/3 at 50 -> write A 50, write B 50, write C 50
         A: applied
         B: behind
         stage Copying -> write B 50, write C 50, write D 50
         C: applied
         C: applied
         D: applied    -> written
         B: applied
         in flight 0",
    );
}

#[test]
fn a_write_that_nobody_refused_begins_again_as_well() {
    play_moving(
        "up B C D
         put 2/3 at 50 -> write A 50, write B 50, write C 50
         A: applied
         stage Copying -> write B 50, write C 50, write D 50
         B: applied
         C: applied
         B: applied
         C: applied    -> written
         lost D        -> hint D 50
         in flight 0",
    );
}

#[test]
fn a_read_that_is_behind_begins_again_and_forgets_what_it_heard() {
    play_moving(
        "up B C D
         stage Copying
         get 2/3       -> value A, version B
         A: has 50
         B: behind
         stage Joint   -> value A, version B, version C
         A: has 50
         B: has 50
         C: has 50     -> found 50
         in flight 0",
    );
}

#[test]
fn what_was_answered_before_ends_as_it_began() {
    play_moving(
        "up B C D
         put 2/3 at 50 -> write A 50, write B 50, write C 50
         A: applied
         B: applied    -> written
         stage Copying
         C: behind
         wait 1000     -> hint C 50
         in flight 0",
    );
}

#[test]
fn a_version_that_is_made_meanwhile_goes_to_the_replicas_of_then() {
    play_moving(
        "up B C D
         put 2/3 at 50 -> write A 50, write B 50, write C 50
         stage Copying -> write A 50, write B 50, write C 50, write D 50
         A: newer 60
         A: newer 60
         B: applied
         B: applied
         D: applied    -> renew A 61, renew B 61, renew C 61, renew D 61
         in flight 1",
    );
}

#[test]
fn a_target_replica_that_ails_is_done_without() {
    play_moving(
        "up B C
         stage Copying
         put 2/3 at 50 -> write A 50, write B 50, write C 50
         A: applied    -> hint D 50
         B: applied
         C: applied    -> written
         in flight 0
         put 3/3 at 60 -> write A 60, write B 60, write C 60, write D 60
         A: applied    -> hint D 60
         B: applied
         C: applied
         failed D      -> needs 3 misses D
         in flight 0",
    );
}

#[test]
fn a_node_that_a_key_comes_to_answers_for_it_with_one_of_those_that_have_it_all() {
    play_moving_as(
        'D',
        "up A B C
         get 1/3       -> value A
         A: has 50     -> found 50
         stage Copying
         stage Joint
         get 1/3       -> value D, version A
         D: has 50
         A: has 50     -> found 50
         in flight 0",
    );
}

#[test]
fn what_a_node_has_confirmed_that_left_counts_not_for_the_one_in_its_place() {
    play(
        4,
        "up B C D
         put 2/3 at 50 -> write A 50, write B 50, write C 50
         B: applied
         replace B     -> write A 50, write C 50
         A: applied
         A: applied    -> hint B 50
         C: applied
         C: applied    -> written",
    );
}
