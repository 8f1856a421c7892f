//! Two state machines that talk to each other, in pieces of any size, and what each says if they do
//! not fit together.

use proptest::prelude::*;

use super::message::{PROOF_LEN, begin};
use super::refusal::{DIGITS_MAX, SENTENCES, UNKNOWN, fits};
use super::*;
use crate::replica::{NoMemory, NodeId};

fn introduction(node: u16) -> Introduction {
    let id = NodeId(0x0102 << 64 | u128::from(node));
    Introduction { id, starts: 7 << 24 | u32::from(node), lived_ms: 8 << 56 | u64::from(node), process: 9 << 56 }
}

fn identity(node: u16) -> Identity {
    Identity {
        cluster: "ring".to_owned(),
        topology: 7,
        epoch: Epoch::new(1),
        node,
        introduction: introduction(node),
        features: Features(1 << 63 | u64::from(node)),
        secrets: Secrets::new(vec![b"secret".to_vec()]),
    }
}

/// What each side knows of the other, and what they think of each other.
fn peer(node: u16, skew: Option<Skew>, purpose: Purpose, [changed, doubts_us]: [bool; 2]) -> PeerIdentity {
    let Identity { introduction, features, .. } = identity(node);
    let heard_us_ms = heard_ms(3 - node);
    PeerIdentity { node, introduction, features, skew, purpose, changed, doubts_us, heard_us_ms, epoch: 1 }
}

/// Thinks this of the one peer that has said this of itself.
#[derive(Debug)]
struct Thinks(u16, Judged);

impl Acquaintances for Thinks {
    fn judge(&self, peer: u16, said: &Introduction) -> Judged {
        assert_eq!((peer, *said), (self.0, Introduction { id: said.id, ..introduction(self.0) }));
        self.1
    }

    fn heard_ms(&self, peer: u16) -> u64 {
        heard_ms(peer)
    }
}

/// Until when whoever thinks something of a node heard of it.
fn heard_ms(node: u16) -> u64 {
    3 << 56 | u64::from(node)
}

fn dialing(identity: &Identity, expected: u16, skew_max: Duration) -> Dialing<'_> {
    Dialing { identity, acquaintances: &NoMemory, expected, purpose: Purpose::Requests, skew_max }
}

struct Talk {
    dialer: Identity,
    expected: u16,
    purpose: Purpose,
    acceptor: Identity,
    /// What the dialer thinks of the acceptor, and the other way round.
    verdicts: [Judged; 2],
    members: Vec<u16>,
    clocks: (u64, u64),
    piece: usize,
}

fn of(secrets: &[&str]) -> Secrets {
    Secrets::new(secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect())
}

type End = Option<Result<PeerIdentity, HandshakeError>>;

impl Talk {
    fn new() -> Self {
        Self {
            dialer: identity(1),
            expected: 2,
            purpose: Purpose::Requests,
            acceptor: identity(2),
            verdicts: [Judged::Known; 2],
            members: vec![1, 2, 3],
            clocks: (1000, 1000),
            piece: 1000,
        }
    }

    /// Lets them talk until neither has more to say; returns how it ended for the dialer and for
    /// the acceptor.
    fn run(&self) -> (End, End) {
        let mut to_acceptor = Vec::new();
        let skew_max = Duration::from_millis(500);
        let (by_dialer, by_acceptor) = (Thinks(2, self.verdicts[0]), Thinks(1, self.verdicts[1]));
        let dialing = Dialing {
            acquaintances: &by_dialer,
            purpose: self.purpose,
            ..dialing(&self.dialer, self.expected, skew_max)
        };
        let mut dialer = Dialer::start(dialing, self.clocks.0, &[1; NONCE], &mut to_acceptor);
        let mut acceptor = Acceptor::new(&self.acceptor, &self.members, &by_acceptor, [2; NONCE]);
        let mut to_dialer = Vec::new();
        let (mut of_dialer, mut of_acceptor): (End, End) = (None, None);
        let elapsed = Duration::from_millis(10);
        let mut shown = (0, 0);
        let end = |progress| match progress {
            Ok(Progress::Done { consumed, peer }) => (consumed, Some(Ok(peer))),
            Ok(Progress::More { consumed }) => (consumed, None),
            Err(error) => (0, Some(Err(error))),
        };
        loop {
            if of_acceptor.is_none() && shown.0 < to_acceptor.len() {
                shown.0 = (shown.0 + self.piece).min(to_acceptor.len());
                let (consumed, over) = end(acceptor.feed(&to_acceptor[..shown.0], self.clocks.1, &mut to_dialer));
                to_acceptor.drain(..consumed);
                shown.0 -= consumed;
                of_acceptor = over;
            } else if of_dialer.is_none() && shown.1 < to_dialer.len() {
                shown.1 = (shown.1 + self.piece).min(to_dialer.len());
                let (consumed, over) = end(dialer.feed(&to_dialer[..shown.1], elapsed, &mut to_acceptor));
                to_dialer.drain(..consumed);
                shown.1 -= consumed;
                of_dialer = over;
            } else {
                return (of_dialer, of_acceptor);
            }
            assert!(to_acceptor.len() + to_dialer.len() <= 2 * MESSAGE_MAX);
        }
    }
}

