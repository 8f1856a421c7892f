//! Ends `cargo test --workspace` with the tests that could not run on this machine: see
//! `koltso_testkit::skip`.
//!
//! It is no test itself, so it has no harness, and it is last because Cargo runs the packages by
//! their names and this one has the last. The libraries' `doctest = false` keeps their empty lists
//! of examples from coming after it.

use std::io::Write;

fn main() {
    // Tools that list tests before they run them are told that there is none.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let text = koltso_testkit::skip::summary();
    let _ = std::io::stderr().write_all(format!("\n{text}\n").as_bytes());
}
