//! The values that users give by flags, by variables and in the file. For each setting, a flag wins
//! over a variable, and a variable over the file.
//!
//! Every value is checked against its grammar, even if another one wins: a mistake should not wait
//! for the day on which somebody leaves out the flag that hides it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::file::{self, ReplicaAddress};
use super::flags::Texts;
use super::grammar::Grammar;
use super::said::{Origin, Said};
use super::table::{AnySetting, CONFIG, Default, Setting, TABLE};
use super::variables;

/// The winning value of each setting that was given.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    said: BTreeMap<&'static str, Said>,
    /// The lines of `[replica-addresses]`, which only the file has.
    pub replica_addresses: Vec<ReplicaAddress>,
    /// Sentences for the log, once everything else turned out right.
    pub warnings: Vec<String>,
}

fn setting(name: &str) -> Option<&'static AnySetting> {
    TABLE.iter().copied().find(|setting| setting.name == name)
}

/// Checks a value against the grammar of its setting.
fn check(said: &Said) -> Result<(), String> {
    let checked = setting(said.name).map_or(Ok(()), |setting| setting.grammar.check(&said.text));
    checked.map_err(|refusal| format!("{said} {refusal}"))
}

impl Given {
    /// Collects the values of flags, environment and file. Variables of settings that are not
    /// `wanted` are ignored with a warning.
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
        for said in given.said.values() {
            let doubt = setting(said.name).and_then(|setting| setting.grammar.doubt(&said.text));
            given.warnings.extend(doubt.map(|doubt| format!("{said} {doubt}")));
        }
        Ok(given)
    }

    /// Adds values that win over nothing that is there already.
    fn add(&mut self, more: impl IntoIterator<Item = Said>) -> Result<(), String> {
        for said in more {
            check(&said)?;
            self.said.entry(said.name).or_insert(said);
        }
        Ok(())
    }

    /// Sets a value that wins over whatever was given, as if it were a flag.
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

    /// The flags that give exactly these values again.
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
