//! Tests that cannot run on this machine, and how everybody sees that.
//!
//! [`skip`] says at once on standard error, past the test harness's capture, what is missing and
//! what would make the test run, and records it. `cargo test --workspace` runs
//! `tests/what_was_skipped.rs` of this crate after all other tests, and that prints [`summary`]:
//! how many tests were skipped in whole or in part, which, and what would make them run.
//!
//! The records of one run are the files of one folder. Its name is the id and start time of the
//! process that started the test programs (Cargo), so that runs at the same time keep apart and an
//! earlier one is never counted; folders of runs that are over are removed. It is below the target
//! folder, which every test program finds by the tag that Cargo leaves there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// What would make a skipped test run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// A Debian package of this name.
    Package(&'static str),
    /// The rights of root; in a container also those that it was started without, such as
    /// `CAP_SYS_ADMIN`.
    Root,
    /// Something else that the machine must have, as the object of "needs".
    Machine(&'static str),
}

impl Remedy {
    fn text(self) -> String {
        match self {
            Remedy::Package(name) => format!("the Debian package {name}"),
            Remedy::Root => "root, with all capabilities".to_owned(),
            Remedy::Machine(what) => what.to_owned(),
        }
    }
}

/// Records that the running test, or a part of it, does not run here because of `lack` (`there is
/// no go`).
///
/// The test's name is that of the thread, which the harness has set; on another thread it is the
/// place of the call.
#[track_caller]
pub fn skip(lack: impl Display, remedy: Remedy) {
    let thread = std::thread::current();
    let test = match thread.name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => Location::caller().to_string(),
    };
    let record = Record { program: program(), test, lack: one_line(&lack.to_string()), remedy: remedy.text() };
    // Not `eprintln`, which the harness keeps to itself when the test passes.
    let line = format!("skipped: {} {}: {}; it needs {}\n", record.program, record.test, record.lack, record.remedy);
    let _ = std::io::stderr().write_all(line.as_bytes());
    record.write(&run_folder());
}

/// The path of a program; `None`, recorded by [`skip`], where the machine has none.
#[track_caller]
pub fn tool(name: &str, package: &'static str) -> Option<PathBuf> {
    let found = which(name);
    if found.is_none() {
        skip(format!("there is no {name}"), Remedy::Package(package));
    }
    found
}

/// The first executable file of this name in `PATH`.
pub fn which(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_program =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(is_program)
}

/// What this run of `cargo test` has skipped so far, as lines for its end. Forgets it.
pub fn summary() -> String {
    let folder = run_folder();
    let text = summary_of(&Record::all(&folder));
    let _ = fs::remove_dir_all(&folder);
    text
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    program: String,
    test: String,
    lack: String,
    remedy: String,
}

impl Record {
    fn write(&self, folder: &Path) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        forget_what_is_over(folder);
        fs::create_dir_all(folder).unwrap();
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let text = [&self.program, &self.test, &self.lack, &self.remedy].map(String::as_str).join("\n");
        fs::write(folder.join(name), text).unwrap();
    }

    fn all(folder: &Path) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let read = |entry: std::io::Result<fs::DirEntry>| {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let mut lines = text.lines().map(str::to_owned);
            let mut line = || lines.next().unwrap_or_default();
            Record { program: line(), test: line(), lack: line(), remedy: line() }
        };
        entries.map(read).collect()
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn summary_of(records: &[Record]) -> String {
    let tests: BTreeSet<(&str, &str)> = records.iter().map(|of| (of.program.as_str(), of.test.as_str())).collect();
    if tests.is_empty() {
        return "No test of this run was skipped.\n".to_owned();
    }
    let mut remedies: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for record in records {
        remedies.entry(&record.remedy).or_default().insert((&record.program, &record.test));
    }
    let plural = if tests.len() == 1 { "test" } else { "tests" };
    let mut text = format!("{} {plural} did not run on this machine, or not all of it:\n", tests.len());
    for (remedy, tests) in &remedies {
        text.push_str(&format!("  {} would run with {remedy}:\n", tests.len()));
        for (program, test) in tests {
            text.push_str(&format!("    {program} {test}\n"));
        }
    }
    text
}

