use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cluster_types::{NodeName, NodeRole};
use infrastructure::{
    Change, ClusterSpec, Infrastructure, Machine, MirrorSource, NodeSpec, Plan, Provider, ProviderError,
};

use crate::accelerator::{Accelerator, KvmProbe, probe_kvm};
use crate::error::{Context, QemuError};
use crate::folder::{ClusterRecord, NodeRecord, RunFolder, is_running, stop};
use crate::machine::{GB, Starter, console, machine, until_ready};
use crate::mirror::mirror_from_guest;
use crate::monitor::{pause, resume};
use crate::network::{MULTICAST_GROUP, NODE_CIDR, free_address};
use crate::ports::{HeldPorts, PrivateNetworkPort};
use crate::preflight;
use crate::process::Helper;
use crate::proof::ProofKey;
use crate::vm::forwards;

const ADVICE_ON_STOPPED: &str = "read the whole console in the workspace (constellation-qemu/nodes/*/console.log); a node \
                                 that has not joined is replaced when you run `constellation apply`; one that has joined is \
                                 started again by it, and a worker that stops for the same reason once more can be \
                                 replaced: `constellation node remove NAME --lost`";
const START_METADATA: Change = Change::Other("start the metadata endpoint");
const LOOPBACK: &str = "127.0.0.1";
/// How often a node is started because somebody took one of its ports.
const START_ATTEMPTS: u32 = 5;
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
    /// KVM if it works, otherwise software emulation.
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
        let metadata_port = HeldPorts::new([]).choose().on("find a free port on", LOOPBACK)?;
        let mut uid = [0; UID_LEN];
        fill_random(&mut uid).on("read random bytes for", self.folder.path())?;
        Ok(ClusterRecord {
            uid: hex::encode(uid),
            // Chosen when the first machine is about to be started.
            private_network_port: 0,
            metadata_port,
            init_secret_hash: spec.init_secret_hash.clone(),
            operator: spec.operator,
            mirror: served_folder(&spec.mirror),
            nodes: BTreeMap::new(),
        })
    }

    /// Nodes that are not wanted any more are ended; those that are wanted get addresses and ports. A port of the private network that
    /// no machine has yet is held.
    fn settle(&self, record: &mut ClusterRecord, spec: &ClusterSpec) -> Result<Option<PrivateNetworkPort>, QemuError> {
        for name in unwanted(record, spec) {
            self.remove_node(record, &name)?;
        }
        record.init_secret_hash.clone_from(&spec.init_secret_hash);
        record.operator = spec.operator;
        record.mirror = served_folder(&spec.mirror);
        let private_network = self.hold_private_network(record)?;
        // Held until the choice is stored.
        let mut ports = HeldPorts::new(recorded_ports(record));
        if !is_running(&self.folder.metadata_record())? {
            // A machine that runs asks at the old one; as a member it needs the metadata no more.
            let port = ports.keep_or_choose(record.metadata_port);
            record.metadata_port = port.on("find a free port on", LOOPBACK)?;
        }
        for wanted in &spec.nodes {
            let known = record.nodes.get(&wanted.name);
            let ports = match known {
                Some(known) if self.folder.node(&wanted.name).is_running()? => Ok(known.ports),
                Some(known) => ports.keep_or_choose_node(&known.ports),
                None => ports.choose_node(),
            };
            let node = NodeRecord {
                spec: wanted.clone(),
                address: known.map_or_else(|| free_address(wanted.role, record), |known| known.address),
                ports: ports.on("find free ports on", LOOPBACK)?,
            };
            record.nodes.insert(wanted.name.clone(), node);
        }
        self.folder.save(record)?;
        Ok(private_network)
    }

    fn remove_node(&self, record: &mut ClusterRecord, name: &NodeName) -> Result<(), QemuError> {
        self.folder.node(name).remove()?;
        record.nodes.remove(name);
        self.folder.save(record)
    }

    fn remove_one(&self, name: &NodeName) -> Result<(), QemuError> {
        self.folder.refuse_copy()?;
        match self.folder.record()? {
            Some(mut record) if record.nodes.contains_key(name) => self.remove_node(&mut record, name),
            _ => Ok(()),
        }
    }

    /// While a machine runs, the port is the cluster's. Otherwise another cluster may have chosen it.
    fn hold_private_network(&self, record: &mut ClusterRecord) -> Result<Option<PrivateNetworkPort>, QemuError> {
        for name in record.nodes.keys() {
            if self.folder.node(name).is_running()? {
                return Ok(None);
            }
        }
        let group = MULTICAST_GROUP.to_string();
        let held = PrivateNetworkPort::keep_or_choose(record.private_network_port);
        let held = held.on("find a free port of", &group)?;
        record.private_network_port = held.number().on("find a free port of", &group)?;
        Ok(Some(held))
    }

    /// Starts a node. A port that somebody took since it was chosen is replaced.
    fn start(&self, starter: &Starter<'_>, record: &mut ClusterRecord, name: &NodeName) -> Result<(), QemuError> {
        let mut attempt = 1;
        loop {
            match starter.start(record, name, &self.folder.node(name)) {
                Err(error) if attempt < START_ATTEMPTS && lost_port(&error) => attempt += 1,
                result => return result,
            }
            let mut ports = HeldPorts::new(recorded_ports(record));
            let node = record
                .nodes
                .get_mut(name)
                .expect("every node that is started was settled");
            let chosen = ports.keep_or_choose_node(&node.ports);
            node.ports = chosen.on("find free ports on", LOOPBACK)?;
            self.folder.save(record)?;
        }
    }

    fn resume(&self, name: &NodeName) -> Result<(), QemuError> {
        let folder = self.folder.node(name);
        resume(&folder).on("resume the machine in", folder.path())
    }

    fn start_metadata(&self, lock: &File, record: &ClusterRecord) -> Result<(), QemuError> {
        let (process, log) = (self.folder.metadata_record(), self.folder.metadata_log());
        stop(&process)?;
        let key = ProofKey::generate(&self.folder.metadata_key())?;
        let (program, arguments) = self.helper.metadata();
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

    fn start(
        &self,
        spec: &ClusterSpec,
        nodes: &[NodeName],
        progress: &dyn Fn(&str),
    ) -> Result<Infrastructure, ProviderError> {
        self.start_again(spec, nodes, progress).map_err(ProviderError::new)
    }

    fn remove(&self, node: &NodeName) -> Result<(), ProviderError> {
        self.remove_one(node).map_err(ProviderError::new)
    }

    fn destroy(&self) -> Result<(), ProviderError> {
        self.folder.destroy().map_err(ProviderError::new)
    }

    fn machines(&self) -> Result<Vec<Machine>, ProviderError> {
        self.folder.refuse_copy().map_err(ProviderError::new)?;
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
        self.folder.refuse_copy()?;
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
        for node in &spec.nodes {
            let folder = self.folder.node(&node.name);
            if folder.is_running()? && known(node) {
                changes.extend(pause(&folder).map(|_| Change::Resume(node.name.clone())));
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

    fn make(&self, spec: &ClusterSpec, progress: &dyn Fn(&str)) -> Result<Infrastructure, QemuError> {
        self.carry_out(&self.changes(spec)?, spec, progress)
    }

    /// Of a plan for the machines as they are recorded, so that none is unwanted.
    fn start_again(
        &self,
        spec: &ClusterSpec,
        nodes: &[NodeName],
        progress: &dyn Fn(&str),
    ) -> Result<Infrastructure, QemuError> {
        let recorded = self.record(spec)?.nodes.into_values();
        let spec = ClusterSpec {
            nodes: recorded.map(|node| node.spec).collect(),
            ..spec.clone()
        };
        let mut plan = self.changes(&spec)?;
        plan.changes.retain(|change| match change {
            Change::Restart(name) | Change::Resume(name) => nodes.contains(name),
            Change::Create(_) | Change::Replace(_) | Change::Remove(_) => false,
            Change::Other(_) => !nodes.is_empty(),
        });
        self.carry_out(&plan, &spec, progress)
    }

    /// 1. Nothing planned, nothing done.
    /// 2. The machine is checked for everything nodes need.
    /// 3. All choices are stored.
    /// 4. The metadata endpoint is started, then the nodes.
    fn carry_out(&self, plan: &Plan, spec: &ClusterSpec, progress: &dyn Fn(&str)) -> Result<Infrastructure, QemuError> {
        let mut record = self.record(spec)?;
        if !plan.is_empty() {
            let firmware = self.options.firmware.as_deref();
            let probe = |qemu: &Path| self.accelerator(qemu, progress);
            let (host, accelerator) = preflight::check(spec, &self.folder, firmware, probe)?;
            self.folder.create()?;
            let lock = self.folder.lock()?.expect("the folder was just made");
            let _private_network = self.settle(&mut record, spec)?;
            let starter = Starter {
                helper: &self.helper,
                lock: &lock,
                host: &host,
                image: &spec.image,
                accelerator,
                flushes: self.options.flushes,
            };
            for change in &plan.changes {
                progress(&change.to_string());
                match change {
                    Change::Other(_) => self.start_metadata(&lock, &record)?,
                    Change::Remove(_) => {}
                    Change::Resume(name) => self.resume(name)?,
                    Change::Create(name) | Change::Restart(name) => self.start(&starter, &mut record, name)?,
                    Change::Replace(name) => {
                        let disk = u64::from(record.nodes[name].spec.state_disk_gb) * GB;
                        self.folder.node(name).reset_disk(disk)?;
                        self.start(&starter, &mut record, name)?;
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

fn recorded_ports(record: &ClusterRecord) -> impl Iterator<Item = u16> {
    let nodes = record.nodes.values();
    let nodes = nodes.flat_map(|node| forwards(&node.ports)).map(|(port, _)| port);
    nodes.chain([record.metadata_port])
}

/// Whether QEMU ended because it could not listen on a port.
fn lost_port(error: &QemuError) -> bool {
    matches!(error, QemuError::Ended { said, .. } if said.contains("host forwarding rule"))
}

/// The uid only distinguishes clusters; it is not secret.
fn fill_random(bytes: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    File::open("/dev/urandom")?.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::TcpListener;
    use std::path::Path;

    use super::*;
    use crate::ports::tests::join_as_qemu;
    use crate::process::tests::sleeper_in;

    fn provider(folder: &Path) -> QemuProvider {
        std::fs::create_dir_all(folder).unwrap();
        let provider = QemuProvider::new(
            RunFolder::in_workspace(folder),
            Helper::new("/nonexistent".into()),
            QemuOptions::default(),
        );
        provider.folder.create().unwrap();
        provider
    }

    fn spec(workers: usize) -> ClusterSpec {
        let node = |name: String, role| NodeSpec {
            name: name.parse().unwrap(),
            role,
            group: String::new(),
            vcpus: 2,
            memory_mib: 2048,
            state_disk_gb: 20,
        };
        let workers = (0..workers).map(|index| node(format!("worker-{index}"), NodeRole::Worker));
        let first = node("control-plane-0".to_owned(), NodeRole::ControlPlane);
        ClusterSpec {
            name: "mini".to_owned(),
            image: PathBuf::new(),
            init_secret_hash: String::new(),
            operator: None,
            mirror: "http://127.0.0.1:81".parse().unwrap(),
            nodes: std::iter::once(first).chain(workers).collect(),
            members: std::collections::BTreeSet::new(),
        }
    }

    fn settled(provider: &QemuProvider, spec: &ClusterSpec) -> ClusterRecord {
        let mut record = provider.record(spec).unwrap();
        provider.settle(&mut record, spec).unwrap();
        record
    }

    /// Tests that choose ports take them from each other.
    fn alone() -> std::sync::MutexGuard<'static, ()> {
        static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[test]
    fn all_ports_of_a_large_cluster_are_different_in_every_run() {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        for run in 0..100 {
            let provider = provider(&folder.path().join(run.to_string()));
            let record = settled(&provider, &spec(20));
            let ports: Vec<u16> = recorded_ports(&record).collect();
            assert_eq!(ports.len(), 21 * 5 + 1);
            assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len(), "run {run}");
        }
    }

    #[test]
    fn ports_stay_until_somebody_else_has_one() {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        let provider = provider(folder.path());
        let first = settled(&provider, &spec(2));
        let again = settled(&provider, &spec(2));
        assert!(recorded_ports(&first).eq(recorded_ports(&again)));
        let (worker, lost) = (
            "worker-1".parse().unwrap(),
            first.nodes.values().last().unwrap().ports.verify,
        );
        let _somebody = TcpListener::bind((LOOPBACK, lost)).unwrap();
        let after = settled(&provider, &spec(2));
        let ports = after.nodes.get::<NodeName>(&worker).unwrap().ports;
        assert_ne!(ports.verify, lost);
        assert_eq!(ports.join, first.nodes[&worker].ports.join);
        let others = |record: &ClusterRecord| {
            recorded_ports(record)
                .filter(|port| ![lost, ports.verify].contains(port))
                .count()
        };
        assert_eq!(others(&first), others(&after));
    }

    #[test]
    fn two_clusters_never_share_a_private_network() {
        let folder = tempfile::tempdir().unwrap();
        let provider = provider(folder.path());
        let port = || settled(&provider, &spec(0)).private_network_port;
        let first = port();
        assert_eq!(port(), first);
        let machine = join_as_qemu(first).unwrap();
        let second = port();
        assert_ne!(second, first);
        drop(machine);
        // The cluster's own machine has it.
        let node = provider.folder.node(&"control-plane-0".parse().unwrap());
        node.create(0).unwrap();
        let (mut child, process) = sleeper_in(node.path());
        process.write(&node.qemu_record()).unwrap();
        let machine = join_as_qemu(second).unwrap();
        assert_eq!(port(), second);
        drop(machine);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_collision_that_was_recorded_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let provider = provider(folder.path());
        let mut record = settled(&provider, &spec(2));
        let taken = record.nodes.values().next().unwrap().ports;
        record.nodes.values_mut().for_each(|node| node.ports = taken);
        provider.folder.save(&record).unwrap();
        let ports: HashSet<u16> = recorded_ports(&settled(&provider, &spec(2))).collect();
        assert_eq!(ports.len(), 3 * 5 + 1);
    }

    #[test]
    fn nodes_have_the_agreed_addresses_and_keep_them() {
        let folder = tempfile::tempdir().unwrap();
        let provider = provider(folder.path());
        settled(&provider, &spec(1));
        let record = settled(&provider, &spec(2));
        let addresses: Vec<_> = record.nodes.values().map(|node| node.address.to_string()).collect();
        assert_eq!(addresses, ["10.42.1.100", "10.42.2.100", "10.42.2.101"]);
    }
}
