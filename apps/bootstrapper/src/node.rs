//! This node, and everything outside this program that it acts on.

use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use attestation::{
    DeviceError, Expectations, ExpectedMembership, ExpectedStatements, MeasuringAttester, SetUpVerifierError, Variants,
    Verifiers,
};
use attested_tls::{Endpoint, Limits, PeerPolicy};
use cloud_metadata::{
    ApiEndpoint, CloudMetadata, InitSecretHash, Instance, MetadataError, NodeNetwork, OutsideNodeNetwork,
};
use cluster_types::{NodeRole, OperatorPublicKey};
use component_installer::{ComponentMirror, ImportError, InstallError, Installer, PrefetchError, import_images};
use digest::Digest;
use error_report::Chain;
use kubeadm::{ApiServer, Folders, Kubeadm, NodeSettings, ProxyMode};
use kubernetes_components::{Component, ComponentList};
use polling::poll_endlessly;
use programs::{Call, Programs, RunError};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::deploy::Deployer;
use crate::disk::StateDisk;
use crate::files::NodeFiles;
use crate::lock::NodeLock;
use crate::repeated::Repeated;

/// In the measured root.
pub(crate) const OWN_IMAGES: &str = "/usr/share/constellation/images";
/// From the mirror.
const KUBERNETES_IMAGES: &str = "/run/state/images";
const CONTROL_PLANE_IMAGES: [&str; 4] = [
    "/run/state/images/etcd.oci.tar",
    "/run/state/images/kube-apiserver.oci.tar",
    "/run/state/images/kube-controller-manager.oci.tar",
    "/run/state/images/kube-scheduler.oci.tar",
];
/// For administrators, who find them in the mirror. No one can run them on a node.
const ADMIN_PROGRAMS: [&str; 2] = ["/run/state/bin/crictl", "/run/state/bin/kubectl"];
const STAGING: &str = "/run/state/components";

/// Between attempts that go on until one succeeds.
pub(crate) const FIRST_DELAY: Duration = Duration::from_millis(250);
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(4);
/// For the last bytes, which were handed to the network stack, to leave the machine.
pub(crate) const LAST_BYTES: Duration = Duration::from_secs(2);

/// What init and join both need.
pub(crate) struct ThisNode {
    pub(crate) hints: Hints,
    pub(crate) metadata: Arc<dyn CloudMetadata>,
    pub(crate) attester: Arc<dyn MeasuringAttester>,
    pub(crate) variants: &'static dyn Variants,
    pub(crate) lock: NodeLock,
    pub(crate) disk: Arc<dyn StateDisk>,
    pub(crate) deployer: Arc<dyn Deployer>,
    pub(crate) files: NodeFiles,
    pub(crate) programs: Arc<dyn Programs>,
    pub(crate) api_server: Arc<dyn ApiServer>,
    pub(crate) own_images: OnceCell<()>,
    /// Maps an address on the private network to one that can be dialled. On a node that is the address itself; only tests use
    /// another network.
    pub(crate) reach: Box<dyn Fn(SocketAddrV4) -> SocketAddr + Send + Sync>,
}

/// What the platform said at boot. Nothing here is believed beyond what its type guarantees.
#[derive(Clone, Debug)]
pub(crate) struct Hints {
    pub(crate) this_node: Instance,
    pub(crate) network: NodeNetwork,
    pub(crate) api_endpoint: ApiEndpoint,
    pub(crate) init_secret_hash: InitSecretHash,
    /// Whom this node obeys. The platform chooses it, and the node measures it: another operator gives this node nothing.
    pub(crate) operator: OperatorPublicKey,
}

/// This node cannot obey an operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    #[error("cannot measure the operator")]
    Device(#[from] DeviceError),
    #[error("this node obeys another operator: it measured {shown}, expected {expected}")]
    Another { shown: Digest, expected: Digest },
}

