//! An environment whose power can be lost: it knows what each completed sync has put on disk, and
//! makes the image of what a machine may find afterwards.
//!
//! Files are real ones in a folder that costs nothing (`/dev/shm` where there is one), so that
//! mapped writes are seen; beside each lies what its disk is sure to hold. Fault model:
//!
//! - A completed sync of a file covers the bytes and the length that it had when the sync began. A
//!   page of 4 KiB may also be written back at any other moment.
//! - Of what no sync covers an image has any subset: pages, sectors of 512 bytes, the first or last
//!   words of 8 bytes of a sector.
//! - Names made, changed and removed since the last completed sync of the folder are there or not,
//!   each by itself and in any order. A rename is one step.
//! - After a failed sync the kernel takes the pages for clean, though only some of them were
//!   written.
//! - Any call can be told to fail, with any error.
//!
//! What is not in it: a sector that loses bytes which did not change (see `docs/log-format.md` for
//! what is assumed).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use koltso_storage::{Env, FolderEntry, RealEnv, Space};
use koltso_testkit::Random;
use memmap2::{Mmap, MmapRaw};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// A sector that is being written is torn between two of these.
const WORD: usize = 8;

/// A kind of call, for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Create,
    Open,
    Rename,
    Remove,
    SyncFolder,
    SetLen,
    Read,
    Write,
    Allocate,
    Release,
    Sync,
    Map,
    Space,
    List,
}

pub const CALLS: [Call; 14] = [
    Call::Create,
    Call::Open,
    Call::Rename,
    Call::Remove,
    Call::SyncFolder,
    Call::SetLen,
    Call::Read,
    Call::Write,
    Call::Allocate,
    Call::Release,
    Call::Sync,
    Call::Map,
    Call::Space,
    Call::List,
];

/// Calls of this kind fail from the `after`th on (1 is the next), `times` times.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub call: Call,
    pub code: i32,
    pub after: u64,
    pub times: u64,
}

/// What a machine finds when its power is back.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Without the folder there is no file.
    pub has_folder: bool,
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// Writes the image to a folder, which is not there yet.
    pub fn write_to(&self, folder: &Path) {
        if !self.has_folder {
            return;
        }
        std::fs::create_dir(folder).unwrap();
        for (name, bytes) in &self.files {
            let file = RealEnv.create_new(&folder.join(name)).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            for (number, page) in bytes.chunks(PAGE).enumerate() {
                if page.iter().any(|&byte| byte != 0) {
                    file.write_all_at(page, (number * PAGE) as u64).unwrap();
                }
            }
        }
    }
}

/// A file, by what is known of its bytes.
struct Tracked {
    file: File,
    /// What the disk is sure to hold.
    platter: Vec<u8>,
    /// What the kernel takes to be on disk: it writes a page only when it differs from this.
    clean: Vec<u8>,
    /// Pages that were written since, whether they changed or not.
    written: BTreeSet<usize>,
    /// Number of the newest sync that has completed.
    synced: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Made(String, u64),
    Removed(String, u64),
    Renamed(String, String, u64),
}

struct State {
    random: Random,
    files: HashMap<u64, Tracked>,
    /// Names that survive, and the numbers (inodes) of their files.
    durable: BTreeMap<String, u64>,
    /// Names as a process sees them.
    current: BTreeMap<String, u64>,
    /// What leads from the one to the other.
    changes: Vec<Change>,
    /// How many changes there were before these.
    settled: u64,
    folder_is_durable: bool,
    syncs: u64,
    fault: Option<Fault>,
    /// Calls of its kind since it was set, and how many of these failed.
    count: u64,
    hits: u64,
}

type Observer = Box<dyn Fn(&PowerEnv) + Send + Sync>;

/// See the module.
pub struct PowerEnv {
    folder: PathBuf,
    state: Mutex<State>,
    pub now_ms: AtomicU64,
    /// Called in the middle of a call, once in so many of them.
    observer: Option<(u64, Observer)>,
}

fn page(bytes: &[u8], number: usize) -> &[u8] {
    let start = (number * PAGE).min(bytes.len());
    &bytes[start..(start + PAGE).min(bytes.len())]
}

/// Whether two pages differ; what a file does not have reads as zeros.
fn differ(a: &[u8], b: &[u8]) -> bool {
    let common = a.len().min(b.len());
    a[..common] != b[..common] || a[common..].iter().chain(&b[common..]).any(|&byte| byte != 0)
}

