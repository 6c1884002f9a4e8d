use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cluster_types::{NodeName, NodeRole};
use infrastructure::{
    Change, ClusterSpec, Infrastructure, Machine, MirrorSource, NodePorts, NodeSpec, Plan, Provider, ProviderError,
};

use crate::accelerator::{Accelerator, KvmProbe, probe_kvm};
use crate::error::{Context, QemuError};
use crate::folder::{ClusterRecord, NodeRecord, RunFolder, is_running, stop};
use crate::machine::{Starter, console, machine, until_ready};
use crate::mirror::mirror_from_guest;
use crate::network::{NODE_CIDR, NODE_INTERFACE, free_address};
use crate::ports::{free_tcp, free_udp};
use crate::preflight;
use crate::process::Helper;
use crate::proof::ProofKey;

const ADVICE_ON_STOPPED: &str = "read the whole console in the workspace (constellation-qemu/nodes/*/console.log); run the \
                                 same command again to replace the node";
const START_METADATA: Change = Change::Other("start the metadata endpoint");
const UID_LEN: usize = 4;

/// What an administrator can choose.
#[derive(Clone, Debug)]
pub struct QemuOptions {
    /// Whether KVM is used.
    pub acceleration: AccelerationChoice,
    /// A folder with the firmware, where it is not in a usual place.
    pub firmware: Option<PathBuf>,
    /// Whether guests' flushes reach the disk. Without them a crash of this machine loses state disks.
    pub flushes: bool,
}

impl Default for QemuOptions {
    fn default() -> Self {
        Self {
            acceleration: AccelerationChoice::Auto,
            firmware: None,
            flushes: true,
        }
    }
}

/// Whether KVM is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelerationChoice {
    /// If it works.
    Auto,
    /// KVM, and an error where it does not work.
    Kvm,
    /// Software emulation, even where KVM works.
    Software,
}

/// Runs a cluster's machines as processes of this machine.
pub struct QemuProvider {
    folder: RunFolder,
    helper: Helper,
    options: QemuOptions,
    accelerator: OnceLock<Accelerator>,
}

impl QemuProvider {
    /// Keeps everything below `folder` and starts processes through `helper`.
    #[must_use]
    pub fn new(folder: RunFolder, helper: Helper, options: QemuOptions) -> Self {
        Self {
            folder,
            helper,
            options,
            accelerator: OnceLock::new(),
        }
    }

    /// Probed once per run and not remembered: what worked yesterday may not work today.
    fn accelerator(&self, qemu: &Path, progress: &dyn Fn(&str)) -> Result<Accelerator, QemuError> {
        if let Some(accelerator) = self.accelerator.get() {
            return Ok(*accelerator);
        }
        let accelerator = match self.options.acceleration {
            AccelerationChoice::Software => Accelerator::Software,
            choice => match probe_kvm(qemu) {
                KvmProbe::Works => Accelerator::Kvm,
                KvmProbe::DoesNotWork(reason) if choice == AccelerationChoice::Kvm => {
                    return Err(QemuError::Kvm(reason));
                }
                KvmProbe::DoesNotWork(reason) => {
                    progress(&format!("KVM does not work here ({reason}); using software emulation"));
                    Accelerator::Software
                }
            },
        };
        Ok(*self.accelerator.get_or_init(|| accelerator))
    }

    /// The record of before, or one with fresh choices.
    fn record(&self, spec: &ClusterSpec) -> Result<ClusterRecord, QemuError> {
        if let Some(record) = self.folder.record()? {
            return Ok(record);
        }
        let [metadata_port] = free_tcp().on("find a free port on", "127.0.0.1")?;
        let mut uid = [0; UID_LEN];
        fill_random(&mut uid).on("read random bytes for", self.folder.path())?;
        Ok(ClusterRecord {
            uid: hex::encode(uid),
            segment_port: free_udp().on("find a free port on", "127.0.0.1")?,
            metadata_port,
            init_secret_hash: spec.init_secret_hash.clone(),
            mirror: served_folder(&spec.mirror),
            nodes: BTreeMap::new(),
        })
    }

