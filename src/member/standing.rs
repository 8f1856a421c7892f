//! How this node's data stands and whom it remembers, for the process: the file `standing` in the
//! data folder, and what data cores read without a lock.
//!
//! The rules are `koltso_cluster::standing`'s. The file is text of a few lines, sealed and replaced
//! as `members_file.rs` has it:
//!
//! ```text
//! koltso-standing 1
//! standing rebuilding 1700000000000        new, whole or rebuilding; when the last rebuilding began
//! starts 12                                how often the folder was started
//! unreadable 5 1f                          segments of which nothing can be read, in hexadecimal digits
//! peer 17006 0123…cdef 3 1699990000000 9f… 1700000000000
//! crc32c 1a2b3c4d                          number, identity, starts, lived, process, heard
//! ```
//!
//! Owner: the process, behind an `Arc`; the thread `koltso-standing` writes what is remembered.
//! Bounds: a line a member. Invariants:
//! 1. A number of starts is written before the node serves, unless the disk is full.
//! 2. That this node rebuilds is written before it handles a frame of whoever doubts it, by the
//!    thread that was told: it happens once.
//! 3. What is remembered is written soon after it has changed, and every ten seconds with the time
//!    until which the others were heard of; the clock's file is synced before, so that a loss of
//!    power does not make a folder look like an older copy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use koltso_cluster::exchange::board;
use koltso_cluster::standing::{Judged, Memory, News, Process, Remembered};
use koltso_instrument::Mutex;
use koltso_model::{NodeId, Standing, Told};
use koltso_net::replica::{self as wire, Acquaintances, Introduction, PeerIdentity};

use super::figures::standing_name;
use super::members_file::{self, MembersError};
use super::urls::UrlsByNumber;
use crate::replica::clock::{Clock, now_ms};

/// The file's name.
pub const FILE: &str = "standing";
const HEAD: &str = "koltso-standing 1";
/// How often what was heard of the others is written.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// Between a change of what is remembered and its writing: several come together.
const GATHER: Duration = Duration::from_millis(20);

/// What the file has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    standing: Standing,
    /// When the last rebuilding began, or 0.
    began_ms: u64,
    starts: u32,
    /// Segments whose loss this node knows of: it was doubted for it once.
    unreadable: Vec<u64>,
    remembered: BTreeMap<u16, Remembered>,
}

fn text_of(kept: &Kept) -> String {
    let Kept { standing, began_ms, starts, unreadable, remembered } = kept;
    let mut text = format!("{HEAD}\nstanding {} {began_ms}\nstarts {starts}\nunreadable", standing_name(*standing));
    unreadable.iter().for_each(|sequence| text += &format!(" {sequence:x}"));
    text.push('\n');
    for (number, Remembered { process, heard_ms }) in remembered {
        let Process { id, starts, lived_ms, run } = process;
        text += &format!("peer {number} {id} {starts} {lived_ms} {run:x} {heard_ms}\n");
    }
    members_file::sealed(text)
}

fn kept_in(text: &str) -> Option<Kept> {
    let mut lines = members_file::unsealed(text, HEAD)?;
    let (standing, began) = lines.next()?.strip_prefix("standing ")?.split_once(' ')?;
    let all = [Standing::New, Standing::Whole, Standing::Rebuilding];
    let standing = all.into_iter().find(|&known| standing_name(known) == standing)?;
    let began_ms = began.parse().ok()?;
    let starts = lines.next()?.strip_prefix("starts ")?.parse().ok()?;
    let unreadable = lines.next()?.strip_prefix("unreadable")?;
    let unreadable = unreadable.split_ascii_whitespace().map(|sequence| u64::from_str_radix(sequence, 16));
    let unreadable = unreadable.collect::<Result<_, _>>().ok()?;
    let mut remembered = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.strip_prefix("peer ")?.split(' ').collect();
        let [number, id, starts, lived, run, heard] = words[..] else { return None };
        let process = Process {
            id: NodeId::parse(id)?,
            starts: starts.parse().ok()?,
            lived_ms: lived.parse().ok()?,
            run: u64::from_str_radix(run, 16).ok()?,
        };
        let entry = Remembered { process, heard_ms: heard.parse().ok()? };
        if remembered.insert(number.parse().ok()?, entry).is_some() {
            return None;
        }
    }
    Some(Kept { standing, began_ms, starts, unreadable, remembered })
}

