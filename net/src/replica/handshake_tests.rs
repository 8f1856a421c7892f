//! Two state machines that talk to each other, in pieces of any size, and what each says if they do
//! not fit together.

use proptest::prelude::*;

use super::*;

fn identity(node: u16) -> Identity {
    Identity {
        cluster: "ring".to_owned(),
        topology: 7,
        topology_number: 1,
        node,
        id: NodeId(0x0102 << 64 | u128::from(node)),
        features: Features(1 << 63 | u64::from(node)),
        secret: b"secret".to_vec(),
    }
}

fn peer(node: u16, skew: Option<Skew>) -> PeerIdentity {
    let Identity { id, features, .. } = identity(node);
    PeerIdentity { node, id, features, skew }
}

struct Talk {
    dialer: Identity,
    expected: u16,
    acceptor: Identity,
    members: Vec<u16>,
    clocks: (u64, u64),
    piece: usize,
}

type End = Option<Result<PeerIdentity, HandshakeError>>;

impl Talk {
    fn new() -> Self {
        Self {
            dialer: identity(1),
            expected: 2,
            acceptor: identity(2),
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
        let mut dialer =
            Dialer::start(&self.dialer, self.expected, skew_max, self.clocks.0, &[1; NONCE], &mut to_acceptor);
        let mut acceptor = Acceptor::new(&self.acceptor, &self.members, [2; NONCE]);
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
        for secret in [&b""[..], b"s"] {
            let mut talk = Talk { piece, ..Talk::new() };
            (talk.dialer.secret, talk.acceptor.secret) = (secret.to_vec(), secret.to_vec());
            let (of_dialer, of_acceptor) = talk.run();
            let skew = Some(Skew { offset_ms: -5, error_ms: 5 });
            assert_eq!(of_dialer, Some(Ok(peer(2, skew))));
            assert_eq!(of_acceptor, Some(Ok(peer(1, None))));
        }
    }
}

#[test]
fn those_who_do_not_fit_both_know_why() {
    let change = |change: &dyn Fn(&mut Talk)| {
        let mut talk = Talk::new();
        change(&mut talk);
        talk.run()
    };
    type Change<'a> = &'a dyn Fn(&mut Talk);
    let refused_by_acceptor: [(Change<'_>, &str); 9] = [
        (&|t| t.acceptor.cluster = "a".into(), "node 2 and node 1 have different cluster names (--cluster-name)"),
        (&|t| t.dialer.cluster = "b\n".into(), "node 2 and node 1 have different cluster names (--cluster-name)"),
        (&|t| t.dialer.topology = 8, "the --cluster lists of node 2 and node 1 differ"),
        (&|t| t.dialer.topology_number = 8, "the --cluster lists of node 2 and node 1 differ"),
        (&|t| t.expected = 3, "this is node 2, and node 1 expected node 3 at its address"),
        (&|t| t.dialer.node = 2, "node 2 is connected to itself, or two nodes have the number 2"),
        (&|t| t.members = vec![2, 3], "node 1 is not in the --cluster list of node 2"),
        (&|t| t.dialer.secret = vec![], "node 2 has a secret, and node 1 has none"),
        (&|t| t.acceptor.secret = vec![], "node 2 has no secret, and node 1 has one"),
    ];
    for (what, sentence) in refused_by_acceptor {
        let (of_dialer, of_acceptor) = change(what);
        assert_eq!(of_dialer, Some(Err(HandshakeError::Refusal(sentence.to_owned()))));
        assert_eq!(of_acceptor, Some(Err(HandshakeError::Mismatch(sentence.to_owned()))));
    }
    let (of_dialer, of_acceptor) = change(&|t| t.dialer.secret = b"other".to_vec());
    let sentence = "node 1 and node 2 have different secrets".to_owned();
    assert_eq!(of_dialer, Some(Err(HandshakeError::Mismatch(sentence.clone()))));
    assert_eq!(of_acceptor, Some(Err(HandshakeError::Refusal(sentence))));
    for (theirs, sentence) in [
        (1511, "the clock of node 2 is 506 ms ahead, more than the bound of 500 ms"),
        (499, "the clock of node 2 is 506 ms behind, more than the bound of 500 ms"),
    ] {
        let (of_dialer, of_acceptor) = change(&|t| t.clocks = (1000, theirs));
        assert_eq!(of_dialer, Some(Err(HandshakeError::Skew(sentence.to_owned()))));
        assert_eq!(of_acceptor, Some(Err(HandshakeError::Refusal(sentence.to_owned()))));
    }
    assert!(change(&|t| t.clocks = (1000, 1510)).0.is_some_and(|end| end.is_ok()));
}

#[test]
fn another_version_is_refused_in_words_that_every_version_understands() {
    let us = identity(2);
    let mut bytes = hello(&identity(1), 2, 0, &[0; NONCE]);
    // The hello of version 1 is shorter; only its beginning is read.
    bytes.truncate(bytes.len() - 24);
    bytes[12] -= 24;
    bytes[8] = 1;
    let mut out = Vec::new();
    let error = Acceptor::new(&us, &[1, 2], [0; NONCE]).feed(&bytes, 0, &mut out);
    let sentence = "node 2 speaks version 2 of the replica protocol, and the other side 1";
    assert_eq!(error, Err(HandshakeError::Mismatch(sentence.to_owned())));
    out[8] = 1;
    let (them, mut unused) = (identity(1), Vec::new());
    let mut dialer = Dialer::start(&them, 2, Duration::ZERO, 0, &[0; NONCE], &mut unused);
    let error = dialer.feed(&out, Duration::ZERO, &mut Vec::new());
    assert_eq!(error, Err(HandshakeError::Refusal(sentence.to_owned())));
}

#[test]
fn an_acceptor_believes_no_proof_but_the_right_one() {
    let (us, them) = (identity(2), identity(1));
    let hellos = hello(&them, 2, 0, &[1; NONCE]);
    let mut answer = Vec::new();
    let mut acceptor = Acceptor::new(&us, &[1, 2], [2; NONCE]);
    assert!(matches!(acceptor.feed(&hellos, 0, &mut answer), Ok(Progress::More { .. })));
    // The acceptor's own proof, sent back to it; one that is too short; and a second hello instead
    // of one.
    let own = answer[answer.len() - MESSAGE_HEADER - PROOF_LEN..].to_vec();
    let mut short = Vec::new();
    begin(&mut short, PROOF, 0, 4);
    short.extend_from_slice(&[0; 4]);
    for (bytes, garbage) in [(own, false), (short, false), (hellos.clone(), true)] {
        let mut acceptor = Acceptor::new(&us, &[1, 2], [2; NONCE]);
        let mut out = Vec::new();
        assert!(acceptor.feed(&hellos, 0, &mut out).is_ok());
        let expected = HandshakeError::Mismatch("node 2 and node 1 have different secrets".to_owned());
        let expected = if garbage { HandshakeError::Garbage } else { expected };
        assert_eq!(acceptor.feed(&bytes, 0, &mut out), Err(expected));
    }
    // A dialer that is answered with its own hello.
    let mut unused = Vec::new();
    let mut dialer = Dialer::start(&them, 2, Duration::ZERO, 0, &[1; NONCE], &mut unused);
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
        let mut dialer = Dialer::start(&us, 2, Duration::MAX, 0, &[1; NONCE], &mut Vec::new());
        dialer.feed(&hello(&other, expected, 0, &[2; NONCE]), Duration::ZERO, &mut out)
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
    let of_acceptor = Acceptor::new(&us, &[], [0; NONCE]).feed(&bytes, 0, &mut Vec::new());
    let mut dialer = Dialer::start(&us, 1, Duration::MAX, 0, &[1; NONCE], &mut Vec::new());
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
    let mut acceptor = Acceptor::new(&us, &[], [0; NONCE]);
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
        let _ = Acceptor::new(&us, &[1, 2], [0; NONCE]).feed(&input, 0, &mut out);
        let mut dialer = Dialer::start(&us, 1, Duration::ZERO, 0, &[0; NONCE], &mut out);
        let _ = dialer.feed(&input, Duration::ZERO, &mut out);
        prop_assert!(out.len() <= 3 * MESSAGE_MAX);
    }
}
