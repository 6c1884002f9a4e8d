//! Applies what this node's measured image runs in the cluster: the pod network, our services, and rules of admission.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use attestation::AttestedIdentity;
use cluster_objects::{Cluster, JoinConfig, NodeRecordError, components_config_map};
use cluster_types::NodeName;
use deployment::{ApplyError, Object, PodNetwork, PruneError, prune};
use error_report::Chain;
use kube::config::{KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};
use kubeadm::Kubeconfig;
use kubernetes_components::ComponentList;
use polling::{Failed, PollError, Schedule};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::files::{LoadNodeStateError, NodeFiles};
use crate::repeated::Repeated;

/// An API server that has just started answers slowly, and not everything at once.
const SCHEDULE: Schedule = Schedule::backing_off(
    Duration::from_secs(1),
    Duration::from_secs(15),
    Duration::from_secs(15 * 60),
);

/// Between two deployments.
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Where the objects of this node's image go, and how they differ between clusters.
pub(crate) struct Deployment {
    /// This node, whose name and address nobody else gets.
    pub(crate) node: NodeName,
    pub(crate) identity: AttestedIdentity,
    pub(crate) network: PodNetwork,
    /// Only for a new cluster.
    pub(crate) start: Option<Start>,
}

/// What a new cluster begins with. Later the CLI publishes what is newer.
pub(crate) struct Start {
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
            Self::Prune(error) => !error.is_final(),
        }
    }
}

pub(crate) type Deploying<'a> = Pin<Box<dyn Future<Output = Result<(), PollError<DeployError>>> + Send + 'a>>;

/// Deploys into the cluster. Tests use another one than [`InCluster`].
pub(crate) trait Deployer: Send + Sync {
    /// Applies everything, again and again until it succeeds or never will. Repeating it is harmless.
    fn deploy<'a>(&'a self, kubeconfig: &'a Kubeconfig, deployment: &'a Deployment) -> Deploying<'a>;
}

/// Deploys through the API server that the kubeconfig names.
pub(crate) struct InCluster;

impl Deployer for InCluster {
    fn deploy<'a>(&'a self, kubeconfig: &'a Kubeconfig, deployment: &'a Deployment) -> Deploying<'a> {
        let attempt = || async {
            deployment.apply_as(kubeconfig).await.map_err(|error| {
                if error.may_pass() {
                    Failed::Retry(error)
                } else {
                    Failed::Stop(error)
                }
            })
        };
        let repeated = Repeated::default();
        let waiting = move |error: &DeployError, _| {
            let failure = Chain(error).to_string();
            if repeated.is_news("deploy", &failure) {
                warn!(error = %failure, "cannot deploy yet, trying again");
            }
        };
        Box::pin(SCHEDULE.poll(attempt, waiting))
    }
}

impl Deployment {
    async fn apply_as(&self, kubeconfig: &Kubeconfig) -> Result<(), DeployError> {
        self.apply(&client(kubeconfig).await?).await
    }

