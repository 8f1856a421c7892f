//! The grammars of values: one for each kind, the same for flags, variables and the file.
//!
//! A grammar asks nobody and touches nothing: whether a name resolves or a file exists is found
//! later, by `check.rs`. What is refused ends the sentence that the place of the value begins
//! (`--threads 0 is not a number from 1 to 256`), so that every error says what is allowed.
//!
//! In the file, a string is what would follow the flag. Numbers, `true`, `false` and lists may
//! stand without quotes where the grammar has them; a value of another type is refused.

use std::ffi::{OsStr, OsString};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use koltso_storage::SyncMode;
use toml::de::DeValue;
use tracing::Level;

use crate::similar::did_you_mean;
use crate::units::{Size, Span};

/// What can be said about a grammar without knowing the type of its values.
pub trait Allowed: Sync {
    /// What is allowed, as the end of the sentence "it is not …".
    fn allowed(&self) -> String;

    /// The range, if it has one: `1 to 32MiB`.
    fn range(&self) -> Option<String> {
        None
    }

    /// What the flag stands for where its name is alone; `None` if it needs a value.
    fn implied(&self) -> Option<&'static str> {
        None
    }

    /// What is strange about a value that is allowed, as the end of a sentence about it.
    fn doubt(&self, _text: &OsStr) -> Option<String> {
        None
    }

    /// The text of a value in the file that is no string; `None` if that type is refused.
    fn of_unquoted(&self, _value: &DeValue<'_>) -> Option<String> {
        None
    }
}

/// From text to a value.
pub trait Grammar: Allowed {
    type Value;

    /// # Errors
    /// The end of a sentence that begins with the value and where it was given.
    fn parse(&self, text: &OsStr) -> Result<Self::Value, String>;

    /// The refusal that says what is allowed.
    fn refused(&self) -> String {
        format!("is not {}", self.allowed())
    }
}

/// Any grammar: it can say whether a text is of it.
pub trait AnyGrammar: Allowed {
    /// # Errors
    /// As those of [`Grammar::parse`].
    fn check(&self, text: &OsStr) -> Result<(), String>;
}

impl<G: Grammar> AnyGrammar for G {
    fn check(&self, text: &OsStr) -> Result<(), String> {
        self.parse(text).map(drop)
    }
}

/// The text of a value in the file; `None` if the grammar has no values of its type.
pub fn text_of(grammar: &(impl Allowed + ?Sized), value: &DeValue<'_>) -> Option<OsString> {
    match value {
        DeValue::String(text) => Some(OsString::from(&**text)),
        other => grammar.of_unquoted(other).map(OsString::from),
    }
}

fn integer(value: &DeValue<'_>) -> Option<String> {
    let DeValue::Integer(integer) = value else { return None };
    i128::from_str_radix(integer.as_str(), integer.radix()).ok().map(|number| number.to_string())
}

/// A plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct Count(pub u64);

impl FromStr for Count {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(Self).ok_or(())
    }
}

/// Below this, a size without a unit gets a warning.
const PLAIN_LEAST: u64 = 512;

/// What a range can have as its ends.
pub trait Quantity: FromStr + PartialOrd {
    /// As it is called before "from … to …".
    const NAME: &'static str;
    /// How it is written, after "from … to …".
    const UNITS: &'static str;

    /// See [`Allowed::doubt`].
    fn doubt(_text: &str) -> Option<String> {
        None
    }
}

impl Quantity for Count {
    const NAME: &'static str = "a number";
    const UNITS: &'static str = "";
}

impl Quantity for Size {
    const NAME: &'static str = "a size";
    const UNITS: &'static str = ", in bytes or with KiB, MiB or GiB";

    /// Somebody who writes `1` most likely means another unit than bytes.
    fn doubt(text: &str) -> Option<String> {
        let Count(bytes) = text.parse().ok()?;
        let what = if bytes == 1 { "1 byte".to_owned() } else { format!("{bytes} bytes") };
        (bytes < PLAIN_LEAST).then(|| format!("is {what}: a size without a unit is in bytes"))
    }
}

