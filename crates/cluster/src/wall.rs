//! The wall clock that a node goes by: it runs with the monotonic clock, and follows the machine's
//! wall clock only where that has not jumped.
//!
//! ```text
//!          further off than slewing explains
//!   Steady ────────────────────────────────▶ Jumped ── it is where it was ─────▶ Steady (healed)
//!                                              └── it stands for 10 s, and ────▶ Steady (adopted)
//!                                                  a majority of nodes has it
//! ```
//!
//! While it has jumped, time goes on as the monotonic clock says: versions, expiry and the age
//! of hints do not notice. A jump that is right (a virtual machine was paused,
//! a wrong clock was set) stays, and then the peers' clocks agree with it: it is adopted. A node
//! that is alone has nobody to ask and adopts what stands.
//!
//! Owner: one thread, which looks about ten times a second. Invariants:
//! 1. A single look moves the time by at most [`JUMP_NANOS`] and what slewing explains, unless it
//!    adopts a jump.
//! 2. A jump is never adopted before it has stood for [`ADOPT_AFTER_NANOS`].
//!
//! Deliberately absent: reading clocks. The program does that in `src/replica/clock.rs`.

use koltso_model::NODES_MAX;

/// The wall clock may stray from the monotonic clock by this much at once, in ns. An NTP client
/// that steps a clock by less does so at a start.
pub const JUMP_NANOS: i64 = 1_000_000_000;
/// What has strayed is forgiven at this rate, in millionths of the time that passes: twice what
/// Linux slews a clock by.
const FORGIVEN_PPM: u64 = 1_000;
/// For how long a jump has to stand before it is adopted, in ns.
pub const ADOPT_AFTER_NANOS: u64 = 10_000_000_000;

const _: () = assert!(NODES_MAX <= 64, "the nodes that agree are the bits of one word");

/// Both clocks, read at about the same moment.
#[derive(Clone, Copy, Debug)]
pub struct BothClocks {
    /// The monotonic clock, which counts suspension, too, in ns.
    pub monotonic: u64,
    /// The wall clock, in ns since the Unix epoch.
    pub wall: u64,
    /// At most this much passed between the two readings, in ns.
    pub error: u64,
}

/// Who else can say what time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witnesses {
    /// Nobody: this node is the only one.
    Alone,
    /// The other nodes of a cluster.
    Peers {
        /// Nodes in the cluster, this one included.
        nodes: u32,
        /// Those whose wall clock a round trip found to agree with this node's since the last
        /// look, as bits by node.
        agree: u64,
    },
}

/// What a look found that is worth a line in the log. Offsets are in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WallNews {
    /// The wall clock has jumped by so much.
    Jumped(i64),
    /// It is where it was before it jumped.
    Healed,
    /// A jump of so much was right, and the time follows it.
    Adopted(i64),
}

#[derive(Clone, Copy, Debug)]
struct Jump {
    /// The wall clock minus the monotonic one.
    offset: i64,
    /// When it was seen first, by the monotonic clock.
    since: u64,
    agree: u64,
}

/// The machine; see the module.
#[derive(Clone, Debug)]
pub struct WallWatch {
    /// The time that is gone by, minus the monotonic clock.
    offset: i64,
    /// By how much small steps have moved the offset, as far as that is not forgiven.
    strayed: i64,
    looked_at: u64,
    jump: Option<Jump>,
}

