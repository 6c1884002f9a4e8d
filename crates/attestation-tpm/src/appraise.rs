use std::collections::BTreeSet;

use attestation::{
    AppraisalError, AttestationResult, Endorsements, Evidence, MeasuredStatements, ReportBinding, ShownStatements,
    TrustBasis, UnixTime, Verifier,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use cluster_types::Variant;
use digest::Digest;
use measurements::{PcrIndex, PcrValue, PcrValues};
use tpm2_protocol::TpmUnmarshal;
use tpm2_protocol::data::{TpmAlgId, TpmSt, TpmsAttest, TpmsQuoteInfo, TpmuAttest};

use crate::policy::statements;
use crate::{AttestationKey, KeyNotAccepted, MalformedEvidence, PcrPolicy, TpmEvidence};

/// Appraises TPM quotes.
pub struct TpmVerifier {
    variant: Variant,
    trust: TrustBasis,
    policy: PcrPolicy,
}

/// The check that the Evidence failed.
#[derive(Debug, thiserror::Error)]
pub enum NotAuthentic {
    /// The body cannot be read.
    #[error(transparent)]
    Malformed(#[from] MalformedEvidence),
    /// The key is not an attestation key.
    #[error("unacceptable attestation key")]
    Key(#[from] KeyNotAccepted),
    /// The signature does not verify.
    #[error("the attestation key did not sign this quote")]
    Signature,
    /// The signed structure is not a quote made by a TPM.
    #[error("the signed structure is not a TPM quote")]
    NotAQuote,
    /// The quote was made for another session, nonce or purpose.
    #[error("the quote is bound to something else: qualifying data is {actual}, expected {expected}")]
    Binding {
        /// What the quote says.
        actual: String,
        /// What this session requires.
        expected: String,
    },
    /// The quote covers another bank, several banks, or other registers than those listed.
    #[error("the quote covers {quoted}, but the evidence lists PCRs {listed:?} of the SHA-256 bank")]
    Selection {
        /// What the TPM quoted.
        quoted: String,
        /// The registers that the Evidence lists.
        listed: Vec<u8>,
    },
    /// The listed values are not the quoted ones.
    #[error("the listed PCR values hash to {actual}, but the quote says {quoted}")]
    PcrDigest {
        /// The digest of the listed values.
        actual: Digest,
        /// What the quote says.
        quoted: String,
    },
    /// A register that the policy compares was not quoted.
    #[error("the policy requires PCR {0}, which was not quoted")]
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
    /// 7. Every register that the policy compares is among them.
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
        Ok(AttestationResult::new(
            self.variant,
            self.trust,
            key.identity(),
            self.policy.statements(),
            measured_statements(&evidence.pcrs)?,
            self.policy.image_claims(&evidence.pcrs),
        ))
    }
}

impl Verifier for TpmVerifier {
    fn variant(&self) -> Variant {
        self.variant
    }

    fn trust(&self) -> TrustBasis {
        self.trust
    }

    /// Needs no Endorsements: any key that looks like an attestation key is accepted. Nothing in a quote expires.
    fn appraise(
        &self,
        evidence: &Evidence,
        _endorsements: &Endorsements,
        binding: &ReportBinding,
        _now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError> {
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

/// The parser checks the magic value, which only a TPM puts before data that it signs with a restricted key.
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
    let (actual, expected): (&[u8], &[u8]) = (attest.extra_data.as_ref(), binding.first_half());
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
    match policy.required().find(|index| !pcrs.contains_key(index)) {
        Some(missing) => Err(NotAuthentic::NotQuoted(missing)),
        None => Ok(()),
    }
}

fn measured_statements(pcrs: &PcrValues) -> Result<MeasuredStatements, NotAuthentic> {
    Ok(statements(&ShownStatements {
        operator: register(pcrs, PcrIndex::OPERATOR)?.digest(),
        membership: register(pcrs, PcrIndex::MEMBERSHIP)?.digest(),
    }))
}

fn register(pcrs: &PcrValues, index: PcrIndex) -> Result<PcrValue, NotAuthentic> {
    pcrs.get(&index).copied().ok_or(NotAuthentic::NotQuoted(index))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attestation::{Expectations, ExpectedMembership, ExpectedStatements, Membership, Nonce, Outcome};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};
    use measurements::{PcrReferences, ReferenceValues};
    use tpm2_protocol::data::{
        Tpm2bData, Tpm2bDigest, Tpm2bName, TpmlPcrSelection, TpmsClockInfo, TpmsEccPoint, TpmsPcrSelect,
        TpmsPcrSelection, TpmsSignatureEcc, TpmsTimeAttestInfo, TpmtSignature, TpmuPublicId, TpmuSignature,
    };
    use tpm2_protocol::{TpmMarshal, TpmWriter};

    use super::*;
    use crate::key;

    const VARIANT: Variant = Variant::QemuVtpm;
    const OPERATOR: OperatorPublicKey = OperatorPublicKey::new([2; 32]);

    const OPERATOR_VECTOR: &str = "ddd6f028bff59b22992b2adb2d7ad896ebb5996e014795ec8b6c05fec38f8d4f";
    const CONTROL_PLANE_VECTOR: &str = "bc338a3ea8a2662870bdcafa7cddae64a57ba93a2b5db4f0a65f02330695023e";
    const WORKER_VECTOR: &str = "793ebdfe8aa5c0ad5d4af4dfe4995a4c9650288ee416e65321fa6bfe8a725a2f";

    /// A TPM whose answers can all be changed before they are signed, as a lying host can do in local mode.
    /// Each test changes one thing, so that only one check can refuse.
    struct Forgery {
        attest: TpmsAttest,
        pcrs: PcrValues,
    }

    fn pcr(index: u8) -> PcrIndex {
        PcrIndex::new(index)
    }

    fn binding() -> ReportBinding {
        ReportBinding::standalone(&Nonce::new([7; 32]))
    }

    fn verifier() -> TpmVerifier {
        let image = PcrReferences::new(PcrIndex::IMAGE.map(|index| (index, PcrValue::new([4; 32]))).into());
        let image = image.with_warning(pcr(1), PcrValue::new([1; 32]));
        let expectations = Expectations {
            image: ReferenceValues::new(VARIANT, "image", &image),
            statements: ExpectedStatements {
                operator: OPERATOR,
                membership: ExpectedMembership::New,
            },
        };
        TpmVerifier::new(
            VARIANT,
            TrustBasis::HostSoftware,
            PcrPolicy::new(&expectations).unwrap(),
        )
    }

    impl Forgery {
        fn new() -> Self {
            let mut pcrs = BTreeMap::from(PcrIndex::IMAGE.map(|index| (index, PcrValue::new([4; 32]))));
            pcrs.extend([
                (pcr(1), PcrValue::new([1; 32])),
                (pcr(14), PcrValue::ZERO.event(&OPERATOR.event())),
                (pcr(15), PcrValue::ZERO),
            ]);
            let attest = TpmsAttest {
                attest_type: TpmSt::AttestQuote,
                qualified_signer: Tpm2bName::default(),
                extra_data: Tpm2bData::try_from(&binding().first_half()[..]).unwrap(),
                clock_info: TpmsClockInfo::default(),
                firmware_version: 0.into(),
                attested: TpmuAttest::Quote(quote_of(&pcrs, TpmAlgId::Sha256)),
            };
            Self { attest, pcrs }
        }

        fn quote(&mut self) -> &mut TpmsQuoteInfo {
            let TpmuAttest::Quote(quote) = &mut self.attest.attested else {
                unreachable!("made as a quote")
            };
            quote
        }

        fn sign(&self) -> TpmEvidence {
            let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let mut public = key::template();
            let point = key.public_key().as_ref();
            public.unique = TpmuPublicId::Ecc(TpmsEccPoint {
                x: (&point[1..33]).try_into().unwrap(),
                y: (&point[33..]).try_into().unwrap(),
            });
            let attest = marshal(&self.attest);
            let raw = key.sign(&SystemRandom::new(), &attest).unwrap();
            let ecdsa = TpmsSignatureEcc {
                hash: TpmAlgId::Sha256,
                signature_r: (&raw.as_ref()[..32]).try_into().unwrap(),
                signature_s: (&raw.as_ref()[32..]).try_into().unwrap(),
            };
            let signature = TpmtSignature {
                sig_alg: TpmAlgId::Ecdsa,
                signature: TpmuSignature::Ecdsa(ecdsa),
            };
            TpmEvidence {
                key: marshal(&public),
                attest,
                signature: marshal(&signature),
                pcrs: self.pcrs.clone(),
            }
        }
    }

    fn quote_of(pcrs: &PcrValues, hash: TpmAlgId) -> TpmsQuoteInfo {
        let mut bits = [0_u8; 3];
        for index in pcrs.keys() {
            bits[usize::from(index.get() / 8)] |= 1 << (index.get() % 8);
        }
        let mut pcr_select = TpmlPcrSelection::default();
        let selection = TpmsPcrSelection {
            hash,
            pcr_select: TpmsPcrSelect::try_from(&bits[..]).unwrap(),
        };
        pcr_select.try_push(selection).unwrap();
        let values: Vec<u8> = pcrs.values().flat_map(|value| *value.as_bytes()).collect();
        TpmsQuoteInfo {
            pcr_select,
            pcr_digest: Tpm2bDigest::try_from(&Digest::of(&values).as_bytes()[..]).unwrap(),
        }
    }

    fn marshal(value: &impl TpmMarshal) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let mut writer = TpmWriter::new(&mut buffer);
        value.marshal(&mut writer).unwrap();
        let length = writer.len();
        buffer[..length].to_vec()
    }

    /// Makes a forgery, lets the test change it before and after signing, and appraises it.
    fn check(
        before: impl FnOnce(&mut Forgery),
        after: impl FnOnce(&mut TpmEvidence),
    ) -> Result<AttestationResult, NotAuthentic> {
        let mut forgery = Forgery::new();
        before(&mut forgery);
        let mut evidence = forgery.sign();
        after(&mut evidence);
        verifier().check(&evidence.encode(), &binding())
    }

    fn outcome(change: impl FnOnce(&mut PcrValues)) -> Outcome {
        let requote = |forgery: &mut Forgery| {
            change(&mut forgery.pcrs);
            *forgery.quote() = quote_of(&forgery.pcrs, TpmAlgId::Sha256);
        };
        check(requote, |_| {}).unwrap().outcome()
    }

    #[test]
    fn affirms_what_is_expected() {
        assert_eq!(outcome(|_| {}), Outcome::Affirming);
    }

    #[test]
    fn contraindicates_another_image() {
        let change = |pcrs: &mut PcrValues| {
            pcrs.insert(pcr(4), PcrValue::new([9; 32]));
        };
        assert_eq!(outcome(change), Outcome::Contraindicated);
    }

    #[test]
    fn says_which_register_differs() {
        let requote = |forgery: &mut Forgery| {
            forgery.pcrs.insert(pcr(15), PcrValue::new([9; 32]));
            *forgery.quote() = quote_of(&forgery.pcrs, TpmAlgId::Sha256);
        };
        let refusal = check(requote, |_| {}).unwrap().into_affirmed().unwrap_err();
        let expected = format!(
            "attestation is contraindicated: PCR 15 is {}, expected {}",
            "09".repeat(32),
            PcrValue::ZERO
        );
        assert_eq!(refusal.to_string(), expected);
    }

    #[test]
    fn contraindicates_a_member_where_a_new_node_is_expected() {
        let change = |pcrs: &mut PcrValues| {
            pcrs.insert(pcr(15), PcrValue::new([9; 32]));
        };
        assert_eq!(outcome(change), Outcome::Contraindicated);
    }

    #[test]
    fn contraindicates_a_node_of_another_operator_and_of_none() {
        let other = OperatorPublicKey::new([3; 32]);
        let twice = PcrValue::ZERO.event(&other.event()).event(&OPERATOR.event());
        for value in [PcrValue::ZERO, PcrValue::ZERO.event(&other.event()), twice] {
            let change = |pcrs: &mut PcrValues| {
                pcrs.insert(pcr(14), value);
            };
            assert_eq!(outcome(change), Outcome::Contraindicated);
        }
    }

    fn new_node() -> MeasuredStatements {
        let zero = PcrValue::ZERO.digest();
        statements(&ShownStatements {
            operator: zero,
            membership: zero,
        })
    }

    /// `SHA-256(0 ‖ SHA-256("constellation operator v1" ‖ key))`, computed with Python's hashlib.
    #[test]
    fn the_operators_register_matches_the_vector() {
        let shown = new_node().operator.shown_by(&OPERATOR);
        assert_eq!(shown.to_string(), OPERATOR_VECTOR);
    }

    /// The same for cluster id, then role.
    #[test]
    fn the_registers_of_members_match_the_vectors() {
        let shown = |role| {
            let membership = Membership::new(ClusterId::new([1; 32]), role);
            new_node().membership.shown_by(&membership).to_string()
        };
        assert_eq!(shown(NodeRole::ControlPlane), CONTROL_PLANE_VECTOR);
        assert_eq!(shown(NodeRole::Worker), WORKER_VECTOR);
    }

    #[test]
    fn rejects_a_quote_without_the_registers_of_statements() {
        for index in [14, 15].map(pcr) {
            let change = |forgery: &mut Forgery| {
                forgery.pcrs.remove(&index);
                *forgery.quote() = quote_of(&forgery.pcrs, TpmAlgId::Sha256);
            };
            assert!(matches!(check(change, |_| {}), Err(NotAuthentic::NotQuoted(missing)) if missing == index));
        }
    }

    #[test]
    fn warns_of_other_firmware() {
        let change = |pcrs: &mut PcrValues| {
            pcrs.insert(pcr(1), PcrValue::new([9; 32]));
        };
        assert_eq!(outcome(change), Outcome::Warning);
    }

    #[test]
    fn rejects_a_quote_signed_by_another_key() {
        let other = Forgery::new().sign();
        assert!(matches!(
            check(|_| {}, |evidence| evidence.key = other.key),
            Err(NotAuthentic::Signature)
        ));
    }

    #[test]
    fn rejects_a_quote_that_was_changed_after_signing() {
        let result = check(|_| {}, |evidence| *evidence.attest.last_mut().unwrap() ^= 1);
        assert!(matches!(result, Err(NotAuthentic::Signature)));
    }

    #[test]
    fn rejects_a_key_that_is_not_restricted() {
        // TPMT_PUBLIC: type (2 bytes), name algorithm (2), attributes (4); bit 16, `restricted`, is in byte 5.
        let result = check(|_| {}, |evidence| evidence.key[5] &= !0x01);
        assert!(matches!(result, Err(NotAuthentic::Key(_))));
    }

    #[test]
    fn rejects_a_signed_structure_that_is_no_quote() {
        let time = |forgery: &mut Forgery| {
            forgery.attest.attest_type = TpmSt::AttestTime;
            forgery.attest.attested = TpmuAttest::Time(TpmsTimeAttestInfo::default());
        };
        assert!(matches!(check(time, |_| {}), Err(NotAuthentic::NotAQuote)));
    }

    #[test]
    fn rejects_a_quote_for_another_binding() {
        let other = ReportBinding::standalone(&Nonce::new([8; 32]));
        let change = |forgery: &mut Forgery| {
            forgery.attest.extra_data = Tpm2bData::try_from(&other.first_half()[..]).unwrap();
        };
        assert!(matches!(check(change, |_| {}), Err(NotAuthentic::Binding { .. })));
    }

    #[test]
    fn rejects_a_binding_that_is_only_a_prefix() {
        let change = |forgery: &mut Forgery| {
            forgery.attest.extra_data = Tpm2bData::try_from(&binding().first_half()[..31]).unwrap();
        };
        assert!(matches!(check(change, |_| {}), Err(NotAuthentic::Binding { .. })));
    }

    #[test]
    fn rejects_another_bank() {
        let change = |forgery: &mut Forgery| *forgery.quote() = quote_of(&forgery.pcrs, TpmAlgId::Sha1);
        assert!(matches!(check(change, |_| {}), Err(NotAuthentic::Selection { .. })));
    }

    #[test]
    fn rejects_two_banks() {
        let change = |forgery: &mut Forgery| {
            let first = forgery.quote().pcr_select[0];
            forgery.quote().pcr_select.try_push(first).unwrap();
        };
        assert!(matches!(check(change, |_| {}), Err(NotAuthentic::Selection { .. })));
    }

    #[test]
    fn rejects_a_register_that_was_not_quoted() {
        let change = |evidence: &mut TpmEvidence| {
            evidence.pcrs.insert(pcr(8), PcrValue::ZERO);
        };
        assert!(matches!(check(|_| {}, change), Err(NotAuthentic::Selection { .. })));
    }

    #[test]
    fn rejects_values_that_were_not_quoted() {
        let change = |evidence: &mut TpmEvidence| {
            evidence.pcrs.insert(pcr(4), PcrValue::ZERO);
        };
        assert!(matches!(check(|_| {}, change), Err(NotAuthentic::PcrDigest { .. })));
    }

    #[test]
    fn rejects_a_quote_without_a_required_register() {
        let change = |forgery: &mut Forgery| {
            forgery.pcrs.remove(&pcr(4));
            *forgery.quote() = quote_of(&forgery.pcrs, TpmAlgId::Sha256);
        };
        assert!(matches!(check(change, |_| {}), Err(NotAuthentic::NotQuoted(index)) if index == pcr(4)));
    }

    #[test]
    fn every_register_is_a_claim_that_says_whether_it_was_compared() {
        use attestation::Comparison::{AsExpected, NotCompared};
        use attestation::Severity::{Contraindicates, Warns};
        let change = |forgery: &mut Forgery| {
            forgery.pcrs.insert(pcr(8), PcrValue::ZERO);
            *forgery.quote() = quote_of(&forgery.pcrs, TpmAlgId::Sha256);
        };
        let result = check(change, |_| {}).unwrap();
        let shown: Vec<_> = result
            .claims()
            .iter()
            .map(|claim| (&*claim.name, &claim.comparison))
            .collect();
        let required = &AsExpected {
            severity: Contraindicates,
        };
        let expected = [
            ("PCR 1", &AsExpected { severity: Warns }),
            ("PCR 4", required),
            ("PCR 8", &NotCompared),
            ("PCR 9", required),
            ("PCR 11", required),
            ("PCR 12", required),
            ("PCR 13", required),
            ("PCR 14", required),
            ("PCR 15", required),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn rejects_a_body_that_is_no_evidence() {
        assert!(matches!(
            verifier().check(b"\xff\xff", &binding()),
            Err(NotAuthentic::Malformed(_))
        ));
    }
}
