//! Where a profile goes: into a file, whose name's ending says its form, or to standard output.
//!
//! A file is written under a temporary name beside its final one and renamed when it is complete: a
//! failure leaves neither half a file nor a changed one. It is created before the capture, so that
//! nobody waits half a minute to learn that the folder cannot be written to.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use koltso_profiling::text;

/// The form in which a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The interactive page.
    Html,
    /// A flame graph as a picture.
    Svg,
    /// Gzipped profile.proto.
    Pprof,
    /// Collapsed stacks.
    Folded,
    /// The top functions.
    Text,
    /// What `perf script` prints.
    PerfScript,
}

const ENDINGS: [(&str, Form); 6] = [
    (".html", Form::Html),
    (".svg", Form::Svg),
    (".pb.gz", Form::Pprof),
    (".folded", Form::Folded),
    (".txt", Form::Text),
    (".perf", Form::PerfScript),
];

impl Form {
    /// The form that the ending of a file's name says.
    ///
    /// # Errors
    /// One sentence that lists the endings.
    pub fn of(path: &Path) -> Result<Self, String> {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let known = ENDINGS.into_iter().find(|(ending, _)| name.ends_with(ending));
        known.map(|(_, form)| form).ok_or_else(|| {
            format!("--out {}: its ending says the form: .html, .svg, .pb.gz, .folded, .txt or .perf", path.display())
        })
    }

    /// The value of a node's parameter `format` for this form.
    pub const fn parameter(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Svg => "svg",
            Self::Pprof => "pprof",
            Self::Folded => "folded",
            Self::Text => "text",
            Self::PerfScript => "perfscript",
        }
    }
}

/// The names of a file that is being written.
struct Names {
    path: PathBuf,
    temporary: PathBuf,
    renamed: bool,
}

/// Where a profile is written: see the head of the file. Dropped before [`Output::finish`], it
/// leaves no file.
pub struct Output {
    names: Option<Names>,
    to: BufWriter<Box<dyn Write>>,
}

impl Drop for Names {
    fn drop(&mut self) {
        if !self.renamed {
            // The file may be gone already, or it stays: nothing more can be done here.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Output {
    /// Creates the temporary file, or takes standard output if there is no path.
    ///
    /// # Errors
    /// One sentence: the folder does not exist, it may not be written to, …
    pub fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Self { names: None, to: BufWriter::new(Box::new(io::stdout())) });
        };
        if path.is_dir() {
            return Err(format!("--out {} is a folder", path.display()));
        }
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        // Never write through a link that somebody else has put there.
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| format!("--out {} cannot be written: {e}", path.display()))?;
        let names = Some(Names { path: path.to_owned(), temporary, renamed: false });
        Ok(Self { names, to: BufWriter::new(Box::new(file)) })
    }

    /// The file that must be removed if the process ends early; `None` for standard output.
    pub fn temporary(&self) -> Option<&Path> {
        self.names.as_ref().map(|names| &*names.temporary)
    }

    /// The name of the output for people.
    pub fn name(&self) -> String {
        self.names.as_ref().map_or_else(|| "standard output".to_owned(), |names| names.path.display().to_string())
    }

    /// What to say if the output cannot be written. `None` if the reader of standard output has
    /// seen enough and gone.
    pub fn failure(&self, error: &io::Error) -> Option<String> {
        let enough = self.names.is_none() && error.kind() == io::ErrorKind::BrokenPipe;
        (!enough).then(|| format!("{} cannot be written: {error}", self.name()))
    }

    /// Writes out the rest and gives the file its final name.
    ///
    /// # Errors
    /// One sentence; there is no file then.
    pub fn finish(mut self) -> Result<(), String> {
        if let Err(error) = self.to.flush() {
            return self.failure(&error).map_or(Ok(()), Err);
        }
        if let Some(names) = &mut self.names {
            fs::rename(&names.temporary, &names.path)
                .map_err(|e| format!("{} cannot be written: {e}", names.path.display()))?;
            names.renamed = true;
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The last line, with what is known of the profile: `cpu.html: 1.2 MB, 2 970 samples, capture 7`.
pub fn told(name: &str, bytes: u64, samples: Option<u64>, capture: Option<&str>) -> String {
    let samples = samples.map_or(String::new(), |count| {
        format!(", {} samples", text::amount(i64::try_from(count).unwrap_or(i64::MAX), "count"))
    });
    let capture = capture.map_or(String::new(), |number| format!(", capture {number}"));
    format!("{name}: {}{samples}{capture}", size(bytes))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_the_form() {
        for (name, form) in [
            ("a.html", Form::Html),
            ("dir.svg/a.b.svg", Form::Svg),
            ("cpu.pb.gz", Form::Pprof),
            ("a.folded", Form::Folded),
            ("./a.txt", Form::Text),
            ("a.perf", Form::PerfScript),
        ] {
            assert_eq!(Form::of(Path::new(name)), Ok(form), "{name}");
        }
        for name in ["a.pb", "a.gz", "a", "a.HTML", "a.html/..", "dir.html/", "/dev/null"] {
            let told = Form::of(Path::new(name));
            assert!(told.is_err() == (name != "dir.html/"), "{name}: {told:?}");
        }
    }

    #[test]
    fn the_last_line_says_what_is_known() {
        let line = told("cpu.html", 1_234_567, Some(2970), Some("7"));
        assert_eq!(line, "cpu.html: 1.2 MB, 2 970 samples, capture 7");
        assert_eq!(told("a.svg", 999, None, None), "a.svg: 999 bytes");
        assert_eq!(told("a.svg", 14_999, Some(0), None), "a.svg: 14 kB, 0 samples");
    }

    #[test]
    fn a_file_is_there_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.txt");
        fs::write(&path, "before").expect("a file");
        let count = || fs::read_dir(folder.path()).expect("a folder").count();
        let mut output = Output::open(Some(&path)).expect("open");
        output.write_all(b"half").expect("room");
        assert_eq!((count(), output.temporary().map(Path::exists)), (2, Some(true)));
        drop(output);
        assert_eq!((count(), fs::read_to_string(&path).expect("it")), (1, "before".to_owned()));
        let mut output = Output::open(Some(&path)).expect("open");
        output.write_all(b"whole").expect("room");
        output.finish().expect("room");
        assert_eq!((count(), fs::read_to_string(&path).expect("it")), (1, "whole".to_owned()));
        assert!(Output::open(Some(&folder.path().join("none/a.txt"))).is_err());
    }
}
