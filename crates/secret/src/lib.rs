//! Byte types for secrets.
//!
//! A type made with [`secret_array!`] or [`secret_bytes!`] is zeroized on drop, is neither `Clone` nor `Serialize`,
//! prints only its name, and is opened by one greppable word: `expose`.
//!
//! What this crate does not do: it does not lock memory. The programs themselves switch core dumps off.

#[doc(hidden)]
pub use zeroize;

/// Declares a secret of exactly `N` bytes.
///
/// ```
/// secret::secret_array! {
///     /// Unlocks one drawer.
///     pub struct DrawerKey(32);
/// }
/// let key = DrawerKey::from_bytes([7; 32]);
/// assert_eq!(format!("{key:?}"), "DrawerKey(..)");
/// assert_eq!(key.expose(), &[7; 32]);
/// ```
#[macro_export]
macro_rules! secret_array {
    ($(#[$meta:meta])* $vis:vis struct $name:ident($len:literal);) => {
        $(#[$meta])*
        $vis struct $name($crate::zeroize::Zeroizing<[u8; $len]>);

        impl $name {
            /// Length of the secret, in bytes.
            pub const LEN: usize = $len;

            /// Takes the bytes. If the caller keeps a copy, the caller has to wipe it.
            #[must_use]
            pub fn from_bytes(bytes: [u8; $len]) -> Self {
                Self($crate::zeroize::Zeroizing::new(bytes))
            }

            /// Copies a slice of exactly the right length; `None` for another length.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                let bytes: [u8; $len] = bytes.try_into().ok()?;
                Some(Self::from_bytes(bytes))
            }

            /// The secret bytes in clear text.
            #[must_use]
            pub fn expose(&self) -> &[u8; $len] {
                &self.0
            }
        }

        $crate::redacted_debug!($name);
    };
}

/// Declares a secret of any length.
#[macro_export]
macro_rules! secret_bytes {
    ($(#[$meta:meta])* $vis:vis struct $name:ident;) => {
        $(#[$meta])*
        $vis struct $name($crate::zeroize::Zeroizing<Vec<u8>>);

        impl $name {
            /// Takes ownership of the bytes.
            #[must_use]
            pub fn from_vec(bytes: Vec<u8>) -> Self {
                Self($crate::zeroize::Zeroizing::new(bytes))
            }

            /// The secret bytes in clear text.
            #[must_use]
            pub fn expose(&self) -> &[u8] {
                &self.0
            }
        }

        $crate::redacted_debug!($name);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! redacted_debug {
    ($name:ident) => {
        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

secret_array! {
    /// The DEK of one node's state disk: the raw LUKS2 passphrase.
    pub struct StateDiskKey(32);
}

secret_array! {
    /// The secret input of the cluster id. Never stored on a disk.
    pub struct MeasurementSecret(32);
}

secret_bytes! {
    /// A secret text or byte string that has no type of its own, such as a bootstrap token or an init secret.
    pub struct SecretBytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_only_the_name() {
        assert_eq!(
            format!("{:?}", StateDiskKey::from_bytes([0x41; 32])),
            "StateDiskKey(..)"
        );
        assert_eq!(
            format!("{:?}", SecretBytes::from_vec(b"hunter2".to_vec())),
            "SecretBytes(..)"
        );
    }

    #[test]
    fn array_takes_only_its_own_length() {
        assert!(StateDiskKey::from_slice(&[0; 31]).is_none());
        assert!(StateDiskKey::from_slice(&[0; 33]).is_none());
        assert!(StateDiskKey::from_slice(&[0; 32]).is_some());
    }
}
