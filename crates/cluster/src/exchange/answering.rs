//! The side that is asked: it answers from what the node has, and takes what it is given.
//!
//! Owner: one connection. Bounds: one listing of about [`LISTING_BYTES`], one answer of about
//! [`CREDIT`], whatever credit a peer gives. What a peer asks for that makes no sense is a sentence, after which the
//! connection is to be closed.

use std::sync::Arc;

use koltso_model::{ExchangeReply, ExchangeRequest, KeyHash, LEAVES, Record, WallTime};

use super::board::Look;
use super::pair::Pair;
use super::{Agreeing, CREDIT, Holdings, LISTING_BYTES, Listed};
use crate::placement::Topology;
use crate::plausibility;

/// What the last answer about roots was made of.
struct Looked {
    from: u8,
    look: Look,
    /// The shared partitions.
    shared: Vec<u16>,
    /// Theirs.
    arrivals: Vec<u32>,
}

/// Answers one peer.
pub struct Answering {
    pair: Pair,
    looked: Option<Looked>,
    /// What the last answer about items listed.
    listed: Vec<Listed>,
    figures: Given,
}

/// What a peer has been given and has given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Records that it fetched.
    pub sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Records that it gave.
    pub received: u64,
    /// Their bytes.
    pub bytes_received: u64,
}

/// Why a record is not one that a peer can send, if it is not.
fn plausible(record: &Record<bytes::Bytes>, now: WallTime) -> Result<(), String> {
    let clock = record.version.clock;
    if clock == 0 || !plausibility::is_plausible(clock, now) {
        return Err("it sent a record with a version that no write has".to_owned());
    }
    Ok(())
}

impl Answering {
    /// Of a connection that has just begun.
    #[must_use]
    pub const fn new(pair: Pair) -> Self {
        let figures = Given { sent: 0, bytes_sent: 0, received: 0, bytes_received: 0 };
        Self { pair, looked: None, listed: Vec::new(), figures }
    }

    /// The members have changed, or what they hold; the peer is still one.
    pub fn adopt(&mut self, topology: Arc<Topology>) {
        self.pair.adopt(topology);
    }

    /// What was sent and received since the last call.
    pub fn take_figures(&mut self) -> Given {
        std::mem::take(&mut self.figures)
    }

    /// Answers a request of a peer whose membership has this epoch.
    ///
    /// # Errors
    /// A sentence, if the peer is not to be believed any more.
    pub fn answer(
        &mut self,
        now: WallTime,
        (epoch, request): (u64, &ExchangeRequest),
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) -> Result<ExchangeReply, String> {
        match request {
            ExchangeRequest::Roots { told, from } => {
                board.heard(self.pair.peer(), *told, epoch);
                // By another membership, other partitions are in common.
                let is_known = *from == 0 || epoch == self.pair.epoch();
                Ok(if is_known { self.roots(now, *from, board, holdings) } else { ExchangeReply::NotReady })
            }
            ExchangeRequest::Leaves { from, byte, partitions } => {
                let mut bytes = Vec::with_capacity(partitions.len() * LEAVES);
                for &partition in partitions {
                    bytes.extend(
                        holdings.leaves(*from, partition).map(|leaf| leaf.to_le_bytes()[usize::from(byte % 8)]),
                    );
                }
                Ok(ExchangeReply::Leaves(bytes.into()))
            }
            ExchangeRequest::Items(leaves) => {
                self.listed.clear();
                let Ok(listed) = holdings.list(leaves, LISTING_BYTES) else {
                    return Ok(ExchangeReply::NotReady);
                };
                let items = listed.iter().map(|listed| listed.iter().map(|listed| listed.item).collect()).collect();
                self.listed = listed.into_iter().flatten().collect();
                Ok(ExchangeReply::Items(items))
            }
            ExchangeRequest::Fetch { places, credit } => self.fetch(places, *credit, holdings),
            ExchangeRequest::Give(records) => {
                records.iter().try_for_each(|record| plausible(record, now))?;
                self.figures.received += records.len() as u64;
                self.figures.bytes_received += records.iter().map(|record| record.len() as u64).sum::<u64>();
                Ok(ExchangeReply::Given(holdings.apply_all(records)))
            }
            ExchangeRequest::Agreed { from, partitions } => {
                self.agreed(*from, partitions, board, holdings)?;
                Ok(ExchangeReply::Noted)
            }
        }
    }

    fn roots(
        &mut self,
        now: WallTime,
        from: u8,
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) -> ExchangeReply {
        let told = holdings.told();
        if from == 0 {
            return ExchangeReply::Roots { told, roots: Vec::new() };
        }
        let look = board.look(now, holdings);
        if look.epoch() != self.pair.epoch() {
            // What would be agreed on now would count for a membership that this connection does not know.
            return ExchangeReply::NotReady;
        }
        let shared = self.pair.shared(from);
        // What comes late after its count was read must not be covered by what is read then.
        let arrivals = shared.iter().map(|&partition| holdings.arrivals(from, partition)).collect();
        let roots = shared.iter().map(|&partition| holdings.root(from, partition)).collect();
        self.looked = Some(Looked { from, look, shared, arrivals });
        ExchangeReply::Roots { told, roots }
    }

