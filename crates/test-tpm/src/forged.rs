use attestation::{AttestError, Attester, Evidence, ReportBinding};
use attestation_tpm::TpmEvidence;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use cluster_types::Variant;
use measurements::{Digest, PcrValues};

/// A TPM whose host lies: it signs whatever register values it was given. No TPM is involved, so it also shows what our own
/// code costs without the time of one.
pub struct ForgedTpm {
    key: EcdsaKeyPair,
    pcrs: PcrValues,
}

impl ForgedTpm {
    /// A machine of its own that claims these values.
    ///
    /// # Panics
    /// Never: the provider supports P-256.
    #[must_use]
    pub fn new(pcrs: PcrValues) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("P-256 is supported");
        Self { key, pcrs }
    }
}

impl Attester for ForgedTpm {
    fn variant(&self) -> Variant {
        Variant::QemuVtpm
    }

    fn attest(&self, binding: &ReportBinding) -> Result<Evidence, AttestError> {
        let attest = attest_bytes(&self.pcrs, binding);
        let signature = self.key.sign(&SystemRandom::new(), &attest);
        let signature = signature.expect("signing in memory does not fail");
        let (r, s) = signature.as_ref().split_at(32);
        // TPMT_SIGNATURE: TPM_ALG_ECDSA, TPM_ALG_SHA256 (TPM 2.0 part 2, section 11.3.4).
        let signature = [&[0x00, 0x18, 0x00, 0x0B][..], &sized(r), &sized(s)].concat();
        let body = TpmEvidence {
            key: public_area(&self.key),
            attest,
            signature,
            pcrs: self.pcrs.clone(),
        }
        .encode();
        Ok(Evidence {
            variant: self.variant(),
            body,
        })
    }
}

/// `TPMS_ATTEST` of a quote (TPM 2.0 part 2, section 10.12.8).
fn attest_bytes(pcrs: &PcrValues, binding: &ReportBinding) -> Vec<u8> {
    let values: Vec<u8> = pcrs.values().flat_map(|value| *value.as_bytes()).collect();
    [
        &[0xFF, 0x54, 0x43, 0x47, 0x80, 0x18][..],
        &sized(&[]),
        &sized(binding.qualifying_data()),
        &[0; 17],
        &[0; 8],
        &[0, 0, 0, 1, 0x00, 0x0B, 3],
        &selection(pcrs),
        &sized(Digest::of(&values).as_bytes()),
    ]
    .concat()
}

/// One bit for each register (`TPMS_PCR_SELECTION`, TPM 2.0 part 2, section 10.6.2).
fn selection(pcrs: &PcrValues) -> [u8; 3] {
    let mut bits = [0; 3];
    for index in pcrs.keys() {
        bits[usize::from(index.get() / 8)] |= 1 << (index.get() % 8);
    }
    bits
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

fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes()[..], bytes].concat()
}
