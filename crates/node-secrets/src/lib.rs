//! What a node gets from the key service, on its way through others.
//!
//! It is sealed with HPKE (RFC 9180, base mode) to a key that the node made for one session and that its Evidence covers: whoever
//! passes it on, like the join service, learns nothing from it. The key service signs it with a key that the signed cluster policy
//! names: whoever passes it on cannot give the node keys of its own choice.

mod key;
mod message;
mod sealed;
mod shared;

pub use key::{KeyServiceKey, SealingKey};
pub use message::{ControlPlaneSecrets, NodeSecrets, ParseNodeSecretsError};
pub use sealed::{OpenError, SealError, open, seal};
pub use shared::{SHARED_FILES, SharedFile, SharedFilesError};
