//! A host tries each of its side doors: everything besides the image itself through which it could make a node do something
//! else. What it does is measured and refused, or has no effect.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use e2e::{CANARY, Image, Machine, Variable, Vm, attest, partitions, table_that_writes};

/// A unit that says on the console that it ran.
const UNIT: &str = "\
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=tty
ExecStart=/usr/bin/systemctl --version
";
/// In its output, whatever the version.
const UNIT_RAN: &str = "+APPARMOR";

#[test]
fn an_extra_command_line_over_smbios_is_refused() -> Result<()> {
    let image = Image::built()?;
    let extra = "io.systemd.stub.kernel-cmdline-extra=systemd.debug_shell init=/bin/sh";
    Machine::new("extra command line", image.disk())
        .with_oem_string(extra)
        .run(|vm| attest(vm, image.values())?.must_name_registers(&[9, 12]))
}

#[test]
fn another_root_hash_over_smbios_stops_the_boot() -> Result<()> {
    let image = Image::built()?;
    let extra = format!("io.systemd.stub.kernel-cmdline-extra=roothash={}", "00".repeat(32));
    Machine::new("another root hash", image.disk())
        .with_oem_string(&extra)
        .must_refuse_to_boot(&["boot failed:", "roothash"])
}

#[test]
fn an_add_on_beside_the_kernel_image_is_refused() -> Result<()> {
    let image = Image::built()?;
    let changed = image.with_add_on("systemd.debug_shell=1")?;
    Machine::new("add-on", changed.disk()).run(|vm| attest(vm, image.values())?.must_name_registers(&[4, 9, 12]))
}

/// The firmware starts the image with a command line of the host, which takes the place of the one in it.
#[test]
fn a_boot_entry_with_a_command_line_is_refused() -> Result<()> {
    let image = Image::built()?;
    let options = format!("{} systemd.debug_shell=1", image.command_line()?);
    Machine::new("boot entry", image.disk())
        .with_variables(Variable::boot_next(r"\EFI\BOOT\BOOTX64.EFI", &options))
        .run(|vm| {
            attest(vm, image.values())?.must_name_registers(&[9, 12])?;
            ensure!(
                vm.variables()?.iter().all(|variable| variable.name() != "BootNext"),
                "the firmware did not read what was planted"
            );
            Ok(())
        })
}

#[test]
fn credentials_and_extensions_beside_the_kernel_image_are_refused() -> Result<()> {
    let image = Image::built()?;
    let files = [
        ("systemd.extra-unit.planted.service.cred", UNIT.as_bytes()),
        ("planted.sysext.raw", b"whatever"),
    ];
    let changed = image.with_files("EFI/BOOT/BOOTX64.EFI.extra.d", &files)?;
    Machine::new("files beside the image", changed.disk())
        .run(|vm| attest(vm, image.values())?.must_name_registers(&[9, 12, 13]))
}

#[test]
fn credentials_of_the_boot_loader_are_refused() -> Result<()> {
    let image = Image::built()?;
    let files = [("systemd.extra-unit.planted.service.cred", UNIT.as_bytes())];
    let changed = image.with_files("loader/credentials", &files)?;
    Machine::new("files of the boot loader", changed.disk())
        .run(|vm| attest(vm, image.values())?.must_name_registers(&[9, 12]))
}

