//! A host tries each of its side doors: everything besides the image itself through which it could make a node do something
//! else. What it does is measured and refused, or has no effect.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use e2e::{CANARY, Image, Machine, Packet, Variable, Vm, attest, dumped_packets, partitions, table_that_writes};

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
/// firmware measures it: into a register that is not compared, because its value depends on the size of the machine.
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
        .map(|(index, _)| *index)
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

/// Variables of the firmware, devices that a node has no use for, and a DHCP server that lies,
/// all at once: nothing of it is measured, so nothing of it may have an effect.
#[test]
fn variables_devices_and_dhcp_have_no_effect() -> Result<()> {
    let image = Image::built()?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let options = format!(
        "systemd.unit=emergency.target systemd.debug_shell=1 systemd.hostname={CANARY} systemd.log_level=debug \
         systemd.log_target=console"
    );
    let variables = [
        Variable::systemd("SystemdOptions", &options),
        Variable::loader("LoaderEntryDefault", CANARY),
        Variable::loader("LoaderEntryOneShot", CANARY),
    ];
    with_devices(Machine::new("variables, devices, DHCP", image.disk()), folder.path())?
        .with_variables(variables.clone())
        .with_dhcp_options(folder.path(), &LIES)?
        .with_dump("uplink", &file("uplink.pcap"))
        .run(|vm| {
            attest(vm, image.values())?.must_be_affirming()?;
            let mut agent = UnixStream::connect(file("agent.sock")).context("connecting to the guest agent")?;
            agent.write_all(b"{\"execute\":\"guest-info\"}\n")?;
            attest(vm, image.values())?.must_be_affirming()?;

            let there = vm.variables()?;
            for variable in &variables {
                ensure!(there.contains(variable), "{} is not there any more", variable.name());
            }
            devices_are_left_alone(vm, folder.path())?;
            lies_of_dhcp_are_not_used(vm, &dumped_packets(&file("uplink.pcap"))?)
        })
}

/// Gives a machine a shared folder, a guest agent's port, a USB stick and another network card, with a DHCP server behind it.
fn with_devices(machine: Machine, folder: &Path) -> Result<Machine> {
    let stick = partitions(folder, UNIT)?;
    let path = folder.display();
    Ok(machine
        .with("-fsdev", format!("local,id=share,path={path},security_model=none"))
        .with("-device", "virtio-9p-pci,id=share,fsdev=share,mount_tag=planted")
        .with(
            "-chardev",
            format!("socket,id=agent,path={path}/agent.sock,server=on,wait=off,logfile={path}/agent.log"),
        )
        .with("-device", "virtio-serial-pci,id=serial")
        .with(
            "-device",
            "virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0",
        )
        .with("-drive", format!("if=none,id=stick,{stick}"))
        .with("-device", "qemu-xhci,id=usb")
        .with("-device", "usb-storage,bus=usb.0,drive=stick")
        .with("-netdev", "user,id=other")
        .with("-device", "virtio-net-pci,id=card,netdev=other,romfile=")
        .with_dump("other", &folder.join("other.pcap")))
}

fn devices_are_left_alone(vm: &Vm, folder: &Path) -> Result<()> {
    // The card is of the same kind as the node's own.
    ensure!(vm.has_driver("card")?, "drivers are not seen");
    for device in ["share", "serial"] {
        ensure!(!vm.has_driver(device)?, "the node has a driver for {device}");
    }
    let said = fs::read(folder.join("agent.log"))?;
    ensure!(
        said.is_empty(),
        "a guest agent says {:?}",
        String::from_utf8_lossy(&said)
    );
    let sent = dumped_packets(&folder.join("other.pcap"))?;
    ensure!(sent.is_empty(), "{} packets left the other network card", sent.len());
    ensure!(vm.disk_reads("system")? > 0, "reads are not counted");
    let reads = vm.disk_reads("stick")?;
    ensure!(reads == 0, "the node read {reads} times from the USB stick");
    Ok(())
}

/// The host in the network that QEMU makes.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Whom a kernel that knows IPv6 tells its multicast groups, even without an address of its own (RFC 3810, section 5.2.14).
const MULTICAST_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// The largest packet in bytes that the DHCP server allows.
const MTU: u16 = 576;
/// Name server, host name, domain, MTU, time server (RFC 2132), and a detour to the host (RFC 3442).
const LIES: [(u8, &[u8]); 6] = [
    (6, &[10, 0, 2, 66]),
    (12, CANARY.as_bytes()),
    (15, b"planted.example"),
    (26, &MTU.to_be_bytes()),
    (42, &[10, 0, 2, 67]),
    (121, &[32, 10, 0, 2, 2, 10, 0, 2, 68]),
];

fn lies_of_dhcp_are_not_used(vm: &Vm, sent: &[Packet]) -> Result<()> {
    // networkd writes down the whole lease (/run/systemd/netif/leases), whatever it uses of it.
    let leased = vm.memory_after(b"\nHOSTNAME=", CANARY.len())?;
    ensure!(
        leased.iter().any(|name| name == CANARY.as_bytes()),
        "the lies did not reach the node"
    );
    let names = vm.host_names()?;
    ensure!(names.contains("localhost"), "the node calls itself {names:?}");
    ensure!(
        !names.iter().any(|name| name.contains(CANARY)),
        "the node calls itself {names:?}"
    );

    let destinations: BTreeSet<_> = sent.iter().map(Packet::destination).collect();
    let expected = [HOST.into(), Ipv4Addr::BROADCAST.into(), MULTICAST_ROUTERS.into()].map(Some);
    ensure!(
        destinations.is_subset(&expected.into()) && destinations.contains(&Some(HOST.into())),
        "the node sent packets to {destinations:?}"
    );
    // Behind a header of 14 bytes.
    let longest = sent.iter().map(|packet| packet.bytes().len() - 14).max();
    ensure!(
        longest > Some(MTU.into()),
        "the node sends no packet that is longer than {longest:?} bytes"
    );
    Ok(())
}