/// Whether the folder's file is there and cannot be used.
pub fn is_unusable(folder: &Path) -> bool {
    !members_file::read(folder, FILE).is_ok_and(|text| text.is_none_or(|text| kept_in(&text).is_some()))
}

/// How this node's data stands, and whom it remembers; see the module.
pub struct OwnStanding {
    memory: Mutex<Memory>,
    /// The standing, for those who take no lock.
    now: AtomicU8,
    /// Whether reads are answered: while that is so the node is whole. Shared with the replicas of
    /// the cores, which look at it before each read.
    whole: Arc<AtomicBool>,
    introduction: Introduction,
    /// Segments of which nothing can be read.
    unreadable: Vec<u64>,
    folder: PathBuf,
    urls: UrlsByNumber,
    /// What the file has; whoever writes it holds this.
    written: Mutex<Option<Kept>>,
    /// The thread that writes.
    writer: OnceLock<Thread>,
    /// Something that is remembered has changed.
    changed: AtomicBool,
}

const fn code(standing: Standing) -> u8 {
    match standing {
        Standing::New => 0,
        Standing::Whole => 1,
        Standing::Rebuilding => 2,
    }
}

impl std::fmt::Debug for OwnStanding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnStanding").field("standing", &self.standing()).finish_non_exhaustive()
    }
}

/// A data folder at its start.
pub struct Starting<'a> {
    /// Where it is.
    pub folder: &'a Path,
    /// Its identity.
    pub id: NodeId,
    /// Whether it has records, or has had any. A folder with records that does not say how it stands
    /// is one of an earlier build, and whole.
    pub has_records: bool,
    /// Whether records were found lost, and nobody can say of which keys.
    pub has_lost: bool,
    /// The segments of which nothing can be read.
    pub unreadable: Vec<u64>,
    /// Until when it had lived before this start, in ms since the Unix epoch; 0 if never.
    pub lived_ms: u64,
}

impl OwnStanding {
    /// Reads what the folder says and counts the start. `members` are the numbers of the other
    /// members.
    ///
    /// # Errors
    /// The file cannot be read or written, or is damaged. (Where there is no room on the disk, the
    /// start is not counted.)
    pub fn open(
        Starting { folder, id, has_records, has_lost, unreadable, lived_ms }: Starting<'_>,
        members: Vec<u16>,
        urls: UrlsByNumber,
    ) -> Result<Self, MembersError> {
        let folder = folder.to_path_buf();
        let mut kept = match members_file::read(&folder, FILE)? {
            Some(text) => kept_in(&text).ok_or_else(|| MembersError::damaged(FILE, &folder))?,
            None => {
                let standing = if has_records { Standing::Whole } else { Standing::New };
                Kept { standing, began_ms: 0, starts: 0, unreadable: Vec::new(), remembered: BTreeMap::new() }
            }
        };
        let was = kept.standing;
        let is_new = |sequence: &u64| !kept.unreadable.contains(sequence);
        let has_lost = has_lost || unreadable.iter().any(is_new);
        if has_lost && was != Standing::New && !members.is_empty() {
            // Its word that a key is absent, or old, is worth nothing.
            (kept.standing, kept.began_ms) = (Standing::Rebuilding, now_ms());
        }
        let starts = kept.starts.saturating_add(1);
        let memory = Memory::new(id, (kept.standing, kept.began_ms), members, kept.remembered);
        let mut drawn = [0; 8];
        getrandom::fill(&mut drawn).map_err(|error| MembersError::io(FILE, &folder, std::io::Error::other(error)))?;
        let introduction = Introduction { id, starts, lived_ms, process: u64::from_le_bytes(drawn) };
        let standing = memory.standing();
        let own = Self {
            memory: Mutex::new(&"standing", memory),
            now: AtomicU8::new(code(standing)),
            whole: Arc::new(AtomicBool::new(standing == Standing::Whole)),
            introduction,
            unreadable,
            folder,
            urls,
            written: Mutex::new(&"file of the standing", None),
            writer: OnceLock::new(),
            changed: AtomicBool::new(false),
        };
        match own.write() {
            Err(MembersError::Io { error, .. }) if is_full(&error) => {
                tracing::warn!("the start could not be counted in the data folder: {error}");
            }
            result => result?,
        }
        if standing == Standing::Rebuilding {
            own.say_that_it_rebuilds(match was {
                Standing::Rebuilding => "it was rebuilding when it ended",
                _ => "records in the data folder are damaged so that nobody can say whose they were",
            });
        }
        Ok(own)
    }