    /// Before the join service runs, this node's name must be taken and the service's configuration be there. One object that cannot be
    /// applied does not keep the others from it.
    async fn apply(&self, client: &Client) -> Result<(), DeployError> {
        deployment::namespace().apply(client).await?;
        let cluster = Cluster::new(client.clone());
        let claimed = cluster
            .claim(&self.node, *self.network.api_server.ip(), self.identity)
            .await;
        let of_image = deployment::objects(&self.network);
        let mut failed = match claimed {
            Err(error) if self.start.is_some() => return Err(error.into()),
            claimed => claimed.err().map(DeployError::from),
        };
        for object in self.objects_of_new_cluster().iter().chain(&of_image) {
            if let Err(error) = object.apply(client).await {
                failed.get_or_insert(error.into());
            }
        }
        // In a new cluster there is nothing else.
        if self.start.is_none() {
            for object in prune(client, &of_image).await? {
                info!(object, "removed what this image does not deploy");
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn objects_of_new_cluster(&self) -> Vec<Object> {
        let start = self.start.iter();
        start
            .flat_map(|Start { components, join }| {
                [
                    Object::new(components_config_map(components)),
                    Object::new(join.to_config_map()),
                ]
            })
            .collect()
    }
}

/// Goes on for ever, so that what somebody deleted or changed comes back.
pub(crate) async fn keep_deployed(
    files: &NodeFiles,
    identity: AttestedIdentity,
    deployer: &dyn Deployer,
) -> Infallible {
    loop {
        sleep(INTERVAL).await;
        redeploy(files, identity, deployer).await;
    }
}

/// Does nothing on a node that does not deploy, or not yet. If it fails, the cluster goes on with what there is.
pub(crate) async fn redeploy(files: &NodeFiles, identity: AttestedIdentity, deployer: &dyn Deployer) {
    let state = match files.load_state() {
        Ok(state) => state,
        Err(LoadNodeStateError::Missing) => return,
        Err(error) => return error!(error = %Chain(&error), "cannot read the node's state, nothing is deployed"),
    };
    let Some((node, network)) = state.deploys() else {
        return;
    };
    let deployment = Deployment {
        node,
        identity,
        network,
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

#[cfg(test)]
mod tests {
    use cluster_types::{Cidr, NodeInterface};
    use digest::Digest;
    use k8s_openapi::api::apps::v1::DaemonSet;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef};
    use kube::Api;
    use kube::api::{ObjectMeta, PostParams};
    use test_cluster::TestCluster;

    use super::*;
    use crate::request::InitRequest;
    use crate::request::tests::Example;

    fn machine(name: &[u8]) -> AttestedIdentity {
        AttestedIdentity::new(Digest::of(name))
    }

    fn again() -> Deployment {
        Deployment {
            node: "control-plane-0".parse().unwrap(),
            identity: machine(b"first"),
            network: PodNetwork {
                pods: Cidr::PODS,
                node_interface: NodeInterface::Private,
                api_server: "10.42.1.100:6443".parse().unwrap(),
            },
            start: None,
        }
    }

    fn new_cluster() -> Deployment {
        let request = InitRequest::parse(Example::default().message()).unwrap();
        let join = JoinConfig {
            policy: request.policy.into_signed(),
            measurement_salt: request.measurement_salt,
            api_server_endpoint: again().network.api_server.into(),
            components: request.components.config_map_name(),
            component_mirror: String::new(),
        };
        let components = request.components;
        Deployment {
            start: Some(Start { components, join }),
            ..again()
        }
    }

    /// Whether the join service runs, and whether it has a configuration.
    async fn join_service(client: &Client) -> (bool, bool) {
        let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kube-system");
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
        (
            daemon_sets.get_opt("join-service").await.unwrap().is_some(),
            maps.get_opt("join-config").await.unwrap().is_some(),
        )
    }

    async fn claim(client: &Client, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        let Deployment { node, network, .. } = again();
        Cluster::new(client.clone())
            .claim(&node, *network.api_server.ip(), machine)
            .await
    }

    #[tokio::test]
    async fn a_new_cluster_knows_whose_its_first_name_is() {
        let cluster = TestCluster::start().await.unwrap();
        let admin = cluster.admin().unwrap();
        new_cluster().apply(&admin).await.unwrap();
        assert_eq!(join_service(&admin).await, (true, true));
        let refused = claim(&admin, machine(b"another")).await.unwrap_err();
        assert!(matches!(refused, NodeRecordError::BelongsToAnother { .. }), "{refused}");
        // The record comes back when somebody has deleted it.
        let records: Api<ConfigMap> = Api::namespaced(admin.clone(), cluster_objects::RECORDS_NAMESPACE);
        for record in records.list(&kube::api::ListParams::default()).await.unwrap() {
            let name = record.metadata.name.unwrap();
            records
                .delete(&name, &kube::api::DeleteParams::default())
                .await
                .unwrap();
        }
        again().apply(&admin).await.unwrap();
        assert!(claim(&admin, machine(b"another")).await.is_err());
    }

    #[tokio::test]
    async fn no_join_service_runs_while_the_first_name_is_another_machines() {
        let cluster = TestCluster::start().await.unwrap();
        let admin = cluster.admin().unwrap();
        deployment::namespace().apply(&admin).await.unwrap();
        claim(&admin, machine(b"another")).await.unwrap();
        let error = new_cluster().apply(&admin).await.unwrap_err();
        assert!(matches!(error, DeployError::Record(_)) && !error.may_pass(), "{error}");
        assert_eq!(join_service(&admin).await, (false, false));
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_applied_keeps_no_other_from_it() {
        let cluster = TestCluster::start().await.unwrap();
        let admin = cluster.admin().unwrap();
        let bindings: Api<ClusterRoleBinding> = Api::all(admin.clone());
        // A binding's role is immutable.
        let other = ClusterRoleBinding {
            metadata: ObjectMeta {
                name: Some("kubeadm:node-autoapprove-bootstrap".into()),
                ..ObjectMeta::default()
            },
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".into(),
                kind: "ClusterRole".into(),
                name: "view".into(),
            },
            subjects: None,
        };
        bindings.create(&PostParams::default(), &other).await.unwrap();
        let error = again().apply(&admin).await.unwrap_err();
        assert!(matches!(error, DeployError::Apply(_)) && !error.may_pass(), "{error}");
        assert!(join_service(&admin).await.0);
    }
}
