//! Turns addresses of this process and its kernel into frames.
//!
//! For the program and its libraries it reads the debug information if the file has it (inlined
//! calls become frames of their own), otherwise the symbol tables. An address for which a file has
//! no name is named after the file, `[libc.so.6]`; one outside of all files is a number. For the
//! kernel it reads `/proc/kallsyms` once; if that hides addresses (`kptr_restrict`), the kernel is
//! the one frame `[kernel]`.
//!
//! Owner: the thread that captures. It is slow (about a millisecond for a new address). The whole
//! process keeps what was found, by address, for at most `CACHED_MAX` addresses; this assumes that
//! the program unloads no library. A file that was replaced on disk after it was mapped is not
//! read: no names are better than wrong ones. The program itself is read through `/proc/self/exe`,
//! which still refers to the file that runs.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use addr2line::Loader;
use object::read::{Object, ObjectSegment, ObjectSymbol, ReadCache};

use crate::alloc::Symbolise;
use crate::capture::{Frame, FramePlace, Mapping};

/// The most addresses whose frames are kept; when there are more, all are forgotten.
const CACHED_MAX: usize = 1 << 16;
/// The most frames that are read for one address, inlined ones included.
const INLINED_MAX: usize = 64;
/// The name of every function of a kernel that hides its addresses.
pub(crate) const NAMELESS_KERNEL: &str = "[kernel]";
/// The most mappings that are read.
const MAPPINGS_MAX: usize = 1 << 16;

static CACHE: Mutex<Option<HashMap<u64, Arc<[Frame]>>>> = Mutex::new(None);
static KERNEL: OnceLock<Option<Kernel>> = OnceLock::new();

/// Gives addresses names: see the head of the file.
#[derive(Debug, Default)]
pub struct Symbols {
    maps: Vec<Map>,
    files: HashMap<Box<str>, Option<Binary>>,
}

/// An executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Map {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
    path: Box<str>,
}

/// A file with code.
struct Binary {
    loader: Option<Loader>,
    /// Offset in the file, size and address of each loaded segment.
    segments: Vec<(u64, u64, u64)>,
    /// Address, end and name of each symbol, for files that only have those for the dynamic linker.
    dynamic: Vec<(u64, u64, Box<str>)>,
    build_id: Box<str>,
}

impl std::fmt::Debug for Binary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Binary").field("build_id", &self.build_id).finish_non_exhaustive()
    }
}

impl Symbols {
    /// Reads the mappings that the process has now.
    #[must_use]
    pub fn new() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self { maps: parse_maps(&maps), files: HashMap::new() }
    }

    /// Whether the kernel's addresses have names.
    #[must_use]
    pub fn kernel_named() -> bool {
        kernel().is_some()
    }

    /// The frames of an address, innermost first; never empty.
    pub fn frames(&mut self, address: u64) -> Arc<[Frame]> {
        let cached = |cache: &Option<HashMap<_, Arc<[Frame]>>>| cache.as_ref()?.get(&address).cloned();
        if let Some(frames) = cached(&CACHE.lock().unwrap_or_else(PoisonError::into_inner)) {
            return frames;
        }
        // The lock is not held meanwhile: two captures may look up the same address and find the
        // same.
        let frames: Arc<[Frame]> = self.resolve(address).into();
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = cache.get_or_insert_default();
        if cache.len() >= CACHED_MAX {
            cache.clear();
        }
        cache.insert(address, Arc::clone(&frames));
        frames
    }

    /// The mappings of the program's and its libraries' code.
    pub fn mappings(&mut self) -> Vec<Mapping> {
        let maps = self.maps.clone();
        let with_files = maps.into_iter().filter(|map| map.path.starts_with('/'));
        with_files
            .map(|map| {
                let build_id = self.binary(&map).map_or_else(Box::default, |binary| binary.build_id.clone());
                // The program is given by its name only: the build id identifies it, and its path
                // means nothing on another machine.
                let own = is_program(&map);
                let name = map.path.rsplit('/').next().filter(|_| own).map(Into::into);
                Mapping { start: map.start, end: map.end, offset: map.offset, file: name.unwrap_or(map.path), build_id }
            })
            .collect()
    }

    fn resolve(&mut self, address: u64) -> Vec<Frame> {
        let plain = |function: Box<str>, place| vec![Frame { function, file: None, line: 0, place, address }];
        if is_kernel(address) {
            let name = kernel().and_then(|kernel| kernel.name(address)).unwrap_or(NAMELESS_KERNEL);
            return plain(name.into(), FramePlace::Kernel);
        }
        let after = self.maps.partition_point(|map| map.start <= address);
        let map = after.checked_sub(1).map(|at| self.maps[at].clone()).filter(|map| address < map.end);
        let found = map.and_then(|map| {
            if map.path.starts_with('[') {
                return Some(plain(map.path, FramePlace::User));
            }
            let frames = self.binary(&map).map(|file| file.frames(address, address - map.start + map.offset));
            let file = || map.path.rsplit('/').next().filter(|file| !file.is_empty());
            frames
                .filter(|frames| !frames.is_empty())
                .or_else(|| Some(plain(format!("[{}]", file()?).into(), FramePlace::User)))
        });
        found.unwrap_or_else(|| plain(format!("{address:#x}").into(), FramePlace::User))
    }

    fn binary(&mut self, map: &Map) -> Option<&Binary> {
        if !self.files.contains_key(&map.path) {
            let binary = Binary::open(map);
            self.files.insert(map.path.clone(), binary);
        }
        self.files.get(&map.path)?.as_ref()
    }
}

