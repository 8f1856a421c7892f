//! `/status`: one JSON document for people and scripts.

use serde_json::json;

use crate::config::sync_text;
use crate::node::{Node, Runtime};
use crate::units::{Size, Span};

/// The document, indented for people.
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
            "segments": stats.segments,
            "damaged_records": stats.damaged_records,
            "appended_bytes": stats.appended_bytes,
            "compacted_segments": stats.compacted_segments,
            "compacted_bytes": stats.compacted_bytes,
            "syncs": stats.syncs,
            "sync_max_us": stats.sync_us_max,
            "disk_full": stats.disk_full,
            "failed": stats.failed,
        })
    });
    let ring_flags = match node.runtime {
        Runtime::IoUring(flags) => Some(flags),
        Runtime::Epoll => None,
    };
    // In a cluster, the name that the others have for it.
    let url = cluster.map_or_else(|| format!("http://{}", config.listen), |c| c.nodes[c.me].url.clone());
    let document = json!({
        "node": url,
        "version": env!("CARGO_PKG_VERSION"),
        "state": node.state(),
        "runtime": node.runtime.name(),
        "ring_flags": ring_flags,
        "connections": node.connections.connections(),
        "storage": storage,
        "config": {
            "listen": config.listen.to_string(),
            "data": config.data.display().to_string(),
            "threads": config.threads,
            "sync": sync_text(config.sync),
            "max_value": Size(config.max_value as u64).to_string(),
            "max_connections": config.max_connections,
            "request_timeout": Span(config.request_timeout).to_string(),
            "idle_timeout": Span(config.idle_timeout).to_string(),
            "max_in_flight": config.max_in_flight,
            "max_in_flight_bytes": Size(config.max_in_flight_bytes as u64).to_string(),
            "admin_listen": config.admin_listen.map(|address| address.to_string()),
            "admin_token": config.admin_token.is_some(),
            "compaction_rate": Size(config.compaction_rate).to_string(),
            "no_pin": config.no_pin,
            // Null on a node that is alone.
            "cluster": cluster.map(|c| c.nodes.iter().map(|node| &node.url).collect::<Vec<_>>()),
            "cluster_name": cluster.map(|c| &c.name),
            "cluster_secret": cluster.map(|c| !c.secret.is_empty()),
            "replica_addresses": cluster.map(|c| c.nodes.iter().map(|node| node.replica).collect::<Vec<_>>()),
            "replica_listen": cluster.map(|c| c.replica_listen),
            "replica_timeout": cluster.map(|c| Span(c.replica_timeout).to_string()),
            "tombstone_grace": cluster.map(|c| Span(c.tombstone_grace).to_string()),
        },
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}
