//! Writes: who is asked, when they are answered, and who gets a hint.

use crate::{play, play_as};

#[test]
fn a_write_is_answered_at_the_ack_th_confirmation() {
    play(
        3,
        "up B C
         put 2/3       -> write A 50, write B 50, write C 50
         A: applied
         B: applied    -> written
         in flight 1
         C: applied
         in flight 0",
    );
}

#[test]
fn nobody_beyond_from_is_asked_though_replicas_fail() {
    play(
        5,
        "up B C D E
         put 2/2       -> write A 50, write B 50
         A: applied
         lost B        -> needs 2 misses B, hint B 50
         get 2/3       -> value A, version C
         A: has 50
         lost C        -> version B
         failed B      -> needs 2 misses BC
         in flight 0",
    );
}

#[test]
fn a_node_that_is_no_replica_coordinates_and_keeps_nothing() {
    play_as(
        'D',
        4,
        "up A B C
         put 2/3       -> write A 50, write B 50, write C 50
         A: applied
         C: applied    -> written
         B: applied
         in flight 0",
    );
}

#[test]
fn a_down_replica_is_not_asked_and_gets_a_hint() {
    play(
        3,
        "up B
         put 2/3       -> write A 50, write B 50
         B: applied    -> hint C 50
         A: applied    -> written
         in flight 0",
    );
}

#[test]
fn a_down_replica_is_asked_where_ack_cannot_be_met_without_it() {
    play(
        3,
        "up B
         put 3/3       -> write A 50, write B 50, write C 50
         A: applied    -> hint C 50
         B: applied
         C: applied    -> written
         in flight 0",
    );
}

/// Whoever holds a hint may be killed in the next moment: it is kept when the write is done on one
/// replica, and not again when the others have answered, or not, or the peer has after all.
#[test]
fn a_replica_that_is_known_to_ail_gets_its_hint_at_once_and_once() {
    play(
        4,
        "up B
         put 2/4       -> write A 50, write B 50
         A: applied    -> hint C 50, hint D 50
         B: applied    -> written
         put 4/4 at 60 -> write A 60, write B 60, write C 60, write D 60
         A: applied    -> hint C 60, hint D 60
         failed C
         lost B        -> hint B 60
         D: applied    -> needs 4 misses BC
         in flight 0",
    );
}

#[test]
fn another_replica_is_asked_when_one_refuses() {
    play(
        3,
        "up B
         put 2/3       -> write A 50, write B 50
         A: applied    -> hint C 50
         B: broken     -> write C 50
         C: applied    -> written, hint B 50
         in flight 0",
    );
}

#[test]
fn each_replica_that_missed_a_write_gets_a_hint_and_no_other() {
    play(
        5,
        "up B C D E
         put 2/5       -> write A 50, write B 50, write C 50, write D 50, write E 50
         A: applied
         B: broken
         C: applied    -> written
         lost D        -> hint D 50
         wait 100
         in flight 1
         wait 21       -> hint B 50, hint E 50
         in flight 0",
    );
}

#[test]
fn there_are_no_hints_where_nobody_took_the_write() {
    play(
        2,
        "up B
         put 1/2       -> write A 50, write B 50
         A: broken
         B: broken     -> needs 1 misses AB
         in flight 0",
    );
}

#[test]
fn a_write_below_a_newer_version_is_done_again_above_it_exactly_once() {
    play(
        3,
        "up B C
         put 2/3       -> write A 50, write B 50, write C 50
         A: applied
         B: newer 70   -> renew A 71, renew B 71, renew C 71
         C: newer 70
         in flight 1
         A: applied
         B: newer 90   -> written
         C: applied
         in flight 0",
    );
}

#[test]
fn a_newer_version_that_comes_after_the_answer_renews_nothing() {
    play(
        3,
        "up B C
         put 2/3       -> write A 50, write B 50, write C 50
         A: applied
         B: applied    -> written
         C: newer 70
         in flight 0",
    );
}

#[test]
fn hints_of_a_renewed_write_have_its_last_version() {
    play(
        3,
        "up B
         put 2/3       -> write A 50, write B 50
         A: newer 70
         B: applied    -> renew A 71, renew B 71
         A: applied    -> hint C 71
         B: applied    -> written",
    );
}

#[test]
fn a_full_disk_is_told() {
    play(
        2,
        "up B
         put 2/2       -> write A 50, write B 50
         A: full
         B: applied    -> needs 2 misses A disk full
         in flight 0",
    );
}

#[test]
fn at_the_deadline_the_missing_are_named() {
    play(
        3,
        "up B C
         put 3/3       -> write A 50, write B 50, write C 50
         A: applied
         wait 999      -> hint B 50, hint C 50
         B: applied
         wait 1        -> needs 3 misses C
         C: applied
         in flight 0",
    );
}

#[test]
fn a_node_that_stops_keeps_hints_for_what_it_no_longer_waits_for() {
    play(
        3,
        "up B C
         put 2/3       -> write A 50, write B 50, write C 50
         A: applied
         B: applied    -> written
         put 3/3 at 60 -> write A 60, write B 60, write C 60
         A: applied
         get 2/3       -> value A, version B
         A: has 60
         finish        -> hint C 50, needs 3 misses BC, hint B 60, hint C 60, needs 2 misses B
         in flight 0",
    );
}

#[test]
fn late_replies_belong_to_nobody() {
    play(
        3,
        "up B C
         put 1/3       -> write A 50, write B 50, write C 50
         A: applied    -> written
         wait 1000     -> hint B 50, hint C 50
         get 2/3       -> value A, version B
         B: newer 90
         C: broken
         again B: newer 90
         in flight 1",
    );
}

#[test]
fn a_doubled_confirmation_counts_once() {
    play(
        3,
        "up B C
         put 2/3       -> write A 50, write B 50, write C 50
         B: applied
         again B: applied
         in flight 1
         A: applied    -> written",
    );
}

#[test]
fn a_write_that_fails_says_who_refused_it() {
    play(
        3,
        "up B C
         put 3/3       -> write A 50, write B 50, write C 50
         A: applied
         B: broken
         lost C        -> needs 3 misses BC, hint B 50, hint C 50
         why B Refused(Failed)
         in flight 0",
    );
}
