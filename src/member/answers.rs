//! A coordinator's answer as HTTP.
//!
//! One place for both ways that an answer takes: at once, into the connection's output, or later, from a future.

use bytes::Bytes;
use koltso_cluster::coordinator::{Answer, Outcome, Shortage};
use koltso_net::http::{ExtraLine, ReplyContext};

use super::Cluster;
use crate::admin::metrics::{Operation, tag};
use crate::front::http::{etag, matches};

/// Values up to this many bytes are copied behind the head; larger ones follow it uncopied.
const COPY_MAX: usize = 4 << 10;

/// What has to be known of a request when its answer comes.
pub struct Pending {
    /// Of the request.
    pub context: ReplyContext,
    /// For the metrics.
    pub operation: Operation,
    /// `If-None-Match`, if there was one.
    pub if_none_match: Option<Box<[u8]>>,
}

/// The line that says how many replicas answered of those that were asked.
pub fn replicas_line(answered: u32, asked: u32) -> ExtraLine {
    ExtraLine::ratio("Koltso-Replicas", answered, asked)
}

impl Pending {
    /// Writes the head, and the body unless it is large, to the end of `out`; returns the tag for the metrics, and a large body.
    pub fn write(&self, cluster: &Cluster, answer: &Answer, out: &mut Vec<u8>) -> (u16, Option<Bytes>) {
        let mut context = self.context;
        context.set_extra(replicas_line(answer.answered, answer.asked));
        let tagged = |status| tag(self.operation, status);
        match &answer.outcome {
            Outcome::Written => {
                let status = if self.operation == Operation::Delete { 202 } else { 201 };
                context.empty(out, status);
                (tagged(status), None)
            }
            Outcome::Found { version, value_len, value } => {
                let etag = etag(*version);
                if matches(self.if_none_match.as_deref(), &etag) {
                    context.not_modified(out, &etag);
                    return (tagged(304), None);
                }
                match value {
                    Some(value) if value.len() <= COPY_MAX => context.value(out, &etag, value),
                    _ => context.value_head(out, &etag, (*value_len).into()),
                }
                (tagged(200), value.clone().filter(|value| value.len() > COPY_MAX))
            }
            Outcome::Absent => {
                context.error(out, 404, "There is no such key.");
                (tagged(404), None)
            }
            Outcome::NotEnough(shortage) if shortage.busy => {
                let sentence = "Values that wait for their clients fill the memory that this core has for them \
                                (--max-in-flight-bytes); try again in a second.";
                context.error_with(out, 503, "Retry-After", "1", sentence);
                (tagged(503), None)
            }
            // A full disk can keep a read from repairing, too; but it is no write that could be told to come back.
            Outcome::NotEnough(shortage)
                if shortage.disk_full && matches!(self.operation, Operation::Put | Operation::Delete) =>
            {
                context.error(out, 507, &sentence(cluster, answer, shortage));
                (tagged(507), None)
            }
            Outcome::NotEnough(shortage) => {
                context.error(out, 504, &sentence(cluster, answer, shortage));
                (tagged(504), None)
            }
        }
    }
}

fn sentence(cluster: &Cluster, answer: &Answer, shortage: &Shortage) -> String {
    let mut names: Vec<&str> = shortage.missing.iter().map(|&node| cluster.topology.name(node)).collect();
    names.sort_unstable();
    let (answered, needed) = (answer.answered, shortage.needed);
    let why = if shortage.disk_full { ", and a replica's disk is full" } else { "" };
    if names.is_empty() {
        return format!(
            "{answered} replicas answered, but not enough of them could be brought up to date in time{why}; try again, or \
             read with a smaller ack."
        );
    }
    let who = names.join(", ");
    format!("Only {answered} of the {needed} replicas needed answered in time{why}; not so {who}.")
}
