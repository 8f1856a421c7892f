//! The table as the keys of a TOML file.
//!
//! Every error names the file, the line, the key and what is allowed there. Keys may be written
//! with underscores for hyphens. Beside the settings, the file has the table `[replica-addresses]`.
//!
//! Bounds: 1 MiB. Nothing is read but the file itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::grammar::text_of;
use super::said::{Origin, Said, quoted, shortened};
use super::table::{AnySetting, CONFIG, TABLE};
use crate::similar::most_similar;

/// The most bytes of the file: a hundred times what all settings of the largest cluster take.
const FILE_MAX: u64 = 1 << 20;
/// The one key that is no setting of the table.
const REPLICA_ADDRESSES: &str = "replica-addresses";

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct FileContent {
    pub said: Vec<Said>,
    pub replica_addresses: Vec<ReplicaAddress>,
}

/// A line of `[replica-addresses]`: where a node listens to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReplicaAddress {
    /// The node, as it is written there.
    pub url: String,
    /// HOST:PORT, as it is written there.
    pub address: String,
    /// `koltso.toml:7: [replica-addresses]`
    pub place: String,
}

/// A text and where it comes from, to say on which line something is.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    /// `koltso.toml:3`
    fn place(&self, at: usize) -> String {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        format!("{}:{line}", quoted(self.path.as_os_str()))
    }

    /// What is written there.
    fn written(&self, span: Range<usize>) -> &str {
        self.text.get(span).unwrap_or_default()
    }

    /// The setting with whose name the line of this place begins.
    fn setting_at(&self, at: usize) -> Option<&'static AnySetting> {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = &self.text[before.rfind('\n').map_or(0, |end| end + 1)..];
        let word = line.trim_start().split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').next()?;
        setting_called(&word.replace('_', "-"))
    }
}

/// The setting that this key is in the file.
fn setting_called(key: &str) -> Option<&'static AnySetting> {
    TABLE.iter().copied().find(|setting| setting.name == key && key != CONFIG.name)
}

/// Reads the file at `path`, as `said` names it.
///
/// # Errors
/// One sentence.
pub(super) fn read(said: &Said, path: &Path) -> Result<FileContent, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|e| format!("{said}: {e}"))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("{said} is larger than 1 MiB, the most for a file of settings"));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(&Source { path, text }),
        Err(e) => {
            let valid = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
            Err(format!("{} is not UTF-8 text", Source { path, text: &valid }.place(valid.len())))
        }
    }
}

fn parse(source: &Source<'_>) -> Result<FileContent, String> {
    let document = DeTable::parse(source.text).map_err(|e| no_toml(source, &e))?;
    let mut entries: Vec<_> = document.get_ref().iter().collect();
    // As they are written: the first error is the one on top.
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut content = FileContent::default();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in entries {
        let written = shortened(key.get_ref());
        let place = source.place(key.span().start);
        let name = key.get_ref().replace('_', "-");
        if let Some(first) = places.insert(name.clone(), place.clone()) {
            return Err(format!("{place}: {written} is given a second time, after {first}"));
        }
        if name == REPLICA_ADDRESSES {
            content.replica_addresses = replica_addresses(source, &place, value)?;
            continue;
        }
        let setting = setting_called(&name).ok_or_else(|| unknown(&place, &written, &name))?;
        let shown = shortened(source.written(value.span()));
        let text = text_of(&setting.grammar, value.get_ref());
        let text = text.ok_or_else(|| format!("{place}: {written} = {shown} is not {}", setting.grammar.allowed()))?;
        let origin = Origin::File { place, key: written, value: shown };
        content.said.push(Said { name: setting.name, text, origin });
    }
    Ok(content)
}

/// What is no TOML at all.
fn no_toml(source: &Source<'_>, error: &toml::de::Error) -> String {
    let at = error.span().map_or(source.text.len(), |span| span.start);
    let place = source.place(at);
    let message = error.message().lines().next().unwrap_or_default();
    match source.setting_at(at) {
        Some(setting) => format!(
            "{place}: {name}: {message}; a line is {name} = VALUE, with {} as the value",
            setting.grammar.allowed(),
            name = setting.name,
        ),
        None => format!("{place}: {message}; a line is KEY = VALUE, such as max-value = \"1MiB\""),
    }
}

fn unknown(place: &str, written: &str, name: &str) -> String {
    if name == CONFIG.name {
        return format!("{place}: {written} is a flag and a variable only: a file cannot name another one");
    }
    let names = TABLE.iter().map(|setting| setting.name).filter(|&name| name != CONFIG.name);
    match most_similar(name, names.chain([REPLICA_ADDRESSES])) {
        Some(meant) => format!("{place}: {written} is not a setting; did you mean {meant}?"),
        None => format!("{place}: {written} is not a setting; koltso serve --help lists them"),
    }
}

fn replica_addresses(
    source: &Source<'_>,
    place: &str,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<ReplicaAddress>, String> {
    let wrong = |place: &str, what: &str| {
        let line = "\"http://a:1337\" = \"10.0.0.1:7000\"";
        format!("{place}: {what} is not a replica address; below [{REPLICA_ADDRESSES}], a line is {line}")
    };
    let DeValue::Table(table) = value.get_ref() else {
        return Err(wrong(place, &shortened(source.written(value.span()))));
    };
    let mut lines: Vec<_> = table.iter().collect();
    lines.sort_by_key(|(url, _)| url.span().start);
    let line = |(url, address): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        let place = source.place(url.span().start);
        let written = || format!("{} = {}", url.get_ref(), source.written(address.span()));
        let address = address.get_ref().as_str().ok_or_else(|| wrong(&place, &shortened(&written())))?;
        Ok(ReplicaAddress {
            url: url.get_ref().to_string(),
            address: address.to_owned(),
            place: format!("{place}: [{REPLICA_ADDRESSES}]"),
        })
    };
    lines.into_iter().map(line).collect()
}
