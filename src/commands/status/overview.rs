//! What follows from the answers of all nodes: how each is, and whether the cluster is whole.
//!
//! A node is judged by what it says of itself, and by what the others say of it. Values only, no
//! I/O. Fields that an older build does not send count as if all were well. Tested below.

use koltso_cluster::standing::whole_needed;
use serde_json::Value;

use super::ask::Asked;

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves, and has what it is to have.
    Up,
    /// It misses writes, which others keep for it or have given up.
    NeedsRepair,
    /// It was started for the first time and waits until it has met most of the others.
    New,
    /// It may lack what it confirmed; with the share that was compared, in per cent.
    Rebuilding(Option<u64>),
    /// Some other node finds it silent, or has no connection to it.
    Ailing,
    /// It takes no writes: its disk is full, or has failed.
    Disk(&'static str),
    /// It is starting or stopping, as it says.
    Busy(String),
    /// It does not answer here, and others have a connection to it.
    Silent,
    /// It does not answer, and no other node has a connection to it.
    Down,
}

/// Who keeps how many missed writes for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints {
    /// The node that keeps them.
    pub by: String,
    /// How many.
    pub pending: u64,
}

/// A row of the table. What is not known is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its URL in the cluster.
    pub node: String,
    /// How it is.
    pub state: State,
    /// Its version of the program.
    pub version: Option<String>,
    /// Keys with a value.
    pub records: Option<u64>,
    /// Bytes that its log occupies.
    pub disk_used: Option<u64>,
    /// Bytes that the file system of its data folder has left.
    pub disk_free: Option<u64>,
    /// Missed writes that wait for it.
    pub hints: Vec<Hints>,
    /// Ms since it was last equal with the peer for which that is longest ago; `None` if it has not
    /// been with all.
    pub equal_ms: Option<u64>,
    /// Bytes that comparisons brought to it and from it.
    pub repaired: (u64, u64),
    /// How far its clock is ahead of that of the node which finds it furthest off, in ms.
    pub skew_ms: Option<i64>,
    /// Sentences about it.
    pub notes: Vec<String>,
}

/// The whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Its nodes, by their URLs.
    pub rows: Vec<Row>,
    /// Whether every node has what it is to have, and serves.
    pub is_whole: bool,
    /// That in words, and what to do if it is not so.
    pub sentence: String,
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// What the other nodes say of a node: who, and their entry for it.
fn views<'a>(asked: &'a [Asked], node: &str) -> Vec<(&'a str, &'a Value)> {
    let entry = |asked: &'a Asked| {
        let peers = asked.said.as_ref().ok()?["cluster"]["peers"].as_array()?;
        peers.iter().find(|peer| peer["node"] == node).map(|peer| (&*asked.node, peer))
    };
    asked.iter().filter_map(entry).collect()
}

fn state_of(document: Option<&Value>, views: &[(&str, &Value)]) -> State {
    let any = |field: &str, value: Value| views.iter().any(|(_, view)| view[field] == value);
    let Some(document) = document else {
        let all_down = views.iter().all(|(_, view)| view["state"] == "down");
        return if all_down { State::Down } else { State::Silent };
    };
    match document["state"].as_str() {
        Some("serving") | None => {}
        Some("failed") => return State::Disk("disk failed"),
        Some(other) => return State::Busy(other.to_owned()),
    }
    match document["standing"].as_str() {
        Some("rebuilding") => {
            let repair = &document["cluster"]["repair"];
            let (done, all) = (repair["partitions_done"].as_u64(), repair["partitions_all"].as_u64());
            let share = done.zip(all.filter(|&all| all > 0)).map(|(done, all)| 100 * done.min(all) / all);
            return State::Rebuilding(share);
        }
        Some("new") => return State::New,
        _ => {}
    }
    if document["storage"]["disk_full"] == true {
        State::Disk("disk full")
    } else if any("state", "open".into()) || any("state", "down".into()) {
        State::Ailing
    } else if any("needs_repair", true.into()) {
        State::NeedsRepair
    } else {
        State::Up
    }
}

