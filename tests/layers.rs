//! The modules of the program import each other in one direction: each only modules of the layers
//! before its own in [`LAYERS`]. The files of each folder do so, too; its `mod.rs`, which lists and
//! joins them, is left out.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use koltso_testkit::layers;

/// From the bottom up. Modules of the same layer do not import each other.
const LAYERS: [&[&str]; 9] = [
    &["descriptors", "logging", "signals", "similar", "units"],
    &["settings", "usage"],
    &["counters", "stalls"],
    &["replica"],
    &["member"],
    &["node"],
    &["admin", "front"],
    &["commands"],
    &["main"],
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn each_module_imports_only_layers_below_its_own() {
    let modules = layers::modules(&source(), "crate::");
    assert!(modules["commands"].contains("node") && modules["settings"].contains("units"), "{modules:?}");
    let mut below = BTreeSet::new();
    let mut wrong = BTreeMap::new();
    for layer in LAYERS {
        for &name in layer {
            let imports = modules.get(name).unwrap_or_else(|| panic!("{name} is not in src: was it moved?"));
            let others: Vec<_> = imports.iter().filter(|import| !below.contains(*import)).collect();
            if !others.is_empty() {
                wrong.insert(name, others);
            }
        }
        below.extend(layer.iter().map(|&name| name.to_owned()));
    }
    assert!(wrong.is_empty(), "these import modules that are not in a layer below: {wrong:#?}");
    let unlisted: Vec<_> = modules.keys().filter(|name| !below.contains(*name)).collect();
    assert!(unlisted.is_empty(), "in no layer: {unlisted:?}");
}

#[test]
fn no_file_of_a_folder_imports_itself_by_way_of_others() {
    for (folder, above, below) in [
        ("logging", "writer", "queue"),
        ("settings", "check", "table"),
        ("member", "replica", "peers"),
        ("admin", "control", "pprof"),
        ("admin/pprof", "captures", "request"),
        ("front/http", "range", "request"),
        ("commands", "local", "serve"),
        ("commands/bench", "event_loop", "tally"),
        ("commands/client", "scan", "show"),
        ("commands/profile", "files", "output"),
        ("commands/status", "table", "overview"),
    ] {
        let place = source().join(folder);
        let mut modules = layers::modules(&place, "super::");
        for (name, imports) in layers::modules(&place, &format!("crate::{}::", folder.replace('/', "::"))) {
            modules.get_mut(&name).unwrap().extend(imports);
        }
        assert!(modules[above].contains(below), "{folder}: {modules:?}");
        let circles = layers::circles(modules);
        assert!(circles.is_empty(), "{folder}, in a circle, or above one: {circles:#?}");
    }
}
