//! `koltso status`: how a cluster is, for a person: a line a node, and one that says in words
//! whether all is well and what to do if not.
//!
//! - `ask.rs`: asks all nodes for their `/status`, at once.
//! - `overview.rs`: what follows from their answers. `table.rs`: that as text and as JSON.
//!
//! Exit codes: 0 the cluster is whole, 1 it is not, 2 nobody answered (with one sentence) or the
//! arguments are wrong. With `--watch` it goes on until it is ended. Tested in the files and in
//! `tests/status_command.rs`.

mod ask;
mod overview;
mod table;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use self::ask::Asker;
use crate::commands::http_client::Server;
use crate::logging;
use crate::settings::read_token;
use crate::units::Span;

/// Between two looks of `--watch`.
const EVERY: Duration = Duration::from_secs(1);
/// To the upper left corner of a terminal, and what is below and right of it away.
const REDRAW: &str = "\x1b[H\x1b[J";

/// `koltso status`
#[derive(Args)]
#[command(
    after_help = "Exit code 0: the cluster is whole; 1: it is not, and the last line says what to do; 2: nobody \
answered, or the arguments are wrong."
)]
pub struct Status {
    /// A node, which knows the others; can be given several times. Where nodes have a listener of
    /// their own for this (--admin-listen), those of all of them
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:1337", value_parser = server)]
    url: Vec<Server>,
    /// Look again every second, until it is ended
    #[arg(long)]
    watch: bool,
    /// Print one JSON document (with --watch, one a line)
    #[arg(long)]
    json: bool,
    /// A file with the token of the nodes (their --admin-token-file)
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for the answer of a node
    #[arg(long, value_name = "DURATION", default_value = "3s")]
    timeout: Span,
}

fn server(url: &str) -> Result<Server, String> {
    Server::of(url).map_err(|refusal| format!("it {refusal}"))
}

/// Whether there is still somebody who reads what is printed.
fn print(text: &str) -> Result<bool, String> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("standard output: {error}")),
    }
}

impl Status {
    /// Shows the cluster.
    pub fn run(self) -> ExitCode {
        let shown = self.token().and_then(|token| {
            let asker = Asker { given: self.url.clone(), token, within: self.timeout.0 };
            if self.watch { self.watch(&asker) } else { self.look(&asker) }
        });
        shown.unwrap_or_else(|sentence| {
            logging::complain(&sentence);
            ExitCode::from(2)
        })
    }

    fn token(&self) -> Result<Option<String>, String> {
        let read = |path: &PathBuf| read_token(&format!("--token-file {}", path.display()), path);
        self.token_file.as_ref().map(read).transpose()
    }

    fn look(&self, asker: &Asker) -> Result<ExitCode, String> {
        let overview = overview::of(asker.ask()?);
        let text = if self.json { table::json(&overview, true) } else { table::text(&overview) };
        print(&text)?;
        Ok(ExitCode::from(u8::from(!overview.is_whole)))
    }

    /// Looks again and again. A node that does not answer may come back.
    fn watch(&self, asker: &Asker) -> Result<ExitCode, String> {
        let redraws = !self.json && io::stdout().is_terminal();
        loop {
            let begun = Instant::now();
            let text = match asker.ask().map(overview::of) {
                Ok(overview) if self.json => table::json(&overview, false),
                Ok(overview) => table::text(&overview),
                Err(sentence) if self.json => table::json_error(&sentence),
                Err(sentence) => format!("{sentence}\n"),
            };
            let text = match (redraws, self.json) {
                (true, _) => format!("{REDRAW}{text}"),
                (false, true) => text,
                (false, false) => format!("{text}\n"),
            };
            if !print(&text)? {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(EVERY.saturating_sub(begun.elapsed()));
        }
    }
}
