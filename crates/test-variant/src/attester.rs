use attestation::{
    AttestError, AttestedIdentity, Attester, BindingParts, DeviceError, Evidence, MeasuredStatements,
    MeasuringAttester, Membership, ReportBinding,
};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use cluster_types::{OperatorPublicKey, Variant};
use digest::Digest;
use measurements::ReferenceValues;

use crate::report::{Report, SignedReport, measured, statement, statement_of_operator};
use crate::variant::VARIANT;
use crate::{KeyFile, KeyFileError, KeyReferences};

/// Attests with a key file.
pub struct KeyAttester {
    file: KeyFile,
    identity: AttestedIdentity,
}

impl KeyAttester {
    /// Uses the machine in this file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(file: KeyFile) -> Result<Self, KeyFileError> {
        let key = key_of(&file.read()?.seed);
        let identity = AttestedIdentity::new(Digest::of(key.public_key().as_ref()));
        Ok(Self { file, identity })
    }

    fn signed_report(&self, binding: &ReportBinding) -> Result<Vec<u8>, KeyFileError> {
        let state = self.file.read()?;
        let key = key_of(&state.seed);
        let report = serde_json::to_vec(&Report {
            binding: hex::encode(binding.as_bytes()),
            image: state.image,
            host: state.host,
            statements: state.statements,
        })?;
        Ok(serde_json::to_vec(&SignedReport {
            key: key.public_key().as_ref().to_vec(),
            signature: key.sign(&report).as_ref().to_vec(),
            report,
        })?)
    }
}

impl Attester for KeyAttester {
    fn variant(&self) -> Variant {
        VARIANT
    }

    fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError> {
        let body = self.signed_report(&parts.binding()).map_err(|error| AttestError {
            variant: VARIANT,
            source: error.into(),
        })?;
        Ok(Evidence { variant: VARIANT, body })
    }
}

impl MeasuringAttester for KeyAttester {
    fn identity(&self) -> AttestedIdentity {
        self.identity
    }

    fn own_image(&self) -> Result<ReferenceValues, DeviceError> {
        let state = self.file.read().map_err(failed)?;
        let values = KeyReferences::new(state.image, &state.host);
        Ok(ReferenceValues::new(VARIANT, "the image of this node", &values))
    }

    fn statements(&self) -> Result<MeasuredStatements, DeviceError> {
        Ok(measured(&self.file.read().map_err(failed)?.statements))
    }

    fn measure_operator(&self, operator: &OperatorPublicKey) -> Result<(), DeviceError> {
        let statement = statement_of_operator(operator);
        let stated = self.file.state(|statements| statements.operators.push(statement));
        stated.map_err(failed)
    }

    fn measure_membership(&self, membership: &Membership) -> Result<(), DeviceError> {
        let statement = statement(membership);
        let stated = self.file.state(|statements| statements.memberships.push(statement));
        stated.map_err(failed)
    }
}

fn key_of(seed: &[u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed (RFC 8032 section 5.1.5)")
}

fn failed(error: KeyFileError) -> DeviceError {
    DeviceError {
        variant: VARIANT,
        source: error.into(),
    }
}
