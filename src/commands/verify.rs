//! `koltso verify DIR`: whether a data folder is what was written, while no node uses it.
//!
//! It reads everything and changes nothing. Exit codes: 0 if the folder is whole, 1 if something in it
//! is damaged, which is listed, 2 if it cannot be verified: it is in use, none of ours, or newer than
//! this build.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use koltso_storage::{Flaw, RealEnv, Verified, verify};
use serde_json::json;

use crate::logging;
use crate::member::{members_file, standing};
use crate::replica::clock;

/// A data folder, and how to say what is in it.
#[derive(Args)]
#[command(
    after_help = "Exit code 0: the folder is whole; 1: something in it is damaged; 2: it cannot be verified, with one \
                        sentence."
)]
pub struct Verify {
    /// The data folder of a node that does not run
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// One JSON object instead of lines for people
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Verifies the folder and says what was found.
    pub fn run(&self) -> ExitCode {
        let mut found = match verify(&RealEnv, &self.folder) {
            Ok(found) => found,
            Err(e) => {
                logging::complain(&e.to_string());
                return ExitCode::from(2);
            }
        };
        look_at_the_node(&self.folder, &mut found);
        let text = if self.json { in_json(&self.folder, &found) } else { for_people(&self.folder, &found) };
        if let Err(e) = io::stdout().write_all(text.as_bytes()) {
            logging::complain(&format!("what was found cannot be printed: {e}"));
            return ExitCode::from(2);
        }
        if found.flaw_count == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }
}

/// What the program keeps in the folder beside the engine.
fn look_at_the_node(folder: &Path, found: &mut Verified) {
    for file in members_file::unusable(folder) {
        found.note(file, None, "it is damaged or cannot be read");
    }
    if standing::is_unusable(folder) {
        found.note(standing::FILE, None, "it is damaged or cannot be read");
    }
    if folder.join(clock::FILE).exists() && !clock::left_in(folder).is_ok_and(|left| left.is_some()) {
        found.note(clock::FILE, None, "it is damaged or cannot be read");
    }
}

fn place_of(flaw: &Flaw) -> String {
    flaw.offset.map_or_else(|| flaw.file.clone(), |offset| format!("{}, offset {offset}", flaw.file))
}

fn for_people(folder: &Path, found: &Verified) -> String {
    let lines = found.flaws.iter().map(|flaw| format!("{}: {}\n", place_of(flaw), flaw.what));
    let mut text: String = lines.collect();
    let left = found.flaw_count - found.flaws.len() as u64;
    if left > 0 {
        text.push_str(&format!("and {left} more\n"));
    }
    let verdict = match found.flaw_count {
        0 => "whole".to_owned(),
        1 => "damaged in 1 place".to_owned(),
        count => format!("damaged in {count} places"),
    };
    text.push_str(&format!(
        "{}: {verdict}; {} records in {} segments ({} sealed), {} bytes\n",
        folder.display(),
        found.records,
        found.segments,
        found.sealed,
        found.bytes
    ));
    if found.torn_bytes > 0 {
        text.push_str(&format!(
            "{} bytes are of records that were being written when the node ended; a start skips them\n",
            found.torn_bytes
        ));
    }
    text
}

fn in_json(folder: &Path, found: &Verified) -> String {
    let flaws = found.flaws.iter().map(|flaw| json!({"file": flaw.file, "offset": flaw.offset, "what": flaw.what}));
    let object = json!({
        "folder": folder.display().to_string(),
        "whole": found.flaw_count == 0,
        "segments": found.segments,
        "sealed": found.sealed,
        "records": found.records,
        "bytes": found.bytes,
        "torn_bytes": found.torn_bytes,
        "flaw_count": found.flaw_count,
        "flaws": flaws.collect::<Vec<_>>(),
    });
    format!("{object}\n")
}
