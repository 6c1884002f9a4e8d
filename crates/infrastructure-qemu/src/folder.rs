use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use atomic_file::Access;
use cluster_types::{NodeName, OperatorPublicKey};
use infrastructure::{NodePorts, NodeSpec};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Context, QemuError};
use crate::process::ProcessRecord;
use crate::workspace::RUN_FOLDER;

/// Where everything of one cluster's machines is.
#[derive(Clone, Debug)]
pub struct RunFolder(PathBuf);

/// Every choice that processes depend on. Written before the first of them is started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterRecord {
    pub(crate) uid: String,
    pub(crate) private_network_port: u16,
    pub(crate) metadata_port: u16,
    pub(crate) init_secret_hash: String,
    pub(crate) operator: Option<OperatorPublicKey>,
    /// The folder that the metadata endpoint serves.
    pub(crate) mirror: Option<PathBuf>,
    pub(crate) nodes: BTreeMap<NodeName, NodeRecord>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeRecord {
    pub(crate) spec: NodeSpec,
    /// In the private network.
    pub(crate) address: Ipv4Addr,
    pub(crate) ports: NodePorts,
}

impl RunFolder {
    /// Uses this folder, which need not exist yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The folder in a workspace, which need not exist yet.
    #[must_use]
    pub fn in_workspace(workspace: &Path) -> Self {
        Self(workspace.join(RUN_FOLDER))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn node(&self, name: &NodeName) -> NodeFolder {
        NodeFolder(self.0.join("nodes").join(name.as_str()))
    }

    pub(crate) fn metadata_record(&self) -> PathBuf {
        self.0.join("metadata.process")
    }

    pub(crate) fn metadata_key(&self) -> PathBuf {
        self.0.join("metadata.key")
    }

    pub(crate) fn metadata_log(&self) -> PathBuf {
        self.0.join("metadata.log")
    }

    /// Makes the folder, which is ours from when it holds the record of the cluster.
    pub(crate) fn create(&self) -> Result<(), QemuError> {
        match fs::create_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !self.is_ours()? {
                    return Err(QemuError::Foreign(self.0.clone()));
                }
            }
            created => created.on("create", &self.0)?,
        }
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&self.0, private).on("protect", &self.0)
    }

    /// Waits until no process is being started here, and prevents others from starting one. `None` if there is no folder.
    ///
    /// A process that is being started holds the lock until its record is written, also when the command that started it
    /// was killed.
    pub(crate) fn lock(&self) -> Result<Option<File>, QemuError> {
        let folder = match File::open(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.on("open", &self.0)?,
        };
        rustix::fs::flock(&folder, FlockOperation::LockExclusive).on("lock", &self.0)?;
        Ok(Some(folder))
    }

    pub(crate) fn record(&self) -> Result<Option<ClusterRecord>, QemuError> {
        let path = self.record_path();
        match fs::read(&path) {
            Ok(bytes) => document::from_json(&bytes)
                .map(Some)
                .map_err(|source| QemuError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on("read", path),
        }
    }

    pub(crate) fn save(&self, record: &ClusterRecord) -> Result<(), QemuError> {
        let path = self.record_path();
        let json = serde_json::to_vec_pretty(record).expect("the record has text keys only");
        atomic_file::replace(&path, &json, Access::Owner).on("write", path)
    }

    /// Fails if a process recorded here works in another folder: this one is a copy, and the machines belong to the original.
    pub(crate) fn refuse_copy(&self) -> Result<(), QemuError> {
        let nodes = self.nodes()?;
        let nodes = nodes.iter().flat_map(|node| [node.qemu_record(), node.swtpm_record()]);
        std::iter::once(self.metadata_record())
            .chain(nodes)
            .try_for_each(|record| match is_running(&record) {
                Err(error @ QemuError::Copy { .. }) => Err(error),
                // Whoever needs to know meets any other error again.
                _ => Ok(()),
            })
    }

    /// Ends every recorded process below this folder, whatever the record of the cluster says, then removes it. A folder
    /// that somebody else made is left alone, and so is a copy of one whose machines run.
    pub(crate) fn destroy(&self) -> Result<(), QemuError> {
        let Some(_lock) = self.lock()? else { return Ok(()) };
        if !self.is_ours()? {
            return Ok(());
        }
        // All of it before the first is ended.
        self.refuse_copy()?;
        stop(&self.metadata_record())?;
        for node in self.nodes()? {
            node.stop()?;
        }
        // The record last: as long as anything else is there, the folder is ours.
        for entry in entries(&self.0)? {
            if entry != self.record_path() {
                remove(&entry)?;
            }
        }
        remove_folder(&self.0)
    }

    /// Those that are there, whatever the record of the cluster says.
    fn nodes(&self) -> Result<Vec<NodeFolder>, QemuError> {
        let folders = entries(&self.0.join("nodes"))?;
        Ok(folders.into_iter().map(NodeFolder).collect())
    }

    /// Whether this program made the folder: it holds the record of a cluster, or nothing but what a crash left of writing it.
    fn is_ours(&self) -> Result<bool, QemuError> {
        let entries = entries(&self.0)?;
        let record = self.record_path();
        let unfinished = self.0.join(".cluster.json.new");
        Ok(entries.contains(&record) || entries.iter().all(|entry| *entry == unfinished))
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("cluster.json")
    }
}

/// One node's files. Programs run in it, so that the paths of sockets stay short.
#[derive(Clone, Debug)]
pub(crate) struct NodeFolder(PathBuf);

