//! What is said of a wrong command line: one line with what is wrong, what was probably meant, and
//! the usage of the subcommand.
//!
//! clap finds most of it. What only the command itself can find (a flag that is needed here, a
//! value that is out of range) gets the same end by [`with`]. Tested in `tests/command_line/`.

use std::ffi::OsStr;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Command};

use crate::similar::most_similar;

/// The name by which the program is called in all that it says.
pub const PROGRAM: &str = "koltso";

/// What other programs call a command of this one.
const CALLED_OTHERWISE: [(&str, &str); 14] = [
    ("set", "put"),
    ("store", "put"),
    ("del", "delete"),
    ("rm", "delete"),
    ("remove", "delete"),
    ("list", "scan"),
    ("ls", "scan"),
    ("range", "scan"),
    ("start", "serve"),
    ("run", "serve"),
    ("load", "bench"),
    ("pprof", "profile"),
    ("check", "verify"),
    ("fsck", "verify"),
];

/// `Usage: koltso get [OPTIONS] <KEY> (see koltso get --help)`
fn line(mut command: Command) -> String {
    let name = command.get_bin_name().unwrap_or(PROGRAM).to_owned();
    let usage = command.render_usage().to_string();
    format!("{} (see {name} --help)", usage.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A sentence about the arguments of a command, with its usage.
pub fn with<A: Args>(command: &'static str, sentence: &str) -> String {
    let command = A::augment_args(Command::new(command).bin_name(format!("{PROGRAM} {command}")));
    format!("{sentence}. {}", line(command)).replace("?. ", "? ")
}

/// A sentence about a setting, with the usage if a flag is what is wrong: then it begins with the
/// flag. What is wrong in a variable or in the file names its place, and the command line is right.
pub fn after_a_flag<A: Args>(command: &'static str, sentence: &str) -> String {
    if sentence.starts_with('-') { with::<A>(command, sentence) } else { sentence.to_owned() }
}

/// The first string of what clap adds to an error.
fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(name) => Some(name),
        ContextValue::Strings(names) => names.first().map(String::as_str),
        _ => None,
    }
}

/// What was probably meant, as clap or this file finds it: `; did you mean --listen?`
fn suggestion(error: &clap::Error, program: &Command, called: Option<&Command>) -> Option<String> {
    let kinds = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
    let found = kinds.into_iter().find_map(|kind| context(error, kind));
    let meant = match (context(error, ContextKind::InvalidSubcommand), found) {
        (Some(word), found) => {
            let otherwise = CALLED_OTHERWISE.iter().find(|(other, _)| *other == word).map(|(_, name)| *name);
            otherwise.or(found).or_else(|| most_similar(word, program.get_subcommands().map(Command::get_name)))
        }
        (None, found) => found,
    };
    if let Some(meant) = meant {
        return Some(format!("; did you mean {meant}?"));
    }
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    // clap wants short names to be more alike than this program does.
    let word = context(error, ContextKind::InvalidArg)?.strip_prefix("--")?;
    let meant = most_similar(word, called?.get_arguments().filter_map(clap::Arg::get_long))?;
    Some(format!("; did you mean --{meant}?"))
}

/// What is wrong, without what clap says of usage and help.
fn wrong(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing".to_owned();
    }
    let text = error.to_string();
    // What is wrong is the first paragraph; in it, what is missing has lines of its own.
    let first: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let first = first.join(" ");
    first.strip_prefix("error: ").unwrap_or(&first).to_owned()
}

/// How to give what looks like a flag as a value, where clap says so.
fn escape(error: &clap::Error) -> Option<String> {
    let text = error.to_string();
    let rest = text.lines().find_map(|line| line.trim().strip_prefix("tip: to pass"))?;
    Some(format!("; to pass{rest}."))
}

/// One line for an error of clap's: what is wrong, what was probably meant, and the usage of the
/// subcommand, which `called` names, or of the program.
pub fn explained(error: &clap::Error, mut program: Command, called: &OsStr) -> String {
    program.build();
    let is_command = error.kind() != ErrorKind::InvalidSubcommand;
    let command = program.find_subcommand(called).filter(|_| is_command).cloned();
    let meant = suggestion(error, &program, command.as_ref());
    let meant = meant.or_else(|| escape(error)).unwrap_or_else(|| ".".to_owned());
    format!("{}{meant} {}", wrong(error), line(command.unwrap_or(program)))
}