/// Whether an address is in the kernel's half of the address space.
#[must_use]
pub const fn is_kernel(address: u64) -> bool {
    address >> 63 == 1
}

/// Names the addresses in the counts that are always on.
impl Symbolise for Symbols {
    fn frames(&mut self, address: u64, is_leaf: bool, out: &mut Vec<Frame>) {
        out.extend_from_slice(&Self::frames(self, address - u64::from(!is_leaf)));
    }
}

fn is_program(map: &Map) -> bool {
    std::fs::metadata("/proc/self/exe").is_ok_and(|program| program.ino() == map.inode)
}

impl Binary {
    fn open(map: &Map) -> Option<Self> {
        let path = if is_program(map) { "/proc/self/exe" } else { &*map.path };
        let file = File::open(path).ok()?;
        if file.metadata().ok()?.ino() != map.inode {
            return None;
        }
        // Read in parts: a program with its debug information may have hundreds of megabytes.
        let cache = ReadCache::new(file);
        let object = object::File::parse(&cache).ok()?;
        let segments = object.segments().map(|segment| {
            let (offset, size) = segment.file_range();
            (offset, size, segment.address())
        });
        let segments = segments.collect();
        let mut dynamic = Vec::new();
        if object.symbols().next().is_none() {
            for symbol in object.dynamic_symbols().filter(|symbol| symbol.is_definition() && symbol.size() > 0) {
                if let Ok(name) = symbol.name() {
                    dynamic.push((symbol.address(), symbol.address().saturating_add(symbol.size()), name.into()));
                }
            }
            dynamic.sort_unstable();
        }
        let build_id: String =
            object.build_id().ok().flatten().unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { loader: Loader::new(path).ok(), segments, dynamic, build_id: build_id.into() })
    }

    fn frames(&self, address: u64, offset: u64) -> Vec<Frame> {
        let inside = |&&(start, size, _): &&(u64, u64, u64)| offset >= start && offset - start < size;
        let Some(&(start, _, base)) = self.segments.iter().find(inside) else { return Vec::new() };
        let probe = base.wrapping_add(offset - start);
        let mut frames = Vec::new();
        if let Some(Ok(mut found)) = self.loader.as_ref().map(|loader| loader.find_frames(probe)) {
            while let Ok(Some(frame)) = found.next() {
                let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
                let Some(name) = name else { continue };
                let (file, line) =
                    frame.location.map_or((None, 0), |location| (location.file, location.line.unwrap_or(0)));
                let function = debug_name(&name, file);
                frames.push(Frame {
                    function,
                    file: file.map(|file| source_path(file).into()),
                    line,
                    place: FramePlace::Inlined,
                    address,
                });
                if frames.len() == INLINED_MAX {
                    break;
                }
            }
        }
        // The symbol table has the whole path of the outermost function.
        let symbol = self.symbol(probe).map(demangled);
        match (frames.last_mut(), symbol) {
            (Some(outermost), symbol) => {
                outermost.place = FramePlace::User;
                // With `debug = "line-tables-only"` the debug information says `new`, and the
                // symbol `alloc::vec::Vec<T>::new`.
                if let Some(symbol) = symbol.filter(|symbol| symbol.len() > outermost.function.len()) {
                    outermost.function = symbol;
                }
            }
            (None, Some(function)) => {
                frames.push(Frame { function, file: None, line: 0, place: FramePlace::User, address })
            }
            (None, None) => {}
        }
        frames
    }

    fn symbol(&self, probe: u64) -> Option<&str> {
        if let Some(name) = self.loader.as_ref().and_then(|loader| loader.find_symbol(probe)) {
            return Some(name);
        }
        let after = self.dynamic.partition_point(|&(address, ..)| address <= probe);
        let (_, end, name) = self.dynamic.get(after.checked_sub(1)?)?;
        (probe < *end).then_some(name)
    }
}