impl NodeFolder {
    pub(crate) const VARIABLES: &'static str = "vars.fd";
    pub(crate) const STATE_DISK: &'static str = "state.img";
    pub(crate) const CONSOLE: &'static str = "console.log";
    pub(crate) const TPM_STATE: &'static str = "tpm";
    pub(crate) const TPM_SOCKET: &'static str = "tpm.sock";
    pub(crate) const QMP_SOCKET: &'static str = "qmp.sock";
    pub(crate) const QEMU_PID: &'static str = "qemu.pid";

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn qemu_record(&self) -> PathBuf {
        self.file("qemu.process")
    }

    pub(crate) fn swtpm_record(&self) -> PathBuf {
        self.file("swtpm.process")
    }

    pub(crate) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    pub(crate) fn is_running(&self) -> Result<bool, QemuError> {
        is_running(&self.qemu_record())
    }

    /// The machine's last start, by its process; empty if there was none.
    pub(crate) fn start(&self) -> String {
        let record = ProcessRecord::read(&self.qemu_record()).ok().flatten();
        record.map(|process| process.to_string()).unwrap_or_default()
    }

    /// A folder of this name appears only once everything in it is there.
    pub(crate) fn create(&self, state_disk_len: u64) -> Result<(), QemuError> {
        let new = self.0.with_extension("new");
        remove_folder(&new)?;
        let tpm = new.join(Self::TPM_STATE);
        fs::create_dir_all(&tpm).on("create", &tpm)?;
        let disk = new.join(Self::STATE_DISK);
        File::create_new(&disk)
            .and_then(|file| file.set_len(state_disk_len))
            .on("create", &disk)?;
        fs::rename(&new, &self.0).on("create", &self.0)
    }

    /// Ends the node's processes, if they run.
    pub(crate) fn stop(&self) -> Result<(), QemuError> {
        stop(&self.qemu_record())?;
        stop(&self.swtpm_record())
    }

    /// Makes the state disk blank. The machine keeps its TPM, and with it the identity to which a cluster has given a name.
    pub(crate) fn reset_disk(&self, state_disk_len: u64) -> Result<(), QemuError> {
        self.stop()?;
        let disk = self.0.join(Self::STATE_DISK);
        // A crash leaves the old disk or the new one.
        let new = disk.with_extension("new");
        let blank = || {
            File::create(&new)?.set_len(state_disk_len)?;
            fs::rename(&new, &disk)
        };
        blank().on("empty", &disk)
    }

    pub(crate) fn remove(&self) -> Result<(), QemuError> {
        self.stop()?;
        remove_folder(&self.0)
    }
}

pub(crate) fn stop(record: &Path) -> Result<(), QemuError> {
    ProcessRecord::read(record)?.map_or(Ok(()), |process| process.stop(parent(record)))
}

/// Whether a recorded process runs.
pub(crate) fn is_running(record: &Path) -> Result<bool, QemuError> {
    ProcessRecord::read(record)?.map_or(Ok(false), |process| process.is_running(parent(record)))
}

fn parent(record: &Path) -> &Path {
    record.parent().expect("a record is a file in a folder")
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, QemuError> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry.on("read", folder)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).on("read", folder),
    }
}

fn remove(path: &Path) -> Result<(), QemuError> {
    let metadata = fs::symlink_metadata(path).on("inspect", path)?;
    if metadata.is_dir() {
        remove_folder(path)
    } else {
        fs::remove_file(path).on("remove", path)
    }
}

fn remove_folder(path: &Path) -> Result<(), QemuError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ClusterRecord {
        ClusterRecord {
            uid: String::new(),
            private_network_port: 0,
            metadata_port: 0,
            init_secret_hash: String::new(),
            operator: None,
            mirror: None,
            nodes: BTreeMap::new(),
        }
    }

    #[test]
    fn a_folder_that_somebody_else_made_is_neither_used_nor_removed() {
        let workspace = tempfile::tempdir().unwrap();
        let folder = RunFolder::in_workspace(workspace.path());
        let file = folder.path().join("nodes/thesis.tex");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        assert!(matches!(folder.create(), Err(QemuError::Foreign(_))));
        folder.destroy().unwrap();
        assert!(file.exists());
    }

    /// Its name in the cluster belongs to its TPM's identity.
    #[test]
    fn a_machine_that_is_replaced_keeps_its_tpm_and_gets_a_blank_disk() {
        let workspace = tempfile::tempdir().unwrap();
        let folder = RunFolder::in_workspace(workspace.path());
        folder.create().unwrap();
        let node = folder.node(&"worker-0".parse().unwrap());
        fs::create_dir_all(node.path().parent().unwrap()).unwrap();
        node.create(4096).unwrap();
        let tpm = node.path().join(NodeFolder::TPM_STATE).join("tpm2-00.permall");
        fs::write(&tpm, "a seed").unwrap();
        fs::write(node.path().join(NodeFolder::STATE_DISK), [1; 4096]).unwrap();
        node.reset_disk(4096).unwrap();
        assert_eq!(fs::read(&tpm).unwrap(), b"a seed");
        assert_eq!(fs::read(node.path().join(NodeFolder::STATE_DISK)).unwrap(), [0; 4096]);
    }

    #[test]
    fn what_a_crash_left_at_any_point_is_ours() {
        let workspace = tempfile::tempdir().unwrap();
        let folder = RunFolder::in_workspace(workspace.path());
        let steps: [&dyn Fn(); 4] = [
            &|| folder.create().unwrap(),
            &|| fs::write(folder.path().join(".cluster.json.new"), "{").unwrap(),
            &|| folder.save(&record()).unwrap(),
            &|| fs::write(folder.path().join("metadata.log"), "").unwrap(),
        ];
        for count in 0..=steps.len() {
            steps[..count].iter().for_each(|step| step());
            folder.create().unwrap();
            folder.destroy().unwrap();
            assert!(!folder.path().exists(), "after {count} steps");
        }
    }
}
