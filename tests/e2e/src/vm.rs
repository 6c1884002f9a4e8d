//! One virtual machine: its command line, its life, and what it said.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::metadata::{self, Answer, Answers, Metadata};
use crate::monitor::Monitor;
use crate::session::CANARY;

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Size of the state disk in bytes. The file is sparse.
const STATE_DISK_SIZE: u64 = 10 << 30;
/// The longest anything may take. A boot takes a minute on two idle cores; a busy machine must not fail a test.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(200);
/// More of a console is not printed.
const MAX_PRINTED: usize = 64 * 1024;

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
    state_disk: StateDisk,
    answers: Answers,
    segment: Option<u16>,
    additions: Vec<String>,
}

/// A running VM. Dropping it ends everything.
pub struct Vm {
    name: &'static str,
    started: Instant,
    folder: TempDir,
    qemu: Child,
    swtpm: Child,
    metadata: Metadata,
    bootstrapper: SocketAddr,
}

impl Machine {
    /// A new node with this image. The name is for the log.
    #[must_use]
    pub fn new(name: &'static str, system_disk: &Path) -> Self {
        Self {
            name,
            system_disk: system_disk.to_owned(),
            state_disk: StateDisk::Blank,
            answers: Box::new(metadata::honest),
            segment: None,
            additions: Vec::new(),
        }
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

    /// Connects it to the segment of a cluster instead of to one of its own.
    #[must_use]
    pub fn on_segment(mut self, port: u16) -> Self {
        self.segment = Some(port);
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

    fn start(mut self) -> Result<Vm> {
        let answers = std::mem::replace(&mut self.answers, Box::new(metadata::honest));
        let metadata = Metadata::start(answers).context("serving metadata")?;
        let folder = TempDir::with_prefix("e2e-").context("making a folder for the machine")?;
        let path = folder.path();
        fs::copy(VARIABLES, path.join("vars.fd")).context("copying the firmware's variables (Debian package ovmf)")?;
        fs::create_dir(path.join("tpm"))?;
        self.make_state_disk(&path.join("state.img"))?;
        let port = free_tcp_port()?;

        let mut swtpm = start_swtpm(path)?;
        let qemu = Command::new("qemu-system-x86_64")
            .args(self.arguments(port, metadata.port())?)
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path.join("qemu.err"))?)
            .spawn()
            .context("starting QEMU (Debian package qemu-system-x86)");
        let qemu = match qemu {
            Ok(qemu) => qemu,
            Err(error) => {
                end(&mut swtpm);
                return Err(error);
            }
        };
        let mut vm = Vm {
            name: self.name,
            started: Instant::now(),
            folder,
            qemu,
            swtpm,
            metadata,
            bootstrapper: (Ipv4Addr::LOCALHOST, port).into(),
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
        let system_disk = self.system_disk.to_str().context("path of the image is no text")?;
        let segment = self.segment.map_or_else(free_udp_port, Ok)?;
        let mut line: Vec<String> = [
            "-machine q35,smm=off,vmport=off,hpet=off",
            "-accel tcg,thread=multi,tb-size=2048",
            "-cpu max,la57=off",
            "-smp 2",
            "-m 2048",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display none",
            &format!("-drive if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"),
            "-drive if=pflash,format=raw,unit=1,file=vars.fd",
            "-chardev socket,id=tpm,path=tpm.sock",
            "-tpmdev emulator,id=tpm0,chardev=tpm",
            "-device tpm-crb,tpmdev=tpm0",
            "-device virtio-blk-pci,drive=system,bootindex=0,addr=0x1",
            &format!("-netdev user,id=uplink,hostfwd=tcp:127.0.0.1:{port}-:9000"),
            "-device virtio-net-pci,netdev=uplink,romfile=,addr=0x3,mac=52:54:00:aa:00:01",
            &format!("-netdev socket,id=private,mcast=230.0.0.77:{segment},localaddr=127.0.0.1"),
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
        line.extend([
            "-drive".to_owned(),
            format!("if=none,id=system,format=raw,readonly=on,file={system_disk},{options}"),
        ]);
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

impl Vm {
    /// Where the bootstrapper is reached.
    #[must_use]
    pub fn bootstrapper(&self) -> SocketAddr {
        self.bootstrapper
    }

    /// Everything the machine wrote to its serial console so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn console(&self) -> Result<String> {
        let mut bytes = Vec::new();
        File::open(self.file("console.log"))
            .and_then(|mut log| log.read_to_end(&mut bytes))
            .context("reading the console's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until the bootstrapper has all it needs to open its port.
    ///
    /// # Errors
    /// When the machine ends before.
    pub fn wait_for_bootstrapper(&mut self) -> Result<()> {
        self.wait_until("the bootstrapper to read its metadata", |vm| {
            Ok(vm.metadata.was_asked_for("initsecrethash"))
        })
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// When the machine ends before, the condition cannot be looked at, or patience ends.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !condition(self)? {
            self.must_be_running().with_context(|| format!("waiting for {what}"))?;
            ensure!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// # Errors
    /// When the machine has ended.
    pub fn must_be_running(&mut self) -> Result<()> {
        match self.qemu.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the machine has ended: {status}"),
        }
    }

    /// Waits until the machine has ended by itself, and says what was on its console.
    ///
    /// # Errors
    /// When it does not end, or QEMU failed.
    pub fn wait_for_end(&mut self) -> Result<String> {
        let start = Instant::now();
        let status = loop {
            match self.qemu.try_wait()? {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => bail!("the machine did not end within {PATIENCE:?}"),
                None => thread::sleep(INTERVAL),
            }
        };
        ensure!(ExitStatus::success(&status), "QEMU failed: {status}");
        ensure!(
            self.metadata.asked().is_empty(),
            "the bootstrapper ran: it asked for {:?}",
            self.metadata.asked()
        );
        self.console()
    }

    /// Connects to the serial console, to type on it.
    ///
    /// # Errors
    /// When QEMU does not take the connection.
    pub fn keyboard(&self) -> Result<impl Write + use<>> {
        let console = UnixStream::connect(self.file("console.sock")).context("connecting to the console")?;
        let mut output = console.try_clone()?;
        // Output that nobody takes would hold up the machine. The thread ends with the connection.
        thread::spawn(move || io::copy(&mut output, &mut io::sink()));
        Ok(console)
    }

    /// A magic SysRq request, over the serial line (a break, then the key) and on the keyboard.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn press_sysrq(&self, keyboard: &mut impl Write, key: char) -> Result<()> {
        let mut monitor = self.monitor()?;
        monitor.execute("chardev-send-break", json!({"id": "console"}))?;
        write!(keyboard, "{key}")?;
        let keys = ["alt", "sysrq", &key.to_string()].map(|key| json!({"type": "qcode", "data": key}));
        monitor.execute("send-key", json!({"keys": keys}))?;
        Ok(())
    }

    /// How often the guest tried in vain to read from a disk of this name, and how many bytes it wrote to it.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn disk_traffic(&self, drive: &str) -> Result<(u64, u64)> {
        let disks = self.monitor()?.execute("query-blockstats", json!({}))?;
        let disks = disks.as_array().context("no list of disks")?;
        let disk = disks
            .iter()
            .find(|disk| disk["device"] == drive)
            .with_context(|| format!("no disk {drive}"))?;
        let number = |field: &str| disk["stats"][field].as_u64().with_context(|| format!("no {field}"));
        Ok((number("failed_rd_operations")?, number("wr_bytes")?))
    }

    /// Writes a line to the log of the run.
    pub fn say(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let _ = writeln!(io::stderr(), "[{seconds:6.1} s] {}: {what}", self.name);
    }

    fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.file("qmp.sock"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Prints what is known about a failure.
    fn report(&self, reason: &str) {
        self.say(&format!("FAILED: {reason}"));
        let mut out = io::stderr();
        for name in ["console.log", "qemu.err", "swtpm.log"] {
            let content = fs::read(self.file(name)).unwrap_or_default();
            let end = &content[content.len().saturating_sub(MAX_PRINTED)..];
            let _ = writeln!(out, "---- {name}\n{}", String::from_utf8_lossy(end));
        }
        let _ = writeln!(out, "---- metadata asked for: {:?}", self.metadata.asked());
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.report("the check panicked");
        }
        end(&mut self.qemu);
        end(&mut self.swtpm);
    }
}

/// It ends with the QEMU it serves.
fn start_swtpm(folder: &Path) -> Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("swtpm.log"))?;
    let mut swtpm = Command::new("swtpm")
        .args(["socket", "--tpm2", "--terminate", "--flags", "startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={}", folder.join("tpm").display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", folder.join("tpm.sock").display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting swtpm (Debian package swtpm)")?;
    let start = Instant::now();
    while !folder.join("tpm.sock").exists() {
        if let Some(status) = swtpm.try_wait()? {
            bail!("swtpm ended with {status}");
        }
        if start.elapsed() > PATIENCE {
            end(&mut swtpm);
            bail!("swtpm made no socket within {PATIENCE:?}");
        }
        thread::sleep(INTERVAL);
    }
    Ok(swtpm)
}

fn end(process: &mut Child) {
    // It may have ended by itself; either way it must be reaped.
    let _ = process.kill();
    let _ = process.wait();
}

fn free_udp_port() -> io::Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A port that was free a moment ago.
fn free_tcp_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
