//! What a data folder knows of itself and of its cluster: the files `identity` and `members`.
//!
//! Both are text of a few lines; the last line is `crc32c` and the CRC-32C of all before it, in
//! hexadecimal digits. They are written under another name, synced and renamed, so that a loss of
//! power leaves the old file or the new one.
//!
//! ```text
//! koltso-identity 1                   koltso-members 1
//! id 0123456789abcdef…                epoch 1
//! crc32c 1a2b3c4d                     node 47830 0123…cdef http://10.0.0.1:1337 zone-a
//!                                     former 17006 0000…0000 http://10.0.0.9:1337
//!                                     crc32c 1a2b3c4d
//! ```
//!
//! A folder whose own identity `members` has under the address of another node of the list is that
//! node's, and refused. One without these files is taken: that of a node that was alone joins a
//! cluster so, and one of a cluster that is started without a list serves what it has, alone.
//!
//! `identity`: the time and random bits, made at the folder's first start and kept. `members`: the numbers
//! of the cluster's nodes, made at the first start with `--cluster`; from then on they come from
//! here, and the list given at a start only says who is listed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use koltso_cluster::membership::{MemberNode, Membership, MembershipError};
use koltso_instrument::waiting;
use koltso_model::NodeId;
use koltso_storage::open_own;

use crate::replica::clock::now_ms;

const IDENTITY_FILE: &str = "identity";
const MEMBERS_FILE: &str = "members";
const IDENTITY_HEAD: &str = "koltso-identity 1";
const MEMBERS_HEAD: &str = "koltso-members 1";
/// More is no file of ours: 64 nodes, as many former ones many times over, each with a long
/// address.
const SIZE_MAX: u64 = 4 << 20;

/// Why what the folder knows cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// It cannot be read or written.
    #[error("the file {file} in the data folder {folder} cannot be used: {error}")]
    Io {
        /// Which file.
        file: &'static str,
        /// The data folder.
        folder: String,
        /// What the system said.
        error: io::Error,
    },
    /// It is not what this build, or an older one, has written.
    #[error(
        "the file {file} in the data folder {folder} is damaged or of a newer build: put it back from a copy of the folder, or \
         start with an empty folder, which the others fill"
    )]
    Damaged {
        /// Which file.
        file: &'static str,
        /// The data folder.
        folder: String,
    },
    /// It is the folder of another node of the list.
    #[error(
        "the data folder {folder} belongs to the node {owner}, and this is the node {me}: start it with --node {owner}, or give \
         {me} the folder that is its own (--data)"
    )]
    OtherNode {
        /// The data folder.
        folder: String,
        /// The address of the node that it belongs to.
        owner: String,
        /// The address of the node that was started.
        me: String,
    },
    /// The list given at the start is no cluster.
    #[error(transparent)]
    List(#[from] MembershipError),
}

impl MembersError {
    pub(super) fn io(file: &'static str, folder: &Path, error: io::Error) -> Self {
        Self::Io { file, folder: folder.display().to_string(), error }
    }

    pub(super) fn damaged(file: &'static str, folder: &Path) -> Self {
        Self::Damaged { file, folder: folder.display().to_string() }
    }
}

/// The text with a line behind it that has its checksum.
pub(super) fn sealed(mut text: String) -> String {
    let crc = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("crc32c {crc:08x}\n"));
    text
}

/// The lines between the first, which has to be `head`, and the checksum, which has to be right.
pub(super) fn unsealed<'a>(text: &'a str, head: &str) -> Option<impl Iterator<Item = &'a str>> {
    let at = text.rfind("crc32c ")?;
    let body = &text[..at];
    let mut lines = body.strip_suffix('\n')?.lines();
    (sealed(body.to_owned()) == text && lines.next() == Some(head)).then_some(lines)
}

fn identity_text(id: NodeId) -> String {
    sealed(format!("{IDENTITY_HEAD}\nid {id}\n"))
}

fn read_identity(text: &str) -> Option<NodeId> {
    let mut lines = unsealed(text, IDENTITY_HEAD)?;
    let id = NodeId::parse(lines.next()?.strip_prefix("id ")?)?;
    (lines.next().is_none() && id != NodeId::NONE).then_some(id)
}

