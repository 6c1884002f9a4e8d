//! The command lines of a node's programs. Nothing is started here.

use std::ffi::OsString;
use std::path::Path;

use cluster_types::ServicePort;
use infrastructure::NodePorts;

use crate::accelerator::Accelerator;
use crate::folder::{NodeFolder, NodeRecord};
use crate::network::{HOST_FROM_GUEST, MULTICAST_GROUP};
use crate::option::option_value;

/// Everything that determines a node's machine.
pub(crate) struct Vm<'a> {
    pub(crate) node: &'a NodeRecord,
    pub(crate) uid: &'a str,
    pub(crate) private_network_port: u16,
    pub(crate) metadata_port: u16,
    pub(crate) accelerator: Accelerator,
    pub(crate) firmware: &'a Path,
    pub(crate) system_disk: &'a Path,
    pub(crate) flushes: bool,
}

/// The node's port for each of [`NodePorts`] (docs/interfaces.md).
pub(crate) fn forwards(ports: &NodePorts) -> [(u16, u16); 5] {
    [
        (ports.bootstrapper, 9000),
        (ports.kubernetes, 6443),
        (ports.verify_http, ServicePort::VERIFICATION_HTTP_ON_NODE),
        (ports.verify, ServicePort::VERIFICATION_ON_NODE),
        (ports.join, ServicePort::JOIN_ON_NODE),
    ]
}

/// The arguments of swtpm, which exits together with its QEMU.
pub(crate) fn swtpm_arguments() -> Vec<OsString> {
    let state = format!("dir={}", NodeFolder::TPM_STATE);
    let control = format!("type=unixio,path={}", NodeFolder::TPM_SOCKET);
    [
        "socket",
        "--tpm2",
        "--terminate",
        "--flags",
        "startup-clear",
        "--tpmstate",
        &state,
        "--ctrl",
        &control,
    ]
    .map(OsString::from)
    .to_vec()
}