impl Quantity for Span {
    const NAME: &'static str = "a duration";
    const UNITS: &'static str = ", with its unit: ms, s, m, h or d";
}

/// A number, size or duration of a range. The ends are written as people write them, since help,
/// README and errors repeat them so.
pub struct Within<T> {
    least: &'static str,
    most: &'static str,
    of: PhantomData<fn() -> T>,
}

impl<T> Within<T> {
    pub const fn new(least: &'static str, most: &'static str) -> Self {
        Self { least, most, of: PhantomData }
    }
}

impl<T: Quantity> Within<T> {
    fn contains(&self, value: &T) -> bool {
        // Ends that are no values themselves would let nothing pass; a test parses all of them.
        let (least, most) = (self.least.parse::<T>(), self.most.parse::<T>());
        least.is_ok_and(|least| *value >= least) && most.is_ok_and(|most| *value <= most)
    }
}

impl<T: Quantity> Allowed for Within<T> {
    fn allowed(&self) -> String {
        format!("{} from {} to {}{}", T::NAME, self.least, self.most, T::UNITS)
    }

    fn range(&self) -> Option<String> {
        Some(format!("{} to {}", self.least, self.most))
    }

    fn doubt(&self, text: &OsStr) -> Option<String> {
        T::doubt(text.to_str()?)
    }

    fn of_unquoted(&self, value: &DeValue<'_>) -> Option<String> {
        integer(value)
    }
}

impl<T: Quantity> Grammar for Within<T> {
    type Value = T;

    fn parse(&self, text: &OsStr) -> Result<T, String> {
        let value = text.to_str().and_then(|text| text.parse().ok());
        value.filter(|value| self.contains(value)).ok_or_else(|| self.refused())
    }
}

/// `0`, which switches something off, or a duration.
pub struct OffOr(pub Within<Span>);

impl Allowed for OffOr {
    fn allowed(&self) -> String {
        format!("0 or {}", self.0.allowed())
    }

    fn range(&self) -> Option<String> {
        self.0.range()
    }

    fn of_unquoted(&self, value: &DeValue<'_>) -> Option<String> {
        integer(value)
    }
}

impl Grammar for OffOr {
    type Value = Option<Duration>;

    fn parse(&self, text: &OsStr) -> Result<Option<Duration>, String> {
        if text == "0" {
            return Ok(None);
        }
        self.0.parse(text).map(|span| Some(span.0)).map_err(|_| self.refused())
    }
}

/// `always`, `os` or a duration.
pub struct SyncModes(pub Within<Span>);

impl Allowed for SyncModes {
    fn allowed(&self) -> String {
        format!("always, os or {}", self.0.allowed())
    }
}

impl Grammar for SyncModes {
    type Value = SyncMode;

    fn parse(&self, text: &OsStr) -> Result<SyncMode, String> {
        match text.to_str() {
            Some("os") => Ok(SyncMode::Os),
            Some("always") => Ok(SyncMode::Always),
            _ => self
                .0
                .parse(text)
                .map(|span| SyncMode::Every(span.0))
                .map_err(|_| self.refused() + &did_you_mean(&text.to_string_lossy(), ["always", "os"].into_iter())),
        }
    }
}

/// The sync mode as its grammar has it.
pub fn sync_text(mode: SyncMode) -> String {
    match mode {
        SyncMode::Os => "os".to_owned(),
        SyncMode::Always => "always".to_owned(),
        SyncMode::Every(interval) => Span(interval).to_string(),
    }
}

/// The bound of stalls as its grammar has it.
pub fn off_or_text(bound: Option<Duration>) -> String {
    bound.map_or_else(|| "0".to_owned(), |bound| Span(bound).to_string())
}

/// One of some words, each of which stands for a value.
pub struct OneOf<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Sync> Allowed for OneOf<T> {
    fn allowed(&self) -> String {
        let words: Vec<&str> = self.0.iter().map(|(word, _)| *word).collect();
        match words.split_last() {
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => "anything".to_owned(),
        }
    }
}

