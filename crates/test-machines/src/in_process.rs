use attestation::{AttestError, Attester, BindingParts, Evidence, ReportBinding};
use attestation_tpm::TpmEvidence;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use cluster_types::{OperatorPublicKey, Variant};
use digest::Digest;
use measurements::{PcrIndex, PcrValue, PcrValues};

use crate::operator;

/// Answers like a TPM, as a lying host can, with a key in this process. Each one is another machine. A generated one is accepted
/// as a new machine of [`SOFTWARE_TPM`](crate::SOFTWARE_TPM).
pub struct InProcessAttester {
    key: EcdsaKeyPair,
    pcrs: PcrValues,
}

impl InProcessAttester {
    /// A machine of the operator of tests that booted nothing.
    #[must_use]
    pub fn generate() -> Self {
        Self::claiming(&PcrValues::new(), &operator())
    }

    /// A machine that claims to have measured this, and to obey this operator; its other registers are zero.
    ///
    /// # Panics
    /// Never: the curve is supported.
    #[must_use]
    pub fn claiming(measured: &PcrValues, operator: &OperatorPublicKey) -> Self {
        let mut pcrs: PcrValues = (0..16).map(|index| (PcrIndex::new(index), PcrValue::ZERO)).collect();
        pcrs.insert(PcrIndex::OPERATOR, PcrValue::ZERO.event(&operator.event()));
        pcrs.extend(measured);
        Self {
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("P-256 is supported"),
            pcrs,
        }
    }
}

impl Attester for InProcessAttester {
    fn variant(&self) -> Variant {
        Variant::QemuVtpm
    }

    fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError> {
        let attest = attest_bytes(&self.pcrs, &parts.binding());
        let evidence = TpmEvidence {
            key: public_area(&self.key),
            signature: signature(&self.key, &attest),
            attest,
            pcrs: self.pcrs.clone(),
        };
        Ok(Evidence {
            variant: Variant::QemuVtpm,
            body: evidence.encode(),
        })
    }
}

/// `TPMS_ATTEST` of a quote (TPM 2.0 part 2, section 10.12.8).
fn attest_bytes(pcrs: &PcrValues, binding: &ReportBinding) -> Vec<u8> {
    let values: Vec<u8> = pcrs.values().flat_map(|value| *value.as_bytes()).collect();
    [
        &[0xFF, 0x54, 0x43, 0x47, 0x80, 0x18][..],
        &sized(&[]),
        &sized(binding.first_half()),
        &[0; 17],
        &[0; 8],
        &[0, 0, 0, 1, 0x00, 0x0B, 3, 0xFF, 0xFF, 0x00],
        &sized(Digest::of(&values).as_bytes()),
    ]
    .concat()
}

/// `TPMT_PUBLIC` of an attestation key (TPM 2.0 part 2, section 12.2.4).
fn public_area(key: &EcdsaKeyPair) -> Vec<u8> {
    let point = key.public_key().as_ref();
    let head = [0x00, 0x23, 0x00, 0x0B, 0x00, 0x05, 0x00, 0x72];
    let parameters = [0x00, 0x10, 0x00, 0x18, 0x00, 0x0B, 0x00, 0x03, 0x00, 0x10];
    [
        &head[..],
        &sized(&[]),
        &parameters,
        &sized(&point[1..33]),
        &sized(&point[33..]),
    ]
    .concat()
}

/// `TPMT_SIGNATURE` (TPM 2.0 part 2, section 11.3.4).
fn signature(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    let signature = key
        .sign(&SystemRandom::new(), message)
        .expect("signing in memory does not fail");
    let (r, s) = signature.as_ref().split_at(32);
    [&[0x00, 0x18, 0x00, 0x0B][..], &sized(r), &sized(s)].concat()
}

/// A `TPM2B` structure: a length of two bytes in front.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("the parts of a quote are short");
    [&length.to_be_bytes()[..], bytes].concat()
}
