//! The order of a folder's modules: whether they import each other in one direction.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules that a source text names after `prefix`.
fn imports(source: &str, prefix: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let code: String = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut found = BTreeSet::new();
    for after in code.split(prefix).skip(1) {
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

/// The source text of a module, which is a file or a folder of files, without its tests.
fn source(module: &Path) -> String {
    if module.is_file() {
        return without_tests(&fs::read_to_string(module).unwrap()).to_owned();
    }
    let parts = fs::read_dir(module).unwrap().map(|entry| entry.unwrap().path());
    parts.filter(|part| !name(part).ends_with("tests")).map(|part| source(&part)).collect()
}

fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]\nmod tests").next().unwrap()
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The modules in `folder`, each with those of them that it imports by `prefix` (`crate::` or
/// `super::`). `lib.rs` and `mod.rs`, which list the others, and tests are left out.
pub fn modules(folder: &Path, prefix: &str) -> BTreeMap<String, BTreeSet<String>> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_module = |name: &str| !["lib", "mod"].contains(&name) && !name.ends_with("tests");
    let paths: Vec<_> = paths.filter(|path| is_module(&name(path))).collect();
    let listed = paths.iter().map(|path| name(path)).collect();
    let mut found: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for path in paths {
        // (A module may be a file and a folder.)
        found.entry(name(&path)).or_default().extend(imports(&source(&path), prefix, &listed));
    }
    for (module, imports) in &mut found {
        imports.remove(module);
    }
    found
}

/// The modules that stand in a circle or above one: none where all import in one direction.
pub fn circles(mut modules: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    // Whoever imports nothing that is left stands at the bottom; in a circle nobody does.
    while let Some(lowest) = modules.iter().find(|(_, imports)| imports.is_empty()).map(|(name, _)| name.clone()) {
        modules.remove(&lowest);
        for imports in modules.values_mut() {
            imports.remove(&lowest);
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(imports: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        imports.iter().map(|(name, names)| ((*name).to_owned(), of(names))).collect()
    }

    #[test]
    fn a_circle_is_found_with_those_above_it() {
        assert!(circles(order(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
        let found = circles(order(&[("a", &["b"]), ("b", &["c"]), ("c", &["b", "d"]), ("d", &[])]));
        assert_eq!(found, order(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]));
    }

    #[test]
    fn imports_are_names_behind_the_prefix() {
        let known = ["a", "b", "c", "d"].map(str::to_owned).into();
        let source = "//! super::d\nuse super::a::{X, Y};\nuse super::{b::Z, Shared,\n    c};\n\
            #[cfg(test)]\nmod tests {\n    use super::d;\n}";
        assert_eq!(imports(without_tests(source), "super::", &known), ["a", "b", "c"].map(str::to_owned).into());
    }
}
