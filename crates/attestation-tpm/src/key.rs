use attestation::AttestedIdentity;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use digest::Digest;
use tpm2_protocol::data::{
    TpmAlgId, TpmEccCurve, TpmaObject, TpmsEccParms, TpmsSchemeHash, TpmtEccScheme, TpmtPublic, TpmtSignature,
    TpmuAsymScheme, TpmuPublicId, TpmuPublicParms, TpmuSignature,
};
use tpm2_protocol::{TpmMarshal, TpmUnmarshal, TpmWriter};

/// Bytes of a P-256 coordinate or signature part (FIPS 186-5).
const FIELD_LEN: usize = 32;

/// The public part of a key that can sign nothing but what its TPM generated.
pub struct AttestationKey {
    /// Uncompressed point: 0x04, x, y (SEC 1 section 2.3.3).
    point: [u8; 1 + 2 * FIELD_LEN],
    identity: AttestedIdentity,
}

/// A public area that is not one of our attestation keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyNotAccepted {
    /// Not a `TPMT_PUBLIC`.
    #[error("the public area is malformed")]
    Malformed,
    /// A key of another kind, with other attributes, scheme or curve.
    #[error("the public area differs from the template of attestation keys in its {0}")]
    Template(&'static str),
}

/// `restricted` and `sign` make the TPM refuse to sign a quote it did not make; `fixedTPM`, `fixedParent` and
/// `sensitiveDataOrigin` say that the private part never was and never will be outside (part 1, section 25).
const ATTRIBUTES: TpmaObject = TpmaObject::from_bits_truncate(
    TpmaObject::FIXED_TPM.bits()
        | TpmaObject::FIXED_PARENT.bits()
        | TpmaObject::SENSITIVE_DATA_ORIGIN.bits()
        | TpmaObject::USER_WITH_AUTH.bits()
        | TpmaObject::RESTRICTED.bits()
        | TpmaObject::SIGN_ENCRYPT.bits(),
);

/// The template from which `TPM2_CreatePrimary` derives the key: ECDSA on P-256 with SHA-256.
pub(crate) fn template() -> TpmtPublic {
    let scheme = TpmtEccScheme {
        scheme: TpmAlgId::Ecdsa,
        details: TpmuAsymScheme::Hash(TpmsSchemeHash {
            hash_alg: TpmAlgId::Sha256,
        }),
    };
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: ATTRIBUTES,
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            scheme,
            curve_id: TpmEccCurve::NistP256,
            ..TpmsEccParms::default()
        }),
        unique: TpmuPublicId::Ecc(tpm2_protocol::data::TpmsEccPoint::default()),
        ..TpmtPublic::default()
    }
}

impl AttestationKey {
    /// Reads a `TPMT_PUBLIC` and insists that it is the template with a point filled in.
    ///
    /// # Errors
    /// When anything but the point differs.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyNotAccepted> {
        let (public, rest) = TpmtPublic::unmarshal(bytes).map_err(|_| KeyNotAccepted::Malformed)?;
        if !rest.is_empty() || encode(&public).as_deref() != Some(bytes) {
            return Err(KeyNotAccepted::Malformed);
        }
        let expected = template();
        let same = |equal: bool, what| {
            if equal {
                Ok(())
            } else {
                Err(KeyNotAccepted::Template(what))
            }
        };
        same(public.object_type == expected.object_type, "type")?;
        same(public.name_alg == expected.name_alg, "name algorithm")?;
        same(public.object_attributes == expected.object_attributes, "attributes")?;
        same(public.auth_policy == expected.auth_policy, "policy")?;
        same(public.parameters == expected.parameters, "parameters")?;
        let TpmuPublicId::Ecc(point) = public.unique else {
            return Err(KeyNotAccepted::Template("type"));
        };
        let mut encoded = [4; 1 + 2 * FIELD_LEN];
        encoded[1..=FIELD_LEN].copy_from_slice(&field(point.x.as_ref()).ok_or(KeyNotAccepted::Malformed)?);
        encoded[1 + FIELD_LEN..].copy_from_slice(&field(point.y.as_ref()).ok_or(KeyNotAccepted::Malformed)?);
        // The name of an object is the digest of its public area (part 1, section 16).
        Ok(Self {
            point: encoded,
            identity: AttestedIdentity::new(Digest::of(bytes)),
        })
    }

    /// The identity of the machine that holds this key: the SHA-256 of its public area.
    #[must_use]
    pub fn identity(&self) -> AttestedIdentity {
        self.identity
    }

    /// Verifies a `TPMT_SIGNATURE` over a message.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Some(fixed) = fixed_signature(signature) else {
            return false;
        };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point)
            .verify(message, &fixed)
            .is_ok()
    }
}