    /// Nodes that are not wanted any more are ended; those that are wanted get ports.
    fn settle(&self, record: &mut ClusterRecord, spec: &ClusterSpec) -> Result<(), QemuError> {
        for name in unwanted(record, spec) {
            self.folder.node(&name).remove()?;
            record.nodes.remove(&name);
            self.folder.save(record)?;
        }
        record.init_secret_hash.clone_from(&spec.init_secret_hash);
        record.mirror = served_folder(&spec.mirror);
        for wanted in &spec.nodes {
            let ports = match record.nodes.get(&wanted.name) {
                Some(known) if self.folder.node(&wanted.name).exists() => known.ports,
                // Also for a node that was recorded and not made yet: its ports may be in use by now.
                _ => free_ports()?,
            };
            let address = match record.nodes.get(&wanted.name) {
                Some(known) => known.address,
                None => free_address(wanted.role, record),
            };
            let node = NodeRecord {
                spec: wanted.clone(),
                address,
                ports,
            };
            record.nodes.insert(wanted.name.clone(), node);
        }
        self.folder.save(record)
    }

    fn start_metadata(&self, lock: &File, record: &ClusterRecord) -> Result<(), QemuError> {
        let (process, log) = (self.folder.metadata_record(), self.folder.metadata_log());
        stop(&process)?;
        let key = ProofKey::generate(&self.folder.metadata_key())?;
        let (program, arguments) = self.helper.metadata(self.folder.path());
        self.helper
            .start(lock, self.folder.path(), &process, &log, &program, &arguments)?;
        // Another program may have taken the port meanwhile.
        until_ready(&process, &log, &program, || key.is_known_at(record.metadata_port))
    }
}

impl Provider for QemuProvider {
    fn plan(&self, spec: &ClusterSpec) -> Result<Plan, ProviderError> {
        self.changes(spec).map_err(ProviderError::new)
    }

    fn create(&self, spec: &ClusterSpec, progress: &dyn Fn(&str)) -> Result<Infrastructure, ProviderError> {
        self.make(spec, progress).map_err(ProviderError::new)
    }

    fn destroy(&self) -> Result<(), ProviderError> {
        self.folder.destroy().map_err(ProviderError::new)
    }

    fn machines(&self) -> Result<Vec<Machine>, ProviderError> {
        let record = self.folder.record().map_err(ProviderError::new)?;
        let nodes = record.iter().flat_map(|record| record.nodes.values());
        Ok(nodes
            .map(|node| machine(node, &self.folder.node(&node.spec.name)))
            .collect())
    }

    fn console(&self, node: &NodeName) -> Vec<String> {
        console(&self.folder.node(node))
    }

    fn advice_on_stopped(&self) -> &'static str {
        ADVICE_ON_STOPPED
    }
}

impl QemuProvider {
    fn changes(&self, spec: &ClusterSpec) -> Result<Plan, QemuError> {
        // A mirror that nodes cannot use is refused before anything is made, whatever port it will be served at.
        mirror(spec, 0)?;
        let record = self.folder.record()?;
        let mut changes: Vec<Change> = record
            .iter()
            .flat_map(|record| unwanted(record, spec))
            .map(Change::Remove)
            .collect();
        if !is_running(&self.folder.metadata_record())? {
            changes.push(START_METADATA);
        }
        let known = |node: &NodeSpec| {
            record
                .as_ref()
                .is_some_and(|record| record.nodes.contains_key(&node.name))
        };
        for node in spec.nodes.iter().filter(|node| !spec.later.contains(&node.name)) {
            let folder = self.folder.node(&node.name);
            if folder.is_running()? && known(node) {
                continue;
            }
            changes.push(match (folder.exists(), spec.members.contains(&node.name)) {
                (false, _) => Change::Create(node.name.clone()),
                (true, false) => Change::Replace(node.name.clone()),
                (true, true) => Change::Restart(node.name.clone()),
            });
        }
        Ok(Plan { changes })
    }

