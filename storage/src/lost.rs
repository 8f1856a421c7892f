//! That records were found lost of which nobody can say whose they were: the empty file `LOST`, from
//! the start that found it until somebody has taken note ([`crate::Store::loss_is_known`]).

use std::path::Path;

use crate::env::Env;

/// The file's name.
pub(crate) const LOST_FILE: &str = "LOST";

/// So many were found at this start. How many to tell of: one, if an earlier start has found some and
/// nobody took note.
pub(crate) fn remember(env: &dyn Env, folder: &Path, found: u64) -> u64 {
    let path = folder.join(LOST_FILE);
    if found == 0 {
        return u64::from(env.open_to_read(&path).is_ok());
    }
    let written = env.create(&path).and_then(|file| env.sync(&file)).and_then(|()| env.sync_folder(folder));
    if let Err(e) = written {
        tracing::warn!("that records of unknown keys are lost cannot be written down in the data folder: {e}");
    }
    found
}

/// Somebody has taken note.
pub(crate) fn forget(env: &dyn Env, folder: &Path) {
    let path = folder.join(LOST_FILE);
    if env.open_to_read(&path).is_ok()
        && let Err(e) = env.remove(&path)
    {
        tracing::warn!("the file {LOST_FILE} in the data folder cannot be removed: {e}");
    }
}