fn row(asked: &[Asked], at: usize) -> Row {
    let Asked { node, said } = &asked[at];
    let (document, views) = (said.as_ref().ok(), views(asked, node));
    let state = state_of(document, &views);
    let hints = views
        .iter()
        .map(|(by, view)| Hints { by: (*by).to_owned(), pending: view["hints_pending"].as_u64().unwrap_or(0) });
    let skews = views.iter().filter_map(|(_, view)| view["clock_skew_ms"].as_i64());
    let mut notes: Vec<String> = said.as_ref().err().cloned().into_iter().collect();
    if let Some(jump) = document.and_then(|document| document["clock_jump_ms"].as_i64()).filter(|&jump| jump != 0) {
        let direction = if jump > 0 { "ahead" } else { "back" };
        notes.push(format!("its wall clock has jumped {} ms {direction}: set it right", jump.unsigned_abs()));
    }
    if document.is_some() {
        for (by, view) in views.iter().filter(|(_, view)| view["state"] == "down") {
            let why = text(&view["refused"]).map_or(String::new(), |why| format!(": {why}"));
            notes.push(format!("{by} has no connection to it{why}"));
        }
    }
    let peers = document.and_then(|document| document["cluster"]["peers"].as_array());
    let peers: Vec<&Value> = peers.into_iter().flatten().collect();
    for peer in &peers {
        for error in [&peer["repair"]["error"], &peer["hints_error"]] {
            if let (Some(error), Some(with)) = (error.as_str(), peer["node"].as_str()) {
                notes.push(format!("with {with}: {error}"));
            }
        }
    }
    let equal: Option<Vec<u64>> = peers.iter().map(|peer| peer["repair"]["last_equal_ms"].as_u64()).collect();
    let sum = |field: &str| peers.iter().filter_map(|peer| peer["repair"][field].as_u64()).sum();
    let storage = document.map(|document| &document["storage"]);
    let figure = |field: &str| storage.and_then(|storage| storage[field].as_u64());
    Row {
        node: node.clone(),
        version: document.and_then(|document| text(&document["version"])),
        records: figure("records"),
        disk_used: figure("disk_bytes"),
        disk_free: figure("disk_free_bytes"),
        hints: hints.filter(|hints| hints.pending > 0).collect(),
        equal_ms: equal.and_then(|equal| equal.into_iter().max()),
        repaired: (sum("bytes_received"), sum("bytes_sent")),
        skew_ms: skews.max_by_key(|skew| skew.unsigned_abs()),
        state,
        notes,
    }
}

fn listed(rows: &[&Row]) -> String {
    rows.iter().map(|row| &*row.node).collect::<Vec<_>>().join(", ")
}

