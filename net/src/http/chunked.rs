//! Chunked bodies (RFC 9112, 7.1), decoded as they arrive.
//!
//! A state machine that is fed slices and appends the data to a `Vec<u8>`; however the input is
//! cut, the result is the same. It is strict, because a lenient reader behind a lenient proxy lets
//! requests be smuggled: only CRLF ends a line, the size is plain hexadecimal, whatever follows it has
//! the grammar of an extension, and a trailer has a name. Servers and clients can use it.
//!
//! Bounds: `body_max` for the data, [`LINE_MAX`] for a chunk line, [`TRAILERS_MAX`] for all
//! trailers. Extensions and trailers are skipped. Tested below, with a property test over all cuts.

/// The most bytes of a chunk line, size and extensions, without CRLF.
pub const LINE_MAX: u32 = 256;
/// The most bytes of all trailers together, with their line ends.
pub const TRAILERS_MAX: u32 = 16 * 1024;

/// Why a chunked body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkedError {
    /// The data exceeds the limit.
    #[error("the chunked body is larger than the limit of {body_max} bytes")]
    TooLarge {
        /// The limit in bytes.
        body_max: usize,
    },
    /// There is no hexadecimal digit where a chunk size must be, or something after the size that is
    /// no extension.
    #[error("a chunk of the body has no valid hexadecimal size")]
    Size,
    /// The chunk size needs more than 64 bits.
    #[error("the size of a chunk of the body does not fit into 64 bits")]
    SizeOverflow,
    /// The chunk line is longer than [`LINE_MAX`].
    #[error("a chunk size line with its extensions is longer than the limit of {LINE_MAX} bytes")]
    LineTooLong,
    /// A line or a chunk does not end in CRLF, or a line contains a control character.
    #[error("a chunk of the body does not end in CR LF where it must")]
    LineEnd,
    /// A trailer has no name before a colon; a folded one has none either.
    #[error("a trailer of the body is not a name, a colon and a value")]
    Trailer,
    /// The trailers are longer than [`TRAILERS_MAX`].
    #[error("the trailers of the body are longer than the limit of {TRAILERS_MAX} bytes")]
    TrailersTooLong,
}

/// The result of one call of [`Decoder::feed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes of the input belong to the body: all of them unless `done`.
    pub consumed: usize,
    /// Whether the body has ended.
    pub done: bool,
}

/// ```text
///          ┌────────────────────────────────────────────────┐
///          ▼                                                │
/// Start → Size → (extensions) → SizeLf → Data → DataCr → DataLf
///                                  └ size 0 → TrailerStart → TrailerName → Trailer → TrailerLf → TrailerStart
///                                                └ CR → EndLf → Done
/// extensions:  Blank → `;` Name → NameEnd → `=` Value → Token | Quoted ⇄ Escape → Blank
/// ```
/// Blanks may stand around `;` and `=` (RFC 9112 section 7.1.1), and not at the end of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Size,
    /// Blanks after a size or an extension: a semicolon must follow.
    Blank,
    /// Behind a semicolon: blanks, then the name.
    NameStart,
    Name,
    /// Blanks after a name.
    NameEnd,
    /// Behind the equals sign: blanks, then the value.
    ValueStart,
    Token,
    Quoted,
    Escape,
    QuotedEnd,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// Decodes one body.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    /// The size of the chunk while its line is read, then how many of its bytes are still to come.
    remaining: u64,
    line: u32,
    trailers: u32,
    total: u64,
    body_max: usize,
}

impl Decoder {
    /// A decoder for one body of at most `body_max` bytes.
    #[must_use]
    pub fn new(body_max: usize) -> Self {
        Self { state: State::Start, remaining: 0, line: 0, trailers: 0, total: 0, body_max }
    }

