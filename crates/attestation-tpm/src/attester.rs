use std::sync::{Mutex, PoisonError};

use attestation::{
    AttestError, AttestedIdentity, Attester, BindingParts, DeviceError, Evidence, MeasuredStatements,
    MeasuringAttester, Membership, ShownStatements,
};
use cluster_types::{OperatorPublicKey, Variant};
use measurements::{PcrIndex, PcrReferences, ReferenceValues};

use crate::policy::{STATEMENTS, events, statements};
use crate::{AttestationKey, KeyNotAccepted, Tpm, TpmError, TpmEvidence};

/// What we quote: every register that cannot be reset by software (16 and 23 can; 17 to 22 belong to DRTM).
const QUOTED: [PcrIndex; 16] = {
    let mut indices = [PcrIndex::new(0); 16];
    let mut i = 0;
    while i < 16 {
        #[expect(clippy::cast_possible_truncation, reason = "the loop ends at 16")]
        let index = i as u8;
        indices[i] = PcrIndex::new(index);
        i += 1;
    }
    indices
};

/// Attests with a TPM. The key stays loaded, so that Evidence costs one quote.
pub struct TpmAttester {
    variant: Variant,
    tpm: Mutex<Tpm>,
    key: u32,
    public: Vec<u8>,
    identity: AttestedIdentity,
}

/// The TPM cannot be used for attestation.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The TPM created a different key from the requested one.
    #[error("the TPM created a key that no verifier accepts")]
    Key(#[from] KeyNotAccepted),
}

impl TpmAttester {
    /// Creates the attestation key in the TPM.
    ///
    /// # Errors
    /// When the TPM fails or creates a different key.
    pub fn new(variant: Variant, mut tpm: Tpm) -> Result<Self, SetUpError> {
        let (key, public) = tpm.create_attestation_key()?;
        let identity = AttestationKey::parse(&public)?.identity();
        Ok(Self {
            variant,
            tpm: Mutex::new(tpm),
            key,
            public,
            identity,
        })
    }

    fn failed(&self) -> impl FnOnce(TpmError) -> DeviceError {
        let variant = self.variant;
        move |error| DeviceError {
            variant,
            source: error.into(),
        }
    }

    /// Runs `work` with the TPM, for measuring into it.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn with_tpm<T>(&self, work: impl FnOnce(&mut Tpm) -> Result<T, TpmError>) -> Result<T, TpmError> {
        work(&mut self.tpm.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Attester for TpmAttester {
    fn variant(&self) -> Variant {
        self.variant
    }

    fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError> {
        let binding = parts.binding();
        let (pcrs, quote) = self
            .with_tpm(|tpm| tpm.quote(self.key, &QUOTED, &binding))
            .map_err(|error| AttestError {
                variant: self.variant,
                source: error.into(),
            })?;
        let evidence = TpmEvidence {
            key: self.public.clone(),
            attest: quote.attest,
            signature: quote.signature,
            pcrs,
        };
        Ok(Evidence {
            variant: self.variant,
            body: evidence.encode(),
        })
    }
}

impl MeasuringAttester for TpmAttester {
    /// The name of the attestation key, a primary key that a TPM derives from its seed.
    fn identity(&self) -> AttestedIdentity {
        self.identity
    }

    fn own_image(&self) -> Result<ReferenceValues, DeviceError> {
        let registers = self
            .with_tpm(|tpm| tpm.read_pcrs(&PcrIndex::IMAGE))
            .map_err(self.failed())?;
        let image = PcrReferences::new(registers);
        Ok(ReferenceValues::new(self.variant, "the image of this node", &image))
    }

    fn statements(&self) -> Result<MeasuredStatements, DeviceError> {
        let read = |tpm: &mut Tpm| {
            let registers = tpm.read_pcrs(&STATEMENTS)?;
            let register = |index| registers.get(&index).copied().ok_or(TpmError::NoSuchPcr(index));
            Ok(statements(&ShownStatements {
                operator: register(PcrIndex::OPERATOR)?.digest(),
                membership: register(PcrIndex::MEMBERSHIP)?.digest(),
            }))
        };
        self.with_tpm(read).map_err(self.failed())
    }

    fn measure_operator(&self, operator: &OperatorPublicKey) -> Result<(), DeviceError> {
        let measure = |tpm: &mut Tpm| tpm.extend_with_event(PcrIndex::OPERATOR, &operator.event());
        self.with_tpm(measure).map_err(self.failed())
    }

    fn measure_membership(&self, membership: &Membership) -> Result<(), DeviceError> {
        let measure = |tpm: &mut Tpm| {
            let mut events = events(membership).into_iter();
            events.try_for_each(|event| tpm.extend_with_event(PcrIndex::MEMBERSHIP, event))
        };
        self.with_tpm(measure).map_err(self.failed())
    }
}

impl Drop for TpmAttester {
    fn drop(&mut self) {
        // Behind /dev/tpmrm0 the kernel does this too. A bare TPM has room for only three objects.
        let _ = self.with_tpm(|tpm| tpm.flush(self.key));
    }
}
