//! A value as somebody gave it, and where: what an error about it names.

use std::ffi::{OsStr, OsString};
use std::fmt;

/// The most characters of a value that an error repeats.
const SHOWN_MAX: usize = 120;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    Variable,
    File {
        /// `koltso.toml:3`
        place: String,
        /// The key as it is spelled there.
        key: String,
        /// The value as it is spelled there, with its quotes.
        value: String,
    },
}

/// The value of a setting, as it was given. Displayed, it is the beginning of a sentence:
/// `--threads two`, `KOLTSO_THREADS=two`, `koltso.toml:3: threads = "two"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The setting.
    pub name: &'static str,
    /// What its grammar reads.
    pub text: OsString,
    pub origin: Origin,
}

impl Said {
    /// The setting without its value, as it is called there: `--node`, `koltso.toml:3: node`.
    pub fn without_value(&self) -> String {
        match &self.origin {
            Origin::Flag => format!("--{}", self.name),
            Origin::Variable => variable(self.name),
            Origin::File { place, key, .. } => format!("{place}: {key}"),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.without_value();
        match &self.origin {
            Origin::Flag => write!(f, "{name} {}", shown(&self.text)),
            Origin::Variable => write!(f, "{name}={}", shown(&self.text)),
            Origin::File { value, .. } => write!(f, "{name} = {}", shortened(value)),
        }
    }
}

/// The environment variable of a setting.
pub(super) fn variable(name: &str) -> String {
    format!("{VARIABLES}{}", name.replace('-', "_").to_ascii_uppercase())
}

/// What the names of all variables begin with.
pub(super) const VARIABLES: &str = "KOLTSO_";

/// A value in a sentence: in quotes where it would not read as one word.
pub(super) fn quoted(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let word = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if word { text.into_owned() } else { format!("{text:?}") }
}

fn shown(text: &OsStr) -> String {
    shortened(&quoted(text))
}

/// One line of bounded length.
pub(super) fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut kept: String = line.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect();
    if line.chars().count() > SHOWN_MAX || line.len() < text.trim_end().len() {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_a_sentence_is_one_line_of_bounded_length() {
        for (text, expected) in [("os", "os"), ("", "\"\""), ("1 fortnight", "\"1 fortnight\""), ("a\nb", "\"a\\nb\"")]
        {
            assert_eq!(shown(OsStr::new(text)), expected);
        }
        assert_eq!(shown(OsStr::new("\x1b[31m")), "\"\\u{1b}[31m\"");
        assert_eq!(shown(OsStr::new(&"ю".repeat(1000))).chars().count(), SHOWN_MAX + 1);
        assert_eq!(shortened("[\n  \"a\",\n]"), "[…");
    }
}
