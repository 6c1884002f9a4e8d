//! Finds out whether hardware virtualisation works, by running a guest.
//!
//! A `/dev/kvm` that exists and opens proves nothing: on some machines every guest then dies or hangs.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::process::INTERVAL;

/// What executes the guests' code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The hardware runs the guest, through `/dev/kvm`.
    Kvm,
    /// QEMU's software emulation.
    Software,
}

/// The result of running a tiny guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmProbe {
    /// The guest ran.
    Works,
    /// It did not, for this reason.
    DoesNotWork(String),
}

/// Code that QEMU translated for one machine, in MiB; a node fills it while it boots.
const TRANSLATION_BUFFER_MIB: u64 = 2048;

impl Accelerator {
    /// What it takes for each machine, in MiB.
    pub(crate) fn memory_mib(self) -> u64 {
        match self {
            Self::Kvm => 0,
            Self::Software => TRANSLATION_BUFFER_MIB,
        }
    }

    /// `-machine`, `-accel`, `-cpu`: the same for the probe and for nodes.
    pub(crate) fn arguments(self) -> Vec<OsString> {
        let (accelerator, cpu) = match self {
            Self::Kvm => ("kvm".to_owned(), "host"),
            // 5-level paging makes page walks of the emulation longer.
            Self::Software => (
                format!("tcg,thread=multi,tb-size={TRANSLATION_BUFFER_MIB}"),
                "max,la57=off",
            ),
        };
        [
            "-machine",
            "q35,smm=off,vmport=off,hpet=off",
            "-accel",
            &accelerator,
            "-cpu",
            cpu,
        ]
        .map(OsString::from)
        .to_vec()
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Software => "software emulation",
        })
    }
}

/// A guest that does not finish within this time does not work.
const LIMIT: Duration = Duration::from_secs(5);
/// What the guest writes; isa-debug-exit makes QEMU exit with `(value << 1) | 1`.
const VALUE: u8 = 0x21;
const EXIT_CODE: i32 = (VALUE as i32) << 1 | 1;
/// The port of isa-debug-exit.
const EXIT_PORT: u8 = 0xf4;
/// The firmware wants a disk that is larger than its boot sector.
const DISK_LEN: u64 = 1 << 20;

/// A boot sector of ours (16-bit real mode, BIOS loads it to 0x7c00):
/// `cli; finit; mov al, VALUE; out EXIT_PORT, al; hlt; jmp $-1`.
///
/// `finit` is among the first instructions of OVMF. There are hosts whose KVM emulates guests, runs everything else of this sector
/// and stops at it: nodes then never print a line.
fn boot_sector() -> [u8; 512] {
    let code = [0xfa, 0x9b, 0xdb, 0xe3, 0xb0, VALUE, 0xe6, EXIT_PORT, 0xf4, 0xeb, 0xfd];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    // The signature of a boot sector (BIOS Boot Specification 1.01, section 6.5.1).
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Boots a tiny guest with KVM under a deadline. Two processors, because starting the second is where some hosts fail.
pub(crate) fn probe_kvm(qemu: &Path) -> KvmProbe {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => probe(qemu, Accelerator::Kvm),
        Err(error) => KvmProbe::DoesNotWork(format!("cannot open /dev/kvm: {error}")),
    }
}

fn probe(qemu: &Path, accelerator: Accelerator) -> KvmProbe {
    match run_guest(qemu, accelerator) {
        Ok(outcome) => outcome,
        Err(error) => KvmProbe::DoesNotWork(format!("cannot start the test guest: {error}")),
    }
}

fn run_guest(qemu: &Path, accelerator: Accelerator) -> io::Result<KvmProbe> {
    let mut disk = tempfile::NamedTempFile::new()?;
    disk.write_all(&boot_sector())?;
    disk.as_file().set_len(DISK_LEN)?;
    let mut drive = OsString::from("if=none,id=disk,format=raw,readonly=on,file=");
    drive.push(crate::option::option_value(disk.path().as_os_str()));
    let mut guest = Command::new(qemu)
        .args(accelerator.arguments())
        .args([
            "-smp",
            "2",
            "-m",
            "64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1")])
        .arg("-drive")
        .arg(drive)
        .args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let Some(status) = wait(&mut guest, LIMIT)? else {
        guest.kill()?;
        guest.wait()?;
        let reason = format!("the test guest did not finish within {} s", LIMIT.as_secs());
        return Ok(KvmProbe::DoesNotWork(reason));
    };
    if status.code() == Some(EXIT_CODE) {
        return Ok(KvmProbe::Works);
    }
    let mut said = Vec::new();
    if let Some(stderr) = guest.stderr.take() {
        stderr.take(64 * 1024).read_to_end(&mut said)?;
    }
    let said = crate::console::last_line(&said).unwrap_or_else(|| status.to_string());
    Ok(KvmProbe::DoesNotWork(format!("the test guest died: {said}")))
}

fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if Instant::now() > deadline => return Ok(None),
            None => std::thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn check(script: &str) -> KvmProbe {
        let folder = tempfile::tempdir().unwrap();
        let qemu = folder.path().join("qemu");
        std::fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&qemu, PermissionsExt::from_mode(0o700)).unwrap();
        probe(&qemu, Accelerator::Kvm)
    }

    #[test]
    fn only_a_guest_that_ran_counts() {
        assert_eq!(check("exit 67"), KvmProbe::Works);
        for broken in ["exit 0", "exit 1", "kill -ABRT $$"] {
            assert!(matches!(check(broken), KvmProbe::DoesNotWork(_)), "{broken}");
        }
    }

    #[test]
    fn says_what_the_guest_died_of() {
        let KvmProbe::DoesNotWork(reason) = check("echo 'KVM internal error' >&2; exit 1") else {
            panic!()
        };
        assert!(reason.contains("KVM internal error"), "{reason}");
    }

    #[test]
    fn a_guest_that_hangs_costs_seconds() {
        let start = Instant::now();
        assert!(matches!(check("exec sleep 1000"), KvmProbe::DoesNotWork(_)));
        assert!(start.elapsed() < LIMIT * 3);
    }
}