/// Copies bytes `from..to` of `source` over those of `target`, which grows if need be.
fn copy(target: &mut Vec<u8>, source: &[u8], from: usize, to: usize) {
    let to = to.min(source.len());
    if from >= to {
        return;
    }
    if target.len() < to {
        target.resize(to, 0);
    }
    target[from..to].copy_from_slice(&source[from..to]);
}

impl Tracked {
    fn current(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.file.metadata().unwrap().len() as usize];
        // A file that was cut short meanwhile is as good as zeros there.
        let _ = self.file.read_exact_at(&mut bytes, 0);
        bytes
    }

    /// Numbers of the pages that the kernel would have to write.
    fn dirty(&self, current: &[u8]) -> Vec<usize> {
        let pages = current.len().max(self.clean.len()).div_ceil(PAGE);
        let is_dirty =
            |number| self.written.contains(&number) || differ(page(current, number), page(&self.clean, number));
        (0..pages).filter(|&number| is_dirty(number)).collect()
    }

    /// One page gets to the disk.
    fn write_page(&mut self, content: &[u8], number: usize) {
        let (from, to) = (number * PAGE, (number + 1) * PAGE);
        copy(&mut self.platter, content, from, to);
        copy(&mut self.clean, content, from, to);
        self.written.remove(&number);
    }

    /// Everything in `content` is on disk, as far as the kernel does not take it to be there
    /// already.
    fn sync(&mut self, content: &[u8]) {
        for number in self.dirty(content) {
            self.write_page(content, number);
        }
        self.platter.resize(content.len(), 0);
        self.clean.resize(content.len(), 0);
    }

    /// Some of it gets there, and the kernel forgets the rest.
    fn fail(&mut self, content: &[u8], random: &mut Random) {
        for number in self.dirty(content) {
            if random.one_in(2) {
                self.write_page(content, number);
            }
        }
        self.clean = content.to_vec();
        self.written.clear();
    }

    /// What a disk may hold of it.
    fn image(&self, random: &mut Random) -> Vec<u8> {
        let current = self.current();
        let dirty = self.dirty(&current);
        let mut image = self.platter.clone();
        let lens = [image.len(), current.len()];
        // Nothing, everything, pages, sectors, and sectors one of which is half written.
        let way = random.below(6);
        for number in dirty {
            for start in (number * PAGE..(number + 1) * PAGE).step_by(SECTOR) {
                let end = start + SECTOR;
                match way {
                    0 => {}
                    1 => copy(&mut image, &current, start, end),
                    2 | 3 if start.is_multiple_of(PAGE) && random.one_in(2) => {
                        copy(&mut image, &current, start, start + PAGE);
                    }
                    2 | 3 => {}
                    4 if random.one_in(2) => copy(&mut image, &current, start, end),
                    5 if random.one_in(2) => {
                        let middle = start + WORD * random.below(SECTOR / WORD + 1);
                        let (from, to) = if random.one_in(2) { (start, middle) } else { (middle, end) };
                        copy(&mut image, &current, from, to);
                    }
                    _ => {}
                }
            }
        }
        let (least, most) = (lens[0].min(lens[1]), lens[0].max(lens[1]));
        let len = match random.below(4) {
            0 => lens[0],
            1 => random.between(least, most),
            _ => lens[1],
        };
        image.resize(len, 0);
        image
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Made(name, file) => {
            names.insert(name.clone(), *file);
        }
        Change::Removed(name, file) => {
            if names.get(name) == Some(file) {
                names.remove(name);
            }
        }
        Change::Renamed(from, to, file) => {
            if names.get(from) == Some(file) {
                names.remove(from);
            }
            names.insert(to.clone(), *file);
        }
    }
}

impl State {
    /// The kernel writes some page of some file back.
    fn write_back(&mut self) {
        let mut numbers: Vec<u64> = self.files.keys().copied().collect();
        numbers.sort_unstable();
        if numbers.is_empty() {
            return;
        }
        let number = *self.random.choose(&numbers);
        let Some(tracked) = self.files.get_mut(&number) else {
            return;
        };
        let current = tracked.current();
        let dirty = tracked.dirty(&current);
        if !dirty.is_empty() {
            let page = *self.random.choose(&dirty);
            tracked.write_page(&current, page);
        }
    }