#[test]
fn those_who_fit_find_each_other_whatever_the_pieces() {
    for piece in 1..300 {
        for secret in [Secrets::default(), of(&["s"])] {
            let mut talk = Talk { piece, ..Talk::new() };
            (talk.dialer.secrets, talk.acceptor.secrets) = (secret.clone(), secret);
            let (of_dialer, of_acceptor) = talk.run();
            let skew = Some(Skew { offset_ms: -5, error_ms: 5 });
            assert_eq!(of_dialer, Some(Ok(peer(2, skew, Purpose::Requests, [false; 2]))));
            assert_eq!(of_acceptor, Some(Ok(peer(1, None, Purpose::Requests, [false; 2]))));
        }
    }
}

#[test]
fn a_secret_takes_the_place_of_another_in_three_steps_and_no_others_fit() {
    // Whoever is a step behind or ahead is understood, in either role; two steps are too many, and so is the
    // new one at once.
    let steps = [&["old"][..], &["old", "new"], &["new", "old"], &["new"]];
    for (at, mine) in steps.iter().enumerate() {
        for (of_peer, theirs) in steps.iter().enumerate() {
            let mut talk = Talk::new();
            (talk.dialer.secrets, talk.acceptor.secrets) = (of(mine), of(theirs));
            let (of_dialer, of_acceptor) = talk.run();
            let is_done = matches!((&of_dialer, &of_acceptor), (Some(Ok(_)), Some(Ok(_))));
            assert_eq!(is_done, at.abs_diff(of_peer) <= 1, "{mine:?} to {theirs:?}: {of_dialer:?}, {of_acceptor:?}");
        }
    }
    assert_eq!(format!("{:?}", of(&["old", "new"])), "2 secrets");
}

#[test]
fn each_side_is_told_what_the_other_thinks_of_it_and_what_the_connection_is_for() {
    let known_or_changed = |changed| if changed { Judged::Changed } else { Judged::Known };
    for purpose in [Purpose::Requests, Purpose::Exchange] {
        for (dialer_doubts, acceptor_doubts) in [(false, false), (false, true), (true, false), (true, true)] {
            let verdicts = [dialer_doubts, acceptor_doubts].map(known_or_changed);
            let (of_dialer, of_acceptor) = Talk { purpose, verdicts, ..Talk::new() }.run();
            let skew = Some(Skew { offset_ms: -5, error_ms: 5 });
            assert_eq!(of_dialer, Some(Ok(peer(2, skew, purpose, [dialer_doubts, acceptor_doubts]))));
            assert_eq!(of_acceptor, Some(Ok(peer(1, None, purpose, [acceptor_doubts, dialer_doubts]))));
        }
    }
}

#[test]
fn a_verdict_cannot_be_changed_on_its_way() {
    let (us, them) = (identity(2), identity(1));
    let mut to_acceptor = Vec::new();
    let mut dialer = Dialer::start(dialing(&them, 2, Duration::MAX), 0, &[1; NONCE], &mut to_acceptor);
    let mut acceptor = Acceptor::new(&us, &[1, 2], &NoMemory, [2; NONCE]);
    let mut to_dialer = Vec::new();
    assert!(acceptor.feed(&to_acceptor, 0, &mut to_dialer).is_ok());
    // The acceptor's verdict is in its hello.
    let mut bytes = to_dialer.clone();
    bytes[11] ^= DOUBTS;
    let secrets = |us, them| Err(HandshakeError::Mismatch(format!("node {us} and node {them} have different secrets")));
    let mut other = Dialer::start(dialing(&them, 2, Duration::MAX), 0, &[1; NONCE], &mut Vec::new());
    assert_eq!(other.feed(&bytes, Duration::ZERO, &mut Vec::new()), secrets(1, 2));
    // The dialer's is in its proof.
    let mut proof = Vec::new();
    assert!(matches!(dialer.feed(&to_dialer, Duration::ZERO, &mut proof), Ok(Progress::Done { .. })));
    proof[11] ^= DOUBTS;
    assert_eq!(acceptor.feed(&proof, 0, &mut Vec::new()), secrets(2, 1));
}

