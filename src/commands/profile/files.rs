//! Reads saved profiles and shows them in another form, or the difference of two.
//!
//! Bounds: those of [`proto::decode`]; of a file, no more is read than it would accept.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use koltso_profiling::capture::Capture;
use koltso_profiling::{difference, page, proto, svg, text};

use super::division;
use super::output::{Form, Output, told};
use super::watch::end_on_signals;
use crate::logging;

fn read(path: &Path) -> Result<Capture, String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(proto::INFLATED_MAX as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("there is no file {name}; a node is given as http://HOST:PORT"),
        _ => format!("{name} cannot be read: {e}"),
    })?;
    proto::decode(&bytes).map_err(|e| format!("{name}: {e}"))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Shows a file in another form.
///
/// # Errors
/// One sentence that says what went wrong.
pub fn show(path: &Path, form: Form, out: Option<&Path>) -> Result<(), String> {
    let capture = read(path)?;
    let value = capture.default_type;
    let title = match capture.duration_ns {
        0 => format!("{}: {}", file_name(path), capture.event.name()),
        ns => format!("{}: {}, {:.1} s", file_name(path), capture.event.name(), ns as f64 / 1e9),
    };
    let bytes = match form {
        Form::Html => page::flamegraph(&capture, &title).into_bytes(),
        Form::Svg => svg::flamegraph(&capture, &title, value).into_bytes(),
        Form::Pprof => proto::encode(&capture),
        Form::Folded => text::folded(&capture, value).into_bytes(),
        Form::Text => text::top(&capture, value).into_bytes(),
        Form::PerfScript => return Err("a saved profile has no times of samples, which .perf needs".to_owned()),
    };
    write(&bytes, Some(capture.sample_count()), out)
}

/// Divides a file by class and prints the result on standard output, as text or as JSON.
///
/// # Errors
/// One sentence that says what went wrong.
pub fn divide(path: &Path, as_json: bool) -> Result<(), String> {
    let capture = read(path)?;
    let text = if as_json { division::document(&capture) } else { division::text(&capture) };
    write(text.as_bytes(), None, None)
}

/// Shows what changed from one file to another, as a page or as text.
///
/// # Errors
/// One sentence that says what went wrong.
pub fn difference(base: &Path, new: &Path, form: Form, out: Option<&Path>) -> Result<(), String> {
    let (before, after) = (read(base)?, read(new)?);
    if !after.types.iter().any(|of| before.types.contains(of)) {
        let types = |capture: &Capture| {
            let names: Vec<&str> = capture.types.iter().map(|of| &*of.name).collect();
            names.join(", ")
        };
        return Err(format!(
            "{} has {}, {} has {}: there is nothing to compare",
            base.display(),
            types(&before),
            new.display(),
            types(&after)
        ));
    }
    let (mut of_new, mut of_base) = (file_name(new), file_name(base));
    if of_new == of_base {
        // A report leaves files of the same name, each in a folder of its own.
        (of_new, of_base) = (new.display().to_string(), base.display().to_string());
    }
    let title = format!("{}: {of_new} against {of_base}", after.event.name());
    let text = match form {
        Form::Html => page::diff(&before, &after, &title),
        _ => format!("{title}\n{}", difference::text(&before, &after)),
    };
    write(text.as_bytes(), None, out)
}

fn write(bytes: &[u8], samples: Option<u64>, out: Option<&Path>) -> Result<(), String> {
    let mut output = Output::open(out)?;
    end_on_signals(output.temporary())?;
    if let Err(error) = output.write_all(bytes) {
        return output.failure(&error).map_or(Ok(()), Err);
    }
    let (name, is_file) = (output.name(), output.temporary().is_some());
    output.finish()?;
    if is_file {
        logging::say(&told(&name, bytes.len() as u64, samples, None));
    }
    Ok(())
}