    /// 1. The plan says what is missing; nothing missing, nothing done.
    /// 2. The machine is checked for everything nodes need.
    /// 3. All choices are stored.
    /// 4. The metadata endpoint is started, then the nodes.
    fn make(&self, spec: &ClusterSpec, progress: &dyn Fn(&str)) -> Result<Infrastructure, QemuError> {
        let plan = self.changes(spec)?;
        let mut record = self.record(spec)?;
        if !plan.is_empty() {
            let firmware = self.options.firmware.as_deref();
            let probe = |qemu: &Path| self.accelerator(qemu, progress);
            let (host, accelerator) = preflight::check(spec, &record, &self.folder, firmware, probe)?;
            self.folder.create()?;
            let lock = self.folder.lock()?.expect("the folder was just made");
            self.settle(&mut record, spec)?;
            let starter = Starter {
                helper: &self.helper,
                lock: &lock,
                host: &host,
                cluster: &record,
                image: &spec.image,
                accelerator,
                flushes: self.options.flushes,
            };
            for change in &plan.changes {
                progress(&change.to_string());
                match change {
                    Change::Other(_) => self.start_metadata(&lock, &record)?,
                    Change::Remove(_) => {}
                    Change::Create(name) | Change::Restart(name) => {
                        starter.start(&record.nodes[name], &self.folder.node(name))?;
                    }
                    Change::Replace(name) => {
                        self.folder.node(name).remove()?;
                        starter.start(&record.nodes[name], &self.folder.node(name))?;
                    }
                }
            }
        }
        self.infrastructure(&record, spec)
    }

    fn infrastructure(&self, record: &ClusterRecord, spec: &ClusterSpec) -> Result<Infrastructure, QemuError> {
        let nodes = || record.nodes.values();
        let control_planes = || nodes().filter(|node| node.spec.role == NodeRole::ControlPlane);
        let first = control_planes().map(|node| node.address.to_string()).next();
        let addresses = control_planes().map(|node| node.address.to_string());
        Ok(Infrastructure {
            uid: record.uid.clone(),
            cluster_endpoint: "127.0.0.1".to_owned(),
            in_cluster_endpoint: first.unwrap_or_default(),
            api_server_cert_sans: std::iter::once("127.0.0.1".to_owned()).chain(addresses).collect(),
            ip_cidr_node: NODE_CIDR.to_owned(),
            node_interface: NODE_INTERFACE.to_string(),
            component_mirror: mirror(spec, record.metadata_port)?,
            nodes: nodes()
                .map(|node| machine(node, &self.folder.node(&node.spec.name)))
                .collect(),
        })
    }
}

fn mirror(spec: &ClusterSpec, metadata_port: u16) -> Result<String, QemuError> {
    mirror_from_guest(&spec.mirror, metadata_port).map_err(|problem| QemuError::Preflight(vec![problem]))
}

/// The folder of a mirror that the metadata endpoint serves, if it is one.
fn served_folder(mirror: &MirrorSource) -> Option<PathBuf> {
    match mirror {
        MirrorSource::Folder(folder) => Some(folder.clone()),
        MirrorSource::Http(_) => None,
    }
}

fn unwanted(record: &ClusterRecord, spec: &ClusterSpec) -> Vec<NodeName> {
    let wanted = |name: &NodeName| spec.nodes.iter().any(|node| node.name == *name);
    record.nodes.keys().filter(|name| !wanted(name)).cloned().collect()
}

fn free_ports() -> Result<NodePorts, QemuError> {
    let [bootstrapper, kubernetes, verify_http, verify, join] = free_tcp().on("find free ports on", "127.0.0.1")?;
    Ok(NodePorts {
        bootstrapper,
        kubernetes,
        verify_http,
        verify,
        join,
    })
}

/// The uid only distinguishes clusters; it is not secret.
fn fill_random(bytes: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    File::open("/dev/urandom")?.read_exact(bytes)
}
