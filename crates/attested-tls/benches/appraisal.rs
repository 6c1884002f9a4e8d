//! The cost of appraising Evidence, compared with the one signature verification that it cannot do without.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use anyhow::{Result, ensure};
use attestation::{Attester, BindingParts, Evidence, ExpectedMembership, Nonce, Outcome, UnixTime};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use test_figures::{Clock, Samples, Table};
use test_machines::{InProcessAttester, SOFTWARE_TPM, verifiers};

const ROUNDS: usize = 5000;
/// About the length of a quote (`TPMS_ATTEST`).
const MESSAGE: [u8; 128] = [7; 128];

fn main() -> Result<()> {
    let (verifications, appraisals) = (verifications()?, appraisals()?);
    let mut table = Table::new("Appraisal", &["p50", "p99", "per s, core"]);
    table.samples("verification of one ECDSA P-256 signature", &verifications, []);
    table.samples("appraisal of the Evidence of a TPM", &appraisals, []);
    let ratio = appraisals.ratio_to(&verifications);
    table.note(format!("appraisal / verification: {ratio:.2}"));
    println!("{table}");
    Ok(())
}

/// From the bytes of a peer to a verdict.
fn appraisals() -> Result<Samples> {
    let verifiers = verifiers(SOFTWARE_TPM, ExpectedMembership::New);
    let parts = BindingParts::Nonce(Nonce::generate());
    let binding = parts.binding();
    let bytes = InProcessAttester::generate().attest(&parts)?.encode();
    Samples::take(Clock::Wall, ROUNDS, || {
        let result = verifiers.appraise(&Evidence::parse(&bytes)?, &binding, UnixTime::from_seconds(0))?;
        ensure!(result.outcome() == Outcome::Affirming, "good evidence is refused");
        Ok(())
    })
}

fn verifications() -> Result<Samples> {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let signature = key.sign(&SystemRandom::new(), &MESSAGE)?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref());
    Samples::take(Clock::Wall, ROUNDS, || Ok(public.verify(&MESSAGE, signature.as_ref())?))
}