fn difference(clocks: BothClocks) -> i64 {
    let difference = i128::from(clocks.wall) - i128::from(clocks.monotonic);
    difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

impl WallWatch {
    /// Begins with the wall clock as it is.
    #[must_use]
    pub fn starting(clocks: BothClocks) -> Self {
        Self { offset: difference(clocks), strayed: 0, looked_at: clocks.monotonic, jump: None }
    }

    /// What is to be added to the monotonic clock, in ns.
    #[must_use]
    pub const fn offset(&self) -> i64 {
        self.offset
    }

    /// How far the machine's wall clock is ahead of the time gone by, in ns; `None` unless it has
    /// jumped.
    #[must_use]
    pub fn jump(&self) -> Option<i64> {
        self.jump.map(|jump| jump.offset.saturating_sub(self.offset))
    }

    /// Compares the clocks.
    pub fn look(&mut self, clocks: BothClocks, witnesses: Witnesses) -> Option<WallNews> {
        let seen = difference(clocks);
        let passed = clocks.monotonic.saturating_sub(self.looked_at);
        self.looked_at = clocks.monotonic;
        let forgiven = (passed / (1_000_000 / FORGIVEN_PPM)).min(JUMP_NANOS as u64) as i64;
        self.strayed -= self.strayed.clamp(-forgiven, forgiven);

        let moved = seen.saturating_sub(self.offset);
        if self.strayed.saturating_add(moved).unsigned_abs() <= JUMP_NANOS.unsigned_abs() + clocks.error {
            // Within the error of reading two clocks, nothing has moved.
            if moved.unsigned_abs() > clocks.error {
                self.strayed += moved;
                self.offset = seen;
            }
            return self.jump.take().map(|_| WallNews::Healed);
        }
        let stands = |jump: &Jump| seen.saturating_sub(jump.offset).unsigned_abs() <= JUMP_NANOS.unsigned_abs();
        let Some(jump) = self.jump.as_mut().filter(|jump| stands(jump)) else {
            self.jump = Some(Jump { offset: seen, since: clocks.monotonic, agree: 0 });
            return Some(WallNews::Jumped(moved));
        };
        let is_right = match witnesses {
            Witnesses::Alone => true,
            Witnesses::Peers { nodes, agree } => {
                jump.agree |= agree;
                jump.agree.count_ones() + 1 > nodes / 2
            }
        };
        if is_right && clocks.monotonic.saturating_sub(jump.since) >= ADOPT_AFTER_NANOS {
            (self.offset, self.strayed, self.jump) = (seen, 0, None);
            return Some(WallNews::Adopted(moved));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const DAY: i64 = 86_400 * SECOND as i64;
    const EPOCH: u64 = 1_700_000_000 * SECOND;
    const NOBODY: Witnesses = Witnesses::Peers { nodes: 3, agree: 0 };
    const ONE: Witnesses = Witnesses::Peers { nodes: 3, agree: 0b10 };

    fn at(tenths: u64, off: i64) -> BothClocks {
        let monotonic = 7 * SECOND + tenths * SECOND / 10;
        BothClocks { monotonic, wall: (EPOCH + tenths * SECOND / 10).saturating_add_signed(off), error: 1_000 }
    }

    fn watch() -> WallWatch {
        WallWatch::starting(at(0, 0))
    }

    #[test]
    fn a_jump_either_way_is_noticed_and_not_followed_and_heals() {
        for off in [400 * DAY, -400 * DAY, DAY, -DAY, 2 * SECOND as i64, -2 * SECOND as i64] {
            let mut watch = watch();
            let right = watch.offset();
            assert_eq!(watch.look(at(1, off), NOBODY), Some(WallNews::Jumped(off)));
            for tenth in 2..600 {
                assert_eq!(watch.look(at(tenth, off), NOBODY), None);
                assert_eq!((watch.offset(), watch.jump()), (right, Some(off)), "{tenth}");
            }
            assert_eq!(watch.look(at(600, 0), NOBODY), Some(WallNews::Healed));
            assert_eq!((watch.offset(), watch.jump()), (right, None));
        }
    }

    #[test]
    fn a_jump_that_stands_is_adopted_when_a_majority_has_it() {
        for (witnesses, is_right) in [
            (NOBODY, false),
            (ONE, true),
            (Witnesses::Alone, true),
            (Witnesses::Peers { nodes: 5, agree: 0b10 }, false),
            (Witnesses::Peers { nodes: 5, agree: 0b110 }, true),
        ] {
            let mut watch = watch();
            let right = watch.offset();
            for tenth in 1..=100 {
                watch.look(at(tenth, DAY), witnesses);
                assert_eq!(watch.offset(), right, "before ten seconds nothing is adopted");
            }
            let news = watch.look(at(101, DAY), witnesses);
            assert_eq!(news, is_right.then_some(WallNews::Adopted(DAY)), "{witnesses:?}");
            assert_eq!(watch.offset(), if is_right { right + DAY } else { right });
        }
    }

    #[test]
    fn who_agreed_with_one_jump_has_not_agreed_with_the_next() {
        let mut watch = watch();
        let right = watch.offset();
        for tenth in 1..90 {
            watch.look(at(tenth, DAY), ONE);
        }
        for tenth in 90..400 {
            watch.look(at(tenth, 400 * DAY), NOBODY);
        }
        assert_eq!(watch.offset(), right);
    }

    #[test]
    fn small_steps_and_slewing_are_followed() {
        let mut watch = watch();
        let right = watch.offset();
        assert_eq!(watch.look(at(1, SECOND as i64 / 2), NOBODY), None);
        assert_eq!(watch.offset(), right + SECOND as i64 / 2);
        assert_eq!(watch.look(at(2, -(SECOND as i64) / 4), NOBODY), None);
        // 500 millionths for a day: 43 s.
        let mut slewed = super::tests::watch();
        for tenth in (0..864_000).step_by(10) {
            assert_eq!(slewed.look(at(tenth, tenth as i64 * 50_000), NOBODY), None);
        }
        assert!(slewed.offset() > right + 43 * SECOND as i64);
    }

    #[test]
    fn a_clock_that_runs_away_in_small_steps_has_jumped() {
        let mut watch = watch();
        let right = watch.offset();
        for tenth in 1..1000 {
            watch.look(at(tenth, tenth as i64 * SECOND as i64 / 10), NOBODY);
        }
        assert!(watch.jump().is_some());
        assert!(watch.offset() < right + 2 * SECOND as i64);
    }

    #[test]
    fn the_time_between_two_readings_is_no_step() {
        let mut watch = watch();
        let right = watch.offset();
        let late = BothClocks { error: SECOND / 50, ..at(1, SECOND as i64 / 60) };
        assert_eq!((watch.look(late, NOBODY), watch.offset()), (None, right));
    }
}