    fn fetch(&mut self, places: &[u32], credit: u32, holdings: &mut dyn Holdings) -> Result<ExchangeReply, String> {
        let credit = u64::from(credit.min(CREDIT));
        let mut records = Vec::new();
        let mut bytes = 0;
        for &place in places {
            let Some(listed) = self.listed.get(place as usize) else {
                return Err("it asked for a record of a list that it was not told".to_owned());
            };
            let record = holdings.newest(&listed.key);
            let size = record.as_ref().map_or(0, |record| record.len() as u64);
            if bytes > 0 && bytes + size > credit {
                break;
            }
            bytes += size;
            self.figures.sent += u64::from(record.is_some());
            records.push(record);
        }
        self.figures.bytes_sent += bytes;
        Ok(ExchangeReply::Records(records))
    }

    fn agreed(
        &self,
        from: u8,
        partitions: &[u16],
        board: &mut dyn Agreeing,
        holdings: &mut dyn Holdings,
    ) -> Result<(), String> {
        let looked = self.looked.as_ref().filter(|looked| looked.from == from);
        let Some(Looked { look, shared, arrivals, .. }) = looked else {
            return Err("it agreed on what it had not looked at".to_owned());
        };
        let mut equal = Vec::with_capacity(partitions.len());
        for &partition in partitions {
            let Ok(at) = shared.binary_search(&partition) else {
                return Err("it agreed on a partition that is not of both nodes".to_owned());
            };
            equal.push((partition, arrivals[at]));
        }
        board.equal(self.pair.peer(), from, &equal, *look, holdings);
        Ok(())
    }
}

/// Whether a record that was fetched is of the key that a list said, and can be one at all.
///
/// # Errors
/// A sentence, if the peer is not to be believed any more.
pub fn believe(record: &Record<bytes::Bytes>, (partition, hash): (u16, u32), now: WallTime) -> Result<(), String> {
    plausible(record, now)?;
    let of_key = record.key.hash();
    let KeyHash(bits) = of_key;
    if of_key.partition() != usize::from(partition) || bits as u32 != hash {
        return Err("it sent another record than it was asked for".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use koltso_model::{Flags, Item, Key, LeafSet, Standing, Told, Version};

    use super::super::NotReady;
    use super::super::board::Board;
    use super::*;
    use crate::placement::{NodeIndex, Topology};

    const NOW: WallTime = WallTime::from_ms(1_700_000_000_000);

    /// A node with as many records as are asked for, of so many bytes each.
    struct Many(usize);

    impl Holdings for Many {
        fn told(&self) -> Told {
            Told { standing: Standing::Whole, ..Told::default() }
        }

        fn root(&self, _: u8, _: u16) -> u64 {
            0
        }

        fn leaves(&self, _: u8, _: u16) -> [u64; LEAVES] {
            [0; LEAVES]
        }

        fn arrivals(&self, _: u8, _: u16) -> u32 {
            0
        }

        fn looks_up_to(&mut self, _: u64) {}

        fn agreed(&mut self, _: u8, _: u16, _: u32, _: u64) {}

        fn list(&mut self, _: &[(u16, LeafSet)], _: usize) -> Result<Vec<Vec<Listed>>, NotReady> {
            let item = Item { hash: 1, version: Version::new(NOW.0, 1), from: 3, absent: false };
            Ok(vec![(0..1_000_u32).map(|n| Listed { item, key: Bytes::from(n.to_be_bytes().to_vec()) }).collect()])
        }

        fn newest(&mut self, key: &[u8]) -> Option<Record<Bytes>> {
            Some(Record {
                key: Key::new(Bytes::copy_from_slice(key)),
                value: vec![0; self.0].into(),
                version: Version::new(NOW.0, 1),
                expires_at_ms: 0,
                flags: Flags::new(3),
                attributes: Bytes::new(),
            })
        }

        fn apply(&mut self, _: &Record<Bytes>) -> bool {
            true
        }
    }

    /// Otherwise one request would make a node hold gigabytes.
    #[test]
    fn an_answer_is_bounded_whatever_credit_a_peer_gives() {
        let names = ["http://a:1".to_owned(), "http://b:1".to_owned()];
        let topology = Arc::new(Topology::new(&names, &names[0]).expect("a cluster"));
        let mut board = Board::new(topology.clone());
        for (size, most) in [(100_000, 11), (10, 1_000), (CREDIT as usize * 2, 1)] {
            let (mut answering, mut holdings) = (Answering::new(Pair::new(topology.clone(), NodeIndex(1))), Many(size));
            let mut ask = |request: &ExchangeRequest| answering.answer(NOW, (1, request), &mut board, &mut holdings);
            ask(&ExchangeRequest::Items(vec![(0, [u64::MAX; 4])])).expect("a list");
            let fetch = ExchangeRequest::Fetch { places: (0..1_000).collect(), credit: u32::MAX };
            let Ok(ExchangeReply::Records(records)) = ask(&fetch) else { panic!("records") };
            assert!((1..=most).contains(&records.len()), "{} of {size} bytes", records.len());
        }
    }
}
