use std::collections::BTreeSet;

use attestation::{AppraisalError, AttestationResult, Evidence, ReportBinding, TrustBasis, Verifier};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use cluster_types::Variant;
use measurements::{Digest, PcrIndex, PcrValues};
use tpm2_protocol::TpmUnmarshal;
use tpm2_protocol::data::{TpmAlgId, TpmSt, TpmsAttest, TpmsQuoteInfo, TpmuAttest};

use crate::{AttestationKey, KeyNotAccepted, MalformedEvidence, PcrPolicy, TpmEvidence};

/// Appraises TPM quotes.
pub struct TpmVerifier {
    variant: Variant,
    trust: TrustBasis,
    policy: PcrPolicy,
}

/// Which check the Evidence failed.
#[derive(Debug, thiserror::Error)]
pub enum NotAuthentic {
    /// The body cannot be read.
    #[error(transparent)]
    Malformed(#[from] MalformedEvidence),
    /// The key is not an attestation key.
    #[error("the attestation key is not acceptable")]
    Key(#[from] KeyNotAccepted),
    /// The signature does not verify.
    #[error("the signature is not the attestation key's over this quote")]
    Signature,
    /// What is signed is no quote of a TPM.
    #[error("the signed structure is not a TPM quote")]
    NotAQuote,
    /// The quote was made for another session, nonce or purpose.
    #[error("the quote is bound to something else: qualifying data is {actual}, expected {expected}")]
    Binding {
        /// In the quote.
        actual: String,
        /// Of this session.
        expected: String,
    },
    /// The quote is about another bank, several banks, or other registers than are listed.
    #[error("the quote covers {quoted}, the evidence lists PCRs {listed:?} of the SHA-256 bank")]
    Selection {
        /// What the TPM quoted.
        quoted: String,
        /// What came with it.
        listed: Vec<u8>,
    },
    /// The listed values are not the quoted ones.
    #[error("the listed PCR values hash to {actual}, the quote says {quoted}")]
    PcrDigest {
        /// Over the listed values.
        actual: Digest,
        /// In the quote.
        quoted: String,
    },
    /// A register that the policy judges was not quoted.
    #[error("PCR {0} is required by the policy and was not quoted")]
    NotQuoted(PcrIndex),
}

impl TpmVerifier {
    /// Appraises Evidence of this variant against the policy.
    #[must_use]
    pub fn new(variant: Variant, trust: TrustBasis, policy: PcrPolicy) -> Self {
        Self { variant, trust, policy }
    }

    /// The checks, in this order:
    ///
    /// 1. The body is well-formed and the key is an attestation key.
    /// 2. The key signed the quote.
    /// 3. What it signed is a quote that a TPM generated.
    /// 4. The quote is bound to this session.
    /// 5. It covers exactly the listed registers of the SHA-256 bank.
    /// 6. The listed values hash to the quoted digest.
    /// 7. Every register that the policy judges is among them.
    ///
    /// Only then are values compared with the ReferenceValues.
    fn check(&self, body: &[u8], binding: &ReportBinding) -> Result<AttestationResult, NotAuthentic> {
        let evidence = TpmEvidence::parse(body)?;
        let key = AttestationKey::parse(&evidence.key)?;
        check_signature(&key, &evidence)?;
        let attest = parse_attest(&evidence.attest)?;
        let quote = quote_info(&attest)?;
        check_binding(&attest, binding)?;
        check_selection(quote, &evidence.pcrs)?;
        check_pcr_digest(quote, &evidence.pcrs)?;
        check_coverage(&self.policy, &evidence.pcrs)?;
        Ok(AttestationResult {
            variant: self.variant,
            trust: self.trust,
            identity: key.identity(),
            findings: self.policy.findings(&evidence.pcrs),
            pcrs: evidence.pcrs,
        })
    }
}

impl Verifier for TpmVerifier {
    fn variant(&self) -> Variant {
        self.variant
    }

    fn appraise(&self, evidence: &Evidence, binding: &ReportBinding) -> Result<AttestationResult, AppraisalError> {
        if evidence.variant != self.variant {
            return Err(AppraisalError::VariantNotAccepted(evidence.variant));
        }
        self.check(&evidence.body, binding)
            .map_err(|source| AppraisalError::NotAuthentic {
                variant: self.variant,
                source: source.into(),
            })
    }
}

fn check_signature(key: &AttestationKey, evidence: &TpmEvidence) -> Result<(), NotAuthentic> {
    if key.verifies(&evidence.attest, &evidence.signature) {
        Ok(())
    } else {
        Err(NotAuthentic::Signature)
    }
}

/// The magic value, which only a TPM puts in front of what it signs with a restricted key, is checked by the parser.
fn parse_attest(bytes: &[u8]) -> Result<TpmsAttest, NotAuthentic> {
    match TpmsAttest::unmarshal(bytes) {
        Ok((attest, [])) => Ok(attest),
        _ => Err(NotAuthentic::NotAQuote),
    }
}

fn quote_info(attest: &TpmsAttest) -> Result<&TpmsQuoteInfo, NotAuthentic> {
    match &attest.attested {
        TpmuAttest::Quote(quote) if attest.attest_type == TpmSt::AttestQuote => Ok(quote),
        _ => Err(NotAuthentic::NotAQuote),
    }
}

fn check_binding(attest: &TpmsAttest, binding: &ReportBinding) -> Result<(), NotAuthentic> {
    let (actual, expected): (&[u8], &[u8]) = (attest.extra_data.as_ref(), binding.qualifying_data());
    verify_slices_are_equal(actual, expected).map_err(|_| NotAuthentic::Binding {
        actual: hex(actual),
        expected: hex(expected),
    })
}

fn check_selection(quote: &TpmsQuoteInfo, pcrs: &PcrValues) -> Result<(), NotAuthentic> {
    let listed: BTreeSet<u8> = pcrs.keys().map(|index| index.get()).collect();
    match &quote.pcr_select[..] {
        [bank] if bank.hash == TpmAlgId::Sha256 && selected(&bank.pcr_select) == listed => Ok(()),
        banks => Err(NotAuthentic::Selection {
            quoted: format!("{banks:?}"),
            listed: listed.into_iter().collect(),
        }),
    }
}

fn selected(bits: &[u8]) -> BTreeSet<u8> {
    let bit = |index: &u8| {
        bits.get(usize::from(index / 8))
            .is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    };
    (0..32).filter(bit).collect()
}

/// The digest is over the values in the order of their registers (TPM 2.0 part 3, section 18.4).
fn check_pcr_digest(quote: &TpmsQuoteInfo, pcrs: &PcrValues) -> Result<(), NotAuthentic> {
    let values: Vec<u8> = pcrs.values().flat_map(|value| *value.as_bytes()).collect();
    let actual = Digest::of(&values);
    let quoted: &[u8] = quote.pcr_digest.as_ref();
    if actual.as_bytes() == quoted {
        Ok(())
    } else {
        Err(NotAuthentic::PcrDigest {
            actual,
            quoted: hex(quoted),
        })
    }
}

fn check_coverage(policy: &PcrPolicy, pcrs: &PcrValues) -> Result<(), NotAuthentic> {
    match policy.judged().find(|index| !pcrs.contains_key(index)) {
        Some(missing) => Err(NotAuthentic::NotQuoted(missing)),
        None => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