/// In words, whether the cluster is whole, and what to do if not. The worst comes first.
fn verdict(rows: &[Row]) -> (bool, String) {
    let those = |is: &dyn Fn(&State) -> bool| rows.iter().filter(|row| is(&row.state)).collect::<Vec<_>>();
    let rebuilding = those(&|state| matches!(state, State::Rebuilding(_)));
    let (down, silent) = (those(&|state| *state == State::Down), those(&|state| *state == State::Silent));
    let new = those(&|state| *state == State::New);
    let away = down.len() + silent.len();
    let nodes = rows.len();
    let needed = whole_needed(nodes);
    let whole = nodes - rebuilding.len() - new.len() - away;
    let many = |count: usize| if count == 1 { "node" } else { "nodes" };
    if !rebuilding.is_empty() && whole + away < needed {
        return (
            false,
            format!(
                "Not whole, and not by itself: {} may lack what they confirmed, and only {whole} of the {needed} whole nodes \
                 that they must be compared with {} left. Put the folders of the others back if they are anywhere; what no \
                 whole node has is lost, and koltso cluster recover (of a later version) is what gives it up.",
                listed(&rebuilding),
                if whole == 1 { "is" } else { "are" }
            ),
        );
    }
    if !rebuilding.is_empty() && whole < needed {
        let away: Vec<&Row> = down.into_iter().chain(silent).collect();
        return (
            false,
            format!(
                "Not whole: {} must be compared with {needed} whole {}, and {whole} answer{}. Start {}.",
                listed(&rebuilding),
                many(needed),
                if whole == 1 { "s" } else { "" },
                listed(&away)
            ),
        );
    }
    if !down.is_empty() {
        return (
            false,
            format!(
                "Not whole: {} {} down. Start {} again, or look at {} log.",
                listed(&down),
                if down.len() == 1 { "is" } else { "are" },
                if down.len() == 1 { "it" } else { "them" },
                if down.len() == 1 { "its" } else { "their" }
            ),
        );
    }
    if !silent.is_empty() {
        return (
            false,
            format!(
                "Not known: {} did not answer here, and other nodes have a connection to {}. Ask with --url at the listener \
                 for this (--admin-listen), or with --token-file.",
                listed(&silent),
                if silent.len() == 1 { "it" } else { "them" }
            ),
        );
    }
    if !rebuilding.is_empty() {
        let is = if rebuilding.len() == 1 { "is" } else { "are" };
        return (
            false,
            format!(
                "Not whole yet: {} {is} rebuilt from the others, and answer{} no reads until then. Nothing has to be done.",
                listed(&rebuilding),
                if rebuilding.len() == 1 { "s" } else { "" }
            ),
        );
    }
    if !new.is_empty() {
        return (
            false,
            format!("Not whole yet: {} must first meet most of the nodes. Start the others.", listed(&new)),
        );
    }
    let disks = those(&|state| matches!(state, State::Disk(_)));
    if !disks.is_empty() {
        return (
            false,
            format!(
                "Not whole: the disk of {} takes no writes. Make room on a full one; replace one that failed, and start the \
                 node again.",
                listed(&disks)
            ),
        );
    }
    let busy = those(&|state| matches!(state, State::Busy(_)));
    if !busy.is_empty() {
        return (false, format!("Not whole yet: {} does not serve at the moment. Wait for it.", listed(&busy)));
    }
    let ailing = those(&|state| *state == State::Ailing);
    if !ailing.is_empty() {
        return (
            false,
            format!(
                "Not whole: others find {} silent, or have no connection to it. Look at its load, its disk and the network.",
                listed(&ailing)
            ),
        );
    }
    let hints: u64 = rows.iter().flat_map(|row| &row.hints).map(|hints| hints.pending).sum();
    let repair = those(&|state| *state == State::NeedsRepair);
    if !repair.is_empty() || hints > 0 {
        let missing: Vec<&Row> =
            rows.iter().filter(|row| !row.hints.is_empty() || row.state == State::NeedsRepair).collect();
        return (
            false,
            format!("Not whole yet: {} will get what it missed by itself. Nothing has to be done.", listed(&missing)),
        );
    }
    let all = match nodes {
        1 => "The node serves.".to_owned(),
        _ => format!("The cluster is whole: all {nodes} nodes serve and have what they are to have."),
    };
    (true, all)
}