/// The `r ‖ s` form of an ECDSA signature with SHA-256; `None` for any other algorithm.
fn fixed_signature(bytes: &[u8]) -> Option<[u8; 2 * FIELD_LEN]> {
    let (signature, rest) = TpmtSignature::unmarshal(bytes).ok()?;
    let TpmuSignature::Ecdsa(ecdsa) = signature.signature else {
        return None;
    };
    if !rest.is_empty() || signature.sig_alg != TpmAlgId::Ecdsa || ecdsa.hash != TpmAlgId::Sha256 {
        return None;
    }
    let mut fixed = [0; 2 * FIELD_LEN];
    fixed[..FIELD_LEN].copy_from_slice(&field(ecdsa.signature_r.as_ref())?);
    fixed[FIELD_LEN..].copy_from_slice(&field(ecdsa.signature_s.as_ref())?);
    Some(fixed)
}

/// A TPM may leave out leading zeros; the fixed form may not.
fn field(bytes: &[u8]) -> Option<[u8; FIELD_LEN]> {
    let mut padded = [0; FIELD_LEN];
    let start = FIELD_LEN.checked_sub(bytes.len())?;
    padded[start..].copy_from_slice(bytes);
    Some(padded)
}

fn encode(public: &TpmtPublic) -> Option<Vec<u8>> {
    let mut buffer = [0; 1024];
    let mut writer = TpmWriter::new(&mut buffer);
    public.marshal(&mut writer).ok()?;
    let length = writer.len();
    Some(buffer[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut TpmtPublic)) -> Result<AttestationKey, KeyNotAccepted> {
        let mut public = template();
        change(&mut public);
        AttestationKey::parse(&encode(&public).unwrap())
    }

    #[test]
    fn the_template_itself_is_accepted() {
        assert!(check(|_| {}).is_ok());
    }

    #[test]
    fn a_key_that_signs_anything_is_refused() {
        let unrestricted = ATTRIBUTES.bits() & !TpmaObject::RESTRICTED.bits();
        let result = check(|public| public.object_attributes = TpmaObject::from_bits_truncate(unrestricted));
        assert!(matches!(result, Err(KeyNotAccepted::Template("attributes"))));
    }

    #[test]
    fn a_key_that_can_leave_its_tpm_is_refused() {
        let movable = ATTRIBUTES.bits() & !TpmaObject::FIXED_TPM.bits();
        let result = check(|public| public.object_attributes = TpmaObject::from_bits_truncate(movable));
        assert!(matches!(result, Err(KeyNotAccepted::Template("attributes"))));
    }

    #[test]
    fn another_name_algorithm_is_refused() {
        let result = check(|public| public.name_alg = TpmAlgId::Sha384);
        assert!(matches!(result, Err(KeyNotAccepted::Template("name algorithm"))));
    }

    #[test]
    fn another_curve_is_refused() {
        let result = check(|public| {
            let TpmuPublicParms::Ecc(parms) = &mut public.parameters else {
                unreachable!("the template is ECC")
            };
            parms.curve_id = TpmEccCurve::NistP384;
        });
        assert!(matches!(result, Err(KeyNotAccepted::Template("parameters"))));
    }

    #[test]
    fn a_policy_is_refused() {
        let result = check(|public| public.auth_policy = (&[1; 32][..]).try_into().unwrap());
        assert!(matches!(result, Err(KeyNotAccepted::Template("policy"))));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&template()).unwrap();
        bytes.push(0);
        assert!(matches!(AttestationKey::parse(&bytes), Err(KeyNotAccepted::Malformed)));
    }
}
