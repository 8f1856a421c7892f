//! How many files and sockets the process may open, and what they are for.
//!
//! ```text
//! limit = open at the start + files, rings, links + waiting segments + comparing + pages + strangers + clients
//! ```
//!
//! Clients get what the others leave: a node whose clients have taken the last descriptor could not
//! write a new segment, reach its peers, or say what is wrong. What fails for want of a descriptor
//! all the same is answered with `503`.
//!
//! Pure but for [`raise`] and [`count_open`]. Tested below and in `tests/under_attack/descriptors.rs`.

use std::io;

/// Files, rings and sockets of the process that are not a core's: the control plane's runtime and
/// signals, lock and clock of the data folder.
const OF_PROCESS: usize = 10;
/// What the threads of the store have open at a time: a segment that is compacted into, a sidecar,
/// a folder that is synced.
const OF_STORE: usize = 4;
/// What segments of a core may take beyond that while they wait to be sealed and synced, as many do on
/// a busy disk: two descriptors each.
const WAITING_SEGMENTS_MAX: usize = 64;
/// A core's ring, the second descriptor of its listener, two segments with two descriptors each, and
/// a connection that is closed as soon as it is accepted.
const OF_CORE: usize = 7;
/// The second descriptor of a core's replica listener, and a connection that is closed at once.
const OF_CORE_IN_CLUSTER: usize = 2;
/// A core's link to a peer, and the peer's to it.
const OF_LINK: usize = 2;
/// A file of hints for a peer and the one that follows, and the connection that replays them.
const OF_HINTS: usize = 3;
/// A file of hints that was filled while it is synced: one thread syncs those of all peers.
const OF_HINT_SYNC: usize = 1;
/// What comparing with a peer takes: the connection over which this node compares, the one over which
/// it fetches what is damaged, and the peer's two. Where descriptors are few, it takes what it finds.
const OF_COMPARING: usize = 4;
/// Connections to each entrance of the control plane: being served, or ending.
pub const PAGES_MAX: usize = 256;
/// Connections on their way from the data port to the control plane.
pub const HANDOVERS_MAX: usize = 1024;

/// Raises the limit of this process as far as it may, and returns what it then is.
#[allow(unsafe_code)]
pub fn raise() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a live, properly typed limit.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return usize::MAX;
        }
        let wanted = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) == 0 {
            limit = wanted;
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// How many descriptors are open now.
///
/// # Errors
/// What `/proc` said.
pub fn count_open() -> io::Result<usize> {
    // One of them is the folder that is read.
    Ok(std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1))
}

/// What a node needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Descriptors that are open already, listeners included.
    pub open: usize,
    pub cores: usize,
    /// Other members of the cluster; 0 without one.
    pub peers: usize,
    /// Listeners of the control plane, besides the data port.
    pub admin_listeners: usize,
    /// `--max-connections`
    pub connections: usize,
    /// The most connections of a core that have not said yet which member they come from.
    pub strangers_max: usize,
}

/// Who may have how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Connections of clients.
    pub connections: usize,
    /// Connections at each entrance of the control plane.
    pub pages: usize,
    /// Connections on their way from the data port to the control plane.
    pub handovers: usize,
    /// Connections of a core that have not said yet which member they come from.
    pub strangers: usize,
}

/// Divides `limit` descriptors.
///
/// # Errors
/// One sentence: there are too few for a single client.
pub fn share(limit: usize, needs: Needs) -> Result<Shares, String> {
    let Needs { open, cores, peers, admin_listeners, connections, strangers_max } = needs;
    let in_cluster = usize::from(peers > 0);
    let fixed = open
        + OF_PROCESS
        + OF_STORE
        + cores * (OF_CORE + in_cluster * OF_CORE_IN_CLUSTER)
        + in_cluster * OF_HINT_SYNC
        + peers * (cores * OF_LINK + OF_HINTS);
    let left = limit.saturating_sub(fixed);
    let segments = (left / 3).min(cores * WAITING_SEGMENTS_MAX);
    let left = left - segments;
    let left = left - (left / 8).min(peers * OF_COMPARING);
    let entrances = 1 + admin_listeners;
    let pages = (left / 16 / entrances).clamp(1, PAGES_MAX);
    let handovers = (left / 16).clamp(1, HANDOVERS_MAX);
    let strangers = (left / 8 / cores).clamp(1, strangers_max.max(1));
    let kept = pages * entrances + handovers + strangers * cores * in_cluster;
    if left <= kept {
        let needed = fixed + segments + kept + 1;
        return Err(format!(
            "this process may open {limit} files and sockets (ulimit -n), and needs {needed} at least: raise the limit, \
             or give it fewer --threads"
        ));
    }
    Ok(Shares { connections: connections.min(left - kept), pages, handovers, strangers })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Needs =
        Needs { open: 6, cores: 1, peers: 0, admin_listeners: 0, connections: 10_000, strangers_max: 64 };

    #[test]
    fn clients_get_what_the_others_leave() {
        let many = share(1 << 20, ALONE);
        assert_eq!(many, Ok(Shares { connections: 10_000, pages: PAGES_MAX, handovers: HANDOVERS_MAX, strangers: 64 }));
        let few = share(64, ALONE).expect("enough");
        assert!((16..35).contains(&few.connections), "{few:?}");
        assert!(share(32, ALONE).expect("enough").connections >= 1);
        // A node of `koltso local` with two cores.
        assert!(share(64, Needs { open: 10, cores: 2, peers: 2, ..ALONE }).is_ok());
        let cluster = Needs { cores: 8, peers: 4, admin_listeners: 1, ..ALONE };
        let shares = share(1024, cluster).expect("enough");
        assert!((400..900).contains(&shares.connections) && shares.strangers < 64, "{shares:?}");
    }

    #[test]
    fn no_sum_of_shares_is_more_than_there_are() {
        for limit in (0..3_000).step_by(7) {
            for (cores, peers) in [(1, 0), (1, 2), (4, 4), (32, 63)] {
                let needs = Needs { open: 6 + cores, cores, peers, admin_listeners: 1, ..ALONE };
                let Ok(shares) = share(limit, needs) else { continue };
                let strangers = if peers > 0 { shares.strangers * cores } else { 0 };
                // What little there is goes to files and clients.
                let comparing = if limit > 2_000 && peers < 10 { peers * OF_COMPARING } else { 0 };
                let all = needs.open
                    + shares.connections
                    + shares.pages * 2
                    + shares.handovers
                    + strangers
                    + comparing
                    + peers * cores * OF_LINK;
                assert!(all < limit && shares.connections > 0, "{limit} {needs:?} {shares:?}");
            }
        }
        let refused = share(24, ALONE).expect_err("too few");
        assert!(refused.contains("may open 24 files") && refused.contains("ulimit -n"), "{refused}");
    }
}