/// The package and the test program, `koltso/durability`.
fn program() -> String {
    let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
    let path = std::env::current_exe().unwrap();
    let file = path.file_stem().unwrap_or_default().to_string_lossy();
    // Cargo appends a hash.
    let target = file.rsplit_once('-').map_or(&*file, |(target, _)| target);
    format!("{package}/{target}")
}

fn run_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    let base = target.map_or_else(std::env::temp_dir, |target| target.join("tmp"));
    base.join("koltso-skipped").join(run())
}

/// The nearest process above this one that is Cargo, whatever runner is between; the parent where
/// there is none.
fn run() -> String {
    let parent = std::os::unix::process::parent_id();
    let mut pid = parent;
    while pid > 1 {
        let Some(process) = Process::read(pid) else { break };
        if process.name.starts_with("cargo") {
            return process.run;
        }
        pid = process.parent;
    }
    Process::read(parent).map_or_else(|| parent.to_string(), |process| process.run)
}

struct Process {
    name: String,
    parent: u32,
    /// Its id and its start time, which together no other process ever has.
    run: String,
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (before, after) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = after.split(' ').collect();
        Some(Process {
            name: before.split_once('(')?.1.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            run: format!("{pid}-{}", fields.get(19)?),
        })
    }
}

/// Removes the folders of other runs whose process is gone.
fn forget_what_is_over(folder: &Path) {
    let Some(Ok(runs)) = folder.parent().map(fs::read_dir) else { return };
    for path in runs.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pid = name.split('-').next().and_then(|pid| pid.parse().ok());
        let lives = pid.and_then(Process::read).is_some_and(|process| process.run == name);
        if path != folder && !lives {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(test: &str, remedy: Remedy) -> Record {
        Record { program: "koltso/x".into(), test: test.into(), lack: "there is no x".into(), remedy: remedy.text() }
    }

    #[test]
    fn what_was_recorded_is_counted_by_tests_and_named_by_remedies() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join(run());
        assert_eq!(summary_of(&Record::all(&run)), "No test of this run was skipped.\n");
        let records = [
            record("a", Remedy::Root),
            record("a", Remedy::Root),
            record("a", Remedy::Package("golang-go")),
            record("b", Remedy::Root),
        ];
        for record in &records {
            record.write(&run);
        }
        assert_eq!(
            summary_of(&Record::all(&run)),
            "2 tests did not run on this machine, or not all of it:\n  \
             2 would run with root, with all capabilities:\n    koltso/x a\n    koltso/x b\n  \
             1 would run with the Debian package golang-go:\n    koltso/x a\n"
        );
    }

    #[test]
    fn runs_that_are_over_are_forgotten_and_others_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mine = folder.path().join(run());
        let other = folder.path().join(Process::read(std::process::id()).unwrap().run);
        let over = [folder.path().join(format!("{}-1", std::process::id())), folder.path().join("0-0")];
        for path in over.iter().chain([&other]) {
            fs::create_dir(path).unwrap();
        }
        record("a", Remedy::Root).write(&mine);
        assert!(other.exists() && Record::all(&mine).len() == 1);
        assert!(!over[0].exists() && !over[1].exists());
    }

    #[test]
    fn a_run_is_the_same_for_all_its_programs() {
        let (parent, name) = (std::os::unix::process::parent_id(), run());
        assert_eq!(name, run());
        assert!(name.split('-').all(|part| part.parse::<u64>().is_ok()), "{name}, whose parent is {parent}");
        assert!(program().ends_with("/koltso_testkit"), "{}", program());
    }

    #[test]
    fn tools_are_found_or_not() {
        assert!(which("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(which("no-program-has-this-name"), None);
    }
}
