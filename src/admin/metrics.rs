//! How `/metrics` shows what is counted.
//!
//! The cores count by themselves (`src/counters.rs`), the store and the cluster, too. The control
//! plane adds up the cores when it is asked. Names begin with `koltso_`; times are in seconds.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use koltso_cluster::health::{self, ROUND_TRIP_BOUNDS};
use koltso_cluster::placement::NodeIndex;
use koltso_model::Standing;
use koltso_storage::Stats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::counters::{BOUNDS_US, CoreMetrics, Histogram, LIMITS, OPERATIONS, STATUSES};
use crate::member::{Cluster, PeerFigures, PeerState};

/// The sum of one histogram over the cores.
#[derive(Debug, Default)]
struct Total {
    buckets: [u64; BOUNDS_US.len() + 1],
    sum_ns: u64,
}

impl Total {
    fn add(&mut self, histogram: &Histogram) {
        for (sum, count) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += count.get();
        }
        self.sum_ns += histogram.sum_ns.get();
    }

    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl EncodeMetric for Total {
    fn encode(&self, mut encoder: prometheus_client::encoding::MetricEncoder<'_>) -> std::fmt::Result {
        let bounds = BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets).collect();
        encoder.encode_histogram::<NoLabelSet>(self.sum_ns as f64 / 1e9, self.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The figures of all cores, and everything else that a scrape shows.
pub struct Scrape {
    /// The cores' counters.
    pub cores: Vec<Arc<CoreMetrics>>,
    /// Connections that are open now.
    pub connections: u64,
    /// The figures of the storage; `None` until it is open.
    pub storage: Option<Stats>,
    /// The cluster with its peers; `None` if this node is the only one.
    pub cluster: Option<Arc<Cluster>>,
    /// The number of stalls, of those for want of a processor, and the longest one; `None` when
    /// stall detection is off (`--stall-bound 0`).
    pub stalls: Option<(u64, u64, Duration)>,
    /// How often a connection at an entrance of the control plane gave way or was closed.
    pub pages_limit_hit: u64,
    /// The lines of the log that were lost, and those that were left out.
    pub log_lines: (u64, u64),
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> std::fmt::Result {
    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> std::fmt::Result {
    let value = ConstCounter::new(value);
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

impl Scrape {
    fn sum(&self, count: impl Fn(&CoreMetrics) -> u64) -> u64 {
        self.cores.iter().map(|core| count(core)).sum()
    }

    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut family = encoder.encode_descriptor(
            "koltso_request_duration",
            "Time from a request's last byte to its answer's last byte handed to the kernel",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (o, operation) in OPERATIONS.iter().enumerate() {
            for (s, status) in STATUSES.iter().enumerate() {
                let mut total = Total::default();
                for core in &self.cores {
                    total.add(&core.latency[o][s]);
                }
                if total.count() == 0 {
                    continue;
                }
                let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
                let labels = [("operation", (*operation).to_owned()), ("status", status)];
                total.encode(family.encode_family(&labels)?)?;
            }
        }
        let mut lag = Total::default();
        for core in &self.cores {
            lag.add(&core.loop_lag);
        }
        let help = "How late a data core's event loop came round to a timer";
        lag.encode(encoder.encode_descriptor("koltso_event_loop_lag", help, Some(&Unit::Seconds), lag.metric_type())?)
    }

    fn encode_stalls(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some((count, kept_waiting, longest)) = self.stalls else { return Ok(()) };
        counter(encoder, "koltso_core_stalls", "Turns of a data core that took longer than --stall-bound", count)?;
        let help = "Those of them in which the core was not given the processor for most of the time";
        counter(encoder, "koltso_core_stalls_without_processor", help, kept_waiting)?;
        let longest = ConstGauge::new(longest.as_secs_f64());
        let (name, help) = ("koltso_core_stall_longest", "The longest turn of a data core since the start");
        longest.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), longest.metric_type())?)
    }

    fn encode_log(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let (lost, left_out) = self.log_lines;
        let help = "Lines of the log that were lost because standard error was closed, full or stuck";
        counter(encoder, "koltso_log_lines_lost", help, lost)?;
        let help = "Lines of the log that were left out because their place had logged too many";
        counter(encoder, "koltso_log_lines_left_out", help, left_out)
    }

    fn encode_connections(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        gauge(encoder, "koltso_connections", "Connections open on the data plane", self.connections)?;
        let accepted = self.sum(|core| core.accepted.get());
        counter(encoder, "koltso_connections_accepted", "Connections accepted", accepted)?;
        let bytes_in = self.sum(|core| core.bytes_in.get());
        counter(encoder, "koltso_received_bytes", "Bytes received from clients", bytes_in)?;
        let bytes_out = self.sum(|core| core.bytes_out.get());
        counter(encoder, "koltso_sent_bytes", "Bytes sent to clients", bytes_out)?;
        let mut family = encoder.encode_descriptor(
            "koltso_limits_hit",
            "Times that a limit was hit: connections closed or requests refused",
            None,
            MetricType::Counter,
        )?;
        for (l, limit) in LIMITS.iter().enumerate() {
            let count = ConstCounter::new(self.sum(|core| core.limits[l].get()));
            count.encode(family.encode_family(&[("limit", *limit)])?)?;
        }
        let strangers = self.cluster.as_ref().map_or(0, |cluster| cluster.peers.crowded_out());
        for (limit, count) in [("pages", self.pages_limit_hit), ("strangers", strangers)] {
            ConstCounter::new(count).encode(family.encode_family(&[("limit", limit)])?)?;
        }
        Ok(())
    }
}

fn encode_storage(encoder: &mut DescriptorEncoder<'_>, stats: &Stats) -> std::fmt::Result {
    let gauges = [
        ("koltso_storage_records", "Keys that have a value", stats.records),
        ("koltso_storage_tombstones", "Deleted keys that are remembered", stats.tombstones),
        ("koltso_storage_live_bytes", "Bytes of records that are current", stats.live_bytes),
        ("koltso_storage_dead_bytes", "Bytes of records that wait for compaction", stats.dead_bytes),
        ("koltso_storage_disk_bytes", "Bytes that the segment files occupy", stats.disk_bytes),
        ("koltso_storage_segments", "Segment files", stats.segments),
        (
            "koltso_storage_unreadable_segments",
            "Segment files without an intact header, of which nothing is served",
            stats.unreadable_segments,
        ),
        (
            "koltso_storage_lost_pages",
            "Pages of the log that cannot be read: a file was cut short, or the disk fails",
            stats.lost_pages,
        ),
        ("koltso_storage_disk_full", "1 while writes are refused because the disk is full", stats.disk_full.into()),
        ("koltso_storage_failed", "1 after the disk failed to sync", stats.failed.into()),
        ("koltso_storage_scrub_bytes", "Bytes that the scrub has read in its present round", stats.scrub.bytes),
        ("koltso_storage_scrub_left_bytes", "Bytes that the scrub's round has left", stats.scrub.left_bytes),
        ("koltso_storage_scrub_paused", "1 while the scrub was told to pause", stats.scrub.paused.into()),
        (
            "koltso_storage_scrub_ended_timestamp_milliseconds",
            "When the scrub last ended a round, since the Unix epoch; 0 for never",
            stats.scrub.ended_ms,
        ),
        ("koltso_storage_sync_max_microseconds", "The slowest sync of the log", stats.sync_us_max),
    ];
    for (name, help, value) in gauges {
        gauge(encoder, name, help, value)?;
    }
    let counters = [
        ("koltso_storage_damaged_records", "Damaged records found", stats.damaged_records),
        (
            "koltso_storage_repaired_records",
            "Damaged records that were repaired, overwritten or dropped since",
            stats.repaired_records,
        ),
        (
            "koltso_storage_torn_records",
            "Records that the start skipped because a power loss had kept them from being written whole",
            stats.torn_records,
        ),
        (
            "koltso_storage_scrub_healed",
            "Places that the scrub found damaged on disk and not in memory, and wrote again",
            stats.scrub.healed,
        ),
        (
            "koltso_storage_digest_rounds",
            "Rounds of the check of the digests against the log, over all partitions",
            stats.digests.rounds,
        ),
        (
            "koltso_storage_digest_leaves_corrected",
            "Leaves of the digests that were not what the log says, and were put right",
            stats.digests.corrected,
        ),
        ("koltso_storage_appended_bytes", "Bytes appended to the log", stats.appended_bytes),
        ("koltso_storage_compacted_segments", "Segments given back by compaction", stats.compacted_segments),
        ("koltso_storage_compacted_bytes", "Bytes moved by compaction", stats.compacted_bytes),
        ("koltso_storage_writer_stalls", "Times that a writer had to allocate for itself", stats.stalls),
        ("koltso_storage_io_errors", "Writes refused because the disk answered with an error", stats.io_errors),
        (
            "koltso_storage_resource_errors",
            "Writes refused for want of file descriptors or memory",
            stats.resource_errors,
        ),
        ("koltso_storage_syncs", "Syncs of a log", stats.syncs),
        ("koltso_storage_sync_microseconds", "Time spent in syncs", stats.sync_us_total),
    ];
    for (name, help, value) in counters {
        counter(encoder, name, help, value)?;
    }
    Ok(())
}

impl EncodeMetric for RoundTrips {
    fn encode(&self, mut encoder: prometheus_client::encoding::MetricEncoder<'_>) -> std::fmt::Result {
        let bounds = ROUND_TRIP_BOUNDS.iter().map(|&us| us as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets).collect();
        let count = self.0.buckets.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(self.0.sum_micros as f64 / 1e6, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// A peer's round trips, as a metric.
struct RoundTrips(health::RoundTrips);

/// The name, the help text and the value of a figure that every peer has.
type PeerFigure = (&'static str, &'static str, fn(&Cluster, NodeIndex, &PeerFigures) -> u64);

const PEER_COUNTERS: [PeerFigure; 13] = [
    ("koltso_replica_requests", "Requests sent to a peer", |_, _, peer| peer.requests),
    ("koltso_replica_hedges", "Reads sent to a peer because another one was slow", |_, _, peer| peer.hedges),
    ("koltso_replica_repairs", "Writes sent to a peer because it was stale or damaged", |_, _, peer| peer.repairs),
    ("koltso_replica_circuit_opened", "Times that a peer fell silent", |_, _, peer| peer.opened),
    ("koltso_hints_kept", "Writes that a peer missed", |_, _, peer| peer.hints),
    ("koltso_hints_replayed", "Missed writes that a peer has got since", |cluster, node, _| {
        cluster.hints().map_or(0, |hints| hints.figures(node.at()).replayed)
    }),
    ("koltso_hints_dropped", "Missed writes that were given up: the peer needs repair", |cluster, node, _| {
        cluster.hints().map_or(0, |hints| hints.figures(node.at()).dropped)
    }),
    ("koltso_repair_rounds", "Comparisons with a peer that were completed", |cluster, node, _| {
        cluster.repairs.of(node).rounds
    }),
    ("koltso_repair_differing", "Keys that a comparison with a peer found to differ", |cluster, node, _| {
        cluster.repairs.of(node).differing
    }),
    ("koltso_repair_received_records", "Records that a comparison brought from a peer", |cluster, node, _| {
        cluster.repairs.of(node).records_received
    }),
    ("koltso_repair_sent_records", "Records that a comparison brought to a peer", |cluster, node, _| {
        cluster.repairs.of(node).records_sent
    }),
    ("koltso_repair_received_bytes", "Bytes of the records brought from a peer", |cluster, node, _| {
        cluster.repairs.of(node).bytes_received
    }),
    ("koltso_repair_sent_bytes", "Bytes of the records brought to a peer", |cluster, node, _| {
        cluster.repairs.of(node).bytes_sent
    }),
];

const PEER_GAUGES: [PeerFigure; 11] = [
    ("koltso_replica_up", "1 while all cores are connected to a peer and it answers", |cluster, node, _| {
        u64::from(cluster.peers.state(node) == PeerState::Up)
    }),
    ("koltso_replica_circuit_open", "1 while a peer is silent and only probed", |_, _, peer| peer.open.into()),
    ("koltso_replica_unanswered", "Requests that a peer has not answered yet", |_, _, peer| peer.unanswered),
    ("koltso_replica_latency_microseconds", "Moving average of a peer's round trips", |_, _, peer| peer.latency_us),
    ("koltso_replica_p95_microseconds", "95th percentile of a peer's round trips", |_, _, peer| peer.p95_us),
    ("koltso_hints_pending", "Missed writes that wait for a peer", |cluster, node, _| {
        cluster.hints().map_or(0, |hints| hints.figures(node.at()).pending)
    }),
    ("koltso_hints_bytes", "Bytes of missed writes that wait for a peer", |cluster, node, _| {
        cluster.hints().map_or(0, |hints| hints.figures(node.at()).bytes)
    }),
    ("koltso_hints_needs_repair", "1 after missed writes of a peer were given up", |cluster, node, _| {
        cluster.hints().map_or(0, |hints| hints.figures(node.at()).needs_repair.into())
    }),
    ("koltso_replica_rebuilding", "1 while a peer says that it may lack what it confirmed", |cluster, node, _| {
        u64::from(cluster.repairs.of(node).standing == Some(Standing::Rebuilding))
    }),
    ("koltso_repair_equal_partitions", "Partitions shared with a peer that were equal last", |cluster, node, _| {
        cluster.repairs.of(node).partitions_done
    }),
    ("koltso_repair_shared_partitions", "Partitions shared with a peer", |cluster, node, _| {
        cluster.repairs.of(node).partitions_all
    }),
];

fn encode_cluster(encoder: &mut DescriptorEncoder<'_>, cluster: &Cluster) -> std::fmt::Result {
    let peers: Vec<_> = cluster.peers.nodes().map(|node| (node, cluster.peers.figures(node))).collect();
    let labels = |node| [("peer", cluster.peers.url(node))];
    for (name, help, figure) in PEER_COUNTERS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (node, peer) in &peers {
            ConstCounter::new(figure(cluster, *node, peer)).encode(family.encode_family(&labels(*node))?)?;
        }
    }
    for (name, help, figure) in PEER_GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (node, peer) in &peers {
            let value = i64::try_from(figure(cluster, *node, peer)).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&labels(*node))?)?;
        }
    }
    let (name, help) = ("koltso_replica_clock_skew_milliseconds", "How far a peer's clock is ahead of this node's");
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (node, _) in &peers {
        if let Some(skew) = cluster.peers.skew_ms(*node) {
            ConstGauge::new(skew).encode(family.encode_family(&labels(*node))?)?;
        }
    }
    let unit = Unit::Seconds;
    let (name, help) = ("koltso_replica_round_trip", "Time from a request to a peer's answer");
    let mut family = encoder.encode_descriptor(name, help, Some(&unit), MetricType::Histogram)?;
    for (node, peer) in &peers {
        RoundTrips(peer.round_trips).encode(family.encode_family(&labels(*node))?)?;
    }
    let standing = cluster.standing().map(|standing| standing.standing());
    let rebuilding = u64::from(standing == Some(Standing::Rebuilding));
    gauge(
        encoder,
        "koltso_rebuilding",
        "1 while this node may lack what it confirmed, and answers no reads",
        rebuilding,
    )?;
    let counted = cluster.peers.counters();
    let [requests, bytes_in, bytes_out] = cluster.peers.served_in_all();
    for (name, help, value) in [
        ("koltso_replica_served_requests", "Requests served for peers that coordinate", requests),
        ("koltso_replica_received_bytes", "Bytes received from peers that coordinate", bytes_in),
        ("koltso_replica_sent_bytes", "Bytes sent to peers that coordinate", bytes_out),
        ("koltso_writes_renewed", "Writes done again above a newer version that a replica had", counted.renewed),
        ("koltso_not_enough_replicas", "Operations that too few replicas answered", counted.not_enough),
        ("koltso_reads_after_repair", "Reads that waited until a quorum had the version", counted.repairs_waited_for),
        ("koltso_replica_connections_refused", "Replica connections refused", cluster.peers.refusals()),
    ] {
        counter(encoder, name, help, value)?;
    }
    Ok(())
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape").field("cores", &self.cores.len()).finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.encode_requests(&mut encoder)?;
        self.encode_stalls(&mut encoder)?;
        self.encode_connections(&mut encoder)?;
        self.encode_log(&mut encoder)?;
        if let Some(stats) = &self.storage {
            encode_storage(&mut encoder, stats)?;
        }
        match &self.cluster {
            Some(cluster) => encode_cluster(&mut encoder, cluster),
            None => Ok(()),
        }
    }
}

