//! TLS 1.3 sessions in which Evidence is exchanged after the handshake and bound to the session.
//!
//! # Protocol
//!
//! Both sides present a self-signed certificate over a key made in this process. A certificate carries no trust; the
//! handshake proves possession of its key. Then, before any application byte, each side sends
//!
//! 1. a hello: version, purpose, a fresh nonce if it verifies the other, the variants it accepts, and a key if secrets can be
//!    sealed to it;
//! 2. if the peer requests it: Evidence over the [`ReportBinding`](attestation::ReportBinding) of this session;
//! 3. a verdict.
//!
//! The client speaks first; it appraises the server before it sends Evidence of its own. Frames are protobuf messages
//! behind their length in four big-endian bytes.
//!
//! # Invariants
//!
//! - Only this crate makes an [`AttestedNode`], and only from an affirming appraisal that is bound to the session it is
//!   handed out with.
//! - There is no resumption, no 0-RTT, and no version below TLS 1.3.
//! - Sizes, times and the number of connections are bounded.
//!
//! What it does not do: it does not decide who may do what. Handlers take an [`AttestedNode`] and decide.

mod endpoint;
mod error;
mod exchange;
mod frame;
mod grpc;
mod leaf;
mod nonce;
mod policy;
mod stream;

#[cfg(test)]
mod attacks;

pub use endpoint::{Endpoint, Limits};
pub use error::HandshakeError;
pub use grpc::{AttestedChannel, Peer, attested_node, channel, incoming, peer};
pub use nonce::NonceSource;
pub use policy::PeerPolicy;
pub use stream::{AttestedNode, AttestedStream};
