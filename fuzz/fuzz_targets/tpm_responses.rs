//! Responses of a TPM, which in local mode is a program of the host.
//!
//! The input is cut into bodies, each behind its length in one byte. Every response says that its command succeeded: another
//! one ends the command at once, or has it repeated after a pause.

#![no_main]

use std::io;

use attestation_tpm::{Tpm, TpmAttester, Transport};
use cluster_types::Variant;
use libfuzzer_sys::fuzz_target;
use measurements::PcrIndex;

/// Tag, size and response code (TPM 2.0 part 1, section 18.3).
const HEADER_LEN: usize = 10;

struct Script(Vec<u8>);

impl Transport for Script {
    fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let length = usize::from(*self.0.first().ok_or(io::ErrorKind::UnexpectedEof)?);
        let body: Vec<u8> = self.0.drain(..(1 + length).min(self.0.len())).skip(1).collect();
        let size = u32::try_from(HEADER_LEN + body.len()).expect("at most 265 bytes");
        // A TPM answers with the tag of the command.
        Ok([&command[..2], &size.to_be_bytes(), &[0; 4], &body].concat())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut tpm = Tpm::new(Script(bytes.to_vec()));
    let _ = tpm.read_pcrs(&[PcrIndex::new(4), PcrIndex::new(11)]);
    let _ = tpm.extend_with_event(PcrIndex::MEMBERSHIP, &[1; 32]);
    let _ = TpmAttester::new(Variant::QemuVtpm, tpm);
});
