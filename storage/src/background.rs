//! Which threads the engine has, each with one task, so that none waits for another's disk:
//!
//! - [`provision`] keeps space ready ahead of each writer;
//! - [`sealing`] sorts what was written, and gives rolled segments their sidecars;
//! - [`syncing`] puts the logs on disk in the mode "every so often";
//! - [`compact`] gives space back.
//!
//! Sealing and compaction are nice; the other two have little to do, and writers wait when they are
//! late.

use std::io;
use std::sync::Arc;

use crate::options::SyncMode;
use crate::parts::Parts;
use crate::{compact, provision, sealing, syncing};

/// Starts them all.
pub(crate) fn start(parts: &Arc<Parts>) -> io::Result<()> {
    let threads = &parts.threads;
    let spawn = |name: &str, nice: bool, body: fn(&Arc<Parts>)| {
        let parts = parts.clone();
        threads.spawn(name, nice, move || body(&parts))
    };
    threads.provisions(spawn("provision", false, |parts| provision::run(parts))?);
    threads.seals(spawn("seal", true, |parts| sealing::run(parts))?);
    spawn("compact", true, compact::run)?;
    if let SyncMode::Every(interval) = parts.options.sync {
        let parts = parts.clone();
        threads.spawn("sync", false, move || syncing::run(&parts, interval))?;
    }
    Ok(())
}
