//! The modules of the engine import each other in one direction. `lib.rs` only lists and exports
//! them.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules of this crate that a source text names after `crate::`, its own tests aside.
fn imports(source: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        // One name, or several in braces.
        let names = match after.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap(),
            None => after.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap(),
        };
        let first = |name: &str| name.trim().split("::").next().unwrap().to_owned();
        found.extend(names.split(',').map(first).filter(|name| modules.contains(name)));
    }
    found
}

#[test]
fn no_module_imports_itself_by_way_of_others() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let modules: BTreeSet<String> = paths.iter().map(|path| name(path)).filter(|name| name != "lib").collect();
    let mut left: BTreeMap<String, BTreeSet<String>> = paths
        .iter()
        .filter(|path| modules.contains(&name(path)))
        .map(|path| (name(path), imports(&fs::read_to_string(path).unwrap(), &modules)))
        .collect();
    assert!(left["store"].contains("parts") && left["parts"].contains("segments"), "{left:?}");
    for (module, imports) in &mut left {
        imports.remove(module);
    }
    // Whoever imports nothing that is left stands at the bottom; in a circle nobody does.
    while let Some(lowest) = left.iter().find(|(_, imports)| imports.is_empty()).map(|(name, _)| name.clone()) {
        left.remove(&lowest);
        for imports in left.values_mut() {
            imports.remove(&lowest);
        }
    }
    assert!(left.is_empty(), "in a circle, or above one: {left:#?}");
}
