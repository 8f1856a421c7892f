//! The modules of the engine import each other in one direction. `lib.rs` only lists and exports
//! them.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use koltso_testkit::layers;

#[test]
fn no_module_imports_itself_by_way_of_others() {
    let modules = layers::modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "crate::");
    assert!(modules["store"].contains("parts") && modules["parts"].contains("segments"), "{modules:?}");
    let circles = layers::circles(modules);
    assert!(circles.is_empty(), "in a circle, or above one: {circles:#?}");
}