#[test]
fn what_no_node_says_of_itself_is_garbage() {
    let (us, them) = (identity(2), identity(1));
    let garbage = Err(HandshakeError::Garbage);
    let accepted = |bytes: &[u8]| Acceptor::new(&us, &[1, 2], &NoMemory, [2; NONCE]).feed(bytes, 0, &mut Vec::new());
    let hello_of_dialer = |doubts| hello(&them, 2, 0, &[1; NONCE], Purpose::Requests, (doubts, 0));
    assert!(accepted(&hello_of_dialer(false)).is_ok());
    assert_eq!(accepted(&hello_of_dialer(true)), garbage, "a verdict on nobody yet");
    let mut unknown = hello_of_dialer(false);
    unknown[122] = 3;
    assert_eq!(accepted(&unknown), garbage, "a purpose that there is not");
    let mut dialer = Dialer::start(dialing(&them, 2, Duration::MAX), 0, &[1; NONCE], &mut Vec::new());
    let other = hello(&us, 1, 0, &[2; NONCE], Purpose::Exchange, (false, 0));
    assert_eq!(dialer.feed(&other, Duration::ZERO, &mut Vec::new()), garbage, "for something else");
}

#[test]
fn those_who_do_not_fit_both_know_why() {
    let change = |change: &dyn Fn(&mut Talk)| {
        let mut talk = Talk::new();
        change(&mut talk);
        talk.run()
    };
    type Change<'a> = &'a dyn Fn(&mut Talk);
    let refused_by_acceptor: [(Change<'_>, &str); 10] = [
        (&|t| t.acceptor.cluster = "a".into(), "node 2 and node 1 have different cluster names (--cluster-name)"),
        (&|t| t.dialer.cluster = "b\n".into(), "node 2 and node 1 have different cluster names (--cluster-name)"),
        (&|t| t.dialer.topology = 8, "the --cluster lists of node 2 and node 1 differ"),
        (&|t| t.expected = 3, "this is node 2, and node 1 expected node 3 at its address"),
        (&|t| t.dialer.node = 2, "node 2 is connected to itself, or two nodes have the number 2"),
        (&|t| t.members = vec![2, 3], "node 1 is not in the --cluster list of node 2"),
        (&|t| t.dialer.secrets = Secrets::default(), "node 2 has a secret, and node 1 has none"),
        (&|t| t.acceptor.secrets = Secrets::default(), "node 2 has no secret, and node 1 has one"),
        (
            &|t| t.acceptor.introduction.id = t.dialer.introduction.id,
            "one identity, two places: node 2 and node 1 have copies of one data folder",
        ),
        (
            &|t| t.verdicts[1] = Judged::TwoPlaces,
            "one identity, two places: node 1 has a copy of a data folder that node 2 knows elsewhere",
        ),
    ];
    for (what, sentence) in refused_by_acceptor {
        let (of_dialer, of_acceptor) = change(what);
        assert_eq!(of_dialer, Some(Err(HandshakeError::Refusal(sentence.to_owned()))));
        assert_eq!(of_acceptor, Some(Err(HandshakeError::Mismatch(sentence.to_owned()))));
    }
    let refused_by_dialer: [(Change<'_>, &str); 2] = [
        (&|t| t.dialer.secrets = of(&["other"]), "node 1 and node 2 have different secrets"),
        (
            &|t| t.verdicts[0] = Judged::TwoPlaces,
            "one identity, two places: node 2 has a copy of a data folder that node 1 knows elsewhere",
        ),
    ];
    for (what, sentence) in refused_by_dialer {
        let (of_dialer, of_acceptor) = change(what);
        assert_eq!(of_dialer, Some(Err(HandshakeError::Mismatch(sentence.to_owned()))));
        assert_eq!(of_acceptor, Some(Err(HandshakeError::Refusal(sentence.to_owned()))));
    }
    for (theirs, sentence) in [
        (1511, "the clock of node 2 is 506 ms ahead, more than the bound of 500 ms"),
        (499, "the clock of node 2 is 506 ms behind, more than the bound of 500 ms"),
    ] {
        let (of_dialer, of_acceptor) = change(&|t| t.clocks = (1000, theirs));
        assert_eq!(of_dialer, Some(Err(HandshakeError::Skew(sentence.to_owned()))));
        assert_eq!(of_acceptor, Some(Err(HandshakeError::Refusal(sentence.to_owned()))));
    }
    assert!(change(&|t| t.clocks = (1000, 1510)).0.is_some_and(|end| end.is_ok()));
    // Nodes without an identity are no copies of each other.
    let without = change(&|t| (t.dialer.introduction.id, t.acceptor.introduction.id) = (NodeId::NONE, NodeId::NONE));
    assert!(without.0.is_some_and(|end| end.is_ok()));
}

#[test]
fn another_version_is_refused_in_words_that_every_version_understands() {
    let us = identity(2);
    let mut bytes = hello(&identity(1), 2, 0, &[0; NONCE], Purpose::Requests, (false, 0));
    // The hello of version 1 is shorter; only its beginning is read.
    bytes.truncate(bytes.len() - 24);
    bytes[12] -= 24;
    bytes[8] = 1;
    let mut out = Vec::new();
    let error = Acceptor::new(&us, &[1, 2], &NoMemory, [0; NONCE]).feed(&bytes, 0, &mut out);
    let sentence = "node 2 speaks version 2 of the replica protocol, and the other side 1";
    assert_eq!(error, Err(HandshakeError::Mismatch(sentence.to_owned())));
    out[8] = 1;
    let (them, mut unused) = (identity(1), Vec::new());
    let mut dialer = Dialer::start(dialing(&them, 2, Duration::ZERO), 0, &[0; NONCE], &mut unused);
    let error = dialer.feed(&out, Duration::ZERO, &mut Vec::new());
    assert_eq!(error, Err(HandshakeError::Refusal(sentence.to_owned())));
}

#[test]
fn an_acceptor_believes_no_proof_but_the_right_one() {
    let (us, them) = (identity(2), identity(1));
    let hellos = hello(&them, 2, 0, &[1; NONCE], Purpose::Requests, (false, 0));
    let mut answer = Vec::new();
    let mut acceptor = Acceptor::new(&us, &[1, 2], &NoMemory, [2; NONCE]);
    assert!(matches!(acceptor.feed(&hellos, 0, &mut answer), Ok(Progress::More { .. })));
    // The acceptor's own proof, sent back to it; one that is too short; and a second hello instead
    // of one.
    let own = answer[answer.len() - MESSAGE_HEADER - PROOF_LEN..].to_vec();
    let mut short = Vec::new();
    begin(&mut short, PROOF, 0, 4);
    short.extend_from_slice(&[0; 4]);
    for (bytes, garbage) in [(own, false), (short, false), (hellos.clone(), true)] {
        let mut acceptor = Acceptor::new(&us, &[1, 2], &NoMemory, [2; NONCE]);
        let mut out = Vec::new();
        assert!(acceptor.feed(&hellos, 0, &mut out).is_ok());
        let expected = HandshakeError::Mismatch("node 2 and node 1 have different secrets".to_owned());
        let expected = if garbage { HandshakeError::Garbage } else { expected };
        assert_eq!(acceptor.feed(&bytes, 0, &mut out), Err(expected));
    }
    // A dialer that is answered with its own hello.
    let mut unused = Vec::new();
    let mut dialer = Dialer::start(dialing(&them, 2, Duration::ZERO), 0, &[1; NONCE], &mut unused);
    assert!(matches!(
        dialer.feed(&hellos, Duration::ZERO, &mut Vec::new()),
        Err(HandshakeError::Mismatch(sentence)) if sentence.contains("itself")
    ));
}

#[test]
fn a_dialer_checks_for_itself_who_answers() {
    let (us, mut out) = (identity(1), Vec::new());
    let mut answered = |node: u16, expected: u16, cluster: &str| {
        let other = Identity { cluster: cluster.to_owned(), ..identity(node) };
        let mut dialer = Dialer::start(dialing(&us, 2, Duration::MAX), 0, &[1; NONCE], &mut Vec::new());
        dialer.feed(&hello(&other, expected, 0, &[2; NONCE], Purpose::Requests, (false, 0)), Duration::ZERO, &mut out)
    };
    for ((node, expected, cluster), sentence) in [
        ((3, 1, "ring"), "node 1 expected node 2 at this address, and not node 3"),
        ((2, 3, "ring"), "this is node 1, and node 2 expected node 3 at its address"),
        ((2, 1, "gnir"), "node 1 and node 2 have different cluster names (--cluster-name)"),
    ] {
        assert_eq!(answered(node, expected, cluster), Err(HandshakeError::Mismatch(sentence.to_owned())));
    }
}

/// What is repeated of a refusal with this text, on either side.
fn repeated(text: &[u8]) -> String {
    let mut bytes = Vec::new();
    begin(&mut bytes, REFUSAL, 0, text.len());
    bytes.extend_from_slice(text);
    let us = identity(2);
    let of_acceptor = Acceptor::new(&us, &[], &NoMemory, [0; NONCE]).feed(&bytes, 0, &mut Vec::new());
    let mut dialer = Dialer::start(dialing(&us, 1, Duration::MAX), 0, &[1; NONCE], &mut Vec::new());
    assert_eq!(dialer.feed(&bytes, Duration::ZERO, &mut Vec::new()), of_acceptor);
    match of_acceptor {
        Err(HandshakeError::Refusal(sentence)) => sentence,
        other => panic!("a refusal, not {other:?}"),
    }
}

#[test]
fn of_a_refusal_only_known_words_are_repeated() {
    let long = "é\n\u{1b}[31m".repeat(200);
    for text in [
        &long.as_bytes()[..SENTENCE_MAX],
        b"",
        b"\xff",
        b"node 1 and node 2 have different secrets\n",
        b"node 1 and node 2 have different secrets, see http://example.org",
        b"node  and node 2 have different secrets",
        b"node -1 and node 2 have different secrets",
        b"node # and node # have different secrets",
        b"node 123456789012345678901 and node 2 have different secrets",
        b" node 1 and node 2 have different secrets",
    ] {
        assert_eq!(repeated(text), UNKNOWN, "{:?}", String::from_utf8_lossy(text));
    }
    for sentence in SENTENCES {
        for number in ["0", "65535", "18446744073709551615"] {
            let text = sentence.replace('#', number);
            assert_eq!(repeated(text.as_bytes()), text);
        }
    }
    assert!(!fits("node 1", "node #, and"));
    assert!(SENTENCES.iter().all(|sentence| sentence.len() + 3 * DIGITS_MAX <= SENTENCE_MAX));
}

#[test]
fn a_refusal_is_bounded() {
    let mut bytes = Vec::new();
    begin(&mut bytes, REFUSAL, 0, SENTENCE_MAX + 1);
    bytes.extend_from_slice(&[b'x'; SENTENCE_MAX + 1]);
    let us = identity(2);
    let mut acceptor = Acceptor::new(&us, &[], &NoMemory, [0; NONCE]);
    assert_eq!(acceptor.feed(&bytes, 0, &mut Vec::new()), Err(HandshakeError::Garbage));
}

#[test]
fn clocks_at_the_end_of_time_do_not_overflow() {
    for (sent, theirs) in [(0, u64::MAX), (u64::MAX, 0)] {
        assert!(Skew::measure(sent, theirs, Duration::MAX).error_ms > 0);
        assert!(Skew::measure(sent, theirs, Duration::ZERO).exceeds(Duration::from_secs(1)));
    }
    assert_eq!(Skew::measure(100, 90, Duration::ZERO), Skew { offset_ms: -10, error_ms: 0 });
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, magic: bool, kind in 0_u8..5) {
        let mut input = Vec::new();
        if magic {
            begin(&mut input, kind, 0, bytes.len());
        }
        input.extend_from_slice(&bytes);
        let us = identity(2);
        let mut out = Vec::new();
        let _ = Acceptor::new(&us, &[1, 2], &NoMemory, [0; NONCE]).feed(&input, 0, &mut out);
        let mut dialer = Dialer::start(dialing(&us, 1, Duration::ZERO), 0, &[0; NONCE], &mut out);
        let _ = dialer.feed(&input, Duration::ZERO, &mut out);
        prop_assert!(out.len() <= 3 * MESSAGE_MAX);
    }
}
