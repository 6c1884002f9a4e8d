//! What this node keeps on its encrypted state disk.

use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use atomic_file::Access;
use cloud_metadata::NodeNetwork;
use cluster_policy::{BelievedPolicy, PolicyStore};
use cluster_types::{Cidr, MeasurementSalt, NodeName, NodeRole, Service};
use component_installer::ComponentMirror;
use deployment::PodNetwork;
use key_derivation::MasterSecret;
use kubeadm::Kubeconfig;
use kubernetes_components::{ComponentList, MAX_DOCUMENT_LEN, ParseMirrorError};
use node_secrets::{SHARED_FILES, SharedFile};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::lock::Locked;

const NODE_STATE: &str = "run/state/constellation/node-state.json";
const MASTER_SECRET: &str = "run/state/constellation/master-secret.json";
/// Where the key service keeps the newest policy.
const KEY_POLICY: &str = "run/state/constellation/key-policy/cluster-policy";
/// Where the key service makes its socket.
const KEY_SOCKET_FOLDER: &str = "run/state/constellation/key-service";
/// Where the key service finds what control planes share.
const SHARED_FILES_FOLDER: &str = "run/state/constellation/shared-files";
const CLUSTER_POLICY: &str = "run/state/constellation/policy/cluster-policy";
/// What this node has of Kubernetes, in the form of a mirror's `components.json`.
const COMPONENTS: &str = "run/state/constellation/components.json";
const PKI: &str = "etc/kubernetes/pki";
const ADMIN_KUBECONFIG: &str = "etc/kubernetes/admin.conf";
/// A real document has about 300 bytes.
const MAX_NODE_STATE_LEN: usize = 4096;
/// The one version that is read. Version v1 had no network, and v2 nothing about the cluster.
const VERSION: &str = "v3";

/// What a node must remember across reboots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeState {
    version: String,
    pub(crate) role: NodeRole,
    /// One input of the cluster id; the other one comes with the rejoin ticket.
    pub(crate) measurement_salt: MeasurementSalt,
    pub(crate) address: Ipv4Addr,
    pub(crate) network: NodeNetwork,
    pub(crate) stage: Stage,
    /// Where the node fetches what is missing of Kubernetes; the platform's own mirror, if there is none here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mirror: Option<String>,
    /// Only on a node that deploys what its image runs in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<ClusterNetwork>,
}

/// With what the objects that a node deploys differ between clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterNetwork {
    /// The name of the node that deploys, which nobody else gets.
    pub(crate) node: NodeName,
    pub(crate) api_server: SocketAddrV4,
    #[serde(with = "pods")]
    pub(crate) pods: Cidr,
}

