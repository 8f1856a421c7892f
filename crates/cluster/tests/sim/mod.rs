//! A cluster without sockets, threads or time: N real coordinators, a virtual network and one seed.
//!
//! [`plan`] makes a run's configuration from its seed, [`world`] is the event loop with nodes, network, faults and clients,
//! [`engine`] what a node keeps across crashes, [`check`] what must be true of the history.
//!
//! The fault model. A node can be paused (it does nothing, then everything late), crash (its coordinator and the youngest
//! hints are gone; what its engine confirmed stays; its wall clock may have been set meanwhile), be slow, have a full disk,
//! or have a record damaged, as long as another replica holds that version. Links break, stall (a cut of a node, a pair or
//! one connection: TCP sends again when it heals, or the connection dies, which is noticed seconds later) and have tails.
//! Wall clocks are off by up to 0.4 s and drift. In the harsh mode single messages are lost, doubled and reordered, which
//! TCP would not do.
//!
//! Not here: replicas that lose what they confirmed, and lies; values that expire; several cores of one node; nodes that
//! join and leave. The driver (queues, hints, connections) is the simulator's own, not the program's.

pub mod check;
pub mod engine;
pub mod plan;
pub mod rng;
pub mod world;
