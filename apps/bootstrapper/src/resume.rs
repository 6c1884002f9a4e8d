//! From a boot with an open state disk to a running kubelet.

use std::sync::Arc;

use attestation::{DeviceError, MeasuringAttester, Membership};
use cluster_policy::{AdvancePolicyError, AnotherOperator, UnlistedRelease};
use component_installer::{ComponentMirror, ImportError, InstallError, ParseMirrorAddressError, import_images};
use digest::Digest;
use error_report::Chain;
use kubernetes_components::ComponentList;
use programs::{Programs, RunError};
use tracing::warn;

use crate::deploy::{Deployer, redeploy};
use crate::files::{LoadComponentsError, LoadNodeStateError, NodeFiles, NodeState, Stage};
use crate::network::{NetworkError, set_up_network};
use crate::node::{OWN_IMAGES, installer, needed_by, start_kubelet};

/// A node that became a member in an earlier boot.
pub(crate) struct MemberNode<'a> {
    pub(crate) attester: &'a dyn MeasuringAttester,
    pub(crate) files: &'a NodeFiles,
    pub(crate) programs: &'a Arc<dyn Programs>,
    pub(crate) deployer: &'a dyn Deployer,
    pub(crate) platform_mirror: ComponentMirror,
}

/// The member cannot start its kubelet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResumeError {
    #[error("cannot read which cluster this node belongs to")]
    Device(#[from] DeviceError),
    #[error("the node is part of a cluster, but has not measured whom it obeys")]
    ObeysNobody,
    #[error("the node was interrupted while joining a cluster: replace it")]
    Interrupted,
    #[error(transparent)]
    State(#[from] LoadNodeStateError),
    #[error(transparent)]
    LoadPolicy(#[from] AdvancePolicyError),
    #[error("the stored cluster policy is not signed by the operator whom this node obeys")]
    Policy(#[from] AnotherOperator),
    #[error("the node has measured {actual}, but a member of its policy's cluster in its role measures {expected}")]
    AnotherMember { actual: Digest, expected: Digest },
    #[error(transparent)]
    LoadComponents(#[from] LoadComponentsError),
    #[error("the operator did not sign what this node has of Kubernetes")]
    Unlisted(#[from] UnlistedRelease),
    #[error("the stored address of the mirror is malformed")]
    Mirror(#[from] ParseMirrorAddressError),
    #[error("cannot restore the pinned files of Kubernetes")]
    Install(#[from] InstallError),
    #[error("cannot set up the node's network")]
    Network(#[from] NetworkError),
    #[error("cannot import the services' images")]
    Images(#[from] ImportError),
    #[error("cannot start kubelet")]
    Kubelet(#[source] RunError),
}

/// Starts the kubelet of a node that became a member in an earlier boot. Whoever measured the membership measured the operator before:
/// otherwise anyone with root here could still measure an operator of their choice.
///
/// 1. The operator's policy must be for the cluster and the role that this node has measured, and list what it has of Kubernetes.
/// 2. The node gets its address. Each of these files must have its hash: what has another is fetched once more, because root on this node may have
///    changed it in an earlier boot.
/// 3. This boot's image may have other services than the last one's: their images are imported.
/// 4. The kubelet starts. The node that deploys does so.
pub(crate) async fn resume(node: &MemberNode<'_>) -> Result<(), ResumeError> {
    if node.attester.statements()?.operator.is_nothing() {
        return Err(ResumeError::ObeysNobody);
    }
    let state = match node.files.load_state() {
        Ok(state) if state.stage == Stage::Member => state,
        Ok(_) | Err(LoadNodeStateError::Missing) => return Err(ResumeError::Interrupted),
        Err(error) => return Err(error.into()),
    };
    let components = needed_by(state.role, &node.pinned_components(&state)?);
    let programs = &**node.programs;
    set_up_network(node.files, programs, state.address, &state.network).await?;
    node.restore(&components, state.mirror.as_deref()).await?;
    import_images(node.programs, &node.files.path(OWN_IMAGES)).await?;
    start_kubelet(programs).await.map_err(ResumeError::Kubelet)?;
    redeploy(node.files, node.attester.identity(), node.deployer).await;
    Ok(())
}

impl MemberNode<'_> {
    /// The mirror that the node used when it joined may be gone.
    async fn restore(&self, components: &ComponentList, mirror: Option<&str>) -> Result<(), ResumeError> {
        let installer = installer(self.files);
        if let Some(mirror) = mirror {
            match installer.install(components, &mirror.parse()?).await {
                Ok(()) => return Ok(()),
                Err(error) => warn!(error = %Chain(&error), mirror, "trying the platform's mirror"),
            }
        }
        Ok(installer.install(components, &self.platform_mirror).await?)
    }

    /// What the operator signed, for the cluster and role that this node has measured.
    fn pinned_components(&self, state: &NodeState) -> Result<ComponentList, ResumeError> {
        let operator = self.attester.statements()?.operator;
        let policy = self
            .files
            .policy_store()
            .load()?
            .believe(|signer| operator.is(signer))?;
        let (membership, measured) = (Membership::new(policy.cluster, state.role), self.attester.membership()?);
        if !measured.is(&membership) {
            return Err(ResumeError::AnotherMember {
                actual: measured.shown(),
                expected: measured.shown_by(&membership),
            });
        }
        let components = self.files.load_components()?;
        policy.must_list(&components)?;
        Ok(components)
    }
}