fn members_text(membership: &Membership) -> String {
    let mut text = format!("{MEMBERS_HEAD}\nepoch {}\n", membership.epoch());
    let kinds = [("node", membership.nodes()), ("former", membership.former())];
    for (kind, node) in kinds.iter().flat_map(|(kind, nodes)| nodes.iter().map(move |node| (kind, node))) {
        let MemberNode { id, number, url, zone, .. } = node;
        let line = format!("{kind} {number} {id} {url} {zone}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    sealed(text)
}

fn read_members(text: &str) -> Option<Membership> {
    let mut lines = unsealed(text, MEMBERS_HEAD)?;
    let epoch = lines.next()?.strip_prefix("epoch ")?.parse().ok()?;
    let (mut nodes, mut former) = (Vec::new(), Vec::new());
    for line in lines {
        let mut words = line.splitn(5, ' ');
        let kind = words.next()?;
        let number = words.next()?.parse().ok()?;
        let id = NodeId::parse(words.next()?)?;
        let url = words.next()?.to_owned();
        let zone = words.next().unwrap_or_default().to_owned();
        let node = MemberNode::listed(id, number, url, zone);
        match kind {
            "node" => nodes.push(node),
            "former" => former.push(node),
            _ => return None,
        }
    }
    Membership::from_parts(epoch, nodes, former).ok()
}

pub(super) fn read(folder: &Path, file: &'static str) -> Result<Option<String>, MembersError> {
    let failed = |error| MembersError::Io { file, folder: folder.display().to_string(), error };
    let damaged = || MembersError::Damaged { file, folder: folder.display().to_string() };
    let mut bytes = Vec::new();
    match open_own(OpenOptions::new().read(true), &folder.join(file)) {
        Ok(open) => open.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if bytes.len() as u64 > SIZE_MAX {
        return Err(damaged());
    }
    String::from_utf8(bytes).map(Some).map_err(|_| damaged())
}

pub(super) fn replace(folder: &Path, file: &'static str, text: &str) -> Result<(), MembersError> {
    let write = || -> io::Result<()> {
        let unfinished = folder.join(format!("{file}-new"));
        let mut new = open_own(OpenOptions::new().create(true).truncate(true).write(true), &unfinished)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&unfinished, folder.join(file))?;
        File::open(folder)?.sync_all()
    };
    waiting(&"write of the members", write).map_err(|error| MembersError::Io {
        file,
        folder: folder.display().to_string(),
        error,
    })
}

/// The identity of a data folder, or a new one where it has none. Nothing is written before
/// [`keep`].
///
/// # Errors
/// See [`MembersError`].
pub fn identity_in(folder: &Path) -> Result<NodeId, MembersError> {
    if let Some(text) = read(folder, IDENTITY_FILE)? {
        let damaged = || MembersError::Damaged { file: IDENTITY_FILE, folder: folder.display().to_string() };
        return read_identity(&text).ok_or_else(damaged);
    }
    let io_error = |error| MembersError::Io { file: IDENTITY_FILE, folder: folder.display().to_string(), error };
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| io_error(io::Error::other(error)))?;
    Ok(NodeId::made(now_ms(), u128::from_le_bytes(bytes)))
}

/// Which of the folder's files are there and cannot be used.
pub fn unusable(folder: &Path) -> Vec<&'static str> {
    let is_usable = |file| match (read(folder, file), file) {
        (Ok(None), _) => true,
        (Ok(Some(text)), IDENTITY_FILE) => read_identity(&text).is_some(),
        (Ok(Some(text)), _) => read_members(&text).is_some(),
        (Err(_), _) => false,
    };
    [IDENTITY_FILE, MEMBERS_FILE].into_iter().filter(|file| !is_usable(file)).collect()
}

/// The membership of the nodes in a list, of which `me` has this identity, with the numbers that
/// the data folder knows. Nothing is written before [`keep`].
///
/// # Errors
/// See [`MembersError`].
pub fn members_in(folder: &Path, urls: &[String], me: &str, id: NodeId) -> Result<Membership, MembersError> {
    let damaged = || MembersError::Damaged { file: MEMBERS_FILE, folder: folder.display().to_string() };
    let found = match read(folder, MEMBERS_FILE)? {
        Some(text) => Some(read_members(&text).ok_or_else(damaged)?),
        None => None,
    };
    if let Some(owner) = found.as_ref().and_then(|found| other_owner(found, urls, me, id)) {
        let (folder, me) = (folder.display().to_string(), me.to_owned());
        return Err(MembersError::OtherNode { folder, owner, me });
    }
    let listed = match &found {
        Some(found) => found.relisted(urls)?,
        None => Membership::first(urls)?,
    };
    Ok(listed.with_identity(me, id))
}

/// The address of the node that a folder with this identity belongs to, where that is not `me`.
///
/// An address may change, so that it is another one than it was says nothing yet. It is the folder
/// of another node if that is in the list, or if the folder knew `me` as another.
fn other_owner(found: &Membership, urls: &[String], me: &str, id: NodeId) -> Option<String> {
    let owner = found.nodes().iter().find(|node| node.id == id)?;
    let knew_me = found.nodes().iter().any(|node| node.url == me);
    (owner.url != me && (knew_me || urls.contains(&owner.url))).then(|| owner.url.clone())
}

