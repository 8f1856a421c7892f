//! Koltso: a distributed key-value storage server. This file is the command line;
//! `docs/ARCHITECTURE.md` is the map.

// In a binary, `pub` means "for the other modules".
#![allow(unreachable_pub)]

mod admin;
mod commands;
mod counters;
mod front;
mod logging;
mod member;
mod node;
mod replica;
mod settings;
mod stalls;
mod units;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use koltso_profiling::alloc::Sampling;

use crate::commands::{bench, client, local, profile, serve};

#[global_allocator]
static ALLOCATOR: Sampling<mimalloc::MiMalloc> = Sampling::new(mimalloc::MiMalloc);

/// A distributed key-value storage server for Linux.
#[derive(Parser)]
#[command(name = "koltso", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the HTTP API from a data folder
    Serve(settings::Flags),
    /// Serves a whole cluster on this machine, each node a process of its own with its data in
    /// DIR/node-1, DIR/node-2, …
    Local(local::Local),
    /// Loads servers at a constant rate and reports latencies in the layout of wrk2
    Bench(bench::Bench),
    /// Prints the value of a key; exit code 1 if there is none
    Get(client::Get),
    /// Stores a value under a key
    Put(client::Put),
    /// Deletes a key
    Delete(client::Delete),
    /// Lists the records of a range of keys, on the node that is asked
    Scan(client::Scan),
    /// Captures a profile of a running node, or shows one that was saved
    Profile(profile::Profile),
}

/// The usage of the subcommand that was called, or of the program
/// (`Usage: koltso serve [OPTIONS]`), and how to ask for more.
fn usage() -> (String, String) {
    let mut program = Cli::command();
    program.build();
    let called = std::env::args_os().nth(1).unwrap_or_default();
    let command = match program.find_subcommand(&called).map(|found| found.get_name().to_owned()) {
        Some(name) => program.find_subcommand_mut(name),
        None => None,
    };
    let (usage, name) = match command {
        Some(command) => (command.render_usage(), command.get_bin_name().unwrap_or("koltso").to_owned()),
        None => (program.render_usage(), "koltso".to_owned()),
    };
    let usage = usage.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    (usage, format!("{name} --help"))
}

/// What clap thinks was meant: `; did you mean --listen?`
fn suggestion(error: &clap::Error) -> Option<String> {
    let kinds = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
    let meant = kinds.into_iter().find_map(|kind| match error.get(kind)? {
        ContextValue::String(name) => Some(name),
        ContextValue::Strings(names) => names.first(),
        _ => None,
    })?;
    Some(format!("; did you mean {meant}?"))
}

/// A wrong flag is one line and exit code 2: what is wrong, what was probably meant, and the usage.
/// Help and version are not errors.
fn explain(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    // What is wrong is the first paragraph; in it, what is missing has lines of its own.
    let wrong: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let wrong = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing".to_owned(),
        _ => wrong.join(" "),
    };
    let wrong = wrong.strip_prefix("error: ").unwrap_or(&wrong);
    let (usage, help) = usage();
    let meant = suggestion(error).unwrap_or_else(|| ".".to_owned());
    logging::complain(&format!("{wrong}{meant} {usage} (see {help})"));
    ExitCode::from(2)
}

fn main() -> ExitCode {
    // Before a core is pinned: captures run on any processor.
    koltso_profiling::engine::remember_processors();
    logging::begin();
    let code = match Cli::try_parse() {
        Err(error) => explain(&error),
        Ok(Cli { command }) => match command {
            Command::Serve(flags) => serve::run(flags),
            Command::Local(local) => local::run(local),
            Command::Bench(bench) => bench::run(bench),
            Command::Get(get) => client::run(|| get.run()),
            Command::Put(put) => client::run(|| put.run()),
            Command::Delete(delete) => client::run(|| delete.run()),
            Command::Scan(scan) => client::run(|| scan.run()),
            Command::Profile(profile) => client::run(|| profile.run()),
        },
    };
    logging::end();
    code
}