impl<T: Copy + Sync> Grammar for OneOf<T> {
    type Value = T;

    fn parse(&self, text: &OsStr) -> Result<T, String> {
        let found = self.0.iter().find(|(word, _)| text == *word);
        let meant = || did_you_mean(&text.to_string_lossy(), self.0.iter().map(|(word, _)| *word));
        found.map(|&(_, value)| value).ok_or_else(|| self.refused() + &meant())
    }
}

/// The levels of the log, from the one that says least.
pub static LEVELS: [(&str, Level); 5] = [
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

/// A level as its grammar has it.
pub fn level_text(level: Level) -> &'static str {
    LEVELS.iter().find(|(_, known)| *known == level).map_or("info", |(word, _)| *word)
}

/// `true` or `false`; as a flag, its name alone is `true`.
pub struct Switch;

impl Allowed for Switch {
    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn implied(&self) -> Option<&'static str> {
        Some("true")
    }

    fn of_unquoted(&self, value: &DeValue<'_>) -> Option<String> {
        value.as_bool().map(|on| on.to_string())
    }
}

impl Grammar for Switch {
    type Value = bool;

    fn parse(&self, text: &OsStr) -> Result<bool, String> {
        text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| self.refused())
    }
}

/// A file or folder, in any bytes that the file system takes.
pub struct FilePath;

impl Allowed for FilePath {
    fn allowed(&self) -> String {
        "the path of a file or folder".to_owned()
    }
}

impl Grammar for FilePath {
    type Value = PathBuf;

    fn parse(&self, text: &OsStr) -> Result<PathBuf, String> {
        if text.is_empty() { Err(self.refused()) } else { Ok(PathBuf::from(text)) }
    }
}

/// Printable ASCII characters.
pub struct Name {
    /// The most characters.
    pub most: usize,
}

impl Allowed for Name {
    fn allowed(&self) -> String {
        format!("a name of 1 to {} printable ASCII characters", self.most)
    }
}

impl Grammar for Name {
    type Value = String;

    fn parse(&self, text: &OsStr) -> Result<String, String> {
        let printable = |name: &&str| name.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        let name = text.to_str().filter(printable).filter(|name| (1..=self.most).contains(&name.len()));
        name.map(str::to_owned).ok_or_else(|| self.refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_a_range_belong_to_it_and_errors_have_their_units() {
        let span = Within::<Span>::new("10ms", "60s");
        for (text, fits) in [("9ms", false), ("10ms", true), ("1m", true), ("60001ms", false), ("60", false)] {
            assert_eq!(span.check(OsStr::new(text)).is_ok(), fits, "{text}");
        }
        let refused = span.check(OsStr::new("61s"));
        assert_eq!(refused, Err("is not a duration from 10ms to 60s, with its unit: ms, s, m, h or d".to_owned()));
        for text in ["", "+1", "-1", "1.0", "0x1", " 1", "18446744073709551616", "two"] {
            assert!(text.parse::<Count>().is_err(), "{text:?}");
        }
        assert_eq!("18446744073709551615".parse(), Ok(Count(u64::MAX)));
    }

    #[test]
    fn modes_and_bounds_print_as_they_are_read() {
        let modes = SyncModes(Within::new("1ms", "1h"));
        for text in ["os", "always", "250ms", "1s"] {
            assert_eq!(modes.parse(OsStr::new(text)).map(sync_text).as_deref(), Ok(text));
        }
        let bounds = OffOr(Within::new("1ms", "60s"));
        for text in ["0", "5ms", "1m"] {
            assert_eq!(bounds.parse(OsStr::new(text)).map(off_or_text).as_deref(), Ok(text));
        }
        for text in ["0ms", "5", "61s", ""] {
            assert!(bounds.check(OsStr::new(text)).is_err(), "{text:?}");
        }
    }
}