    fn changed(&mut self, change: Change) {
        apply(&mut self.current, &change);
        self.changes.push(change);
    }

    /// Forgets files that no name can lead to any more.
    fn forget(&mut self) {
        let mut known: Vec<u64> = self.current.values().chain(self.durable.values()).copied().collect();
        known.extend(self.changes.iter().map(|change| match change {
            Change::Made(_, file) | Change::Removed(_, file) | Change::Renamed(_, _, file) => *file,
        }));
        self.files.retain(|number, _| known.contains(number));
    }

    fn image(&mut self) -> Image {
        if !self.folder_is_durable && self.random.one_in(2) {
            return Image::default();
        }
        let mut names = self.durable.clone();
        let mut changes = self.changes.clone();
        if self.random.one_in(3) {
            // In their order, as a journal has them.
            changes.truncate(self.random.below(changes.len() + 1));
        } else {
            for last in (1..changes.len()).rev() {
                changes.swap(last, self.random.below(last + 1));
            }
            changes.retain(|_| self.random.one_in(2));
        }
        changes.iter().for_each(|change| apply(&mut names, change));
        let mut files = BTreeMap::new();
        for (name, number) in names {
            files.insert(name, self.files[&number].image(&mut self.random));
        }
        Image { has_folder: true, files }
    }

    fn fault(&mut self, call: Call) -> io::Result<()> {
        let Some(fault) = self.fault.filter(|fault| fault.call == call) else {
            return Ok(());
        };
        self.count += 1;
        if !(fault.after..fault.after + fault.times).contains(&self.count) {
            return Ok(());
        }
        self.hits += 1;
        Err(io::Error::from_raw_os_error(fault.code))
    }
}

