//! Koltso: a distributed key-value storage server. This file is the command line;
//! `docs/ARCHITECTURE.md` is the map.

// In a binary, `pub` means "for the other modules".
#![allow(unreachable_pub)]

mod admin;
mod commands;
mod counters;
mod descriptors;
mod front;
mod logging;
mod member;
mod node;
mod replica;
mod settings;
mod signals;
mod similar;
mod stalls;
mod units;
mod usage;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use koltso_profiling::alloc::Sampling;

use crate::commands::{bench, client, local, profile, serve, status, verify};

#[global_allocator]
static ALLOCATOR: Sampling<mimalloc::MiMalloc> = Sampling::new(mimalloc::MiMalloc);

/// A distributed key-value storage server for Linux.
#[derive(Parser)]
#[command(name = usage::PROGRAM, version, about)]
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
    /// Shows the nodes of a cluster, and whether it is whole
    Status(status::Status),
    /// Reads all of a data folder, while no node uses it, and says whether it is whole
    Verify(verify::Verify),
}

/// A wrong flag is one line and exit code 2. Help and version are not errors.
fn explain(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let called = std::env::args_os().nth(1).unwrap_or_default();
    logging::complain(&usage::explained(error, Cli::command(), &called));
    ExitCode::from(2)
}

fn main() -> ExitCode {
    // Before a core is pinned: captures run on any processor.
    koltso_profiling::engine::remember_processors();
    logging::begin();
    // Files and sockets are what a server and a load generator have many of.
    descriptors::raise();
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
            Command::Status(status) => status.run(),
            Command::Verify(verify) => verify.run(),
        },
    };
    logging::end();
    code
}