    /// Starts the thread that writes what is remembered.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_writing(self: &Arc<Self>, clock: Arc<Clock>) -> std::io::Result<()> {
        let own = self.clone();
        let write = move || {
            let mut is_said = false;
            loop {
                std::thread::park_timeout(WRITE_EVERY);
                if own.changed.swap(false, Ordering::AcqRel) {
                    std::thread::sleep(GATHER);
                }
                clock.sync();
                match own.write() {
                    Ok(()) => is_said = false,
                    Err(error) if !is_said => {
                        is_said = true;
                        tracing::warn!("{error}; it is tried again");
                    }
                    Err(_) => {}
                }
            }
        };
        let thread = std::thread::Builder::new().name("koltso-standing".to_owned()).spawn(write)?;
        let _ = self.writer.set(thread.thread().clone());
        Ok(())
    }

    /// Whether what it started with is on disk.
    pub fn is_kept(&self) -> bool {
        self.written.lock().is_some()
    }

    /// How this node's data stands.
    pub fn standing(&self) -> Standing {
        match self.now.load(Ordering::Relaxed) {
            0 => Standing::New,
            1 => Standing::Whole,
            _ => Standing::Rebuilding,
        }
    }

    /// Since when it is rebuilding, in ms since the Unix epoch; 0 unless it is.
    pub fn since_ms(&self) -> u64 {
        self.memory.lock().since_ms()
    }

    /// Whether this node answers reads, for the replicas of the cores.
    pub const fn whole(&self) -> &Arc<AtomicBool> {
        &self.whole
    }

    /// What this node says of its data folder.
    pub const fn introduction(&self) -> Introduction {
        self.introduction
    }

    /// A handshake is complete, and nothing that follows it has been handled yet.
    pub fn met(&self, peer: &PeerIdentity) {
        let process = process(&peer.introduction);
        let news = {
            let mut memory = self.memory.lock();
            let doubt = peer.doubts_us.then_some(peer.heard_us_ms);
            let news = memory.met(peer.node, process, doubt, now_ms());
            self.publish(&memory, news);
            news
        };
        self.keep(news, || {
            format!("{} remembers another data folder in its place, or a later state of it", self.url(peer.node))
        });
        if peer.changed {
            tracing::warn!(
                "{} is not whom this node remembers there: another data folder, or an older copy; it is rebuilt",
                self.url(peer.node)
            );
        }
    }

    /// A peer that was met has told how its data stands. Whom this node remembers from then on is on
    /// disk at the end, so not for a core.
    pub fn told(&self, peer: &PeerIdentity, told: &Told) {
        let lived_ms = board::lived_ms(told).min(now_ms());
        let news = {
            let mut memory = self.memory.lock();
            let news = memory.told(peer.node, process(&peer.introduction), told.standing, lived_ms);
            self.publish(&memory, news);
            news
        };
        match news {
            News::None => {}
            // Whoever doubted this node rebuilds itself: it may say what it likes of others.
            News::Standing => self.keep(news, String::new),
            News::Memory => {
                if let Err(error) = self.write() {
                    tracing::error!("{error}");
                }
            }
        }
    }

    /// The member with this number has lived until then, by its own clock, in ms since the Unix epoch.
    pub fn heard(&self, number: u16, lived_ms: u64) {
        self.memory.lock().heard(number, lived_ms.min(now_ms()));
    }

    /// All that this node keeps was compared with enough others, and is equal.
    pub fn became_whole(&self) {
        let news = {
            let mut memory = self.memory.lock();
            let news = memory.became_whole();
            self.publish(&memory, news);
            news
        };
        self.keep(news, String::new);
    }

    fn url(&self, number: u16) -> String {
        self.urls.translated(&format!("node {number}"))
    }

    /// Shows the standing to those who take no lock, while the memory is locked.
    fn publish(&self, memory: &Memory, news: News) {
        if news == News::Standing {
            let standing = memory.standing();
            self.whole.store(standing == Standing::Whole, Ordering::Release);
            self.now.store(code(standing), Ordering::Release);
        }
    }

    /// Writes what has to be written at once, and says it.
    fn keep(&self, news: News, why: impl FnOnce() -> String) {
        match news {
            News::None => return,
            News::Memory => {}
            News::Standing if self.standing() == Standing::Rebuilding => {
                self.say_that_it_rebuilds(&why());
                if let Err(error) = self.write() {
                    tracing::error!("{error}");
                }
            }
            News::Standing => tracing::info!("this node has all that it confirmed, and answers reads"),
        }
        self.changed.store(true, Ordering::Release);
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn say_that_it_rebuilds(&self, why: &str) {
        tracing::warn!(
            "this node may lack what it once confirmed ({why}): it takes writes, answers no reads, and is rebuilt from the \
             other nodes"
        );
    }

    /// Writes the file if it says something else.
    fn write(&self) -> Result<(), MembersError> {
        let mut written = self.written.lock();
        let kept = {
            let memory = self.memory.lock();
            let remembered = memory.remembered().collect();
            let (standing, began_ms) = memory.kept();
            let unreadable = self.unreadable.clone();
            Kept { standing, began_ms, starts: self.introduction.starts, unreadable, remembered }
        };
        if written.as_ref() != Some(&kept) {
            members_file::replace(&self.folder, FILE, &text_of(&kept))?;
            *written = Some(kept);
        }
        Ok(())
    }

    /// Writes what is remembered at the end of a process.
    pub fn finish(&self) {
        if let Err(error) = self.write() {
            tracing::warn!("{error}");
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn process(introduction: &Introduction) -> Process {
    let &Introduction { id, starts, lived_ms, process } = introduction;
    Process { id, starts, lived_ms, run: process }
}

impl Acquaintances for OwnStanding {
    fn judge(&self, peer: u16, introduction: &Introduction) -> wire::Judged {
        match self.memory.lock().judge(peer, &process(introduction)) {
            Judged::Known => wire::Judged::Known,
            Judged::Changed => wire::Judged::Changed,
            Judged::TwoPlaces => wire::Judged::TwoPlaces,
        }
    }

    fn heard_ms(&self, peer: u16) -> u64 {
        self.memory.lock().heard_ms(peer)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use koltso_net::replica::{Features, Purpose};

    use super::*;

    fn starting(folder: &Path) -> Starting<'_> {
        Starting { folder, id: NodeId(1), has_records: false, has_lost: false, unreadable: Vec::new(), lived_ms: 5 }
    }

    fn open_with(starting: Starting<'_>) -> Result<OwnStanding, MembersError> {
        OwnStanding::open(starting, vec![7, 8], UrlsByNumber::new([(7, "http://a:1".to_owned())]))
    }

    fn open(folder: &Path) -> OwnStanding {
        open_with(starting(folder)).expect("opened")
    }

    fn peer(node: u16, id: u128, doubts_us: bool) -> PeerIdentity {
        let introduction = Introduction { id: NodeId(id), starts: 3, lived_ms: 1000, process: 9 };
        let (features, purpose) = (Features::KNOWN, Purpose::Requests);
        PeerIdentity {
            node,
            introduction,
            features,
            skew: None,
            purpose,
            changed: false,
            doubts_us,
            heard_us_ms: 0,
            epoch: 1,
        }
    }

    #[test]
    fn a_start_is_counted_and_what_was_met_is_remembered() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = open(folder.path());
        assert_eq!((own.standing(), own.introduction().starts, own.introduction().lived_ms), (Standing::New, 1, 5));
        assert!(!own.whole().load(Ordering::Relaxed));
        own.met(&peer(7, 70, false));
        assert_eq!(own.standing(), Standing::Whole, "two of three");
        assert!(own.whole().load(Ordering::Relaxed));
        own.finish();
        let mode = std::fs::metadata(folder.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = open(folder.path());
        assert_eq!((again.standing(), again.introduction().starts), (Standing::Whole, 2));
        assert_ne!(again.introduction().process, own.introduction().process);
        assert_eq!(again.judge(7, &peer(7, 71, false).introduction), wire::Judged::Changed);
        assert_eq!(again.judge(8, &peer(7, 70, false).introduction), wire::Judged::TwoPlaces);
        assert_eq!(again.judge(7, &peer(7, 70, false).introduction), wire::Judged::Known);
    }

    #[test]
    fn a_doubt_is_on_disk_when_the_handshake_is_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = open(folder.path());
        own.met(&peer(7, 70, false));
        own.met(&peer(8, 80, true));
        assert!(own.standing() == Standing::Rebuilding && !own.whole().load(Ordering::Relaxed));
        drop(own);
        let again = open(folder.path());
        assert!(again.standing() == Standing::Rebuilding && again.since_ms() > 0);
        again.met(&peer(7, 70, false));
        assert_eq!(again.standing(), Standing::Rebuilding);
        again.became_whole();
        assert!(again.standing() == Standing::Whole && again.whole().load(Ordering::Relaxed) && again.since_ms() == 0);
        again.finish();
        assert_eq!(open(folder.path()).standing(), Standing::Whole);
    }

    #[test]
    fn whoever_tells_that_it_is_whole_is_remembered() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = open(folder.path());
        own.met(&peer(7, 70, false));
        let emptied = peer(7, 71, false);
        own.met(&PeerIdentity { changed: true, ..emptied });
        assert_eq!(own.judge(7, &emptied.introduction), wire::Judged::Changed);
        own.told(&emptied, &Told { standing: Standing::Rebuilding, ..Told::default() });
        assert_eq!(own.judge(7, &emptied.introduction), wire::Judged::Changed);
        own.told(&emptied, &Told { standing: Standing::Whole, ..Told::default() });
        assert_eq!(own.judge(7, &emptied.introduction), wire::Judged::Known);
    }

    #[test]
    fn a_folder_with_records_that_says_nothing_is_one_of_an_earlier_build() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = open_with(Starting { has_records: true, ..starting(folder.path()) }).expect("opened");
        assert_eq!(own.standing(), Standing::Whole);
    }

    #[test]
    fn whoever_has_lost_records_of_unknown_keys_rebuilds() {
        let folder = tempfile::tempdir().expect("a folder");
        let lost = || Starting { has_records: true, has_lost: true, ..starting(folder.path()) };
        assert_eq!(open_with(lost()).expect("opened").standing(), Standing::Rebuilding, "one of an earlier build");
        let own = open(folder.path());
        own.became_whole();
        own.finish();
        assert_eq!(open(folder.path()).standing(), Standing::Whole);
        let own = open_with(lost()).expect("opened");
        assert!(own.standing() == Standing::Rebuilding && own.since_ms() > 0);
        assert!(!own.whole().load(Ordering::Relaxed));
        drop(own);
        assert_eq!(open(folder.path()).standing(), Standing::Rebuilding, "it is on disk");
        // What is lost is lost once: the file stays where it is.
        let unreadable = |sequences: &[u64]| {
            open_with(Starting { unreadable: sequences.to_vec(), ..starting(folder.path()) }).expect("opened")
        };
        open(folder.path()).became_whole();
        let own = unreadable(&[5, 0x1f]);
        assert_eq!(own.standing(), Standing::Rebuilding);
        own.became_whole();
        own.finish();
        assert_eq!(unreadable(&[5, 0x1f]).standing(), Standing::Whole, "it has all again");
        assert_eq!(unreadable(&[5, 0x1f, 0x20]).standing(), Standing::Rebuilding, "another one");
        // Whoever was never whole has lost nothing that it confirmed.
        let fresh = tempfile::tempdir().expect("a folder");
        let own = open_with(Starting { has_lost: true, ..starting(fresh.path()) }).expect("opened");
        assert_eq!(own.standing(), Standing::New);
    }

    #[test]
    fn what_is_written_reads_back_and_every_flipped_bit_is_noticed() {
        let process = Process { id: NodeId(0xfeed), starts: 4, lived_ms: 5, run: u64::MAX };
        let remembered = [(7, Remembered { process, heard_ms: 6 }), (9, Remembered { process, heard_ms: 0 })].into();
        let unreadable = vec![1, 0xfeed];
        let kept = Kept { standing: Standing::Rebuilding, began_ms: 17, starts: 3, unreadable, remembered };
        let text = text_of(&kept);
        assert_eq!(kept_in(&text), Some(kept));
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!String::from_utf8(bytes).is_ok_and(|text| kept_in(&text).is_some()), "bit {bit}");
        }
        for cut in 0..text.len() {
            assert_eq!(kept_in(&text[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_in_a_sentence_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        std::fs::write(&path, "koltso-standing 2\n").expect("written");
        let sentence = open_with(starting(folder.path())).expect_err("refused").to_string();
        assert!(sentence.contains("standing") && sentence.contains("damaged or of a newer build"), "{sentence}");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "koltso-standing 2\n");
    }
}