mod pods {
    use cluster_types::Cidr;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(pods: &Cidr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(pods)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
        Cidr::for_pods(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Looked at first, because another version has other fields.
#[derive(Deserialize)]
struct AnyVersion {
    version: String,
}

/// How far the node has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// The disk has its final key, but Kubernetes does not run yet. A node that boots in this stage was interrupted.
    Joining,
    /// The node is a member of its cluster, and Kubernetes runs.
    Member,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadNodeStateError {
    #[error("this node has no stored state")]
    Missing,
    #[error("cannot read the node's state")]
    Read(#[from] io::Error),
    #[error("the node's state is longer than {MAX_NODE_STATE_LEN} bytes")]
    TooLong,
    #[error("the node's state is malformed")]
    Json(#[from] serde_json::Error),
    #[error("the node's state has version {actual}, expected {VERSION}: an image of another version wrote it")]
    AnotherVersion { actual: String },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadComponentsError {
    #[error("cannot read which components this node has")]
    Read(#[from] io::Error),
    #[error("the list of this node's components is malformed")]
    Parse(#[from] ParseMirrorError),
}

impl NodeState {
    pub(crate) fn new(
        role: NodeRole,
        measurement_salt: MeasurementSalt,
        address: Ipv4Addr,
        network: NodeNetwork,
    ) -> Self {
        Self {
            version: VERSION.to_owned(),
            role,
            measurement_salt,
            address,
            network,
            stage: Stage::Joining,
            mirror: None,
            cluster: None,
        }
    }

    /// The same node, with a mirror.
    pub(crate) fn fetching_from(self, mirror: Option<&ComponentMirror>) -> Self {
        Self {
            mirror: mirror.map(ToString::to_string),
            ..self
        }
    }

    /// The same node, which deploys what its image runs in this cluster.
    pub(crate) fn deploying(self, cluster: ClusterNetwork) -> Self {
        Self {
            cluster: Some(cluster),
            ..self
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, LoadNodeStateError> {
        let AnyVersion { version } = serde_json::from_slice(bytes)?;
        if version == VERSION {
            Ok(serde_json::from_slice(bytes)?)
        } else {
            Err(LoadNodeStateError::AnotherVersion { actual: version })
        }
    }

    /// Where a node deploys what its image runs in the cluster; `None` on those that do not, or not yet.
    pub(crate) fn deploys(&self) -> Option<(NodeName, PodNetwork)> {
        let cluster = self.cluster.clone().filter(|_| self.stage == Stage::Member)?;
        let network = PodNetwork {
            pods: cluster.pods,
            node_interface: self.network.interface(),
            api_server: cluster.api_server,
        };
        Some((cluster.node, network))
    }

    /// The same node, with Kubernetes running.
    pub(crate) fn as_member(&self) -> Self {
        Self {
            stage: Stage::Member,
            ..self.clone()
        }
    }
}

/// The node's files, below a root folder that only tests change.
#[derive(Clone, Debug)]
pub(crate) struct NodeFiles {
    root: PathBuf,
    user: fn(Service) -> u32,
}

impl NodeFiles {
    /// `user` gives the number of the user that a service runs as.
    pub(crate) fn new(root: impl Into<PathBuf>, user: fn(Service) -> u32) -> Self {
        Self {
            root: root.into(),
            user,
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Replaces a file that everyone may read.
    pub(crate) fn replace(&self, absolute: &str, content: &[u8]) -> io::Result<()> {
        replace_file(&self.path(absolute), content, Access::Mode(0o644))
    }

    pub(crate) fn load_state(&self) -> Result<NodeState, LoadNodeStateError> {
        match atomic_file::read(&self.root.join(NODE_STATE), MAX_NODE_STATE_LEN) {
            Ok(bytes) => NodeState::parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LoadNodeStateError::Missing),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(LoadNodeStateError::TooLong),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a locked node, because until then the disk has only its ephemeral key.
    pub(crate) fn write_state(&self, _: &Locked, state: &NodeState) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(state).expect("the document has text keys only");
        replace_file(&self.root.join(NODE_STATE), &json, Access::Owner)
    }

    /// What join service and key service need, apart from the files that control planes share. For control planes only.
    pub(crate) fn write_for_services(
        &self,
        _: &Locked,
        secret: &MasterSecret,
        policy: &BelievedPolicy,
    ) -> io::Result<()> {
        let path = self.root.join(MASTER_SECRET);
        replace_file(&path, secret.to_json().as_bytes(), self.readable_by_key_service())?;
        // The services run as other users and have to reach their files.
        fs::set_permissions(folder_of(&path), Permissions::from_mode(0o711))?;
        self.make_folder_of_socket(&self.root.join(KEY_SOCKET_FOLDER))?;
        self.make_folder_of(Service::Join, folder_of(&self.root.join(CLUSTER_POLICY)))?;
        let policy_store = self.root.join(KEY_POLICY);
        self.make_folder_of(Service::Key, folder_of(&policy_store))?;
        PolicyStore::new(policy_store).write(policy)
    }

    /// What the key service hands to control planes that join. For control planes only.
    pub(crate) fn write_shared_files(&self, _: &Locked, files: &[SharedFile]) -> io::Result<()> {
        let folder = self.root.join(SHARED_FILES_FOLDER);
        self.make_folder_of(Service::Key, &folder)?;
        for SharedFile { name, content } in files {
            let path = folder.join(name);
            if folder_of(&path) != folder {
                self.make_folder_of(Service::Key, folder_of(&path))?;
            }
            replace_file(&path, content, self.readable_by_key_service())?;
        }
        Ok(())
    }

    /// The files that kubeadm has made on the first control plane.
    pub(crate) fn read_shared_files(&self) -> io::Result<Vec<SharedFile>> {
        let read = |name| {
            let content = Zeroizing::new(fs::read(self.root.join(PKI).join(name))?);
            Ok(SharedFile { name, content })
        };
        SHARED_FILES.into_iter().map(read).collect()
    }

    /// The administrator's access that kubeadm has made on a control plane.
    pub(crate) fn read_admin_kubeconfig(&self) -> io::Result<Kubeconfig> {
        fs::read(self.root.join(ADMIN_KUBECONFIG)).map(Kubeconfig::from_vec)
    }

    fn readable_by_key_service(&self) -> Access {
        Access::User {
            id: (self.user)(Service::Key),
            mode: 0o400,
        }
    }

    fn make_folder_of(&self, service: Service, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        chown(folder, Some((self.user)(service)), None)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))
    }

    /// The key service makes its socket there, and the join service alone opens it: a new socket inherits the folder's group.
    fn make_folder_of_socket(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        chown(
            folder,
            Some((self.user)(Service::Key)),
            Some((self.user)(Service::Join)),
        )?;
        fs::set_permissions(folder, Permissions::from_mode(0o2750))
    }

    /// The first policy that this node has seen. On a control plane, the join service keeps the newest one there.
    pub(crate) fn write_policy(&self, _: &Locked, policy: &BelievedPolicy) -> io::Result<()> {
        let path = self.root.join(CLUSTER_POLICY);
        create_folder_of(&path)?;
        PolicyStore::new(path).write(policy)
    }

    /// Which programs and images of Kubernetes this node has. It counts only as far as the policy lists it.
    pub(crate) fn write_components(&self, _: &Locked, components: &ComponentList) -> io::Result<()> {
        let document = components.to_mirror_document();
        replace_file(&self.root.join(COMPONENTS), &document, Access::Everyone)
    }

    pub(crate) fn load_components(&self) -> Result<ComponentList, LoadComponentsError> {
        let bytes = atomic_file::read(&self.root.join(COMPONENTS), MAX_DOCUMENT_LEN)?;
        Ok(ComponentList::from_mirror_document(&bytes)?)
    }

    /// The newest policy that this node has seen, and keeps.
    pub(crate) fn policy_store(&self) -> PolicyStore {
        PolicyStore::new(self.root.join(CLUSTER_POLICY))
    }

    /// Writes one of the files that control planes share. `name` was checked and is below the folder with the cluster's keys.
    pub(crate) fn write_pki(&self, _: &Locked, name: &str, content: &[u8]) -> io::Result<()> {
        let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
        replace_file(&self.root.join(PKI).join(name), content, Access::Mode(mode))
    }
}

/// Replaces a file, and makes the folder it is in.
fn replace_file(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    create_folder_of(path)?;
    atomic_file::replace(path, content, access)
}

fn create_folder_of(path: &Path) -> io::Result<()> {
    fs::create_dir_all(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().expect("our files are in folders")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_read_as_it_was_written() {
        let network = r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#;
        let state = NodeState::new(
            NodeRole::Worker,
            MeasurementSalt::new([3; 32]),
            Ipv4Addr::new(10, 42, 2, 100),
            serde_json::from_str(network).unwrap(),
        );
        let json = serde_json::to_string(&state).unwrap();
        let salt = "03".repeat(32);
        assert_eq!(
            json,
            format!(
                r#"{{"version":"v3","role":"Worker","measurement_salt":"{salt}","address":"10.42.2.100","network":{network},"stage":"joining"}}"#
            )
        );
        assert_eq!(NodeState::parse(json.as_bytes()).unwrap(), state);
    }

    #[test]
    fn state_of_another_version_is_refused_by_it() {
        let v1 = r#"{"version":"v1","role":"Worker","measurement_salt":"00","address":"10.42.2.100","stage":"member"}"#;
        for (json, version) in [(v1, "v1"), (r#"{"fields":"unknown","version":"v4"}"#, "v4")] {
            let error = NodeState::parse(json.as_bytes()).unwrap_err();
            assert!(matches!(error, LoadNodeStateError::AnotherVersion { actual } if actual == version));
        }
    }
}
