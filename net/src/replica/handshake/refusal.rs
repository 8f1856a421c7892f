//! Refusals: one sentence for the other side's log, and which sentences of the other side are
//! repeated in ours.
//!
//! Whoever refuses has proved nothing yet, so a sentence is repeated only if it is one of
//! [`SENTENCES`], of which but the numbers can vary; other text never leaves this file.

use super::HandshakeError;
use super::message::{REFUSAL, SENTENCE_MAX, begin};

/// All sentences of refusals, `#` for a number.
pub(super) const SENTENCES: [&str; 14] = [
    "node # speaks version # of the replica protocol, and the other side #",
    "node # and node # have different cluster names (--cluster-name)",
    "node # is connected to itself, or two nodes have the number #",
    "the --cluster lists of node # and node # differ",
    "this is node #, and node # expected node # at its address",
    "node # expected node # at this address, and not node #",
    "node # is not in the --cluster list of node #",
    "node # has no secret, and node # has one",
    "node # has a secret, and node # has none",
    "node # and node # have different secrets",
    "one identity, two places: node # and node # have copies of one data folder",
    "one identity, two places: node # has a copy of a data folder that node # knows elsewhere",
    "the clock of node # is # ms ahead, more than the bound of # ms",
    "the clock of node # is # ms behind, more than the bound of # ms",
];
/// Stands for any other sentence.
pub(super) const UNKNOWN: &str = "for a reason that this version does not know";
/// The most digits of a `u64`.
pub(super) const DIGITS_MAX: usize = 20;

/// Whether a text is a sentence with numbers for its `#`.
pub(super) fn fits(text: &str, sentence: &str) -> bool {
    let mut pieces = sentence.split('#');
    let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else { return false };
    for piece in pieces {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let behind = rest[digits..].strip_prefix(piece).filter(|_| (1..=DIGITS_MAX).contains(&digits));
        let Some(behind) = behind else { return false };
        rest = behind;
    }
    rest.is_empty()
}

/// What may be repeated of the sentence with which the other side refused.
pub(super) fn refusal(bytes: &[u8]) -> HandshakeError {
    let known = |text: &&str| SENTENCES.iter().any(|sentence| fits(text, sentence));
    let sentence = std::str::from_utf8(bytes).ok().filter(known).unwrap_or(UNKNOWN);
    HandshakeError::Refusal(sentence.to_owned())
}

/// Appends the refusal that belongs to an error to the bytes to be sent.
pub(super) fn telling<T>(result: Result<T, HandshakeError>, out: &mut Vec<u8>) -> Result<T, HandshakeError> {
    if let Err(HandshakeError::Mismatch(sentence) | HandshakeError::Skew(sentence)) = &result {
        assert!(sentence.len() <= SENTENCE_MAX && sentence.is_ascii(), "a refusal that others can read");
        begin(out, REFUSAL, 0, sentence.len());
        out.extend_from_slice(sentence.as_bytes());
    }
    result
}
