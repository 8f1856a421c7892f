//! Takes a client's request, whatever protocol it came by, to where it is done: to this core's
//! replica where that is enough, and to the core's coordinator where other nodes have a say.
//!
//! This node is enough by itself when it is the only node, for a read with `ack=1` of a key that it
//! keeps, while it has all that it confirmed, and for a write with `from=1` of such a key. A front turns bytes into a
//! [`ClientRequest`] and an [`Answer`] back into bytes; it knows nothing of replicas.
//!
//! Owner: one core. Tested through the fronts, in `tests/`.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use koltso_cluster::coordinator::{self, Full, Shortage};
use koltso_cluster::renewal::Renewal;
use koltso_model::{Flags, Key, Operation, Outcome, Quorum, Record, Refused, Version, WallTime, Want};

use crate::member::{self, Submitted, Ticket};
use crate::node::Node;
use crate::replica::clock::{now_ms, now_wall};
use crate::replica::{Contents, Executed, Later, Replica};

/// What a client wants done with a key.
pub enum Action<'a> {
    /// Read the value, or only what is known about it.
    Read(Want),
    /// Store a value.
    Put {
        /// The value, which the server has already compared with `--max-value`.
        value: Contents<'a>,
        /// The key is absent again this many milliseconds after the write was accepted.
        ttl_ms: Option<u64>,
        /// What [`Attributes::parse`](koltso_model::Attributes::parse) takes; empty for none.
        attributes: &'a [u8],
    },
    /// Delete the key.
    Delete,
}

/// A request of a client.
pub struct ClientRequest<'a> {
    /// The key that it is about.
    pub key: Key<&'a [u8]>,
    /// How many replicas have to answer, of how many.
    pub quorum: Quorum,
    /// What is to be done with the key.
    pub action: Action<'a>,
}

/// What came of a client's request.
pub struct Answer<B> {
    /// The outcome, or why too few replicas answered.
    pub result: Result<Outcome<B>, Shortage>,
    /// The version that a write was given; `None` for a read.
    pub written: Option<Version>,
    /// How many replicas answered, of how many that were asked; `None` where there is no cluster.
    pub replicas: Option<(u32, u32)>,
}

impl Answer<Bytes> {
    /// The same answer in the type of one that is there at once.
    pub fn shared(self) -> Answer<Contents<'static>> {
        let Self { result, written, replicas } = self;
        Answer { result: result.map(|outcome| outcome.map(Contents::Shared)), written, replicas }
    }
}

/// Whether an answer is there.
pub enum Dispatched<R> {
    /// The answer was there, and the caller's closure made this of it.
    Now(R),
    /// The answer comes with this future.
    Later(LaterAnswer),
}

/// A future of an answer.
pub struct LaterAnswer(Source);

enum Source {
    /// This node answers alone; the other fields become [`Answer::written`] and
    /// [`Answer::replicas`].
    Alone(Later, Option<Version>, Option<(u32, u32)>),
    Coordinated(Ticket),
}

impl LaterAnswer {
    /// Whether what was asked is done, and only its confirmation is awaited.
    pub const fn took_effect(&self) -> bool {
        matches!(self.0, Source::Alone(..))
    }
}

impl Future for LaterAnswer {
    type Output = Answer<Bytes>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<Bytes>> {
        match &mut self.0 {
            Source::Alone(later, written, replicas) => {
                let (written, replicas) = (*written, *replicas);
                Pin::new(later).poll(cx).map(|outcome| Answer { result: Ok(outcome), written, replicas })
            }
            Source::Coordinated(ticket) => Pin::new(ticket).poll(cx).map(coordinated),
        }
    }
}

/// Takes the requests of one core's clients to where they are done.
pub struct Dispatch {
    node: Arc<Node>,
    replica: Rc<Replica>,
    /// The core's part in the cluster; `None` on a single node.
    cluster: Option<Rc<member::MemberDriver>>,
    /// This node's number in versions.
    number: u16,
}

impl Dispatch {
    /// Makes the dispatcher of a core that has taken its writer and joined its cluster.
    pub fn new(node: Arc<Node>, replica: Rc<Replica>, cluster: Option<Rc<member::MemberDriver>>) -> Self {
        let number = node.cluster.as_ref().map_or(0, |cluster| cluster.number());
        Self { node, replica, cluster, number }
    }

    /// The core's own replica.
    pub const fn replica(&self) -> &Rc<Replica> {
        &self.replica
    }