fn demangled(name: &str) -> Box<str> {
    format!("{:#}", rustc_demangle::demangle(name)).into()
}

/// The name of a function from a name in debug information. That is mangled or (with `debug =
/// "line-tables-only"`) has every type argument and no path, such as `lock<u8>`. Type arguments are
/// removed, and the source file says the module: `mutex::lock`.
fn debug_name(name: &str, file: Option<&str>) -> Box<str> {
    if rustc_demangle::try_demangle(name).is_ok() {
        return demangled(name);
    }
    let short = name.split_once('<').map_or(name, |(short, _)| short);
    match file.and_then(module) {
        _ if short.is_empty() => name.into(),
        Some(module) if !short.contains("::") => format!("{module}::{short}").into(),
        _ => short.into(),
    }
}

/// The folder in which this crate's sources were when it was built.
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// A source file by the path that people know: relative to the root of this project, relative to
/// the root of its crate (`bytes-1.10.1/src/bytes.rs`), or as it is. Where the sources were on the
/// machine that built the program is private, above all in a file that is passed on.
fn source_path(file: &str) -> &str {
    let root = SOURCES.strip_suffix("/crates/profiling").unwrap_or(SOURCES);
    if let Some(path) = file.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')) {
        return path;
    }
    // This covers `…/registry/src/HOST-HASH/bytes-1.10.1/src/bytes.rs`, and dependencies checked
    // out from git.
    let cached = file.split_once("/registry/src/").or_else(|| file.split_once("/git/checkouts/"));
    cached.and_then(|(_, rest)| rest.split_once('/')).map_or(file, |(_, path)| path)
}

/// The module of a source file: `…/sync/mutex.rs` and `…/mutex/mod.rs` are `mutex`;
/// `…/koltso-net/src/lib.rs` is `koltso-net`.
fn module(file: &str) -> Option<&str> {
    let mut parts = file.strip_suffix(".rs")?.rsplit('/');
    match parts.next()? {
        "mod" => parts.next(),
        "lib" | "main" => parts.find(|part| *part != "src"),
        stem => Some(stem),
    }
    .filter(|module| !module.is_empty())
}

/// Reads the executable mappings, sorted by address.
fn parse_maps(maps: &str) -> Vec<Map> {
    let mut found: Vec<Map> = maps.lines().filter_map(parse_map).take(MAPPINGS_MAX).collect();
    found.sort_unstable_by_key(|map| map.start);
    found
}

/// Reads a line such as `55d0…-55d1… r-xp 0000a000 fe:00 131 /usr/bin/koltso`; `None` if the
/// mapping is not executable.
fn parse_map(line: &str) -> Option<Map> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
        rest = after;
        word
    };
    let (start, end) = word().split_once('-')?;
    let executable = word().contains('x');
    let offset = u64::from_str_radix(word(), 16).ok()?;
    let _device = word();
    let inode = word().parse().ok()?;
    let path = rest.trim();
    let path = path.strip_suffix(" (deleted)").unwrap_or(path).into();
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (executable && start < end).then_some(Map { start, end, offset, inode, path })
}

/// The kernel's functions, sorted by address.
struct Kernel {
    addresses: Vec<(u64, u32)>,
    names: String,
}

fn kernel() -> Option<&'static Kernel> {
    KERNEL.get_or_init(|| Kernel::parse(&std::fs::read_to_string("/proc/kallsyms").ok()?)).as_ref()
}