/// Writes identity and membership to the data folder, each where the folder says something else. A
/// start calls it once nothing can refuse it any more, and before a version is made.
///
/// # Errors
/// See [`MembersError`].
pub fn keep(folder: &Path, id: NodeId, members: Option<&Membership>) -> Result<(), MembersError> {
    let members = members.map(|members| (MEMBERS_FILE, members_text(members)));
    for (file, text) in [(IDENTITY_FILE, identity_text(id))].into_iter().chain(members) {
        if read(folder, file)?.as_deref() != Some(&text) {
            replace(folder, file, &text)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("http://{name}:1337")).collect()
    }

    fn number_of(membership: &Membership, name: &str) -> Option<u16> {
        let url = format!("http://{name}:1337");
        membership.nodes().iter().find(|node| node.url == url).map(|node| node.number)
    }

    #[test]
    fn a_folder_keeps_its_identity_and_another_has_another() {
        let (one, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let id = identity_in(one.path()).expect("made");
        assert_ne!(id, NodeId::NONE);
        assert!(!one.path().join(IDENTITY_FILE).exists(), "nothing is written before it is kept");
        keep(one.path(), id, None).expect("kept");
        assert_eq!(identity_in(one.path()).expect("read"), id);
        assert_ne!(identity_in(other.path()).expect("made"), id);
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(one.path().join(IDENTITY_FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn numbers_are_kept_in_the_folder_whoever_joins_or_leaves() {
        let folder = tempfile::tempdir().expect("a folder");
        let members = |names: &[&str]| {
            let members = members_in(folder.path(), &urls(names), "http://b:1337", NodeId(7)).expect("valid");
            keep(folder.path(), NodeId(7), Some(&members)).expect("kept");
            members
        };
        let first = members(&["b", "c"]);
        assert_eq!(
            first,
            Membership::first(&urls(&["c", "b"])).expect("valid").with_identity("http://b:1337", NodeId(7))
        );
        let before = fs::read_to_string(folder.path().join(MEMBERS_FILE)).expect("written");
        assert_eq!(members(&["c", "b"]), first, "in another order");
        assert_eq!(fs::read_to_string(folder.path().join(MEMBERS_FILE)).expect("there"), before);
        let joined = members(&["a", "b", "c"]);
        for name in ["b", "c"] {
            assert_eq!(number_of(&joined, name), number_of(&first, name));
        }
        let left = members(&["a", "b"]);
        assert_eq!(left.former().len(), 1);
        assert_eq!(members(&["b", "c"]).nodes(), first.nodes(), "c is back, with its number");
        assert!(!folder.path().join("members-new").exists());
    }

    #[test]
    fn the_folder_of_another_node_is_refused_and_an_address_may_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let start = |names: &[&str], me: &str| {
            let members = members_in(folder.path(), &urls(names), &format!("http://{me}:1337"), NodeId(7))?;
            keep(folder.path(), NodeId(7), Some(&members)).map(|()| members)
        };
        start(&["a", "b", "c"], "c").expect("its own");
        let before = fs::read_to_string(folder.path().join(MEMBERS_FILE)).expect("written");
        // The folder of a node in the list, and one that knew this node as another.
        for (names, me) in [(&["a", "b", "c"][..], "b"), (&["a", "b", "c", "d"], "d"), (&["a", "b"], "b")] {
            let sentence = start(names, me).expect_err("refused").to_string();
            for name in ["http://c:1337", &format!("http://{me}:1337"), &folder.path().display().to_string()] {
                assert!(sentence.contains(name), "{sentence}");
            }
            assert_eq!(fs::read_to_string(folder.path().join(MEMBERS_FILE)).expect("there"), before);
        }
        start(&["a", "b", "e"], "e").expect("the same node at a new address");
        start(&["a", "b", "e"], "e").expect("and again");
        assert!(start(&["a", "b", "e"], "a").is_err());
    }

    #[test]
    fn what_is_written_reads_back_and_every_flipped_bit_is_noticed() {
        let mut nodes = Membership::first(&urls(&["a", "b"])).expect("valid").nodes().to_vec();
        nodes[1].zone = "zone with spaces".to_owned();
        let former = MemberNode::listed(NodeId(5), 3, "http://x:1".into(), String::new());
        let membership = Membership::from_parts(9, nodes, vec![former]).expect("valid");
        let text = members_text(&membership);
        assert_eq!(read_members(&text), Some(membership));
        let id = NodeId(0xfeed);
        assert_eq!(read_identity(&identity_text(id)), Some(id));
        for (text, is_read) in [
            (text, (|text: &str| read_members(text).is_some()) as fn(&str) -> bool),
            (identity_text(id), |text| read_identity(text).is_some()),
        ] {
            for bit in 0..text.len() * 8 {
                let mut bytes = text.clone().into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!String::from_utf8(bytes).is_ok_and(|text| is_read(&text)), "bit {bit}");
            }
            for cut in 0..text.len() {
                assert!(!is_read(&text[..cut]), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_damaged_file_is_refused_in_a_sentence_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, content) in [(MEMBERS_FILE, &b"koltso-members 2\n"[..]), (IDENTITY_FILE, b"\xff\xff")] {
            fs::write(folder.path().join(file), content).expect("written");
            let error = match file {
                MEMBERS_FILE => members_in(folder.path(), &urls(&["a"]), "http://a:1337", NodeId(1)).err(),
                _ => identity_in(folder.path()).err(),
            };
            let sentence = error.expect("refused").to_string();
            assert!(sentence.contains("damaged or of a newer build"), "{sentence}");
            assert_eq!(fs::read(folder.path().join(file)).expect("there"), content);
        }
    }
}