    /// Ends the core's part in the cluster and lets go of the writer. The caller sends no more
    /// requests.
    pub async fn close(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.close().await;
        }
        self.replica.close();
    }

    /// Does what a client asks. `then` is given the answer if that is there at once; it must be
    /// short, since it may run under the lock of the key's stripe.
    ///
    /// # Errors
    /// [`Full`] if too many replicated operations are in flight on this core; nothing was done.
    #[inline]
    pub fn dispatch<R>(
        &self,
        request: ClientRequest<'_>,
        then: impl FnOnce(Answer<Contents<'_>>) -> R,
    ) -> Result<Dispatched<R>, Full> {
        let ClientRequest { key, quorum, action } = request;
        match action {
            Action::Read(want) => self.read(key, quorum, want, then),
            Action::Put { value, ttl_ms, attributes } => {
                let now = now_wall();
                // The millisecond of the acceptance has already begun: only from the next one on
                // has the key its whole time.
                let expires_at_ms = ttl_ms.map_or(0, |ttl| now.ms() + 1 + ttl);
                let flags = Flags::new(quorum.from());
                self.write(key, quorum, value, (expires_at_ms, flags, attributes), now, then)
            }
            Action::Delete => {
                let flags = Flags::new(quorum.from()).tombstone();
                self.write(key, quorum, Contents::Borrowed(&[]), (0, flags, &[]), now_wall(), then)
            }
        }
    }

    #[inline]
    fn read<R>(
        &self,
        key: Key<&[u8]>,
        quorum: Quorum,
        want: Want,
        then: impl FnOnce(Answer<Contents<'_>>) -> R,
    ) -> Result<Dispatched<R>, Full> {
        let mut then = Some(then);
        let mut finish = |answer: Answer<Contents<'_>>| then.take().expect("a request is answered once")(answer);
        let is_enough =
            |cluster: &Rc<member::MemberDriver>| quorum.ack() == 1 && cluster.is_replica(key.hash(), quorum.from());
        let cluster = self.cluster.as_ref();
        if cluster.is_none_or(is_enough) {
            let replicas = cluster.map(|_| (1, 1));
            let executed = self.replica.execute(&Operation::Read { key, want }, now_ms(), |outcome| match outcome {
                // Another replica may have an intact copy.
                Outcome::Damaged if cluster.is_some() => None,
                // Others have what this node may lack.
                Outcome::Refused(Refused::Rebuilding) if cluster.is_some() => None,
                outcome => Some(finish(Answer { result: Ok(outcome), written: None, replicas })),
            });
            match executed {
                Executed::Now(Some(result)) => return Ok(Dispatched::Now(result)),
                Executed::Later(later) => {
                    return Ok(Dispatched::Later(LaterAnswer(Source::Alone(later, None, replicas))));
                }
                Executed::Now(None) => {}
            }
        }
        let Some(cluster) = cluster else {
            unreachable!("without a cluster the local outcome is the answer");
        };
        Ok(submitted(cluster.read(key.owned(), want, quorum)?, finish))
    }

    #[inline]
    fn write<R>(
        &self,
        key: Key<&[u8]>,
        quorum: Quorum,
        value: Contents<'_>,
        (expires_at_ms, flags, attributes): (u64, Flags, &[u8]),
        now: WallTime,
        then: impl FnOnce(Answer<Contents<'_>>) -> R,
    ) -> Result<Dispatched<R>, Full> {
        let cluster = self.cluster.as_ref();
        let alone = cluster.is_none_or(|cluster| quorum.from() == 1 && cluster.is_replica(key.hash(), 1));
        let Some(cluster) = cluster.filter(|_| !alone) else {
            let value = value.as_ref();
            let mut record = Record { key, value, version: self.next_version(now), expires_at_ms, flags, attributes };
            let mut renewal = Renewal::default();
            let kept = |outcome: Outcome<Contents<'_>>| outcome.map(Contents::into_bytes);
            let executed = loop {
                let executed = self.replica.execute(&Operation::Write(record), now.ms(), kept);
                let newer = match &executed {
                    Executed::Now(outcome) => outcome.version(),
                    Executed::Later(later) => later.superseded(),
                };
                if let Some(newer) = newer {
                    renewal.superseded(newer);
                }
                let Some(above) = renewal.again() else { break executed };
                self.node.clock.observe(above.clock);
                record.version = self.next_version(now);
            };
            let (written, replicas) = (Some(record.version), cluster.map(|_| (1, 1)));
            return Ok(match executed {
                Executed::Now(outcome) => {
                    Dispatched::Now(then(Answer { result: Ok(outcome), written, replicas }.shared()))
                }
                Executed::Later(later) => Dispatched::Later(LaterAnswer(Source::Alone(later, written, replicas))),
            });
        };
        // The member gives the version.
        let version = Version::default();
        let record = match value {
            Contents::Shared(value) => {
                let attributes = Bytes::copy_from_slice(attributes);
                Record { key: key.owned(), value, version, expires_at_ms, flags, attributes }
            }
            Contents::Borrowed(value) => Record { key, value, version, expires_at_ms, flags, attributes }.owned(),
        };
        Ok(submitted(cluster.write(record, quorum)?, then))
    }

    fn next_version(&self, now: WallTime) -> Version {
        Version::new(self.node.clock.next(now), self.number)
    }
}

fn submitted<R>(submitted: Submitted, then: impl FnOnce(Answer<Contents<'_>>) -> R) -> Dispatched<R> {
    match submitted {
        Submitted::Answered(answer) => Dispatched::Now(then(coordinated(answer).shared())),
        Submitted::Waits(ticket) => Dispatched::Later(LaterAnswer(Source::Coordinated(ticket))),
    }
}

/// A coordinator's answer as an [`Answer`].
fn coordinated(answer: coordinator::Answer) -> Answer<Bytes> {
    let result = match answer.result {
        Err(shortage) if shortage.busy => Ok(Outcome::Refused(Refused::Busy)),
        result => result,
    };
    Answer { result, written: answer.written, replicas: Some((answer.answered, answer.asked)) }
}
