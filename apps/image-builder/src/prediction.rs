//! Predicts what a node's registers hold after it has booted a given unified kernel image.
//!
//! Follows the TCG PC Client Platform Firmware Profile for the firmware's part, `drivers/firmware/efi/libstub` for the kernel's, and
//! systemd-stub(7) for the stub's.

use std::collections::BTreeMap;

use digest::Digest;
use measurements::{PcrIndex, PcrReferences, PcrValue};

use crate::pe::{ParsePeError, Pe};

/// Sections the stub measures, in its order (systemd 257, `src/fundamental/uki.c`).
const MEASURED_SECTIONS: [&str; 8] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".uname", ".sbat", ".pcrpkey",
];

/// Sections of the stub's own code, which are part of PCR 4 only.
const CODE_SECTIONS: [&str; 7] = [".text", ".rodata", ".data", ".reloc", ".dynamic", ".dynsym", ".sdmagic"];

/// An image whose measurements cannot be predicted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PredictError {
    #[error("cannot parse the unified kernel image")]
    Image(#[source] ParsePeError),
    #[error("cannot parse the kernel in the unified kernel image")]
    Kernel(#[source] ParsePeError),
    #[error("the unified kernel image has no section {0}")]
    MissingSection(&'static str),
    #[error("the unified kernel image has an unknown section {0}")]
    UnknownSection(String),
    #[error("the embedded command line is not ASCII text")]
    CommandLine,
}

/// Computes the reference values of an image from its unified kernel image.
pub(crate) fn reference_values(uki: &[u8]) -> Result<PcrReferences, PredictError> {
    let uki = Pe::parse(uki).map_err(PredictError::Image)?;
    check_sections(&uki)?;
    let kernel = required(&uki, ".linux")?;
    let authenticode = |pe: &Pe<'_>| pe.authenticode();
    let uki_digest = authenticode(&uki).map_err(PredictError::Image)?;
    let kernel_digest = Pe::parse(kernel)
        .and_then(|pe| authenticode(&pe))
        .map_err(PredictError::Kernel)?;
    let command_line = required(&uki, ".cmdline")?;
    let initrd = Digest::of(required(&uki, ".initrd")?);

    let registers = [
        (4, boot_programs(&[uki_digest, kernel_digest])),
        // GRUB, the boot loader that measures here, is not part of the boot.
        (8, PcrValue::ZERO),
        (9, kernel_inputs(command_line, initrd)?),
        (11, sections(&measured_sections(&uki)?)),
        // The host added no command line, credentials, extensions or devicetrees.
        (12, PcrValue::ZERO),
        (13, PcrValue::ZERO),
    ];
    let registers: BTreeMap<_, _> = registers.map(|(index, value)| (PcrIndex::new(index), value)).into();
    Ok(PcrReferences::new(registers))
}

/// PCR 4: the firmware measures that it is booting, then every program it loads.
fn boot_programs(programs: &[Digest]) -> PcrValue {
    let boot = PcrValue::ZERO
        .event(b"Calling EFI Application from Boot Option")
        .event(&[0; 4]);
    programs.iter().fold(boot, |pcr, &program| pcr.extend(program))
}

/// PCR 9: the kernel measures its command line as UEFI passed it, with the final NUL, and then the initramfs.
fn kernel_inputs(command_line: &[u8], initrd: Digest) -> Result<PcrValue, PredictError> {
    let text = command_line.strip_suffix(&[0]).unwrap_or(command_line);
    if !text.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(PredictError::CommandLine);
    }
    let utf16: Vec<u8> = text.iter().chain(&[0]).flat_map(|&byte| [byte, 0]).collect();
    Ok(PcrValue::ZERO.event(&utf16).extend(initrd))
}

/// PCR 11: for each section, its name with the final NUL, then its content.
fn sections(sections: &[(&str, Digest)]) -> PcrValue {
    sections.iter().fold(PcrValue::ZERO, |pcr, (name, content)| {
        pcr.event(format!("{name}\0").as_bytes()).extend(*content)
    })
}

fn measured_sections(uki: &Pe<'_>) -> Result<Vec<(&'static str, Digest)>, PredictError> {
    let mut sections = Vec::new();
    for name in MEASURED_SECTIONS {
        if let Some(content) = uki.section(name).map_err(PredictError::Image)? {
            sections.push((name, Digest::of(content)));
        }
    }
    Ok(sections)
}

fn required<'file>(uki: &Pe<'file>, name: &'static str) -> Result<&'file [u8], PredictError> {
    let section = uki.section(name).map_err(PredictError::Image)?;
    section.ok_or(PredictError::MissingSection(name))
}

fn check_sections(uki: &Pe<'_>) -> Result<(), PredictError> {
    let known = |name: &&str| MEASURED_SECTIONS.contains(name) || CODE_SECTIONS.contains(name);
    match uki.section_names().find(|name| !known(name)) {
        Some(unknown) => Err(PredictError::UnknownSection(unknown.to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pe::tests::program;

    const ZERO: Digest = Digest::new([0; 32]);

    fn check(sections: &[(&str, &[u8])]) -> Result<PcrReferences, PredictError> {
        reference_values(&program(sections, b""))
    }

    fn uki<'a>(kernel: &'a [u8], command_line: &'a [u8]) -> Vec<(&'a str, &'a [u8])> {
        vec![
            (".text", b"code"),
            (".linux", kernel),
            (".cmdline", command_line),
            (".initrd", b"initrd"),
        ]
    }

    #[test]
    fn boot_programs_match_the_vector() {
        assert_eq!(
            boot_programs(&[ZERO, Digest::new([1; 32])]).to_string(),
            "22116dee861aa6b44242ac469eab24cead344d52c77131f54ac1cac9d6a2408e"
        );
    }

    #[test]
    fn kernel_inputs_match_the_vector() {
        let expected = "eb4f7bca865807d3163b95174d6e66cfc74acf8b930a553e95ec94662cb6facd";
        for command_line in [&b"console=tty0\0"[..], b"console=tty0"] {
            assert_eq!(kernel_inputs(command_line, ZERO).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn sections_match_the_vector() {
        assert_eq!(
            sections(&[(".linux", ZERO), (".initrd", Digest::new([1; 32]))]).to_string(),
            "9dfe399fcd4432639f0e20f49df823aa66b095f0664f0a4b9fbdc11ea64683e2"
        );
    }

    #[test]
    fn every_part_of_the_image_changes_a_register() {
        let kernel = program(&[(".text", b"kernel")], b"");
        let base = check(&uki(&kernel, b"quiet")).unwrap();
        let other_kernel = program(&[(".text", b"kernal")], b"");
        assert_ne!(check(&uki(&other_kernel, b"quiet")).unwrap(), base);
        assert_ne!(check(&uki(&kernel, b"quiet init=/bin/sh")).unwrap(), base);
    }

    #[test]
    fn unknown_sections_are_refused() {
        let kernel = program(&[(".text", b"kernel")], b"");
        let mut sections = uki(&kernel, b"quiet");
        sections.push((".profile", b"x"));
        assert_eq!(
            check(&sections),
            Err(PredictError::UnknownSection(".profile".to_owned()))
        );
    }

    #[test]
    fn image_without_command_line_is_refused() {
        let kernel = program(&[(".text", b"kernel")], b"");
        let sections: Vec<_> = uki(&kernel, b"")
            .into_iter()
            .filter(|(name, _)| *name != ".cmdline")
            .collect();
        assert_eq!(check(&sections), Err(PredictError::MissingSection(".cmdline")));
    }
}
