//! How a virtual machine looks, and what a hostile host adds to it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cluster::private_network::GROUP;
use crate::metadata::{self, Answer, Answers, Metadata};
use crate::process::{Process, start_swtpm};
use crate::session::CANARY;
use crate::variables::{self, Variable};
use crate::vm::Vm;

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Size of the memory in bytes.
pub(crate) const MEMORY: u64 = 2 << 30;
/// How a disk says that it cannot read (errno(3)).
const EIO: u32 = 5;
/// Size of the state disk in bytes. The file is sparse.
const STATE_DISK_SIZE: u64 = 10 << 30;

/// What the state disk holds at power-on.
pub enum StateDisk {
    /// Zeros: the node is new.
    Blank,
    /// These bytes at its beginning.
    StartsWith(Vec<u8>),
    /// There is none.
    Missing,
}

/// A VM as the product makes it, and what a hostile host adds.
pub struct Machine {
    name: &'static str,
    system_disk: PathBuf,
    unreadable: Option<u64>,
    state_disk: StateDisk,
    variables: Vec<Variable>,
    answers: Answers,
    private_network: Option<u16>,
    additions: Vec<String>,
}

impl Machine {
    /// A new node with this image. The name is for the log.
    #[must_use]
    pub fn new(name: &'static str, system_disk: &Path) -> Self {
        Self {
            name,
            system_disk: system_disk.to_owned(),
            unreadable: None,
            state_disk: StateDisk::Blank,
            variables: Vec::new(),
            answers: Box::new(metadata::honest),
            private_network: None,
            additions: Vec::new(),
        }
    }

    /// Lets each read of this sector of the system disk fail. Sectors have 512 bytes.
    #[must_use]
    pub fn with_unreadable_sector(mut self, sector: u64) -> Self {
        self.unreadable = Some(sector);
        self
    }

    /// Gives it another state disk.
    #[must_use]
    pub fn with_state_disk(mut self, disk: StateDisk) -> Self {
        self.state_disk = disk;
        self
    }

    /// Lets its metadata say something else. The function gets the name of the request and how often it came before.
    #[must_use]
    pub fn with_metadata(mut self, answers: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        self.answers = Box::new(answers);
        self
    }

    /// Connects it to the private network of a cluster instead of to one of its own.
    #[must_use]
    pub fn on_private_network(mut self, port: u16) -> Self {
        self.private_network = Some(port);
        self
    }

    /// Adds an option to QEMU's command line. A comma ends a value unless it is doubled.
    #[must_use]
    pub fn with(mut self, option: &str, value: impl Into<String>) -> Self {
        self.additions.extend([option.to_owned(), value.into()]);
        self
    }

    /// Adds a string of SMBIOS type 11, which systemd and its stub read.
    #[must_use]
    pub fn with_oem_string(self, text: &str) -> Self {
        self.with("-smbios", format!("type=11,value={}", text.replace(',', ",,")))
    }

    /// Writes down each packet that the node sends into a network of this name, for [`crate::dumped_packets`].
    #[must_use]
    pub fn with_dump(self, network: &str, file: &Path) -> Self {
        let file = file.display();
        self.with(
            "-object",
            format!("filter-dump,id={network}-dump,netdev={network},queue=rx,file={file}"),
        )
    }

    /// Writes variables into the firmware's store.
    #[must_use]
    pub fn with_variables(mut self, variables: impl IntoIterator<Item = Variable>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// Boots the machine, checks it and ends it. Whatever the check is, no console may show what the host planted.
    ///
    /// # Errors
    /// When the machine cannot be started, or the check fails; the console was printed then.
    pub fn run<T>(self, check: impl FnOnce(&mut Vm) -> Result<T>) -> Result<T> {
        let name = self.name;
        let mut vm = self.start().with_context(|| format!("starting {name}"))?;
        let result = check(&mut vm).and_then(|value| {
            let leaked = vm.console()?.contains(CANARY);
            ensure!(!leaked, "the console shows a secret that was planted");
            Ok(value)
        });
        match &result {
            Ok(_) => vm.say("as expected"),
            Err(error) => vm.report(&format!("{error:#}")),
        }
        result.with_context(|| format!("machine {name}"))
    }

    /// Boots the machine, which must say these reasons on its console and end by itself before the bootstrapper runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn must_refuse_to_boot(self, reasons: &[&str]) -> Result<()> {
        self.run(|vm| {
            let console = vm.wait_for_end()?;
            for reason in reasons {
                ensure!(console.contains(reason), "the console does not say {reason:?}");
            }
            Ok(())
        })
    }

