//! An overview as a table for a person, and as JSON for a program. No I/O: all functions return
//! text. Tested below.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::overview::{Overview, Row, State};

const HEAD: [&str; 8] = ["NODE", "STATE", "VERSION", "RECORDS", "DISK", "HINTS", "REPAIR", "CLOCK"];

/// Bytes as a person reads them: three digits or four, and a unit.
fn amount(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut amount, mut unit) = (bytes as f64, 0);
    while amount >= 1023.5 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && amount < 99.95);
    format!("{amount:.digits$} {}", units[unit])
}

fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds / 60),
        seconds if seconds < 172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn state_text(state: &State) -> String {
    match state {
        State::Up => "up".to_owned(),
        State::NeedsRepair => "needs repair".to_owned(),
        State::New => "new".to_owned(),
        State::Rebuilding(Some(share)) => format!("rebuilding {share} %"),
        State::Rebuilding(None) => "rebuilding".to_owned(),
        State::Ailing => "ailing".to_owned(),
        State::Disk(why) => (*why).to_owned(),
        State::Busy(what) => what.clone(),
        State::Silent => "no answer".to_owned(),
        State::Down => "down".to_owned(),
    }
}

/// A URL as it stands inside a cell.
fn short(url: &str) -> &str {
    url.strip_prefix("http://").unwrap_or(url)
}

fn cells(row: &Row) -> [String; 8] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let is_known = row.version.is_some();
    let disk = match (row.disk_used, row.disk_free) {
        (Some(used), Some(free)) => format!("{} ({} free)", amount(used), amount(free)),
        (used, _) => or_none(used.map(amount)),
    };
    let all: u64 = row.hints.iter().map(|hints| hints.pending).sum();
    let hints = match &row.hints[..] {
        [] => "0".to_owned(),
        kept => {
            let by: Vec<String> =
                kept.iter().map(|hints| format!("{} at {}", hints.pending, short(&hints.by))).collect();
            if kept.len() == 1 { by[0].clone() } else { format!("{all}: {}", by.join(", ")) }
        }
    };
    let (received, sent) = row.repaired;
    let mut repair = row.equal_ms.map_or_else(String::new, |ms| format!("equal {} ago", age(ms)));
    if received + sent > 0 {
        let comma = if repair.is_empty() { "" } else { ", " };
        let _ = write!(repair, "{comma}{} in, {} out", amount(received), amount(sent));
    }
    [
        row.node.clone(),
        state_text(&row.state),
        or_none(row.version.clone()),
        or_none(row.records.map(|records| records.to_string())),
        disk,
        hints,
        or_none(Some(repair).filter(|repair| is_known && !repair.is_empty())),
        or_none(row.skew_ms.map(|skew| if skew == 0 { "0 ms".to_owned() } else { format!("{skew:+} ms") })),
    ]
}

/// The table, the sentences about nodes, and the last line.
pub fn text(overview: &Overview) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(overview.rows.iter().map(cells));
    let widths: Vec<usize> =
        (0..HEAD.len()).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Numbers end in the same column.
            match HEAD[at] {
                "RECORDS" | "CLOCK" => {
                    let _ = write!(row, "{cell:>width$}  ");
                }
                _ => {
                    let _ = write!(row, "{cell:<width$}  ");
                }
            }
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text.push('\n');
    for row in &overview.rows {
        for note in &row.notes {
            let _ = writeln!(text, "{}: {note}", row.node);
        }
    }
    let _ = writeln!(text, "{}", overview.sentence);
    text
}

fn row_json(row: &Row) -> Value {
    let hints = row.hints.iter().map(|hints| json!({ "by": hints.by, "pending": hints.pending }));
    let (state, share) = match &row.state {
        State::Rebuilding(share) => ("rebuilding".to_owned(), *share),
        other => (state_text(other), None),
    };
    json!({
        "node": row.node,
        "state": state,
        "rebuilt_percent": share,
        "version": row.version,
        "records": row.records,
        "disk_bytes": row.disk_used,
        "disk_free_bytes": row.disk_free,
        "hints": hints.collect::<Vec<_>>(),
        "last_equal_ms": row.equal_ms,
        "repair_received_bytes": row.repaired.0,
        "repair_sent_bytes": row.repaired.1,
        "clock_skew_ms": row.skew_ms,
        "notes": row.notes,
    })
}

