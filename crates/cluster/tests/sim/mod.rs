//! A cluster without sockets, threads or time: the members that ship, a virtual network and one
//! seed.
//!
//! [`plan`] makes a run's configuration from its seed; [`world`] is the event loop, [`network`]
//! what travels between nodes, [`node`] the host of a member, [`hints`] its keeper of hints,
//! [`store`] what it stores, [`faults`] what happens to it; [`clients`] ask, [`check`] and
//! [`judge`] say what must be true.
//!
//! What runs as it ships: `Member` with coordinator, health, clock and plausibility; the bound of
//! the hints' queue and their replay; redialing and the bound of a link's queue. The simulator's
//! own are: the network, the log of hints (in memory), the engine (in memory, or the real one), and
//! the bound of the clock on disk (a number).
//!
//! The fault model. A node can be paused (it does nothing, then everything late), crash (its member
//! and the youngest hints are gone; what its engine confirmed stays; its wall clock may have been
//! set meanwhile), be slow (what it has not come to waits in its sockets), have a full disk or one
//! that answers some writes with an error, or have a record damaged, as long as another replica
//! holds that version. Links break, stall (a cut of a node, a pair or one direction: TCP sends
//! again when it heals, or the connection dies, which is noticed seconds later), fill up and have
//! tails. Wall clocks are off by up to 0.24 s and drift; where a plan says so, they jump by up to
//! 400 days for up to three seconds. In the harsh mode single messages of cores are lost, doubled
//! and reordered, which TCP would not do.
//!
//! In long runs the nodes compare what they have, too ([`exchange`], with the machines that ship, on
//! [`holdings`]; [`folder`] has the rules of standing): folders are emptied or put back as they were,
//! hints are lost, values run out, cuts last minutes. At the end all must be equal without any read
//! ([`converged`]). Excluded is what cannot be promised: one folder at a time is lost, while all
//! others are whole and no record is damaged; what less than a quorum confirmed is not looked for
//! then; a copy is at least 45 s old, and none from before another node was replaced is put back; a
//! node that was put back and has met nobody may answer as it did then.
//!
//! Where a plan says so, others come to hold the data meanwhile, and others again ([`council`]).
//!
//! Not here: lies; several cores of one node; the consensus about who the members are.

pub mod check;
pub mod clients;
pub mod converged;
pub mod council;
pub mod exchange;
pub mod faults;
pub mod folder;
pub mod hints;
pub mod holdings;
pub mod judge;
pub mod network;
pub mod node;
pub mod plan;
pub mod stats;
pub mod store;
pub mod world;
