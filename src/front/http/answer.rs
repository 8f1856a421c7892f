//! The one place where the outcome of a client's request becomes a status code, a head and a body.
//!
//! It serves answers that are there at once, which go into the connection's output, as well as
//! those that come later, from a future.

use koltso_cluster::coordinator::{Shortage, Useless};
use koltso_cluster::placement::NodeIndex;
use koltso_model::{Attribute, Attributes, Found, Outcome, Refused, Version};
use koltso_net::http::conditions::{Conditions, Judged};
use koltso_net::http::range::Part;
use koltso_net::http::{ExtraLine, ReplyContext, Representation};
use koltso_net::server::Answered;

use crate::counters::{RequestKind, tag};
use crate::member::Cluster;
use crate::node::dispatch::Answer;
use crate::replica::Contents;

/// Shared values up to this many bytes are copied behind the head; larger ones follow it uncopied.
const COPY_MAX: usize = 4 << 10;

/// What an answer depends on beside the outcome.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// How the answer is framed.
    pub context: ReplyContext,
    /// The kind of request, which decides the status code of success and what metrics count.
    pub kind: RequestKind,
    /// What the request depends on.
    pub conditions: Option<&'a Conditions>,
    /// The cluster whose nodes an error names; `None` on a single node.
    pub cluster: Option<&'a Cluster>,
}

/// The strong entity tag of a version, with its quotes.
pub fn etag(version: Version) -> [u8; 23] {
    let mut tag = *b"\"0000000000000000-0000\"";
    let hex = |slot: &mut [u8], mut number: u64| {
        for digit in slot.iter_mut().rev() {
            *digit = b"0123456789abcdef"[(number & 15) as usize];
            number >>= 4;
        }
    };
    hex(&mut tag[1..17], version.clock);
    hex(&mut tag[18..22], version.node.into());
    tag
}

/// The part of `contents`, which has all of the value.
fn part_of(contents: Contents<'_>, part: Part) -> Contents<'_> {
    let range = part.first as usize..part.last as usize + 1;
    match contents {
        Contents::Borrowed(bytes) => Contents::Borrowed(&bytes[range]),
        Contents::Shared(bytes) => Contents::Shared(bytes.slice(range)),
    }
}

impl Asked<'_> {
    /// Writes the head, and the body unless that is large, to the end of `out`. A large body is
    /// returned, to be sent uncopied.
    #[inline]
    pub fn answer(mut self, answer: Answer<Contents<'_>>, out: &mut Vec<u8>) -> Answered {
        if let Some((answered, asked)) = answer.replicas {
            self.context.set_extra(ExtraLine::ratio("Koltso-Replicas", answered, asked));
        }
        match answer.result {
            Ok(Outcome::Found(found)) => self.found(found, out),
            Ok(Outcome::Absent(_)) => self.refuse(out, 404, "There is no such key."),
            Ok(Outcome::Applied | Outcome::Superseded(_)) => {
                let status = if self.kind == RequestKind::Delete { 202 } else { 201 };
                match answer.written.filter(|_| status == 201) {
                    Some(version) => self.context.written(out, status, &etag(version)),
                    None => self.context.empty(out, status),
                }
                self.answered(status)
            }
            Ok(Outcome::Damaged) => self.refuse(
                out,
                504,
                "The only replica asked has a damaged record for this key, so none of the 1 needed answered.",
            ),
            Ok(Outcome::Refused(why)) => self.refused(why, out),
            Err(shortage) => self.shortage(&shortage, answer.replicas.map_or(0, |(answered, _)| answered), out),
        }
    }

    #[inline]
    fn found(&self, found: Found<Contents<'_>>, out: &mut Vec<u8>) -> Answered {
        let etag = etag(found.version);
        if self.conditions.is_some() || !found.attributes.as_ref().is_empty() {
            return self.found_under_conditions(&etag, found, out);
        }
        match found.value {
            Some(Contents::Shared(value)) if value.len() > COPY_MAX => {
                self.context.value_head(out, &etag, found.value_len.into());
                return Answered { value: Some(value), tag: tag(self.kind, 200) };
            }
            Some(value) => self.context.value(out, &etag, value.as_ref()),
            None => self.context.value_head(out, &etag, found.value_len.into()),
        }
        self.answered(200)
    }

    /// Answers with a value that has attributes, or that is asked for under conditions.
    #[cold]
    fn found_under_conditions(&self, etag: &[u8], found: Found<Contents<'_>>, out: &mut Vec<u8>) -> Answered {
        let length = u64::from(found.value_len);
        let judge = |conditions: &Conditions| conditions.judge(etag, found.version.unix_ms(), length);
        let part = match self.conditions.map_or(Judged::Whole, judge) {
            Judged::Whole => None,
            Judged::Part(part) => Some(part),
            Judged::NotModified => {
                self.context.not_modified(out, etag);
                return self.answered(304);
            }
            Judged::Failed => {
                return self.refuse(out, 412, "The key has another version than the request's condition allows.");
            }
            Judged::Unsatisfiable => {
                let sentence = format!("The value has {length} bytes, and the range begins behind them.");
                self.context.unsatisfiable(out, length, &sentence);
                return self.answered(416);
            }
        };
        // Whatever wrote the record, its attributes were checked; if not, there are none.
        let attributes = Attributes::parse(found.attributes.as_ref()).unwrap_or_default();
        let attribute = |kind| attributes.get(kind).unwrap_or_default();
        let (content_type, content_encoding) =
            (attribute(Attribute::ContentType), attribute(Attribute::ContentEncoding));
        self.context.representation_head(out, &Representation { etag, content_type, content_encoding, length, part });
        let status = if part.is_some() { 206 } else { 200 };
        let value = match (found.value, part) {
            (Some(value), Some(part)) => Some(part_of(value, part)),
            (value, _) => value,
        };
        match value {
            Some(Contents::Shared(value)) if value.len() > COPY_MAX => {
                return Answered { value: Some(value), tag: tag(self.kind, status) };
            }
            Some(value) if !self.context.head => out.extend_from_slice(value.as_ref()),
            _ => {}
        }
        self.answered(status)
    }

    fn answered(&self, status: u16) -> Answered {
        Answered { value: None, tag: tag(self.kind, status) }
    }

    fn refuse(&self, out: &mut Vec<u8>, status: u16, sentence: &str) -> Answered {
        if status == 503 {
            self.context.error_with(out, status, "Retry-After", "1", sentence);
        } else {
            self.context.error(out, status, sentence);
        }
        self.answered(status)
    }

    #[cold]
    fn refused(&self, why: Refused, out: &mut Vec<u8>) -> Answered {
        let (status, sentence) = refusal_of(why);
        self.refuse(out, status, sentence)
    }

    #[cold]
    fn shortage(&self, shortage: &Shortage, answered: u32, out: &mut Vec<u8>) -> Answered {
        // A full disk can also keep a read from repairing a replica, but a reader cannot free
        // space.
        let is_write = matches!(self.kind, RequestKind::Put | RequestKind::Delete);
        let status = if shortage.disk_full && is_write { 507 } else { 504 };
        let name = |node| self.cluster.map_or("a replica", |cluster| cluster.topology.name(node));
        let sentence = shortage_sentence(shortage, answered, name);
        self.refuse(out, status, &sentence)
    }
}

