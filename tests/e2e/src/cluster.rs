//! A whole cluster of VMs, made, used and ended by the programs an administrator uses: the CLI and kubectl.

mod mirror;
pub(crate) mod private_network;
mod wires;

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use cluster_config::{ClusterState, Workspace, WorkspaceLock, names};
use cluster_types::DiskUuid;
use disk_encryption::header::{ExpectedDisk, Header};
use infrastructure::Machine;
use key_derivation::MasterSecret;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

pub use mirror::{PROBE_IMAGE, TestMirror};
pub use private_network::private_network_port;
pub use wires::Capture;

use crate::image::output;
use crate::monitor::Monitor;

/// Names the folder with the mirror of Kubernetes; `make e2e` sets it, and the next one.
const MIRROR: &str = "CONSTELLATION_E2E_MIRROR";
/// Names the folder for everything about the cluster. It is the same in every run, so that the next one ends what an
/// interrupted one left running.
const FOLDER: &str = "CONSTELLATION_E2E_CLUSTER";
/// What is in it.
const WORKSPACE: &str = "cluster";
/// Where the local provider keeps its files.
pub const RUN_FOLDER: &str = "constellation-qemu";
const MIRROR_COPY: &str = "mirror";
const CLI_LOG: &str = "cli.log";
/// The longest a condition inside the cluster may take; two busy cores must not fail a test.
const CONDITION_LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_secs(1);

/// A cluster of one control plane and one worker. Dropping it ends everything.
pub struct Cluster {
    started: Instant,
    folder: PathBuf,
    _lock: WorkspaceLock,
    image: PathBuf,
    mirror: TestMirror,
}

impl Cluster {
    /// A workspace in which nothing was made yet, and a mirror that is this test's own.
    ///
    /// # Errors
    /// When image, mirror or programs are missing.
    pub fn prepare(image: &Path) -> Result<Self> {
        let (source, folder) = (variable(MIRROR)?, variable(FOLDER)?);
        fs::create_dir_all(&folder).context("making a folder for the cluster")?;
        let lock = Workspace::open(&folder)?
            .lock()
            .context("another run of the VM suite uses the folder")?;
        end_leftovers(&folder)?;
        fs::create_dir(folder.join(WORKSPACE))?;
        let mirror = TestMirror::with_probe(&source, &folder.join(MIRROR_COPY))?;
        let image = image.parent().context("the image is in a folder")?.to_owned();
        Ok(Self {
            started: Instant::now(),
            folder,
            _lock: lock,
            image,
            mirror,
        })
    }

    /// The mirror the nodes are filled from.
    #[must_use]
    pub fn mirror(&self) -> &TestMirror {
        &self.mirror
    }

