//! What a line looks like: as a text, or as a JSON object with the same in fields.
//!
//! ```text
//! 2026-11-30T06:19:38.123456Z  WARN a message field=value
//! node 1 | 2026-11-30T06:19:38.123456Z  WARN a message field=value          with a name
//! {"ts":"…","level":"warn","name":"node 1","target":"koltso::node","message":"…","fields":{…}}
//! ```
//!
//! Control characters are escaped, so that whatever a message contains, it is one line and moves no
//! cursor. Bounds: [`LINE_MAX`] bytes a line; the rest of a longer one is cut off.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};
use tracing::Level;
use tracing::field::{Field, Visit};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime as Utc};

/// The longest line, with its line end: what a pipe takes in one piece (`PIPE_BUF`).
pub(super) const LINE_MAX: usize = 4096;

/// Whether people or programs read the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// How lines are made.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub(super) format: Format,
    pub(super) name: Option<String>,
    /// For a terminal.
    pub(super) colours: bool,
}

/// A message with its fields.
#[derive(Default)]
pub(super) struct Message {
    pub(super) text: String,
    fields: Vec<(&'static str, Value)>,
}

impl Message {
    pub(super) fn plain(text: String) -> Self {
        Self { text, fields: Vec::new() }
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), &value) {
            ("message", Value::String(text)) => self.text.clone_from(text),
            (name, _) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

/// The time now in UTC, with microseconds.
fn now() -> String {
    let mut text = String::with_capacity(32);
    // The formatter has no clock to fail.
    let _ = Utc.format_time(&mut Writer::new(&mut text));
    text
}

/// As much of a text as fits into so many bytes.
fn beginning(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or_default()]
}

/// Ends a line, and cuts it off before that if it is too long.
fn ended(mut line: String) -> String {
    if line.len() >= LINE_MAX {
        line.truncate(beginning(&line, LINE_MAX - "…\n".len()).len());
        line.push('…');
    }
    line.push('\n');
    line
}

/// Without control characters.
fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

/// JSON without control characters. (Those above ASCII may stand in it as they are.)
fn json_text(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escaped).collect()
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The level in five columns, with its colour.
const fn column(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::ERROR => ("\x1b[31m", "ERROR"),
        Level::WARN => ("\x1b[33m", " WARN"),
        Level::INFO => ("\x1b[32m", " INFO"),
        Level::DEBUG => ("\x1b[34m", "DEBUG"),
        Level::TRACE => ("\x1b[35m", "TRACE"),
    }
}

impl Style {
    pub(super) const fn plain(colours: bool) -> Self {
        Self { format: Format::Text, name: None, colours }
    }

    fn begun(&self) -> String {
        let mut line = String::with_capacity(160);
        if let Some(name) = &self.name {
            push_escaped(&mut line, name);
            line.push_str(" | ");
        }
        line
    }

    /// The line of an event.
    pub(super) fn event(&self, level: Level, target: &str, message: &Message) -> String {
        if self.format == Format::Json {
            return self.object(level, Some(target), message);
        }
        let mut line = self.begun();
        let (colour, level) = column(level);
        let time = now();
        // Writing to a string cannot fail.
        let _ = match self.colours {
            true => write!(line, "\x1b[2m{time}\x1b[0m {colour}{level}\x1b[0m "),
            false => write!(line, "{time} {level} "),
        };
        push_escaped(&mut line, &message.text);
        for (name, value) in &message.fields {
            let _ = write!(line, " {name}=");
            match value {
                Value::String(text) => push_escaped(&mut line, text),
                value => push_escaped(&mut line, &value.to_string()),
            }
        }
        ended(line)
    }

    /// A line that somebody says: as a text, nothing is put before it but the name.
    pub(super) fn said(&self, level: Level, text: &str) -> String {
        if self.format == Format::Json {
            return self.object(level, None, &Message::plain(text.to_owned()));
        }
        let mut line = self.begun();
        push_escaped(&mut line, text);
        ended(line)
    }

    fn object(&self, level: Level, target: Option<&str>, message: &Message) -> String {
        let mut object = Map::new();
        object.insert("ts".to_owned(), now().into());
        object.insert("level".to_owned(), word(level).into());
        if let Some(name) = &self.name {
            object.insert("name".to_owned(), name.as_str().into());
        }
        if let Some(target) = target {
            object.insert("target".to_owned(), target.into());
        }
        object.insert("message".to_owned(), message.text.as_str().into());
        if !message.fields.is_empty() {
            let fields = message.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            object.insert("fields".to_owned(), Value::Object(fields.collect()));
        }
        let mut line = json_text(&Value::Object(object.clone()));
        if line.len() >= LINE_MAX {
            // A cut object would be none: the message is cut instead. Escaped, a byte takes six at
            // most, and the other fields have fixed bounds.
            object.remove("fields");
            let kept = beginning(&message.text, LINE_MAX / 8);
            object.insert("message".to_owned(), format!("{kept}…").into());
            line = json_text(&Value::Object(object));
        }
        ended(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(format: Format, name: Option<&str>) -> Style {
        Style { format, name: name.map(str::to_owned), colours: false }
    }

    #[test]
    fn whatever_a_message_contains_it_is_one_line_of_bounded_length() {
        for text in ["a\nb\r\x1b[31m\u{85}", &"\u{1}".repeat(10_000), &"ю".repeat(10_000), "\"\\\n", ""] {
            for format in [Format::Text, Format::Json] {
                for name in [None, Some("node 1")] {
                    let style = style(format, name);
                    let message = Message { text: text.to_owned(), fields: vec![("field", text.into())] };
                    for line in [style.event(Level::WARN, "koltso::x", &message), style.said(Level::INFO, text)] {
                        assert!(line.len() <= LINE_MAX && line.ends_with('\n'), "{}: {line}", line.len());
                        assert!(!line[..line.len() - 1].contains(char::is_control), "{line:?}");
                        if format == Format::Json {
                            let object: Value = serde_json::from_str(&line).expect("an object");
                            assert_eq!(object["name"].as_str(), name);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn texts_have_name_time_level_message_and_fields_in_this_order() {
        let message = Message { text: "a message".to_owned(), fields: vec![("count", 3.into()), ("why", "so".into())] };
        let line = style(Format::Text, Some("node 1")).event(Level::WARN, "koltso::x", &message);
        let rest = line.strip_prefix("node 1 | ").expect("a name");
        let (time, rest) = rest.split_once(' ').expect("a time");
        assert!(time.len() == "2026-11-30T06:19:38.123456Z".len() && time.ends_with('Z'), "{time}");
        assert_eq!(rest, " WARN a message count=3 why=so\n");
        assert_eq!(style(Format::Text, None).said(Level::INFO, "ready http://a:1"), "ready http://a:1\n");
        let line = style(Format::Json, None).event(Level::DEBUG, "koltso::x", &message);
        let (_, rest) = line.split_once("Z\",").expect("a time");
        let expected = r#""level":"debug","target":"koltso::x","message":"a message","fields":{"count":3,"why":"so"}}"#;
        assert_eq!(rest.trim_end(), expected);
    }
}