/// This node's own image cannot be turned into a verifier.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnImageError {
    #[error("cannot read which image this node runs")]
    Device(#[from] DeviceError),
    #[error("cannot appraise nodes of this node's own image")]
    Verifier(#[from] SetUpVerifierError),
}

/// The node could not be prepared for Kubernetes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error("cannot install Kubernetes")]
    Install(#[from] InstallError),
    #[error("cannot import container images")]
    Images(#[from] ImportError),
}

#[derive(Debug, thiserror::Error)]
enum FetchHintsError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("the platform contradicts itself")]
    Outside(#[from] OutsideNodeNetwork),
}

impl Hints {
    /// Asks until the platform has answered everything. A platform that never does could as well not have started the node.
    pub(crate) async fn fetch(metadata: &dyn CloudMetadata) -> Self {
        let repeated = Repeated::default();
        let log = |error: &FetchHintsError| {
            let failure = Chain(error).to_string();
            if repeated.is_news("metadata", &failure) {
                warn!(error = %failure, "metadata is unusable, asking again");
            }
        };
        poll_endlessly(FIRST_DELAY, LONGEST_DELAY, || Self::fetch_once(metadata), log).await
    }

    async fn fetch_once(metadata: &dyn CloudMetadata) -> Result<Self, FetchHintsError> {
        let hints = Self {
            this_node: metadata.this_node().await?,
            network: metadata.network().await?,
            api_endpoint: metadata.api_endpoint().await?,
            init_secret_hash: metadata.init_secret_hash().await?,
            operator: metadata.operator_key().await?,
        };
        hints.network.check(hints.this_node.address)?;
        hints.network.check(hints.api_endpoint.host)?;
        Ok(hints)
    }
}

impl ThisNode {
    /// An endpoint whose sessions attest this node and accept only what `peer` allows.
    pub(crate) fn endpoint(&self, peer: PeerPolicy, limits: Limits) -> Endpoint {
        Endpoint::new(Some(self.attester.clone()), peer).with_limits(limits)
    }

    /// Measures whom this node obeys, before its first attested session. A bootstrapper that starts again finds it measured.
    ///
    /// # Cancel safety
    /// What was measured stays measured.
    pub(crate) async fn obey_operator(&self) -> Result<(), OperatorError> {
        let (attester, operator) = (self.attester.clone(), self.hints.operator);
        let measure = move || {
            if attester.statements()?.operator.is_nothing() {
                attester.measure_operator(&operator)?;
            }
            let measured = attester.statements()?.operator;
            if measured.is(&operator) {
                return Ok(());
            }
            Err(OperatorError::Another {
                shown: measured.shown(),
                expected: measured.shown_by(&operator),
            })
        };
        spawn_blocking(measure).await.expect("devices do not panic")
    }

    /// Accepts nodes that run this image and obey this node's operator. An honest peer does, because the operator chose the image
    /// for both.
    pub(crate) fn own_image(&self, membership: ExpectedMembership) -> Result<Verifiers, OwnImageError> {
        let statements = ExpectedStatements {
            operator: self.hints.operator,
            membership,
        };
        let image = self.attester.own_image()?;
        let expectations = Expectations { image, statements };
        let verifier = self.variants.verifier(self.attester.variant(), &expectations)?;
        Ok(Verifiers::one(verifier))
    }

    pub(crate) fn kubeadm(&self) -> Kubeadm {
        let folders = Folders::below(self.files.root());
        Kubeadm::new(self.programs.clone(), self.api_server.clone(), folders)
    }

    pub(crate) fn settings(&self) -> NodeSettings {
        NodeSettings {
            name: self.hints.this_node.name.clone(),
            address: self.hints.this_node.address.ip(),
            provider_id: self.hints.this_node.provider_id.clone(),
        }
    }

    pub(crate) fn proxy_mode(&self) -> ProxyMode {
        if self.files.path("/usr/sbin/nft").exists() {
            ProxyMode::Nftables
        } else {
            ProxyMode::Iptables
        }
    }

    fn platform_mirror(&self) -> ComponentMirror {
        platform_mirror(&*self.metadata)
    }

    /// Installs what a node of this role needs from a mirror, or from the platform's, and imports all images.
    pub(crate) async fn prepare(
        &self,
        role: NodeRole,
        components: &ComponentList,
        mirror: Option<&ComponentMirror>,
    ) -> Result<(), PrepareError> {
        let components = &needed_by(role, components);
        let mirror = mirror.cloned().unwrap_or_else(|| self.platform_mirror());
        self.installer().install(components, &mirror).await?;
        import_images(&self.programs, &self.files.path(KUBERNETES_IMAGES)).await?;
        self.import_own_images().await?;
        Ok(())
    }

    /// Removes what was fetched because the platform's mirror claimed that a worker needs it, unless the ticket lists it.
    pub(crate) fn keep_only(&self, components: &ComponentList) -> std::io::Result<()> {
        self.installer().keep_only(components)
    }

    fn installer(&self) -> Installer {
        installer(&self.files)
    }

    /// Fetches what the platform's mirror claims a worker needs. A ticket will say which of it is wanted.
    pub(crate) async fn prefetch(&self) -> Result<(), PrefetchError> {
        let needed = |list: &ComponentList| needed_by(NodeRole::Worker, list);
        self.installer().prefetch(&self.platform_mirror(), needed).await
    }

    /// Imports our services' images. They are in the measured root, so this can be done early; a second caller waits for the
    /// first one.
    pub(crate) async fn import_own_images(&self) -> Result<(), ImportError> {
        let folder = self.files.path(OWN_IMAGES);
        self.own_images
            .get_or_try_init(|| import_images(&self.programs, &folder))
            .await
            .map(drop)
    }
}

/// The platform's mirror; what it serves is pinned by hashes.
pub(crate) fn platform_mirror(metadata: &dyn CloudMetadata) -> ComponentMirror {
    let address = metadata.mirror();
    address.parse().expect("the platform's address was parsed before")
}

pub(crate) fn installer(files: &NodeFiles) -> Installer {
    Installer::new(files.root(), files.path(STAGING))
}

/// The list without the administrators' programs and, for workers, without the images that run only on control planes. That
/// is half of the download and import.
pub(crate) fn needed_by(role: NodeRole, list: &ComponentList) -> ComponentList {
    let is_needed = |component: &&Component| {
        let path = component.install_path.as_str();
        !ADMIN_PROGRAMS.contains(&path) && (role == NodeRole::ControlPlane || !CONTROL_PLANE_IMAGES.contains(&path))
    };
    let needed = list.components().iter().filter(is_needed).cloned().collect();
    ComponentList::new(list.kubernetes_version().clone(), needed).expect("a part of a valid list is valid")
}

pub(crate) async fn start_kubelet(programs: &dyn Programs) -> Result<(), RunError> {
    let start = Call::new("systemctl")
        .args(["start", "kubelet.service"])
        .within(Duration::from_secs(10 * 60));
    programs.run(&start).await?;
    info!("kubelet started");
    Ok(())
}

/// The name and version of the image, for the log.
pub(crate) fn image_version(root: &Path) -> String {
    std::fs::read_to_string(root.join("usr/share/constellation/image-version"))
        .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use cloud_metadata::Answer;

    use super::*;

    #[test]
    fn nodes_do_without_what_they_do_not_run() {
        let paths = [
            ADMIN_PROGRAMS[0],
            CONTROL_PLANE_IMAGES[0],
            "/run/state/images/kube-proxy.oci.tar",
        ];
        let component = |path: &str| Component {
            url: "x".parse().unwrap(),
            hash: Digest::new([0; 32]),
            install_path: path.parse().unwrap(),
            extract: false,
        };
        let list = ComponentList::new("v1.35.4".parse().unwrap(), paths.map(component).to_vec()).unwrap();
        let on_control_planes = needed_by(NodeRole::ControlPlane, &list);
        assert_eq!(
            on_control_planes.components(),
            [component(paths[1]), component(paths[2])]
        );
        assert_eq!(needed_by(NodeRole::Worker, &list).components(), [component(paths[2])]);
    }

    /// A platform that says these addresses belong to this node and to the API server.
    struct Platform([u8; 4], [u8; 4]);

    impl CloudMetadata for Platform {
        fn this_node(&self) -> Answer<'_, Instance> {
            let instance = Instance {
                name: "worker-0".parse().unwrap(),
                provider_id: "test:///worker-0".to_owned(),
                role: NodeRole::Worker,
                address: std::net::Ipv4Addr::from(self.0).try_into().unwrap(),
                role_grant: None,
            };
            Box::pin(async { Ok(instance) })
        }

        fn peers(&self) -> Answer<'_, Vec<Instance>> {
            unreachable!("peers are no hint of the boot")
        }

        fn network(&self) -> Answer<'_, NodeNetwork> {
            let network = r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#;
            Box::pin(async { Ok(serde_json::from_str(network).unwrap()) })
        }

        fn api_endpoint(&self) -> Answer<'_, ApiEndpoint> {
            let endpoint = ApiEndpoint {
                host: std::net::Ipv4Addr::from(self.1).try_into().unwrap(),
                port: 6443,
            };
            Box::pin(async move { Ok(endpoint) })
        }

        fn init_secret_hash(&self) -> Answer<'_, InitSecretHash> {
            Box::pin(async { Ok(InitSecretHash::new([0; 32])) })
        }

        fn operator_key(&self) -> Answer<'_, OperatorPublicKey> {
            Box::pin(async { Ok(OperatorPublicKey::new([0; 32])) })
        }

        fn mirror(&self) -> String {
            unreachable!("the mirror is no hint of the boot")
        }
    }

    async fn check(node: [u8; 4], api: [u8; 4]) -> Result<Hints, FetchHintsError> {
        Hints::fetch_once(&Platform(node, api)).await
    }

    #[tokio::test]
    async fn this_node_and_the_api_server_are_in_the_network_of_the_nodes() {
        check([10, 42, 2, 100], [10, 42, 1, 100]).await.unwrap();
        for (node, api) in [
            ([10, 43, 2, 100], [10, 42, 1, 100]),
            ([10, 42, 2, 100], [192, 168, 1, 100]),
            ([10, 42, 0, 0], [10, 42, 1, 100]),
        ] {
            let error = check(node, api).await.unwrap_err();
            assert!(matches!(error, FetchHintsError::Outside(_)), "{error}");
        }
    }
}