    /// The folder with the cluster's files.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.folder.join(WORKSPACE)
    }

    /// `mini up`.
    ///
    /// # Errors
    /// When the command fails; its last lines are in the error.
    pub fn up(&self) -> Result<()> {
        let config = self.workspace().join(names::CONFIG);
        if !config.exists() {
            self.configure(&config)?;
        }
        self.constellation(["mini", "up"]).map(drop)
    }

    /// `mini up` of a control plane alone.
    ///
    /// # Errors
    /// When the command fails; its last lines are in the error.
    pub fn up_without_workers(&self) -> Result<()> {
        let config = self.workspace().join(names::CONFIG);
        self.configure(&config)?;
        let [one, none] = ["initialCount: 1 # workers", "initialCount: 0 # workers"];
        change(&config, one, none)?;
        let result = self.up();
        change(&config, none, one)?;
        result
    }

    fn configure(&self, config: &Path) -> Result<()> {
        let (image, mirror) = (
            self.image.display().to_string(),
            self.mirror.folder().display().to_string(),
        );
        self.constellation(["config", "generate", "qemu", "--image", &image, "--mirror", &mirror])?;
        // The state disks of a test need not survive a crash of this machine.
        change(config, "flushes: true", "flushes: false")
    }

    /// Runs the CLI in the workspace and gives what it prints. How it went is kept in `cli.log` beside the workspace.
    ///
    /// # Errors
    /// When it fails; its last lines are in the error.
    pub fn constellation<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let log = self.folder.join(CLI_LOG);
        let mut command = cli(&self.workspace())?;
        let start = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let errors = File::options().create(true).append(true).open(&log)?;
        let result = command.args(arguments).stderr(errors).output()?;
        let said = fs::read(&log)?.split_off(usize::try_from(start)?);
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(
            result.status.success(),
            "{command:?} failed ({}):\n{said}",
            result.status
        );
        Ok(String::from_utf8(result.stdout)?)
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.workspace().join(names::ADMIN_CONF)
    }

    /// kubectl with the administrator's access.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(self.mirror.folder().join("bin/kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).stdin(Stdio::null());
        command
    }

    /// A kubeconfig for whoever has this token and nothing else.
    ///
    /// # Errors
    /// When the administrator's cannot be read, or the file cannot be written.
    pub fn kubeconfig_with(&self, token: &str) -> Result<NamedTempFile> {
        let view = ["config", "view", "--raw", "--minify", "--output", "json"];
        let mut config: Value = serde_json::from_str(&self.kubectl(view)?)?;
        let user = config.pointer_mut("/users/0/user").context("no user")?;
        *user = json!({"token": token});
        let mut file = NamedTempFile::new()?;
        file.write_all(config.to_string().as_bytes())?;
        Ok(file)
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        Ok(String::from_utf8(self.kubectl_bytes(arguments)?)?)
    }

    /// What kubectl prints, when that may be no text.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl_bytes<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Vec<u8>> {
        output(self.kubectl_command().args(arguments))
    }

    /// Creates an object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create(&self, object: &Value) -> Result<()> {
        create(self.kubectl_command(), object)
    }

    /// Creates an object with somebody else's kubeconfig.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_as(&self, kubeconfig: &NamedTempFile, object: &Value) -> Result<()> {
        let mut kubectl = self.kubectl_command();
        // The last one counts.
        kubectl.arg("--kubeconfig").arg(kubeconfig.path());
        create(kubectl, object)
    }

    /// Creates an object as the kubelet of this node would.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_as_kubelet(&self, node: &str, object: &Value) -> Result<()> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["--as", &format!("system:node:{node}")]);
        kubectl.args(["--as-group", "system:nodes", "--as-group", "system:authenticated"]);
        create(kubectl, object)
    }

    /// Runs the probe in a pod of the default namespace and gives what it prints.
    ///
    /// # Errors
    /// When the probe fails.
    pub fn probe(&self, pod: &str, arguments: &[&str]) -> Result<String> {
        self.probe_in("default", pod, arguments)
    }

    /// Runs the probe in a pod of this namespace and gives what it prints.
    ///
    /// # Errors
    /// When the probe fails.
    pub fn probe_in(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<String> {
        let command = ["exec", "--namespace", namespace, pod, "--", "/probe"];
        self.kubectl(command.iter().chain(arguments))
    }

    /// Whether a process runs in the workspace, or names it in its command line, which has this text too.
    ///
    /// # Errors
    /// When processes cannot be listed.
    pub fn has_process_with(&self, text: &str) -> Result<bool> {
        let workspace = self.workspace().display().to_string();
        for process in fs::read_dir("/proc").context("listing processes")? {
            let process = process?.path();
            // What is not a process has neither, nor has one that has just ended.
            let (Ok(folder), Ok(line)) = (fs::read_link(process.join("cwd")), fs::read(process.join("cmdline"))) else {
                continue;
            };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_ours = folder.to_string_lossy().starts_with(&workspace) || line.contains(&workspace);
            if is_ours && line.contains(text) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A server of the key service that is reached from here, until it is dropped.
    ///
    /// # Errors
    /// When kubectl does not forward.
    pub fn forward(&self, namespace: &str, target: &str, port: u16) -> Result<Forward> {
        Forward::start(self, namespace, target, port)
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// When patience ends; the condition's last error is the cause.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        loop {
            let error = match condition() {
                Ok(true) => return Ok(()),
                Ok(false) => anyhow!("it is not so"),
                Err(error) => error,
            };
            if start.elapsed() > CONDITION_LIMIT {
                return Err(error.context(format!("{what}: not within {CONDITION_LIMIT:?}")));
            }
            thread::sleep(INTERVAL);
        }
    }

    /// What the CLI remembers.
    ///
    /// # Errors
    /// When there is no state.
    pub fn state(&self) -> Result<ClusterState> {
        Workspace::open(&self.workspace())?
            .state()?
            .context("there is no state")
    }

    /// The secret that everything follows from.
    ///
    /// # Errors
    /// When there is none.
    pub fn master_secret(&self) -> Result<MasterSecret> {
        Ok(Workspace::open(&self.workspace())?.master_secret()?)
    }

    /// Listens on all wires of the nodes.
    ///
    /// # Errors
    /// When a wire cannot be listened on.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.workspace().join(RUN_FOLDER), &self.machines()?)
    }

    /// The UUID of a node's state disk, which its host reads from the disk's header.
    ///
    /// # Errors
    /// When there is no header of ours.
    pub fn state_disk(&self, node: &str) -> Result<DiskUuid> {
        let path = self
            .workspace()
            .join(RUN_FOLDER)
            .join("nodes")
            .join(node)
            .join("state.img");
        let header = Header::read_from(&mut File::open(path)?, ExpectedDisk::FirstSeen)?;
        Ok(header.metadata().disk())
    }

    /// A command for the machine's monitor, such as `system_reset` and `quit`.
    ///
    /// # Errors
    /// When there is no such machine, or it does not answer.
    pub fn command_machine(&self, node: &str, command: &str) -> Result<()> {
        let folder = self.workspace().join(RUN_FOLDER).join("nodes").join(node);
        let mut monitor = Monitor::connect(&folder.join("qmp.sock"))?;
        monitor.execute(command, json!({})).map(drop)
    }

    /// A machine by the name of its node.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let mut machines = self.machines()?.into_iter();
        let machine = machines.find(|machine| machine.name.as_str() == name);
        machine.with_context(|| format!("no machine {name}"))
    }

    fn machines(&self) -> Result<Vec<Machine>> {
        Ok(self.state()?.infrastructure.context("no machines")?.nodes)
    }

    /// Every file of this machine in which something could have been written about the cluster.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn logs(&self) -> Result<Vec<PathBuf>> {
        let run = self.workspace().join(RUN_FOLDER);
        let mut logs = vec![self.folder.join(CLI_LOG), run.join("metadata.log")];
        for node in fs::read_dir(run.join("nodes"))? {
            let files = fs::read_dir(node?.path())?.collect::<io::Result<Vec<_>>>()?;
            let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
            logs.extend(files.into_iter().map(|file| file.path()).filter(is_log));
        }
        Ok(logs.into_iter().filter(|log| log.exists()).collect())
    }

    /// Everything that a node has said on its console.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn console(&self, node: &str) -> Result<String> {
        let console = self
            .workspace()
            .join(RUN_FOLDER)
            .join("nodes")
            .join(node)
            .join("console.log");
        let bytes = fs::read(&console).with_context(|| format!("reading {}", console.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a line to the log of the run.
    pub fn say(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let _ = writeln!(io::stderr(), "[{seconds:6.1} s] cluster: {what}");
    }

    /// Prints what is known about the cluster.
    pub fn report(&self) {
        let queries: [&[&str]; 3] = [
            &["get", "nodes,pods", "--all-namespaces", "--output", "wide"],
            &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "--namespace",
                "kube-system",
                "daemonset/join-service",
                "--tail=40",
            ],
        ];
        for query in queries {
            self.say(&self.kubectl(query).unwrap_or_else(|error| format!("{error:#}")));
        }
        for log in self.logs().unwrap_or_default() {
            let text = fs::read(&log).unwrap_or_default();
            let end = &text[text.len().saturating_sub(8192)..];
            self.say(&format!("---- {}\n{}", log.display(), String::from_utf8_lossy(end)));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.constellation(["mini", "down", "--yes"]) {
            self.say(&format!("{error:#}"));
        }
    }
}

fn change(config: &Path, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(config)?;
    ensure!(text.contains(from), "{from:?} is not in: {text}");
    Ok(fs::write(config, text.replace(from, to))?)
}

fn variable(name: &str) -> Result<PathBuf> {
    let value = env::var_os(name).with_context(|| format!("{name} is not set: use `make e2e`"))?;
    Ok(value.into())
}

fn end_leftovers(folder: &Path) -> Result<()> {
    let workspace = folder.join(WORKSPACE);
    if workspace.exists() {
        let down = || output(cli(&workspace)?.args(["mini", "down", "--yes"]));
        if down().is_err() {
            // Another version of the program left its state. The machines end without it, and it would stay for ever.
            fs::remove_file(workspace.join(names::STATE))?;
            down()?;
        }
        fs::remove_dir_all(&workspace)?;
    }
    for removed in [
        fs::remove_dir_all(folder.join(MIRROR_COPY)),
        fs::remove_file(folder.join(CLI_LOG)),
    ] {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Creates an object with this kubectl.
fn create(mut kubectl: Command, object: &Value) -> Result<()> {
    let mut kubectl = kubectl
        .args(["create", "--filename", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = kubectl.stdin.take().context("no input")?;
    input.write_all(object.to_string().as_bytes())?;
    drop(input);
    let Output { status, stderr, .. } = kubectl.wait_with_output()?;
    ensure!(
        status.success(),
        "{object} was refused: {}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(())
}

/// The CLI, built beside this test.
fn cli(workspace: &Path) -> Result<Command> {
    let here = env::current_exe()?;
    let program = here
        .ancestors()
        .nth(2)
        .context("tests are two folders below the programs")?;
    let mut command = Command::new(program.join("constellation"));
    command.arg("--workspace").arg(workspace).stdin(Stdio::null());
    Ok(command)
}

/// A port of a pod that is reached from here, until it is dropped.
pub struct Forward {
    process: Child,
    address: String,
}

impl Forward {
    fn start(cluster: &Cluster, namespace: &str, target: &str, port: u16) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let local = listener.local_addr()?.port();
        drop(listener);
        let process = cluster
            .kubectl_command()
            .args(["port-forward", "--namespace", namespace, target])
            .arg(format!("{local}:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut forward = Self {
            process,
            address: format!("127.0.0.1:{local}"),
        };
        cluster.wait_until("kubectl to forward a port", || {
            if let Some(status) = forward.process.try_wait()? {
                bail!("kubectl port-forward ended: {status}");
            }
            Ok(std::net::TcpStream::connect(&forward.address).is_ok())
        })?;
        Ok(forward)
    }

    /// Where to connect to, as `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
