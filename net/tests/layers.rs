//! The modules of each part import each other in one direction. `mod.rs` only lists and exports
//! them, and joins them.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use koltso_testkit::layers;

#[test]
fn no_module_imports_itself_by_way_of_others() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (part, above, below) in [
        ("server", "task", "connection"),
        ("server", "body", "calls"),
        ("replica", "server", "wire"),
        ("http", "reply", "date"),
    ] {
        let modules = layers::modules(&source.join(part), "super::");
        assert!(modules[above].contains(below), "{part}: {modules:?}");
        let circles = layers::circles(modules);
        assert!(circles.is_empty(), "{part}, in a circle, or above one: {circles:#?}");
    }
    let modules = layers::modules(&source, "crate::");
    assert!(modules["server"].contains("transport"), "{modules:?}");
    let circles = layers::circles(modules);
    assert!(circles.is_empty(), "in a circle, or above one: {circles:#?}");
}