impl Vm<'_> {
    /// The arguments of QEMU, run in the node's folder.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let spec = &self.node.spec;
        let mut line = Line(self.accelerator.arguments());
        line.add("-name", spec.name.as_str());
        line.add("-smp", spec.vcpus.to_string());
        line.add("-m", spec.memory_mib.to_string());
        line.flags(&["-nodefaults", "-no-user-config"]);
        // A kernel that panics reports it through pvpanic, and the machine ends. A restart is not a failure: a node whose clock runs
        // at a wrong rate asks for one. Everything is then measured again from zero.
        line.add("-action", "panic=shutdown,reboot=reset");
        line.add("-device", "pvpanic-pci,addr=0x6");
        line.add("-display", "none");
        self.firmware(&mut line);
        self.tpm(&mut line);
        self.disks(&mut line);
        self.network(&mut line);
        line.add("-device", "virtio-rng-pci,addr=0x5");
        let base = format!("http://{HOST_FROM_GUEST}:{}/nodes/{}", self.metadata_port, spec.name);
        line.add("-smbios", format!("type=1,serial={base}"));
        line.add("-serial", format!("file:{}", NodeFolder::CONSOLE));
        line.add("-qmp", format!("unix:{},server=on,wait=off", NodeFolder::QMP_SOCKET));
        line.add("-pidfile", NodeFolder::QEMU_PID);
        line.0
    }

    fn firmware(&self, line: &mut Line) {
        line.path(
            "-drive",
            "if=pflash,format=raw,unit=0,readonly=on,file=",
            self.firmware,
            "",
        );
        line.add(
            "-drive",
            format!("if=pflash,format=raw,unit=1,file={}", NodeFolder::VARIABLES),
        );
    }

    fn tpm(&self, line: &mut Line) {
        line.add("-chardev", format!("socket,id=tpm,path={}", NodeFolder::TPM_SOCKET));
        line.add("-tpmdev", "emulator,id=tpm0,chardev=tpm");
        line.add("-device", "tpm-crb,tpmdev=tpm0");
    }

    /// The node finds its state disk by its serial number, never by its contents.
    fn disks(&self, line: &mut Line) {
        let cache = if self.flushes { "writeback" } else { "unsafe" };
        let options = format!(",cache={cache},aio=threads");
        line.path(
            "-drive",
            "if=none,id=system,format=raw,readonly=on,file=",
            self.system_disk,
            &options,
        );
        line.add("-device", "virtio-blk-pci,drive=system,bootindex=0,addr=0x1");
        let file = NodeFolder::STATE_DISK;
        line.add(
            "-drive",
            format!("if=none,id=state,format=raw,file={file}{options},discard=unmap"),
        );
        line.add("-device", "virtio-blk-pci,drive=state,serial=state,addr=0x2");
    }

    /// The image recognises network cards by their place on the bus: 3 leads to the host, 4 to the other nodes.
    fn network(&self, line: &mut Line) {
        let forwards: String = forwards(&self.node.ports)
            .map(|(here, there)| format!(",hostfwd=tcp:127.0.0.1:{here}-:{there}"))
            .concat();
        line.add("-netdev", format!("user,id=uplink{forwards}"));
        line.add(
            "-device",
            format!("virtio-net-pci,netdev=uplink,romfile=,addr=0x3,mac={}", self.mac(0)),
        );
        let port = self.private_network_port;
        line.add(
            "-netdev",
            format!("socket,id=private,mcast={MULTICAST_GROUP}:{port},localaddr=127.0.0.1"),
        );
        line.add(
            "-device",
            format!("virtio-net-pci,netdev=private,romfile=,addr=0x4,mac={}", self.mac(1)),
        );
    }

    /// Locally administered (IEEE 802-2014 section 8.4), different for every cluster, card and node.
    fn mac(&self, card: u8) -> String {
        let uid = hex::decode(self.uid).unwrap_or_default();
        let part = |index: usize| uid.get(index).copied().unwrap_or_default();
        let [_, _, third, fourth] = self.node.address.octets();
        let bytes = [0x52 + 4 * card, part(0), part(1), part(2), third, fourth];
        bytes.map(|byte| format!("{byte:02x}")).join(":")
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }

    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let mut value = OsString::from(before);
        value.push(option_value(path.as_os_str()));
        value.push(after);
        self.add(option, value);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use cluster_types::NodeRole;
    use infrastructure::NodeSpec;

    use super::*;

    fn node() -> NodeRecord {
        NodeRecord {
            spec: NodeSpec {
                name: "worker-0".parse().unwrap(),
                role: NodeRole::Worker,
                group: "worker_default".to_owned(),
                vcpus: 2,
                memory_mib: 2048,
                state_disk_gb: 20,
            },
            address: Ipv4Addr::new(10, 42, 2, 100),
            ports: NodePorts {
                bootstrapper: 1001,
                kubernetes: 1002,
                verify_http: 1003,
                verify: 1004,
                join: 1005,
            },
        }
    }

    fn rendered(change: impl FnOnce(&mut Vm<'_>)) -> String {
        let node = node();
        let mut vm = Vm {
            node: &node,
            uid: "a1b2c3d4",
            private_network_port: 17777,
            metadata_port: 41877,
            accelerator: Accelerator::Software,
            firmware: Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd"),
            system_disk: Path::new("/images/node.img"),
            flushes: true,
        };
        change(&mut vm);
        let arguments = vm.arguments();
        let words: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        words.join(" ").replace(" -", "\n-")
    }

    #[test]
    fn the_command_line_is_the_agreed_one() {
        let expected = "\
-machine q35,smm=off,vmport=off,hpet=off
-accel tcg,thread=multi,tb-size=2048
-cpu max,la57=off
-name worker-0
-smp 2
-m 2048
-nodefaults
-no-user-config
-action panic=shutdown,reboot=reset
-device pvpanic-pci,addr=0x6
-display none
-drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd
-drive if=pflash,format=raw,unit=1,file=vars.fd
-chardev socket,id=tpm,path=tpm.sock
-tpmdev emulator,id=tpm0,chardev=tpm
-device tpm-crb,tpmdev=tpm0
-drive if=none,id=system,format=raw,readonly=on,file=/images/node.img,cache=writeback,aio=threads
-device virtio-blk-pci,drive=system,bootindex=0,addr=0x1
-drive if=none,id=state,format=raw,file=state.img,cache=writeback,aio=threads,discard=unmap
-device virtio-blk-pci,drive=state,serial=state,addr=0x2
-netdev user,id=uplink,hostfwd=tcp:127.0.0.1:1001-:9000,hostfwd=tcp:127.0.0.1:1002-:6443,\
hostfwd=tcp:127.0.0.1:1003-:30080,hostfwd=tcp:127.0.0.1:1004-:30081,hostfwd=tcp:127.0.0.1:1005-:30090
-device virtio-net-pci,netdev=uplink,romfile=,addr=0x3,mac=52:a1:b2:c3:02:64
-netdev socket,id=private,mcast=230.0.0.77:17777,localaddr=127.0.0.1
-device virtio-net-pci,netdev=private,romfile=,addr=0x4,mac=56:a1:b2:c3:02:64
-device virtio-rng-pci,addr=0x5
-smbios type=1,serial=http://10.0.2.2:41877/nodes/worker-0
-serial file:console.log
-qmp unix:qmp.sock,server=on,wait=off
-pidfile qemu.pid";
        assert_eq!(rendered(|_| {}), expected);
    }

    #[test]
    fn a_path_cannot_add_options() {
        let line = rendered(|vm| vm.system_disk = Path::new("/a,readonly=off"));
        assert!(line.contains("file=/a,,readonly=off,cache=writeback"), "{line}");
    }

    #[test]
    fn flushes_are_left_out_only_on_demand() {
        assert!(!rendered(|_| {}).contains("unsafe"));
        assert!(rendered(|vm| vm.flushes = false).contains("state.img,cache=unsafe"));
    }

    #[test]
    fn kvm_uses_the_hosts_processor() {
        let line = rendered(|vm| vm.accelerator = Accelerator::Kvm);
        assert!(line.contains("-accel kvm\n-cpu host\n"), "{line}");
    }
}