/// Why there is no better answer: who did not answer, and what was wrong with those who did.
fn shortage_sentence<'a>(shortage: &Shortage, answered: u32, name: impl Fn(NodeIndex) -> &'a str) -> String {
    let Shortage { needed, missing, useless, .. } = shortage;
    let rebuilding = useless.iter().filter(|(_, why)| *why == Useless::Refused(Refused::Rebuilding)).count();
    let why = match (shortage.disk_full, rebuilding) {
        (true, _) => ", and a replica's disk is full".to_owned(),
        (false, 0) => String::new(),
        (false, 1) => ", and one replica is rebuilding".to_owned(),
        (false, count) => format!(", and {count} replicas are rebuilding"),
    };
    let silent = missing.iter().filter(|node| useless.iter().all(|(other, _)| other != *node));
    let mut who: Vec<String> = silent.map(|&node| name(node).to_owned()).collect();
    who.extend(useless.iter().map(|&(node, why)| format!("{} ({})", name(node), useless_text(why))));
    who.sort_unstable();
    let not_so = if who.is_empty() { String::new() } else { format!("; not so {}", who.join(", ")) };
    if answered < *needed {
        return format!("Only {answered} of the {needed} replicas needed answered in time{why}{not_so}.");
    }
    format!(
        "{answered} replicas answered, but not enough of them had the newest version or took it in time{why}{not_so}; try \
         again, or read with a smaller ack."
    )
}