    fn start(mut self) -> Result<Vm> {
        let folder = TempDir::with_prefix("e2e-").context("making a folder for the machine")?;
        let path = folder.path();
        fs::copy(VARIABLES, path.join("vars.fd")).context("copying the firmware's variables (Debian package ovmf)")?;
        variables::plant(&path.join("vars.fd"), &self.variables)?;
        fs::create_dir(path.join("tpm"))?;
        self.make_state_disk(&path.join("state.img"))?;
        let answers = std::mem::replace(&mut self.answers, Box::new(metadata::honest));
        let metadata = Metadata::start(answers).context("serving metadata")?;
        let port = free_tcp_port()?;

        let swtpm = start_swtpm(path)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(self.arguments(port, metadata.port())?)
            .current_dir(path)
            .stdout(Stdio::null())
            .stderr(File::create(path.join("qemu.err"))?);
        let mut vm = Vm {
            name: self.name,
            started: Instant::now(),
            qemu: Process::start(&mut qemu).context("starting QEMU (Debian package qemu-system-x86)")?,
            _swtpm: swtpm,
            folder,
            metadata,
            bootstrapper: (Ipv4Addr::LOCALHOST, port).into(),
            before_reset: 0,
        };
        vm.say("booting");
        vm.wait_until("QEMU to come up", |vm| Ok(vm.file("qmp.sock").exists()))?;
        Ok(vm)
    }

    fn make_state_disk(&self, path: &Path) -> Result<()> {
        let beginning: &[u8] = match &self.state_disk {
            StateDisk::Missing => return Ok(()),
            StateDisk::Blank => &[],
            StateDisk::StartsWith(beginning) => beginning,
        };
        let disk = File::create(path)?;
        disk.set_len(STATE_DISK_SIZE)?;
        disk.write_all_at(beginning, 0)?;
        Ok(())
    }

    /// The product's command line, apart from what the caller added. Two things differ: nothing is flushed, and the
    /// console takes input.
    fn arguments(&self, port: u16, metadata: u16) -> Result<Vec<String>> {
        let system_disk = self.system_disk.to_str().context("the image's path is not UTF-8")?;
        let private_network = self.private_network.map_or_else(free_group_port, Ok)?;
        let mut line: Vec<String> = [
            "-machine q35,smm=off,vmport=off,hpet=off",
            "-accel tcg,thread=multi,tb-size=2048",
            "-cpu max,la57=off",
            "-smp 2",
            &format!("-m {}", MEMORY >> 20),
            "-nodefaults",
            "-no-user-config",
            "-action panic=shutdown,reboot=reset",
            "-device pvpanic-pci,addr=0x6",
            "-display none",
            &format!("-drive if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"),
            "-drive if=pflash,format=raw,unit=1,file=vars.fd",
            "-chardev socket,id=tpm,path=tpm.sock",
            "-tpmdev emulator,id=tpm0,chardev=tpm",
            "-device tpm-crb,tpmdev=tpm0",
            "-device virtio-blk-pci,drive=system,bootindex=0,addr=0x1",
            &format!("-netdev user,id=uplink,hostfwd=tcp:127.0.0.1:{port}-:9000"),
            "-device virtio-net-pci,netdev=uplink,romfile=,addr=0x3,mac=52:54:00:aa:00:01",
            &format!("-netdev socket,id=private,mcast={GROUP}:{private_network},localaddr=127.0.0.1"),
            "-device virtio-net-pci,netdev=private,romfile=,addr=0x4,mac=52:54:00:bb:ff:01",
            "-device virtio-rng-pci,addr=0x5",
            &format!("-smbios type=1,serial=http://10.0.2.2:{metadata}/nodes/control-plane-0"),
            "-chardev socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log",
            "-serial chardev:console",
            "-qmp unix:qmp.sock,server=on,wait=off",
        ]
        .iter()
        .flat_map(|option| option.split(' ').map(str::to_owned))
        .collect();
        let options = "cache=unsafe,aio=threads";
        let system_disk = system_disk.replace(',', ",,");
        let system = match self.unreadable {
            None => format!("format=raw,file={system_disk},{options}"),
            Some(sector) => format!(
                "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={system_disk},\
                 file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.errno={EIO},\
                 file.inject-error.0.sector={sector}"
            ),
        };
        line.extend(["-drive".to_owned(), format!("if=none,id=system,readonly=on,{system}")]);
        if !matches!(self.state_disk, StateDisk::Missing) {
            line.extend([
                "-drive".to_owned(),
                format!("if=none,id=state,format=raw,file=state.img,{options},discard=unmap"),
                "-device".to_owned(),
                "virtio-blk-pci,drive=state,serial=state,addr=0x2".to_owned(),
            ]);
        }
        line.extend(self.additions.iter().cloned());
        Ok(line)
    }
}

/// A port that no private network had a moment ago.
fn free_group_port() -> io::Result<u16> {
    free_port(|| UdpSocket::bind((GROUP, 0))?.local_addr())
}

/// A port that was free a moment ago.
fn free_tcp_port() -> io::Result<u16> {
    free_port(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr())
}

/// A port that no other machine of this run got: several start at once, and each binds its ports some time after they were found free.
fn free_port(bind: impl Fn() -> io::Result<SocketAddr>) -> io::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = bind()?.port();
        if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return Ok(port);
        }
    }
}
