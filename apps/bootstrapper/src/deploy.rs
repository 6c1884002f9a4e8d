//! Applies what this node's measured image runs in the cluster: the pod network, our services, and rules of admission.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::time::Duration;

use attestation::AttestedIdentity;
use cluster_objects::{Cluster, JoinConfig, NodeRecordError, components_config_map};
use cluster_types::{Cidr, NodeInterface, NodeName};
use deployment::{ApplyError, Object, PodNetwork, PruneError, prune};
use error_report::Chain;
use kube::config::{KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};
use kubeadm::Kubeconfig;
use kubernetes_components::ComponentList;
use polling::{Failed, PollError, Schedule};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::files::NodeFiles;

/// An API server that has just started answers slowly, and not everything at once.
const SCHEDULE: Schedule = Schedule::backing_off(
    Duration::from_secs(1),
    Duration::from_secs(15),
    Duration::from_secs(15 * 60),
);

/// How long something stays deleted or changed at most.
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Where the objects of this node's image go, and how they differ between clusters.
pub(crate) struct Deployment {
    pub(crate) api_server: SocketAddrV4,
    pub(crate) pods: Cidr,
    pub(crate) node_interface: NodeInterface,
    /// Only for a new cluster.
    pub(crate) start: Option<Start>,
}

/// What a new cluster begins with. Later the CLI publishes what is newer.
pub(crate) struct Start {
    /// The first node, whose name and address nobody else gets.
    pub(crate) node: NodeName,
    pub(crate) identity: AttestedIdentity,
    pub(crate) components: ComponentList,
    pub(crate) join: JoinConfig,
}

/// What the image deploys could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeployError {
    #[error("the administrator's kubeconfig is not text")]
    NotText,
    #[error("cannot use the administrator's kubeconfig")]
    Kubeconfig(#[from] KubeconfigError),
    #[error("cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    #[error("cannot record that name and address belong to this machine")]
    Record(#[from] NodeRecordError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Prune(#[from] PruneError),
}

impl DeployError {
    fn may_pass(&self) -> bool {
        match self {
            Self::NotText | Self::Kubeconfig(_) | Self::Client(_) => false,
            Self::Record(error) => matches!(error, NodeRecordError::Api { .. } | NodeRecordError::AtTheSameTime(_)),
            Self::Apply(error) => !error.is_final(),
            Self::Prune(_) => true,
        }
    }
}

pub(crate) type Deploying<'a> = Pin<Box<dyn Future<Output = Result<(), PollError<DeployError>>> + Send + 'a>>;

/// Reaches the cluster. Only tests have another one than [`InCluster`].
pub(crate) trait Deployer: Send + Sync {
    /// Applies everything, again and again until it succeeds or never will. Repeating it is harmless.
    fn deploy<'a>(&'a self, kubeconfig: &'a Kubeconfig, deployment: &'a Deployment) -> Deploying<'a>;
}

/// Deploys through the API server that the kubeconfig names.
pub(crate) struct InCluster;

impl Deployer for InCluster {
    fn deploy<'a>(&'a self, kubeconfig: &'a Kubeconfig, deployment: &'a Deployment) -> Deploying<'a> {
        let attempt = || async {
            deployment.apply(kubeconfig).await.map_err(|error| {
                if error.may_pass() {
                    Failed::Retry(error)
                } else {
                    Failed::Stop(error)
                }
            })
        };
        let waiting = |error: &DeployError, _| warn!(error = %Chain(error), "cannot deploy yet, trying again");
        Box::pin(SCHEDULE.poll(attempt, waiting))
    }
}

impl Deployment {
    /// A new cluster's own objects come first: nobody may join before it is known whose the first name is, and kubelet starts the
    /// join service as soon as its configuration is there.
    async fn apply(&self, kubeconfig: &Kubeconfig) -> Result<(), DeployError> {
        let client = client(kubeconfig).await?;
        if let Some(start) = &self.start {
            self.begin(start, &client).await?;
        }
        let objects = self.objects();
        for object in &objects {
            object.apply(&client).await?;
        }
        for object in prune(&client, &objects).await? {
            info!(object, "removed what this image does not deploy");
        }
        Ok(())
    }

    async fn begin(&self, start: &Start, client: &Client) -> Result<(), DeployError> {
        deployment::namespace().apply(client).await?;
        Cluster::new(client.clone())
            .claim(&start.node, *self.api_server.ip(), start.identity)
            .await?;
        Object::new(components_config_map(&start.components))
            .apply(client)
            .await?;
        Object::new(start.join.to_config_map()).apply(client).await?;
        Ok(())
    }

    fn objects(&self) -> Vec<Object> {
        deployment::objects(&PodNetwork {
            pod_cidr: self.pods.to_string(),
            node_interface: format!("^{}$", self.node_interface),
            api_server: self.api_server,
        })
    }
}

/// Goes on for ever, so that what somebody deleted or changed comes back.
pub(crate) async fn keep_deployed(files: &NodeFiles, deployer: &dyn Deployer) -> Infallible {
    loop {
        sleep(INTERVAL).await;
        redeploy(files, deployer).await;
    }
}

/// Does nothing on a node that does not deploy, or not yet. If it fails, the cluster goes on with what there is.
pub(crate) async fn redeploy(files: &NodeFiles, deployer: &dyn Deployer) {
    let Some((cluster, node_interface)) = files.load_state().ok().and_then(|state| state.deploys()) else {
        return;
    };
    let deployment = Deployment {
        api_server: cluster.api_server,
        pods: cluster.pods,
        node_interface,
        start: None,
    };
    let kubeconfig = match files.read_admin_kubeconfig() {
        Ok(kubeconfig) => kubeconfig,
        Err(error) => return error!(%error, "cannot read the administrator's kubeconfig, nothing is deployed"),
    };
    if let Err(error) = deployer.deploy(&kubeconfig, &deployment).await {
        error!(error = %Chain(&error), "cannot deploy what this image runs in the cluster");
    }
}

async fn client(kubeconfig: &Kubeconfig) -> Result<Client, DeployError> {
    // kube builds its own TLS configuration and asks for the process's provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let text = str::from_utf8(kubeconfig.expose()).map_err(|_| DeployError::NotText)?;
    let kubeconfig = kube::config::Kubeconfig::from_yaml(text)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Client::try_from(config).map_err(|error| DeployError::Client(Box::new(error)))
}