    /// Takes the part of `input` that belongs to the body and appends its data to `body`. After
    /// `done` it takes nothing more.
    ///
    /// # Errors
    /// [`ChunkedError`]; the decoder must not be used afterwards.
    pub fn feed(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<Progress, ChunkedError> {
        let mut at = 0;
        while self.state != State::Done {
            let Some(&byte) = input.get(at) else { break };
            if self.state == State::Data {
                let here = input.len() - at;
                let take = usize::try_from(self.remaining).map_or(here, |remaining| remaining.min(here));
                body.extend_from_slice(&input[at..at + take]);
                self.remaining -= take as u64;
                at += take;
                if self.remaining == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(byte)?;
            at += 1;
        }
        Ok(Progress { consumed: at, done: self.state == State::Done })
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkedError> {
        match self.state {
            State::Start | State::Size => self.size(byte),
            State::SizeLf if byte == b'\n' => self.chunk(),
            State::Blank
            | State::NameStart
            | State::Name
            | State::NameEnd
            | State::ValueStart
            | State::Token
            | State::Quoted
            | State::Escape
            | State::QuotedEnd => {
                let next = extension(self.state, byte)?;
                if next == State::SizeLf { Ok(next) } else { self.line_grows(next) }
            }
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Start),
            State::TrailerStart if byte == b'\r' => Ok(State::EndLf),
            State::TrailerName if byte == b':' => self.trailers_grow(State::Trailer),
            State::TrailerStart | State::TrailerName if is_token(byte) => self.trailers_grow(State::TrailerName),
            State::TrailerStart | State::TrailerName if byte != b'\n' => Err(ChunkedError::Trailer),
            State::Trailer => match byte {
                b'\r' => self.trailers_grow(State::TrailerLf),
                b'\t' | b' '..=b'~' | 0x80.. => self.trailers_grow(State::Trailer),
                _ => Err(ChunkedError::LineEnd),
            },
            State::TrailerLf if byte == b'\n' => self.trailers_grow(State::TrailerStart),
            State::EndLf if byte == b'\n' => Ok(State::Done),
            _ => Err(ChunkedError::LineEnd),
        }
    }

    fn size(&mut self, byte: u8) -> Result<State, ChunkedError> {
        let first = self.state == State::Start;
        if first {
            (self.remaining, self.line) = (0, 0);
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if first => return Err(ChunkedError::Size),
            b'\r' => return Ok(State::SizeLf),
            b';' => return self.line_grows(State::NameStart),
            b' ' | b'\t' => return self.line_grows(State::Blank),
            _ => return Err(ChunkedError::Size),
        };
        self.remaining = self.remaining.checked_mul(16).ok_or(ChunkedError::SizeOverflow)? | u64::from(digit);
        self.line_grows(State::Size)
    }

    fn chunk(&mut self) -> Result<State, ChunkedError> {
        if self.remaining == 0 {
            return Ok(State::TrailerStart);
        }
        self.total = self.total.saturating_add(self.remaining);
        if self.total > self.body_max as u64 {
            return Err(ChunkedError::TooLarge { body_max: self.body_max });
        }
        Ok(State::Data)
    }

    fn line_grows(&mut self, next: State) -> Result<State, ChunkedError> {
        self.line += 1;
        if self.line > LINE_MAX { Err(ChunkedError::LineTooLong) } else { Ok(next) }
    }

    fn trailers_grow(&mut self, next: State) -> Result<State, ChunkedError> {
        self.trailers += 1;
        if self.trailers > TRAILERS_MAX { Err(ChunkedError::TrailersTooLong) } else { Ok(next) }
    }
}

/// Whether a byte may stand in a token (RFC 9110 section 5.6.2).
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// The state after a byte behind a chunk's size.
fn extension(state: State, byte: u8) -> Result<State, ChunkedError> {
    let is_token = is_token(byte);
    Ok(match (state, byte) {
        (State::Blank | State::NameStart | State::NameEnd | State::ValueStart, b' ' | b'\t') => state,
        (State::Blank | State::Name | State::NameEnd | State::Token | State::QuotedEnd, b';') => State::NameStart,
        (State::Name | State::Token | State::QuotedEnd, b'\r') => State::SizeLf,
        (State::NameStart | State::Name, _) if is_token => State::Name,
        (State::Name, b' ' | b'\t') => State::NameEnd,
        (State::Name | State::NameEnd, b'=') => State::ValueStart,
        (State::ValueStart | State::Token, _) if is_token => State::Token,
        (State::ValueStart, b'"') => State::Quoted,
        (State::Token | State::QuotedEnd, b' ' | b'\t') => State::Blank,
        (State::Quoted, b'"') => State::QuotedEnd,
        (State::Quoted, b'\\') => State::Escape,
        (State::Quoted | State::Escape, b'\t' | b' '..=b'~' | 0x80..) => State::Quoted,
        (_, b'\t' | b' '..=b'~' | 0x80..) => return Err(ChunkedError::Size),
        _ => return Err(ChunkedError::LineEnd),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(input: &[u8], body_max: usize) -> Result<(Vec<u8>, usize, bool), ChunkedError> {
        let mut body = Vec::new();
        let progress = Decoder::new(body_max).feed(input, &mut body)?;
        Ok((body, progress.consumed, progress.done))
    }

    #[test]
    fn decodes_and_stops_at_the_end() {
        let input = b"4\r\nWiki\r\n5;a=\"b\"\r\npedia\r\nC ; x = y\r\n in\r\n\r\nchunk\r\n0\r\nA: b\r\n\r\nGET /";
        let (body, consumed, done) = whole(input, 100).expect("valid");
        assert_eq!(body, b"Wikipedia in\r\n\r\nchunk");
        assert_eq!(&input[consumed..], b"GET /");
        assert!(done);
    }

    #[test]
    fn refuses_what_it_must() {
        use ChunkedError::*;
        for (input, error) in [
            (&b"\r\n"[..], Size),
            (b"-1\r\n", Size),
            (b"0x1\r\n", Size),
            (b" 1\r\n", Size),
            (b"1 1\r\n", Size),
            (b"1\n", Size),
            (b"1 \r\n", LineEnd),
            (b"1\t\r\n", LineEnd),
            (b"1;\r\n", LineEnd),
            (b"1;a \r\n", LineEnd),
            (b"1;a=\r\n", LineEnd),
            (b"1;a=\"b\r\n", LineEnd),
            (b"1;a=b \r\n", LineEnd),
            (b"1;a b\r\n", Size),
            (b"1;a=b=c\r\n", Size),
            (b"1;a=\"b\"c\r\n", Size),
            (b"1;,\r\n", Size),
            (b"1\rA", LineEnd),
            (b"1;a\nb", LineEnd),
            (b"1\r\nab", LineEnd),
            (b"1\r\na\n", LineEnd),
            (b"1\r\na\rx", LineEnd),
            (b"0\r\n\n", LineEnd),
            (b"0\r\na: b\n", LineEnd),
            (b"0\r\n\rx", LineEnd),
            (b"0\r\na\r\n", Trailer),
            (b"0\r\n: b\r\n", Trailer),
            (b"0\r\na : b\r\n", Trailer),
            (b"0\r\na: b\r\n c\r\n", Trailer),
            (b"11\r\n", TooLarge { body_max: 16 }),
            (b"8\r\n12345678\r\n9\r\n", TooLarge { body_max: 16 }),
            (b"ffffffffffffffff\r\n", TooLarge { body_max: 16 }),
            (b"10000000000000000\r\n", SizeOverflow),
        ] {
            assert_eq!(whole(input, 16), Err(error), "{}", input.escape_ascii());
        }
        assert!(whole(b"10\r\n", 16).is_ok());
    }

    #[test]
    fn line_and_trailer_limits_are_exact() {
        let line = |n: usize| format!("1;{}\r\n", "x".repeat(n - 2)).into_bytes();
        assert!(whole(&line(256), 9).is_ok());
        assert_eq!(whole(&line(257), 9), Err(ChunkedError::LineTooLong));
        let trailer = |n: usize| format!("0\r\n{}\r\n\r\n", format_args!("t:{}", "t".repeat(n - 4))).into_bytes();
        assert!(whole(&trailer(16 * 1024), 9).expect("within").2);
        assert_eq!(whole(&trailer(16 * 1024 + 1), 9), Err(ChunkedError::TrailersTooLong));
    }

    fn piecewise(input: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, usize, bool), ChunkedError> {
        let (mut decoder, mut body, mut at) = (Decoder::new(64), Vec::new(), 0);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        ends.push(input.len());
        ends.sort_unstable();
        for end in ends {
            let progress = decoder.feed(&input[at..end], &mut body)?;
            at += progress.consumed;
            if progress.done {
                return Ok((body, at, true));
            }
        }
        Ok((body, at, false))
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:X};e\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\nT: x\r\n\r\nrest");
            if let Some((at, byte)) = damage {
                let at = at.index(input.len());
                input[at] = byte;
            } else if chunks.iter().map(Vec::len).sum::<usize>() <= 64 {
                let (body, consumed, done) = whole(&input, 64).expect("valid");
                prop_assert_eq!(body, chunks.concat());
                prop_assert!(done && &input[consumed..] == b"rest");
            }
            prop_assert_eq!(piecewise(&input, &cuts), whole(&input, 64));
        }

        #[test]
        fn arbitrary_bytes_never_pass_the_limit(input: Vec<u8>) {
            let mut body = Vec::new();
            let _ = Decoder::new(10).feed(&input, &mut body);
            prop_assert!(body.len() <= 10);
        }
    }
}
