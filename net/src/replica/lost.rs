//! Why a connection to a peer, or an attempt to make one, has ended: one sentence each, without the
//! peer's name.

use std::io;

use super::frame::Violation;
use super::handshake::HandshakeError;

/// Why there is no connection any more.
#[derive(Debug, thiserror::Error)]
pub enum LostReason {
    /// Nobody listens at the peer's address.
    #[error("the connection was refused")]
    ConnectRefused,
    /// It is not known where the peer is, for this reason.
    #[error("{0}")]
    Unresolved(String),
    /// The peer closed or reset the connection.
    #[error("the connection was closed")]
    Closed,
    /// The peer did not answer in time, to the connect or in the handshake, or the network is cut.
    #[error("there was no answer in time")]
    Timeout,
    /// The peer refused us in the handshake, with this sentence.
    #[error("it refused: {0}")]
    Refusal(String),
    /// We refused the peer in the handshake, for this reason.
    #[error("{0}")]
    Mismatch(String),
    /// The peer broke the protocol.
    #[error("it broke the protocol: {0}")]
    Violation(String),
    /// We refused the peer because of its clock.
    #[error("{0}")]
    Skew(String),
    /// The link was closed on this side.
    #[error("the connection was ended on this side")]
    Stopped,
    /// The network failed in another way.
    #[error("the network failed: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for LostReason {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::ConnectRefused,
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof => Self::Closed,
            // A blocking socket reports its timeout as one of these two.
            Kind::TimedOut | Kind::WouldBlock => Self::Timeout,
            _ => Self::Io(error),
        }
    }
}

impl From<HandshakeError> for LostReason {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Garbage => Self::Violation(error.to_string()),
            HandshakeError::Mismatch(sentence) => Self::Mismatch(sentence),
            HandshakeError::Skew(sentence) => Self::Skew(sentence),
            HandshakeError::Refusal(sentence) => Self::Refusal(sentence),
        }
    }
}

impl From<Violation> for LostReason {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation.to_string())
    }
}