/// What the answers of all nodes come to.
pub fn of(asked: Vec<Asked>) -> Overview {
    let rows: Vec<Row> = (0..asked.len()).map(|at| row(&asked, at)).collect();
    let (is_whole, sentence) = verdict(&rows);
    Overview { rows, is_whole, sentence }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Three nodes that are well, each as the others see it.
    fn well() -> Vec<Asked> {
        let names = ["http://a:1", "http://b:1", "http://c:1"];
        let document = |me: &str| {
            let peer = |node: &&str| {
                json!({
                    "node": node, "state": "up", "refused": null, "clock_skew_ms": 3, "hints_pending": 0,
                    "needs_repair": false, "standing": "whole",
                    "repair": { "last_equal_ms": 2000, "bytes_received": 10, "bytes_sent": 20, "error": null },
                })
            };
            let peers: Vec<Value> = names.iter().filter(|node| **node != me).map(peer).collect();
            json!({
                "node": me, "version": "1", "state": "serving", "standing": "whole", "clock_jump_ms": 0,
                "storage": { "records": 5, "disk_bytes": 100, "disk_free_bytes": 200, "disk_full": false },
                "cluster": { "nodes": names, "peers": peers, "repair": { "partitions_done": 4, "partitions_all": 9 } },
            })
        };
        names.iter().map(|name| Asked { node: (*name).to_owned(), said: Ok(document(name)) }).collect()
    }

    fn set(asked: &mut [Asked], at: usize, pointer: &str, value: Value) {
        let document = asked[at].said.as_mut().expect("it answered");
        *document.pointer_mut(pointer).expect("it is there") = value;
    }

    fn gone(asked: &mut [Asked], at: usize) {
        asked[at].said = Err("nobody listens there".to_owned());
    }

    /// What the others have of node `at` in their lists: theirs are sorted, without themselves.
    fn seen_as(asked: &mut [Asked], at: usize, field: &str, value: &Value) {
        for other in (0..asked.len()).filter(|&other| other != at) {
            if asked[other].said.is_ok() {
                let place = if at > other { at - 1 } else { at };
                set(asked, other, &format!("/cluster/peers/{place}/{field}"), value.clone());
            }
        }
    }

    fn states(overview: &Overview) -> Vec<State> {
        overview.rows.iter().map(|row| row.state.clone()).collect()
    }

    #[test]
    fn a_cluster_that_is_well_is_whole() {
        let overview = of(well());
        assert!(overview.is_whole, "{}", overview.sentence);
        assert_eq!(states(&overview), [State::Up, State::Up, State::Up]);
        let row = &overview.rows[0];
        assert_eq!((row.records, row.disk_used, row.disk_free), (Some(5), Some(100), Some(200)));
        assert_eq!((row.equal_ms, row.repaired, row.skew_ms), (Some(2000), (20, 40), Some(3)));
        assert_eq!((row.hints.len(), row.notes.len()), (0, 0));
    }

    #[test]
    fn a_node_by_itself_and_one_of_an_older_build_are_whole() {
        let alone = json!({ "node": "http://a:1", "version": "1", "state": "serving", "cluster": null });
        let overview = of(vec![Asked { node: "http://a:1".to_owned(), said: Ok(alone) }]);
        assert!(overview.is_whole && overview.sentence == "The node serves.", "{}", overview.sentence);
    }

    #[test]
    fn each_state_has_its_sentence() {
        let down = |asked: &mut Vec<Asked>, at| {
            gone(asked, at);
            seen_as(asked, at, "state", &"down".into());
        };
        type Change<'a> = &'a dyn Fn(&mut Vec<Asked>);
        let cases: [(Change<'_>, State, &str); 11] = [
            (&|asked| down(asked, 1), State::Down, "http://b:1 is down. Start it again"),
            (&|asked| gone(asked, 1), State::Silent, "did not answer here"),
            (
                &|asked| set(asked, 1, "/standing", "rebuilding".into()),
                State::Rebuilding(Some(44)),
                "Nothing has to be",
            ),
            (&|asked| set(asked, 1, "/standing", "new".into()), State::New, "must first meet"),
            (&|asked| set(asked, 1, "/storage/disk_full", true.into()), State::Disk("disk full"), "Make room"),
            (&|asked| set(asked, 1, "/state", "failed".into()), State::Disk("disk failed"), "replace"),
            (&|asked| set(asked, 1, "/state", "draining".into()), State::Busy("draining".to_owned()), "Wait"),
            (&|asked| seen_as(asked, 1, "state", &"open".into()), State::Ailing, "silent"),
            (&|asked| set(asked, 0, "/cluster/peers/0/state", "down".into()), State::Ailing, "no connection"),
            (&|asked| seen_as(asked, 1, "needs_repair", &true.into()), State::NeedsRepair, "by itself"),
            (&|asked| seen_as(asked, 1, "hints_pending", &7.into()), State::Up, "by itself"),
        ];
        for (change, state, words) in cases {
            let mut asked = well();
            change(&mut asked);
            let overview = of(asked);
            assert_eq!(overview.rows[1].state, state);
            assert!(!overview.is_whole && overview.sentence.starts_with("Not "), "{state:?}: {}", overview.sentence);
            let named = overview.sentence.contains("http://b:1") && !overview.sentence.contains("http://a:1");
            assert!(named && overview.sentence.contains(words), "{state:?}: {}", overview.sentence);
        }
    }

    #[test]
    fn who_keeps_missed_writes_is_said() {
        let mut asked = well();
        set(&mut asked, 0, "/cluster/peers/1/hints_pending", 8.into());
        let hints = of(asked).rows[2].hints.clone();
        assert_eq!(hints, [Hints { by: "http://a:1".to_owned(), pending: 8 }]);
    }

    #[test]
    fn what_cannot_heal_by_itself_names_what_gives_it_up() {
        let mut asked = well();
        set(&mut asked, 1, "/standing", "rebuilding".into());
        set(&mut asked, 2, "/standing", "rebuilding".into());
        let overview = of(asked);
        assert!(overview.sentence.contains("koltso cluster recover"), "{}", overview.sentence);
        assert!(overview.sentence.contains("only 1 of the 2"), "{}", overview.sentence);
        // One of them is away, and may be whole: it is to be started.
        let mut asked = well();
        set(&mut asked, 1, "/standing", "rebuilding".into());
        gone(&mut asked, 2);
        seen_as(&mut asked, 2, "state", &"down".into());
        let overview = of(asked);
        assert!(!overview.sentence.contains("recover"), "{}", overview.sentence);
        assert!(overview.sentence.contains("Start http://c:1"), "{}", overview.sentence);
    }
}