impl Kernel {
    /// `None` if all addresses are hidden (0).
    fn parse(kallsyms: &str) -> Option<Self> {
        let mut kernel = Self { addresses: Vec::new(), names: String::new() };
        for line in kallsyms.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            let (Ok(address), true) = (u64::from_str_radix(address, 16), matches!(kind, "t" | "T" | "w" | "W")) else {
                continue;
            };
            let Ok(start) = u32::try_from(kernel.names.len()) else { break };
            if address == 0 {
                continue;
            }
            kernel.addresses.push((address, start));
            kernel.names.push_str(name);
            kernel.names.push('\n');
        }
        // The sort is stable: of several names of one address the first one stays first, and is the
        // one that is kept.
        kernel.addresses.sort_by_key(|&(address, _)| address);
        kernel.addresses.dedup_by_key(|&mut (address, _)| address);
        (!kernel.addresses.is_empty()).then_some(kernel)
    }

    fn name(&self, address: u64) -> Option<&str> {
        let after = self.addresses.partition_point(|&(start, _)| start <= address);
        let (_, start) = *self.addresses.get(after.checked_sub(1)?)?;
        self.names.get(start as usize..)?.lines().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn a_known_function() -> u64 {
        std::hint::black_box(42)
    }

    #[test]
    fn a_function_of_the_program_has_its_name_file_and_line() {
        let mut symbols = Symbols::new();
        let address = a_known_function as fn() -> u64 as usize as u64;
        let frames = symbols.frames(address);
        let outermost = frames.last().expect("never empty");
        assert!(outermost.function.ends_with("symbols::tests::a_known_function"), "{frames:?}");
        assert_eq!(outermost.place, FramePlace::User);
        assert_eq!(outermost.file.as_deref(), Some("crates/profiling/src/symbols.rs"));
        assert!(outermost.line > 0);
        assert!(Arc::ptr_eq(&frames, &symbols.frames(address)), "kept");
        let program = std::env::current_exe().expect("a program");
        let name = program.file_name().expect("a file").to_string_lossy();
        let mappings = symbols.mappings();
        assert!(mappings.iter().any(|map| *map.file == *name && map.start <= address && address < map.end));
    }

    #[test]
    fn names_of_debug_information_get_a_module_and_lose_their_type_arguments() {
        let file = Some("/rustc/1/library/std/src/sync/poison/mutex.rs");
        assert_eq!(debug_name("call_once<(), std::x::{closure_env#0}<u8>>", None).as_ref(), "call_once");
        assert_eq!(debug_name("lock<u8>", file).as_ref(), "mutex::lock");
        assert_eq!(debug_name("<odd", file).as_ref(), "<odd");
        assert_eq!(debug_name("_ZN3foo3bar17h0123456789abcdefE", file).as_ref(), "foo::bar");
        for (file, expected) in
            [("a/b/mod.rs", Some("b")), ("x/net/src/lib.rs", Some("net")), ("a.c", None), ("lib.rs", None)]
        {
            assert_eq!(module(file), expected, "{file}");
        }
    }

    #[test]
    fn files_are_named_without_the_machine_that_built() {
        let own = format!("{}/src/lib.rs", SOURCES);
        for (file, expected) in [
            (own.as_str(), "crates/profiling/src/lib.rs"),
            ("/home/me/.cargo/registry/src/index.example-1f2e/bytes-1.10.1/src/bytes.rs", "bytes-1.10.1/src/bytes.rs"),
            ("/rustc/59807616/library/core/src/option.rs", "/rustc/59807616/library/core/src/option.rs"),
            ("src/main.rs", "src/main.rs"),
        ] {
            assert_eq!(source_path(file), expected);
        }
    }

    #[test]
    fn an_address_of_nobody_is_a_number() {
        assert_eq!(Symbols::new().frames(0x1000)[0].function.as_ref(), "0x1000");
    }

    #[test]
    fn maps_are_read_and_what_is_not_executable_left_out() {
        let maps = "7f00-7f10 r--p 00000000 fe:00 131   /a b (deleted)\n\
                    7f10-7f20 r-xp 00001000 fe:00 131   /a b (deleted)\n\
                    7f30-7f40 r-xp 00000000 00:00 0     [vdso]\nnonsense\n-\n7f50-7f40 r-xp 0 0 0 x\n";
        let maps = parse_maps(maps);
        assert_eq!(maps.len(), 2);
        assert_eq!(maps[0], Map { start: 0x7f10, end: 0x7f20, offset: 0x1000, inode: 131, path: "/a b".into() });
        assert_eq!(maps[1].path.as_ref(), "[vdso]");
    }

    #[test]
    fn kernel_names_are_found_below_an_address_and_hidden_ones_are_none() {
        let kernel = Kernel::parse(
            "ffffffff81000100 T b\nffffffff81000000 T _text\nffffffff81000000 t a [m]\nffffffff81000050 d data\n",
        );
        let kernel = kernel.expect("addresses");
        assert_eq!(kernel.name(0xffff_ffff_8100_00ff), Some("_text"));
        assert_eq!(kernel.name(0xffff_ffff_8100_0100), Some("b"));
        assert_eq!(kernel.name(1), None);
        assert!(Kernel::parse("0000000000000000 T _text\n0000000000000000 t a\n").is_none());
    }
}
