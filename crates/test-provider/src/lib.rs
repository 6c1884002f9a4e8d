//! Machines for tests of the CLI: they are recorded and have ports, and nothing runs. A test plays a node by listening on the
//! ports of its machine.
//!
//! The record is in the workspace, so that a test and the program it runs see the same machines, and so that a program that was
//! killed left what it had recorded.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use cluster_types::{NodeName, NodeRole, OperatorPublicKey};
use infrastructure::{
    Change, ClusterSpec, Infrastructure, Machine, MachineStatus, MirrorSource, NodePorts, NodeSpec, Plan, Provider,
    ProviderError,
};
use serde::{Deserialize, Serialize};

/// Where nodes would find a mirror that is a folder.
pub const MIRROR: &str = "http://198.51.100.1/mirror";
/// What an operator is told about a machine that stopped.
pub const ADVICE: &str = "ask the test what it did to the machine";

const FOLDER: &str = "test-machines";
const RECORD: &str = "machines.json";
/// While this file is there, a machine stops as soon as it is started. Its first line is the reason.
const STOPS: &str = "stops";

/// The machines of one workspace.
pub struct TestProvider {
    folder: PathBuf,
}

/// The record cannot be used.
#[derive(Debug, thiserror::Error)]
enum TestProviderError {
    #[error("cannot use the test's machines")]
    Io(#[from] io::Error),
    #[error("the record of the test's machines cannot be read")]
    Record(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct Record {
    spec: NodeSpec,
    address: Ipv4Addr,
    ports: NodePorts,
    /// How often it was started; 0 for one that was only planned.
    starts: u32,
    /// Whom it was told to obey when it was last started.
    operator: Option<OperatorPublicKey>,
    /// Why it does not run any more.
    stopped: Option<String>,
}

type Records = BTreeMap<NodeName, Record>;

impl TestProvider {
    /// Takes a workspace that exists.
    #[must_use]
    pub fn new(workspace: &Path) -> Self {
        Self {
            folder: workspace.join(FOLDER),
        }
    }

    /// How often a machine was started.
    ///
    /// # Panics
    /// When there is no such machine.
    #[must_use]
    pub fn starts(&self, node: &str) -> u32 {
        self.machine(node).starts
    }

    /// Whom a machine was told to obey.
    ///
    /// # Panics
    /// When there is no such machine.
    #[must_use]
    pub fn operator(&self, node: &str) -> Option<OperatorPublicKey> {
        self.machine(node).operator
    }

    /// What a machine was made with.
    ///
    /// # Panics
    /// When there is no such machine.
    #[must_use]
    pub fn spec(&self, node: &str) -> NodeSpec {
        self.machine(node).spec
    }

    /// Stops a machine.
    ///
    /// # Panics
    /// When there is no such machine.
    pub fn stop(&self, node: &str, reason: &str) {
        self.change(node, |machine| machine.stopped = Some(reason.to_owned()));
    }

    /// Makes a machine one that was planned and never started.
    ///
    /// # Panics
    /// When there is no such machine.
    pub fn unmake(&self, node: &str) {
        self.change(node, |machine| machine.starts = 0);
    }

    fn change(&self, node: &str, change: impl FnOnce(&mut Record)) {
        let mut records = self.load().expect("a test's record can be read");
        let machine = records.iter_mut().find(|(name, _)| name.as_str() == node);
        change(machine.expect("a test names its machines").1);
        self.save(&records).expect("a test's record can be written");
    }

    /// Lets every machine stop as soon as it is started, or lets machines run again.
    ///
    /// # Panics
    /// When the workspace cannot be written to.
    pub fn let_machines_stop(&self, reason: Option<&str>) {
        fs::create_dir_all(&self.folder).expect("a workspace of a test can be written to");
        let stops = self.folder.join(STOPS);
        match reason {
            Some(reason) => fs::write(stops, reason),
            None => fs::remove_file(stops),
        }
        .expect("a workspace of a test can be written to");
    }

    fn machine(&self, node: &str) -> Record {
        let records = self.load().expect("a test's record can be read");
        let machine = records.into_iter().find(|(name, _)| name.as_str() == node);
        machine.expect("a test names its machines").1
    }

    fn load(&self) -> Result<Records, TestProviderError> {
        match fs::read(self.folder.join(RECORD)) {
            Ok(json) => Ok(serde_json::from_slice(&json)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Records::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// As a whole: a test may look at any time.
    fn save(&self, records: &Records) -> Result<(), TestProviderError> {
        fs::create_dir_all(&self.folder)?;
        let new = self.folder.join("new");
        fs::write(&new, serde_json::to_vec_pretty(records)?)?;
        Ok(fs::rename(new, self.folder.join(RECORD))?)
    }

    fn start(&self, record: &mut Record, spec: &ClusterSpec) {
        record.starts += 1;
        record.operator = spec.operator;
        record.stopped = fs::read_to_string(self.folder.join(STOPS)).ok();
    }

    fn start_again(
        &self,
        spec: &ClusterSpec,
        nodes: &[NodeName],
        progress: &dyn Fn(&str),
    ) -> Result<Infrastructure, TestProviderError> {
        let mut records = self.load()?;
        for (name, record) in &mut records {
            if nodes.contains(name) && record.stopped.is_some() {
                progress(&Change::Restart(name.clone()).to_string());
                self.start(record, spec);
            }
        }
        self.save(&records)?;
        Ok(infrastructure(&records, spec))
    }

    fn make(&self, spec: &ClusterSpec, progress: &dyn Fn(&str)) -> Result<Infrastructure, TestProviderError> {
        let mut records = self.load()?;
        let plan = changes(&records, spec);
        for node in &spec.nodes {
            if !records.contains_key(&node.name) {
                records.insert(node.name.clone(), planned(node, &records)?);
            }
        }
        for change in &plan {
            progress(&change.to_string());
            match change {
                Change::Create(name) | Change::Restart(name) => {
                    self.start(records.get_mut(name).expect("every node was planned"), spec);
                }
                Change::Replace(name) => {
                    let record = records.get_mut(name).expect("every node was planned");
                    let wanted = spec.nodes.iter().find(|node| node.name == *name);
                    record.spec = wanted.expect("only nodes that are wanted are replaced").clone();
                    self.start(record, spec);
                }
                Change::Remove(name) => drop(records.remove(name)),
                // Machines of tests are never paused.
                Change::Resume(_) | Change::Other(_) => {}
            }
            self.save(&records)?;
        }
        Ok(infrastructure(&records, spec))
    }
}

impl Provider for TestProvider {
    fn plan(&self, spec: &ClusterSpec) -> Result<Plan, ProviderError> {
        let records = self.load().map_err(ProviderError::new)?;
        let changes = changes(&records, spec);
        Ok(Plan { changes })
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
        let mut records = self.load().map_err(ProviderError::new)?;
        records.remove(node);
        self.save(&records).map_err(ProviderError::new)
    }

    fn destroy(&self) -> Result<(), ProviderError> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ProviderError::new(error)),
            _ => Ok(()),
        }
    }

    fn machines(&self) -> Result<Vec<Machine>, ProviderError> {
        let records = self.load().map_err(ProviderError::new)?;
        Ok(records.values().map(machine).collect())
    }

    fn console(&self, node: &NodeName) -> Vec<String> {
        let records = self.load().unwrap_or_default();
        records.get(node).map(console).unwrap_or_default()
    }

    fn advice_on_stopped(&self) -> &'static str {
        ADVICE
    }
}

fn changes(records: &Records, spec: &ClusterSpec) -> Vec<Change> {
    let wanted = |name: &NodeName| spec.nodes.iter().any(|node| node.name == *name);
    let removed = records.keys().filter(|name| !wanted(name)).cloned().map(Change::Remove);
    let started = spec.nodes.iter().filter_map(|node| match records.get(&node.name) {
        None | Some(Record { starts: 0, .. }) => Some(Change::Create(node.name.clone())),
        Some(Record { stopped: None, .. }) => None,
        Some(_) if spec.members.contains(&node.name) => Some(Change::Restart(node.name.clone())),
        Some(_) => Some(Change::Replace(node.name.clone())),
    });
    removed.chain(started).collect()
}

fn planned(node: &NodeSpec, records: &Records) -> Result<Record, TestProviderError> {
    let number = u8::try_from(records.len()).expect("a test has few machines");
    Ok(Record {
        spec: node.clone(),
        address: Ipv4Addr::new(192, 168, 77, 10 + number),
        ports: free_ports()?,
        starts: 0,
        operator: None,
        stopped: None,
    })
}

/// All at once, so that they are different.
fn free_ports() -> io::Result<NodePorts> {
    let listeners = (0..5)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<io::Result<Vec<_>>>()?;
    let port = |index: usize| -> io::Result<u16> { Ok(listeners[index].local_addr()?.port()) };
    Ok(NodePorts {
        bootstrapper: port(0)?,
        kubernetes: port(1)?,
        verify_http: port(2)?,
        verify: port(3)?,
        join: port(4)?,
    })
}

fn infrastructure(records: &Records, spec: &ClusterSpec) -> Infrastructure {
    let first = records
        .values()
        .find(|record| record.spec.role == NodeRole::ControlPlane);
    let first = first.map(|record| record.address.to_string()).unwrap_or_default();
    Infrastructure {
        uid: "7e57".to_owned(),
        cluster_endpoint: Ipv4Addr::LOCALHOST.to_string(),
        in_cluster_endpoint: first.clone(),
        api_server_cert_sans: vec![Ipv4Addr::LOCALHOST.to_string(), first],
        ip_cidr_node: "192.168.77.0/24".to_owned(),
        component_mirror: match &spec.mirror {
            MirrorSource::Folder(_) => MIRROR.to_owned(),
            MirrorSource::Http(_) => spec.mirror.to_string(),
        },
        nodes: records.values().map(machine).collect(),
    }
}

fn machine(record: &Record) -> Machine {
    Machine {
        name: record.spec.name.clone(),
        role: record.spec.role,
        address: record.address,
        host: Ipv4Addr::LOCALHOST.to_string(),
        ports: record.ports,
        start: record.starts.to_string(),
        status: match &record.stopped {
            _ if record.starts == 0 => MachineStatus::NotMade,
            None => MachineStatus::Running,
            Some(reason) => MachineStatus::Stopped {
                reason: reason.clone(),
                console: console(record),
            },
        },
    }
}

fn console(record: &Record) -> Vec<String> {
    let started = (record.starts > 0).then(|| "constellation: starting".to_owned());
    started.into_iter().chain(record.stopped.clone()).collect()
}