impl PowerEnv {
    /// For a data folder that is not there yet, or holds an image: all of that is on disk.
    pub fn new(folder: &Path, seed: u64, now_ms: u64) -> Self {
        let mut state = State {
            random: Random::seeded(seed),
            files: HashMap::new(),
            durable: BTreeMap::new(),
            current: BTreeMap::new(),
            changes: Vec::new(),
            settled: 0,
            folder_is_durable: folder.exists(),
            syncs: 0,
            fault: None,
            count: 0,
            hits: 0,
        };
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap();
            let file = File::open(entry.path()).unwrap();
            let (name, number) = (entry.file_name().into_string().unwrap(), file.metadata().unwrap().ino());
            let content = std::fs::read(entry.path()).unwrap();
            state.files.insert(
                number,
                Tracked { file, platter: content.clone(), clean: content, written: BTreeSet::new(), synced: 0 },
            );
            state.durable.insert(name, number);
        }
        state.current = state.durable.clone();
        Self { folder: folder.to_path_buf(), state: Mutex::new(state), now_ms: AtomicU64::new(now_ms), observer: None }
    }

    /// Has `observer` called in the middle of one in `one_in` calls, on whichever thread makes
    /// them.
    pub fn observed(mut self, one_in: u64, observer: impl Fn(&Self) + Send + Sync + 'static) -> Self {
        self.observer = Some((one_in, Box::new(observer)));
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a machine may find if the power is lost now.
    pub fn image(&self) -> Image {
        self.state().image()
    }

    /// Calls fail as said, counted from now on.
    pub fn fail(&self, fault: Fault) {
        let mut state = self.state();
        (state.count, state.hits) = (0, 0);
        state.fault = Some(fault);
    }

    /// No call fails any more; how many did.
    pub fn heal(&self) -> u64 {
        let mut state = self.state();
        state.fault = None;
        state.hits
    }

    /// What comes with every call: the kernel writes back, somebody loses power, or the call fails.
    fn call(&self, call: Call) -> io::Result<()> {
        let mut state = self.state();
        if state.random.one_in(4) {
            state.write_back();
        }
        let is_seen = self.observer.as_ref().filter(|(one_in, _)| state.random.one_in(*one_in));
        let result = state.fault(call);
        drop(state);
        if let Some((_, observer)) = is_seen {
            observer(self);
        }
        result
    }

    fn name_of(&self, path: &Path) -> String {
        assert_eq!(path.parent(), Some(&*self.folder), "a file outside of the data folder");
        path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn track(&self, path: &Path, file: &File) {
        let (name, number) = (self.name_of(path), file.metadata().unwrap().ino());
        let mut state = self.state();
        if state.current.get(&name) == Some(&number) {
            return;
        }
        let file = file.try_clone().unwrap();
        state.files.insert(
            number,
            Tracked { file, platter: Vec::new(), clean: Vec::new(), written: BTreeSet::new(), synced: 0 },
        );
        state.changed(Change::Made(name, number));
    }
}

impl Env for PowerEnv {
    /// A test waits for its background work, whatever else runs on the machine.
    fn give_way(&self) {}

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.call(Call::Create)?;
        RealEnv.create_folder(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        self.call(Call::List)?;
        RealEnv.list(folder)
    }

    fn create_new(&self, path: &Path) -> io::Result<File> {
        self.call(Call::Create)?;
        let file = RealEnv.create_new(path)?;
        self.track(path, &file);
        Ok(file)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.call(Call::Create)?;
        let file = RealEnv.create(path)?;
        self.track(path, &file);
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.call(Call::Open)?;
        RealEnv.open(path)
    }

    fn open_to_read(&self, path: &Path) -> io::Result<File> {
        self.call(Call::Open)?;
        RealEnv.open_to_read(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Rename)?;
        let mut state = self.state();
        RealEnv.rename(from, to)?;
        let (from, to) = (self.name_of(from), self.name_of(to));
        let number = state.current[&from];
        state.changed(Change::Renamed(from, to, number));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(Call::Remove)?;
        let mut state = self.state();
        RealEnv.remove(path)?;
        let name = self.name_of(path);
        let number = state.current[&name];
        state.changed(Change::Removed(name, number));
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let covered = {
            let state = self.state();
            state.settled + state.changes.len() as u64
        };
        self.call(Call::SyncFolder)?;
        let mut state = self.state();
        if folder == self.folder {
            // Another sync may have ended meanwhile.
            let covered = covered.saturating_sub(state.settled) as usize;
            let changes: Vec<Change> = state.changes.drain(..covered).collect();
            state.settled += covered as u64;
            changes.iter().for_each(|change| apply(&mut state.durable, change));
            state.forget();
        } else if Some(folder) == self.folder.parent() {
            state.folder_is_durable = true;
        }
        Ok(())
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.call(Call::SetLen)?;
        RealEnv.set_len(file, len)
    }

    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.call(Call::Read)?;
        RealEnv.read_at(file, bytes, offset)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.call(Call::Write)?;
        RealEnv.write_at(file, bytes, offset)?;
        if let Some(tracked) = self.state().files.get_mut(&file.metadata()?.ino()) {
            let end = offset as usize + bytes.len();
            tracked.written.extend(offset as usize / PAGE..end.div_ceil(PAGE));
        }
        Ok(())
    }

    fn write_durably(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(file, bytes, offset)?;
        self.call(Call::Write)?;
        let mut state = self.state();
        if let Some(tracked) = state.files.get_mut(&file.metadata()?.ino()) {
            let content = tracked.current();
            tracked.sync(&content);
        }
        Ok(())
    }

    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.call(Call::Allocate)?;
        RealEnv.allocate(file, offset, len)
    }

    fn release(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.call(Call::Release)?;
        RealEnv.release(file, offset, len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let number = file.metadata()?.ino();
        let (content, turn) = {
            let mut state = self.state();
            state.syncs += 1;
            // A file that no name leads to any more.
            let Some(tracked) = state.files.get(&number) else {
                return Ok(());
            };
            (tracked.current(), state.syncs)
        };
        let result = self.call(Call::Sync);
        let State { files, random, .. } = &mut *self.state();
        if let Some(tracked) = files.get_mut(&number) {
            match &result {
                Ok(()) if turn > tracked.synced => {
                    tracked.sync(&content);
                    tracked.synced = turn;
                }
                Ok(()) => {}
                Err(_) => tracked.fail(&content, random),
            }
        }
        result
    }

    fn map(&self, file: &File, len: usize) -> io::Result<MmapRaw> {
        self.call(Call::Map)?;
        RealEnv.map(file, len)
    }

    #[allow(unsafe_code)]
    unsafe fn map_unchanging(&self, file: &File) -> io::Result<Mmap> {
        self.call(Call::Map)?;
        // SAFETY: the caller's promise.
        unsafe { RealEnv.map_unchanging(file) }
    }

    fn space(&self, _folder: &Path) -> io::Result<Space> {
        self.call(Call::Space)?;
        Ok(Space { free: 1 << 40, total: 1 << 40 })
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::SeqCst)
    }
}