/// What was wrong with a replica's answer.
const fn useless_text(why: Useless) -> &'static str {
    match why {
        Useless::Refused(Refused::DiskFull) => "its disk is full",
        Useless::Refused(Refused::Failed) => "its disk failed, or it does not believe the version",
        Useless::Refused(Refused::DiskError) => "its disk answered with an error",
        Useless::Refused(Refused::NoResources) => "it has no file descriptors or no memory left",
        Useless::Refused(Refused::TooLarge) => "the value is larger than it takes",
        Useless::Refused(Refused::NotReady) => "it is starting or stopping",
        Useless::Refused(Refused::Rebuilding) => "it is rebuilding, and answers no reads until it has what it may lack",
        Useless::Refused(Refused::Behind) => "it knows of a change of the members that this node does not know of yet",
        Useless::Refused(Refused::Busy) => "this node had no room for its value",
        Useless::Damaged => "its record is damaged",
        Useless::Stale => "it has an older version",
        Useless::WithoutValue => "it did not give the value",
    }
}

/// What a replica refuses, as a status and a sentence for whoever asked.
const fn refusal_of(why: Refused) -> (u16, &'static str) {
    match why {
        Refused::TooLarge => (413, "The value is larger than the log has room for."),
        Refused::DiskFull => {
            (507, "The disk is full: the write was not done, and writes come back when there is room.")
        }
        Refused::Failed => (503, "The disk failed, and nothing is written until the store is opened again."),
        Refused::DiskError => {
            (503, "The disk answered with an error: the write was not done, and the log of the node says more.")
        }
        Refused::NoResources => {
            (503, "The node has no file descriptors or no memory left for the write, which was not done.")
        }
        Refused::NotReady => (503, "The node is draining: it finishes what is in flight and stops."),
        Refused::Rebuilding => {
            (503, "The node is rebuilding: it takes writes, and answers reads when it has got back what it may lack.")
        }
        Refused::Behind => {
            (503, "The node does not know of the last change of the members yet; try again in a second.")
        }
        Refused::Busy => (
            503,
            "Values that wait for their clients fill the memory that this core has for them \
                 (--max-in-flight-bytes); try again in a second.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_the_clock_and_the_node_of_the_version() {
        assert_eq!(&etag(Version::new(0x1234, 7)), b"\"0000000000001234-0007\"");
    }

    #[test]
    fn a_504_says_what_was_wrong_with_those_who_answered() {
        let name = |node: NodeIndex| ["http://a", "http://b", "http://c"][node.at()];
        let shortage = |missing: &[u8], useless: &[(u8, Useless)]| Shortage {
            needed: 2,
            missing: missing.iter().map(|&node| NodeIndex(node)).collect(),
            disk_full: false,
            busy: false,
            useless: useless.iter().map(|&(node, why)| (NodeIndex(node), why)).collect(),
        };
        let silent = shortage_sentence(&shortage(&[1, 2], &[]), 0, name);
        assert_eq!(silent, "Only 0 of the 2 replicas needed answered in time; not so http://b, http://c.");
        let refused = shortage_sentence(&shortage(&[1], &[(1, Useless::Refused(Refused::NotReady))]), 1, name);
        assert_eq!(
            refused,
            "Only 1 of the 2 replicas needed answered in time; not so http://b (it is starting or stopping)."
        );
        let rebuilding = Useless::Refused(Refused::Rebuilding);
        let two = shortage_sentence(&shortage(&[1, 2], &[(1, rebuilding), (2, rebuilding)]), 1, name);
        assert!(two.contains("in time, and 2 replicas are rebuilding; not so http://b (it is rebuilding"), "{two}");
        let one = shortage_sentence(&shortage(&[1, 2], &[(2, rebuilding)]), 1, name);
        assert!(one.contains("in time, and one replica is rebuilding; not so http://b, http://c (it is"), "{one}");
        // Both of two have answered, and one was of no use.
        for why in [Useless::Damaged, Useless::Stale, Useless::WithoutValue] {
            let both = shortage_sentence(&shortage(&[], &[(1, why)]), 2, name);
            assert!(!both.contains("Only") && both.contains("http://b (") && !both.contains("http://a"), "{both}");
        }
        let third = shortage_sentence(&shortage(&[2], &[(1, Useless::WithoutValue)]), 2, name);
        assert!(third.contains("not so http://b (it did not give the value), http://c;"), "{third}");
    }

    #[test]
    fn a_full_disk_a_broken_one_and_missing_resources_are_told_apart() {
        let (full, sentence) = refusal_of(Refused::DiskFull);
        assert!(full == 507 && sentence.contains("full"));
        let others = [Refused::DiskError, Refused::NoResources, Refused::Failed, Refused::Rebuilding, Refused::Behind];
        let others = others.map(refusal_of);
        for (number, (status, sentence)) in others.into_iter().enumerate() {
            assert!(status == 503 && !sentence.contains("full"), "{sentence}");
            assert!(others[..number].iter().all(|(_, other)| *other != sentence), "{sentence} is said twice");
        }
    }
}