/// One JSON document: indented for people, or in one line.
pub fn json(overview: &Overview, indented: bool) -> String {
    let rows: Vec<Value> = overview.rows.iter().map(row_json).collect();
    let document = json!({ "whole": overview.is_whole, "sentence": overview.sentence, "nodes": rows });
    let text = if indented { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
    text.unwrap_or_default() + "\n"
}

/// What stands in the place of a document when nobody answered.
pub fn json_error(sentence: &str) -> String {
    format!("{}\n", json!({ "whole": null, "sentence": sentence, "nodes": [] }))
}

#[cfg(test)]
mod tests {
    use super::super::overview::Hints;
    use super::*;

    fn overview() -> Overview {
        let row = Row {
            node: "http://a:1337".to_owned(),
            state: State::Rebuilding(Some(43)),
            version: Some("0.1.0".to_owned()),
            records: Some(3_000_000),
            disk_used: Some(3 << 30),
            disk_free: Some(700 << 20),
            hints: vec![
                Hints { by: "http://b:1337".to_owned(), pending: 8 },
                Hints { by: "http://c:1337".to_owned(), pending: 4 },
            ],
            equal_ms: Some(8_400),
            repaired: (1024, 0),
            skew_ms: Some(-12),
            notes: vec!["something is said of it".to_owned()],
        };
        let down = Row {
            node: "http://longer:1337".to_owned(),
            state: State::Down,
            version: None,
            records: None,
            disk_used: None,
            disk_free: None,
            hints: Vec::new(),
            equal_ms: None,
            repaired: (0, 0),
            skew_ms: None,
            notes: Vec::new(),
        };
        Overview { rows: vec![row, down], is_whole: false, sentence: "Not whole: so it is.".to_owned() }
    }

    #[test]
    fn a_table_has_a_line_a_node_and_ends_in_words() {
        let expected = "\
NODE                STATE            VERSION  RECORDS  DISK                   HINTS                              REPAIR                             CLOCK
http://a:1337       rebuilding 43 %  0.1.0    3000000  3.0 GiB (700 MiB free)  12: 8 at b:1337, 4 at c:1337       equal 8 s ago, 1.0 KiB in, 0 B out  -12 ms
http://longer:1337  down             -              -  -                      0                                  -                                      -

http://a:1337: something is said of it
Not whole: so it is.
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = text(&overview());
        assert_eq!(squeezed(&text), squeezed(expected));
        let lines: Vec<&str> = text.lines().collect();
        let column = |line: &str, word: &str| line.find(word);
        assert_eq!(column(lines[0], "STATE"), column(lines[1], "rebuilding"));
        assert_eq!(column(lines[0], "STATE"), column(lines[2], "down"));
        assert!(lines.iter().all(|line| !line.ends_with(' ')));
    }

    #[test]
    fn json_has_everything_in_plain_numbers() {
        let document: Value = serde_json::from_str(&json(&overview(), true)).expect("JSON");
        assert_eq!((&document["whole"], &document["sentence"]), (&json!(false), &json!("Not whole: so it is.")));
        let row = &document["nodes"][0];
        assert_eq!((&row["state"], &row["rebuilt_percent"]), (&json!("rebuilding"), &json!(43)));
        assert_eq!(row["hints"][1], json!({ "by": "http://c:1337", "pending": 4 }));
        assert_eq!(document["nodes"][1]["version"], Value::Null);
        assert_eq!(json(&overview(), false).lines().count(), 1);
        assert_eq!(json_error("nobody").lines().count(), 1);
    }

    #[test]
    fn amounts_and_ages_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_300, "99.9 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
        for (ms, text) in
            [(999, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (7_200_000, "2 h"), (172_800_000, "2 d")]
        {
            assert_eq!(age(ms), text);
        }
    }
}
