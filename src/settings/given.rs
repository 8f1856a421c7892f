//! What was given, by flag, by variable and in the file: the first of these that says something
//! wins.
//!
//! All that is given is checked against its grammar, also where something else wins, so that a
//! mistake does not wait for the day on which a flag is left out.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::file::{self, ReplicaAddress};
use super::flags::Texts;
use super::grammar::Grammar;
use super::said::{Origin, Said};
use super::table::{AnySetting, CONFIG, Default, Setting, TABLE};
use super::variables;

/// For each setting that was given, what won.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    said: BTreeMap<&'static str, Said>,
    /// Only the file has them.
    pub replica_addresses: Vec<ReplicaAddress>,
    /// What should be said to the user, once everything else is right.
    pub warnings: Vec<String>,
}

fn setting(name: &str) -> Option<&'static AnySetting> {
    TABLE.iter().copied().find(|setting| setting.name == name)
}

/// Whether it is of its grammar.
fn check(said: &Said) -> Result<(), String> {
    let checked = setting(said.name).map_or(Ok(()), |setting| setting.grammar.check(&said.text));
    checked.map_err(|refusal| format!("{said} {refusal}"))
}

impl Given {
    /// Everything that flags, environment and file say. Variables of settings that are not `wanted`
    /// are ignored with a warning.
    ///
    /// # Errors
    /// One sentence that names the flag, the variable, or file, line and key.
    pub fn gather(
        flags: Texts,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        wanted: fn(&AnySetting) -> bool,
    ) -> Result<Self, String> {
        let mut given = Self::default();
        let flags = flags.into_iter().map(|(name, text)| Said { name, text, origin: Origin::Flag });
        given.add(flags)?;
        let environment = variables::read(environment);
        given.warnings = environment.warnings;
        let is_wanted = |said: &Said| setting(said.name).is_some_and(wanted);
        let (wanted, ignored): (Vec<_>, Vec<_>) = environment.said.into_iter().partition(is_wanted);
        given.warnings.extend(ignored.iter().map(|said| format!("{} is ignored here", said.without_value())));
        given.add(wanted)?;
        if let Some(said) = given.said.remove(CONFIG.name) {
            let path = CONFIG.grammar.parse(&said.text).map_err(|refusal| format!("{said} {refusal}"))?;
            let content = file::read(&said, &path)?;
            given.replica_addresses = content.replica_addresses;
            given.add(content.said)?;
        }
        Ok(given)
    }

    /// Adds what does not win over anything that is there.
    fn add(&mut self, more: impl IntoIterator<Item = Said>) -> Result<(), String> {
        for said in more {
            check(&said)?;
            self.said.entry(said.name).or_insert(said);
        }
        Ok(())
    }

    /// As if it had been a flag; it wins over whatever was given.
    pub fn set<G>(&mut self, setting: &Setting<G>, text: impl Into<OsString>) {
        let said = Said { name: setting.name, text: text.into(), origin: Origin::Flag };
        self.said.insert(setting.name, said);
    }

    /// What was given for a setting, if anything.
    pub fn said<G: ?Sized>(&self, setting: &Setting<G>) -> Option<&Said> {
        self.said.get(setting.name)
    }

    /// The value that was given, if one was.
    pub fn optional<G: Grammar>(&self, setting: &Setting<G>) -> Result<Option<G::Value>, String> {
        let Some(said) = self.said(setting) else { return Ok(None) };
        setting.grammar.parse(&said.text).map(Some).map_err(|refusal| format!("{said} {refusal}"))
    }

    /// The value that was given, or the default.
    pub fn value<G: Grammar>(&self, setting: &Setting<G>) -> Result<G::Value, String> {
        if let Some(value) = self.optional(setting)? {
            return Ok(value);
        }
        let text = match setting.default {
            Default::Is(text) => text.to_owned(),
            Default::Computed(_, compute) => compute(),
            Default::Off | Default::Follows(_) => return Err(format!("--{} is missing", setting.name)),
        };
        let refused = |refusal| format!("the default of --{}, {text}, {refusal}", setting.name);
        setting.grammar.parse(text.as_ref()).map_err(refused)
    }

    /// All of it as flags: read again, they are the same values.
    pub fn to_args(&self) -> Vec<OsString> {
        let argument = |setting: &&AnySetting| {
            let said = self.said(setting)?;
            let mut argument = OsString::from(format!("--{}=", setting.name));
            argument.push(&said.text);
            Some(argument)
        };
        TABLE.iter().filter_map(argument).collect()
    }
}
