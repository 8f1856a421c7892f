//! Which threads the engine has, each with one task, so that none waits for another's disk:
//!
//! - [`provision`] keeps space ready ahead of each writer;
//! - [`sealing`] sorts what was written, and gives rolled segments their sidecars;
//! - [`syncing`] puts the logs on disk in the mode "every so often";
//! - [`compact`] gives space back;
//! - [`scrub`] reads everything again, to find what the disk has damaged;
//! - [`digest_check`] compares the digests with the log.
//!
//! Sealing, compaction, the scrub and the check are nice; the other two have little to do, and writers wait when
//! they are late. On a disk that is short of room writers wait for sealing and compaction as well, which on a
//! busy machine would come too late for them: each has a second thread of the same name, which is
//! not nice and works in the place of the first as long as that lasts.

use std::io;
use std::sync::Arc;

use koltso_instrument::Mutex;

use crate::compact::Reclaiming;
use crate::options::SyncMode;
use crate::parts::Parts;
use crate::sealing::Sorting;
use crate::threads::Urgency;
use crate::{compact, digest_check, provision, scrub, sealing, syncing};

/// Starts them all.
pub(crate) fn start(parts: &Arc<Parts>) -> io::Result<()> {
    let threads = &parts.threads;
    let provisioned = parts.clone();
    threads.provisions(threads.spawn("provision", Urgency::Prompt, move || provision::run(&provisioned))?);
    let sorting = Arc::new(Mutex::new(&"sealing", Sorting::default()));
    let reclaiming = Arc::new(Mutex::new(&"compaction", Reclaiming::new(parts.options.reap_interval)));
    for urgency in [Urgency::Nice, Urgency::Prompt] {
        let (sealed, sorting) = (parts.clone(), sorting.clone());
        let seals = threads.spawn("seal", urgency, move || sealing::run(&sealed, &sorting, urgency))?;
        let (compacted, reclaiming) = (parts.clone(), reclaiming.clone());
        let compacts = threads.spawn("compact", urgency, move || compact::run(&compacted, &reclaiming, urgency))?;
        threads.seals(urgency, seals.clone());
        if urgency == Urgency::Prompt {
            parts.room.calls_when_short(seals);
            parts.room.calls_when_short(compacts);
        }
    }
    let scrubbed = parts.clone();
    threads.spawn("scrub", Urgency::Nice, move || scrub::run(&scrubbed))?;
    let checked = parts.clone();
    threads.spawn("digests", Urgency::Nice, move || digest_check::run(&checked))?;
    if let SyncMode::Every(interval) = parts.options.sync {
        let parts = parts.clone();
        threads.spawn("sync", Urgency::Prompt, move || syncing::run(&parts, interval))?;
    }
    Ok(())
}
