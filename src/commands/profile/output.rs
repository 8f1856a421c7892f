//! Where a profile goes: a file whose name's ending says its form, or standard output.
//!
//! A file is written under a temporary name beside its own and renamed when it is whole: a failure leaves neither half a file nor a
//! changed one. It is begun before the capture, so that a folder that cannot be written to costs nobody half a minute.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use koltso_profiling::text;

/// How a profile is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The interactive page.
    Html,
    /// A picture.
    Svg,
    /// Gzipped profile.proto.
    Pprof,
    /// Collapsed stacks.
    Folded,
    /// The top functions.
    Text,
    /// As `perf script` prints it.
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
    /// By the ending of a file's name.
    ///
    /// # Errors
    /// One sentence that lists them.
    pub fn of(path: &Path) -> Result<Self, String> {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let known = ENDINGS.into_iter().find(|(ending, _)| name.ends_with(ending));
        known.map(|(_, form)| form).ok_or_else(|| {
            format!("--out {}: its ending says the form: .html, .svg, .pb.gz, .folded, .txt or .perf", path.display())
        })
    }

    /// As the parameter `format` of a node has it.
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

/// See the head of the file. Dropped before [`Output::finish`], it leaves nothing.
pub struct Output {
    names: Option<Names>,
    to: BufWriter<Box<dyn Write>>,
}

impl Drop for Names {
    fn drop(&mut self) {
        if !self.renamed {
            // It may be gone already, or stay: nothing more can be done here.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Output {
    /// Begins a file, or standard output.
    ///
    /// # Errors
    /// One sentence: the folder is not there, may not be written to, …
    pub fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Self { names: None, to: BufWriter::new(Box::new(io::stdout())) });
        };
        if path.is_dir() {
            return Err(format!("--out {} is a folder", path.display()));
        }
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        // Never through a link that somebody put there.
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| format!("--out {} cannot be written: {e}", path.display()))?;
        let names = Some(Names { path: path.to_owned(), temporary, renamed: false });
        Ok(Self { names, to: BufWriter::new(Box::new(file)) })
    }

    /// What has to be removed if the process ends early.
    pub fn temporary(&self) -> Option<&Path> {
        self.names.as_ref().map(|names| &*names.temporary)
    }

    /// As people call it.
    pub fn name(&self) -> String {
        self.names.as_ref().map_or_else(|| "standard output".to_owned(), |names| names.path.display().to_string())
    }

    /// What to say where it cannot be written. `None`: nobody reads on, who has seen enough.
    pub fn failure(&self, error: &io::Error) -> Option<String> {
        let enough = self.names.is_none() && error.kind() == io::ErrorKind::BrokenPipe;
        (!enough).then(|| format!("{} cannot be written: {error}", self.name()))
    }

    /// Makes it whole.
    ///
    /// # Errors
    /// One sentence; then there is no file.
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

/// The last line: `cpu.html: 1.2 MB, 2 970 samples, capture 7`, with what is known of it.
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