/// A table of the host is a program that the kernel runs, and nothing in the kernel stops it. All that is left is that some
/// firmware measures it: into a register that is not judged, because its value depends on the size of the machine.
#[test]
fn a_hostile_acpi_table_writes_memory_and_shows_in_pcr_1_at_most() -> Result<()> {
    /// In the first MiB. It is memory like any other, except that the kernel leaves alone what it finds there.
    const ADDRESS: u32 = 0x1_0000;
    const VALUE: u32 = 0xbad0_a311;
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let table = folder.path().join("table");
    fs::write(&table, table_that_writes(ADDRESS, VALUE))?;
    let look = |vm: &mut Vm| {
        let registers = attest(vm, image.values())?.affirmed_registers()?;
        Ok((registers, vm.memory(ADDRESS.into(), 4)? == VALUE.to_le_bytes()))
    };

    let (honest, written) = Machine::new("QEMU's tables", image.disk()).run(look)?;
    ensure!(!written, "the value is there without the table");
    let (hostile, written) = Machine::new("hostile table", image.disk())
        .with("-acpitable", format!("sig=SSDT,rev=2,data={}", table.display()))
        .run(look)?;
    ensure!(
        written,
        "something stopped the table: docs/guarantees.md says that nothing does"
    );
    let differing: Vec<u8> = honest
        .iter()
        .filter(|(index, value)| hostile.get(index) != Some(value))
        .map(|(index, _)| index.get())
        .collect();
    // OVMF 2022.11 measures no tables, OVMF 2025.02 does. PCR 10 begins with what PCR 0 to 9 hold.
    ensure!(
        [&[][..], &[1, 10]].contains(&&differing[..]),
        "the table shows in PCR {differing:?}"
    );
    Ok(())
}

/// Credentials, partitions that systemd would mount by itself, and somebody at the console, all at once: nothing of it is measured,
/// so nothing of it may have an effect.
#[test]
fn credentials_partitions_and_console_input_have_no_effect() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let planted = partitions(folder.path(), UNIT)?;
    let wants = "[Unit]\nWants=planted.service\nAfter=planted.service\n";
    let credential = |name: &str, content: &str| {
        let content = BASE64_STANDARD.encode(content);
        format!("io.systemd.credential.binary:{name}={content}")
    };
    Machine::new("side doors", image.disk())
        .with_oem_string(&credential("systemd.extra-unit.planted.service", UNIT))
        .with_oem_string(&credential("systemd.unit-dropin.multi-user.target", wants))
        .with_oem_string(&format!("io.systemd.credential:passwd.hashed-password.root={CANARY}"))
        .with(
            "-fw_cfg",
            "name=opt/io.systemd.credentials/systemd.debug_shell,string=ttyS0",
        )
        .with(
            "-fw_cfg",
            format!("name=opt/io.systemd.credentials/network.network.planted,string={CANARY}"),
        )
        .with("-drive", format!("if=none,id=planted,{planted}"))
        .with("-device", "virtio-blk-pci,drive=planted")
        .run(|vm| {
            let mut keyboard = vm.keyboard()?;
            vm.wait_until("node-init", |vm| Ok(vm.console()?.contains("starting the disk-mapper")))?;
            type_everything(vm, &mut keyboard)?;
            vm.wait_until("systemd", |vm| Ok(vm.console()?.contains("starting systemd")))?;
            type_everything(vm, &mut keyboard)?;
            vm.wait_for_bootstrapper()?;
            type_everything(vm, &mut keyboard)?;
            attest(vm, image.values())?.must_be_affirming()?;
            type_everything(vm, &mut keyboard)?;
            attest(vm, image.values())?.must_be_affirming()?;

            let console = vm.console()?;
            for answer in [UNIT_RAN, "3042", "sysrq:", "login:", "assword", "emergency mode"] {
                ensure!(!console.contains(answer), "the console says {answer:?}");
            }
            let (looks, written) = vm.disk_traffic("planted")?;
            ensure!(
                (looks, written) == (0, 0),
                "the node looked {looks} times into the host's partitions and wrote {written} bytes"
            );
            Ok(())
        })
}

/// What somebody at the console would try: a login, a command (whose result is not what was typed), SysRq.
fn type_everything(vm: &Vm, keyboard: &mut impl Write) -> Result<()> {
    keyboard
        .write_all(b"\r\nroot\r\necho $((3000+42))\r\n\x03\x04")
        .context("typing on the console")?;
    // Help, which prints something, and an instant restart, which would end the machine.
    vm.press_sysrq(keyboard, 'h')?;
    vm.press_sysrq(keyboard, 'b')
}
