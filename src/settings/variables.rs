//! The table as environment variables.
//!
//! An empty variable counts as unset. A variable `KOLTSO_…` that is no setting is left alone, since
//! others use that prefix as well (tests, a container platform that announces a service called
//! "koltso"), unless it is most likely a setting misspelt: then it gets a warning.

use std::ffi::{OsStr, OsString};

use super::said::{Origin, Said, VARIABLES, variable};
use super::table::{AnySetting, TABLE};
use crate::similar::most_similar;

/// What the environment has for us.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub said: Vec<Said>,
    /// One sentence for each variable that is not a setting and was probably meant to be one.
    pub warnings: Vec<String>,
}

fn setting_of(name: &OsStr) -> Option<&'static AnySetting> {
    TABLE.iter().copied().find(|setting| name == variable(setting.name).as_str())
}

fn misspelt(name: &OsStr) -> Option<String> {
    let rest = name.to_str()?.strip_prefix(VARIABLES)?;
    let meant = most_similar(&rest.to_ascii_lowercase().replace('_', "-"), TABLE.iter().map(|setting| setting.name))?;
    Some(format!("{VARIABLES}{rest} is not a setting; did you mean {}?", variable(meant)))
}

/// Reads the variables, which may be those of the process or of a test.
pub(super) fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
    let mut environment = Environment::default();
    for (name, text) in variables.into_iter().filter(|(_, text)| !text.is_empty()) {
        if let Some(setting) = setting_of(&name) {
            environment.said.push(Said { name: setting.name, text, origin: Origin::Variable });
        } else {
            environment.warnings.extend(misspelt(&name));
        }
    }
    environment
}

/// Whether a variable has the prefix of the settings. `koltso local` keeps these from its nodes,
/// which get all their settings as flags.
pub fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(VARIABLES.as_bytes())
}
