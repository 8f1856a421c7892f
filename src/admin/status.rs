//! `/status`: one JSON document for people and scripts.

use koltso_storage::{Env as _, RealEnv, ScrubStats};
use serde_json::json;

use crate::logging;
use crate::member::{Cluster, RepairFigures, standing_name};
use crate::node::{Node, Runtime};
use crate::replica::clock::jump_ms;
use crate::settings::{in_force, off_or_text};

/// What comparing with a peer has come to.
fn repair(figures: &RepairFigures) -> serde_json::Value {
    json!({
        "partitions_done": figures.partitions_done,
        "partitions_all": figures.partitions_all,
        "rounds": figures.rounds,
        "differing": figures.differing,
        "records_received": figures.records_received,
        "records_sent": figures.records_sent,
        "bytes_received": figures.bytes_received,
        "bytes_sent": figures.bytes_sent,
        // How long ago; null if a comparison has not found everything equal yet.
        "last_equal_ms": figures.last_equal.map(|when| when.elapsed().as_millis() as u64),
        "error": figures.error,
    })
}

/// The nodes of the cluster, as this node sees them.
fn members(cluster: &Cluster) -> serde_json::Value {
    let peers = cluster.peers.nodes().map(|node| {
        let peer = cluster.peers.figures(node);
        let hints = cluster.hints().map(|hints| hints.figures(node.at()));
        let hints = hints.unwrap_or_default();
        let compared = cluster.repairs.of(node).clone();
        json!({
            "node": cluster.peers.url(node),
            "state": cluster.peers.state(node).name(),
            "circuit": if peer.open { "open" } else { "closed" },
            "refused": cluster.peers.trouble(node),
            "clock_skew_ms": cluster.peers.skew_ms(node),
            "latency_us": peer.latency_us,
            "p95_us": peer.p95_us,
            "unanswered": peer.unanswered,
            "requests": peer.requests,
            "hedges": peer.hedges,
            "repairs": peer.repairs,
            "circuit_opened": peer.opened,
            "hints_pending": hints.pending,
            "hints_bytes": hints.bytes,
            "hints_replayed": hints.replayed,
            "hints_dropped": hints.dropped,
            "hints_error": hints.last_error,
            "needs_repair": hints.needs_repair,
            // As it said last; null until it has.
            "standing": compared.standing.map(standing_name),
            "repair": repair(&compared),
        })
    });
    let counted = cluster.peers.counters();
    let (partitions_done, partitions_all) = cluster.repairs.progress();
    json!({
        "name": cluster.config.name,
        "nodes": cluster.config.nodes.iter().map(|node| &node.url).collect::<Vec<_>>(),
        "number": cluster.number(),
        "epoch": cluster.membership.epoch(),
        "peers": peers.collect::<Vec<_>>(),
        // Since when this node is rebuilding; null unless it is.
        "rebuilding_since_ms": cluster.standing().map(|standing| standing.since_ms()).filter(|&since| since > 0),
        // What it waits for, where that is more than time; null otherwise.
        "rebuilding_misses": cluster.missing().map(|missing| missing.sentence),
        // With all whole peers together.
        "repair": { "partitions_done": partitions_done, "partitions_all": partitions_all },
        "refused": cluster.peers.refusal(),
        "not_enough_replicas": counted.not_enough,
        "writes_renewed": counted.renewed,
        "reads_after_repair": counted.repairs_waited_for,
    })
}

/// What the scrub does, in a word.
const fn scrub_state(scrub: &ScrubStats, is_on: bool) -> &'static str {
    match scrub {
        ScrubStats { paused: true, .. } => "paused",
        ScrubStats { hurry: true, .. } => "hurrying",
        _ if is_on => "running",
        _ => "off",
    }
}

/// The document, indented so that people can read it.
pub fn document(node: &Node) -> String {
    let config = &node.config;
    let cluster = config.cluster.as_ref();
    let storage = node.store().map(|store| {
        let stats = store.stats();
        json!({
            "records": stats.records,
            "tombstones": stats.tombstones,
            "live_bytes": stats.live_bytes,
            "dead_bytes": stats.dead_bytes,
            "disk_bytes": stats.disk_bytes,
            // What the file system of the data folder has left; null if it does not say.
            "disk_free_bytes": RealEnv.space(&config.data).ok().map(|space| space.free),
            "segments": stats.segments,
            "damaged_records": stats.damaged_records,
            "repaired_records": stats.repaired_records,
            "unreadable_segments": stats.unreadable_segments,
            "lost_pages": stats.lost_pages,
            "torn_records": stats.torn_records,
            // Times in ms since the Unix epoch, 0 for never.
            "scrub": {
                "state": scrub_state(&stats.scrub, config.scrub_interval.is_some()),
                "began_ms": stats.scrub.began_ms,
                "bytes": stats.scrub.bytes,
                "left_bytes": stats.scrub.left_bytes,
                "last_ended_ms": stats.scrub.ended_ms,
                "healed": stats.scrub.healed,
            },
            // The check of the digests against the log.
            "digests": {
                "rounds": stats.digests.rounds,
                "last_ended_ms": stats.digests.last_ended_ms,
                "corrected": stats.digests.corrected,
            },
            "appended_bytes": stats.appended_bytes,
            "compacted_segments": stats.compacted_segments,
            "compacted_bytes": stats.compacted_bytes,
            "syncs": stats.syncs,
            "sync_max_us": stats.sync_us_max,
            "disk_full": stats.disk_full,
            "io_errors": stats.io_errors,
            "resource_errors": stats.resource_errors,
            "failed": stats.failed,
        })
    });
    let ring_flags = match node.runtime {
        Runtime::IoUring(flags) => Some(flags),
        Runtime::Epoll => None,
    };
    // In a cluster, this is the name by which the other nodes know this one.
    let url = cluster.map_or_else(|| format!("http://{}", config.listen), |c| c.nodes[c.me].url.clone());
    let stalls = node.stalls.as_ref().map(|stalls| {
        json!({
            "count": stalls.count(),
            "without_processor": stalls.kept_waiting(),
            "bound": off_or_text(config.stall_bound),
            "longest_ms": stalls.longest().as_micros() as f64 / 1000.0,
        })
    });
    let document = json!({
        "node": url,
        "id": node.id.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "state": node.state(),
        // New, whole or rebuilding; null until the store is open.
        "standing": node.standing().map(standing_name),
        "runtime": node.runtime.name(),
        "ring_flags": ring_flags,
        "connections": node.connections.connections(),
        // How far the machine's wall clock is ahead of the time that the node goes by; 0 unless it has
        // jumped.
        "clock_jump_ms": jump_ms(),
        // Null when stall detection is off (`--stall-bound 0`).
        "stalls": stalls,
        "log": { "lines_lost": logging::lines_lost(), "lines_left_out": logging::lines_left_out() },
        "storage": storage,
        "cluster": node.cluster.as_deref().map(members),
        "config": in_force(config),
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}