impl Scrape {
    /// The text of `/metrics`, in the OpenMetrics format.
    pub fn text(self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        if let Err(e) = prometheus_client::encoding::text::encode(&mut text, &registry) {
            let _ = writeln!(text, "# {e}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use koltso_net::server::Event;

    use super::*;
    use crate::counters::{RequestKind, tag};

    #[test]
    fn a_scrape_adds_the_cores_up() {
        let cores = vec![Arc::new(CoreMetrics::default()), Arc::new(CoreMetrics::default())];
        cores[0].finished(tag(RequestKind::Get, 200), Duration::from_micros(60));
        cores[1].finished(tag(RequestKind::Get, 200), Duration::from_micros(400));
        cores[1].finished(tag(RequestKind::Put, 507), Duration::from_secs(60));
        cores[1].event(Event::Overloaded);
        let storage = Some(Stats { records: 5, ..Stats::default() });
        let stalls = Some((2, 1, Duration::from_millis(12)));
        let scrape =
            Scrape { cores, connections: 3, storage, cluster: None, stalls, pages_limit_hit: 7, log_lines: (8, 9) };
        let text = scrape.text();
        for line in [
            "koltso_request_duration_seconds_count{operation=\"get\",status=\"200\"} 2",
            "koltso_request_duration_seconds_bucket{le=\"0.0001\",operation=\"get\",status=\"200\"} 1",
            "koltso_request_duration_seconds_bucket{le=\"+Inf\",operation=\"put\",status=\"507\"} 1",
            "koltso_limits_hit_total{limit=\"in_flight\"} 1",
            "koltso_limits_hit_total{limit=\"pages\"} 7",
            "koltso_connections 3",
            "koltso_core_stalls_total 2",
            "koltso_core_stalls_without_processor_total 1",
            "koltso_core_stall_longest_seconds 0.012",
            "koltso_storage_records 5",
            "koltso_log_lines_lost_total 8",
            "koltso_log_lines_left_out_total 9",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
