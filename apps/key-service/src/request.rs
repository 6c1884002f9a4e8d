//! Callers' requests, parsed.

use cluster_types::key_service::MAX_KEY_LEN;
use grpc_api::kms::{GetDataKeyRequest, GetMasterSecretRequest};
use key_derivation::{Label, ParseKeyIdError};

use crate::policy::Access;

/// A request in which every field is valid.
pub(crate) trait Wanted {
    fn access(&self) -> Access;
    /// Who gets the key, if not the caller itself.
    fn recipient(&self) -> Option<&str>;
}

/// A derived key.
#[derive(Debug)]
pub(crate) struct DataKey {
    pub(crate) label: Label,
    /// Its length, in bytes.
    pub(crate) length: usize,
}

/// The machine that will get the master secret: an attested identity in hex.
#[derive(Debug)]
pub(crate) struct Recipient(String);

/// An invalid field.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("data_key_id: {0}")]
    DataKeyId(#[from] ParseKeyIdError),
    #[error("length: {0} bytes, expected 1 to {MAX_KEY_LEN}")]
    Length(u32),
    #[error("recipient: {0:?} is not an attested identity of 64 lower-case hex digits")]
    Recipient(String),
}

impl DataKey {
    pub(crate) fn parse(message: &GetDataKeyRequest) -> Result<Self, InvalidRequest> {
        let GetDataKeyRequest { data_key_id, length } = message;
        let label = Label::from_key_id(data_key_id)?;
        let in_bytes = usize::try_from(*length).ok();
        let in_bytes = in_bytes.filter(|_| (1..=MAX_KEY_LEN).contains(length));
        Ok(Self {
            label,
            length: in_bytes.ok_or(InvalidRequest::Length(*length))?,
        })
    }
}

impl Wanted for DataKey {
    fn access(&self) -> Access {
        Access::DataKey(self.label)
    }

    fn recipient(&self) -> Option<&str> {
        None
    }
}

impl Recipient {
    /// Each machine has one spelling, so that the audit log can be searched.
    pub(crate) fn parse(message: &GetMasterSecretRequest) -> Result<Self, InvalidRequest> {
        let GetMasterSecretRequest { recipient: text } = message;
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if text.len() == 64 && text.bytes().all(digit) {
            Ok(Self(text.clone()))
        } else {
            Err(InvalidRequest::Recipient(text.chars().take(64).collect()))
        }
    }
}

impl Wanted for Recipient {
    fn access(&self) -> Access {
        Access::MasterSecret
    }

    fn recipient(&self) -> Option<&str> {
        Some(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";

    #[test]
    fn bad_input_to_each_field_of_a_data_key_request_names_it() {
        for (id, length, expected) in [
            (
                "",
                32,
                "data_key_id: \"\" is not a key id: expected measurementSecret or the UUID",
            ),
            ("key-measurementSecret", 32, "data_key_id: \"key-measurementSecret\""),
            ("keyServiceIdentity", 32, "data_key_id: \"keyServiceIdentity\""),
            ("operatorIdentity", 32, "data_key_id: \"operatorIdentity\""),
            ("3F2504E0-4F89-11D3-9A0C-0305E82C3301", 32, "data_key_id: \"3F2504E0"),
            ("../etc/passwd", 32, "data_key_id: \"../etc/passwd\""),
            (DISK, 0, "length: 0 bytes, expected 1 to 64"),
            (DISK, 65, "length: 65 bytes, expected 1 to 64"),
            (DISK, u32::MAX, "length: 4294967295 bytes, expected 1 to 64"),
        ] {
            let message = GetDataKeyRequest {
                data_key_id: id.into(),
                length,
            };
            let error = DataKey::parse(&message).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{id:?}, {length}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        for length in [1, 64] {
            let message = GetDataKeyRequest {
                data_key_id: DISK.into(),
                length,
            };
            assert_eq!(DataKey::parse(&message).unwrap().length, length as usize);
        }
    }

    #[test]
    fn bad_input_to_the_recipient_of_the_master_secret_names_it() {
        for bad in [
            "",
            "ab",
            &"ab".repeat(33),
            &"AB".repeat(32),
            &"zz".repeat(32),
            &"\n".repeat(64),
        ] {
            let message = GetMasterSecretRequest { recipient: bad.into() };
            let error = Recipient::parse(&message).unwrap_err().to_string();
            assert!(error.starts_with("recipient: "), "{bad:?}: {error}");
            assert!(error.contains("64 lower-case hex digits"), "{bad:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let message = GetMasterSecretRequest {
            recipient: "ab".repeat(32),
        };
        assert_eq!(Recipient::parse(&message).unwrap().0, "ab".repeat(32));
    }
}
