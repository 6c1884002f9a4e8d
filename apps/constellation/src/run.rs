//! The data that the phases of `apply` work on.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use attestation::{Expectations, ExpectedMembership, ExpectedStatements, Variants};
use cluster_config::{ClusterConfig, ClusterState, InitProgress, MadeOf, Workspace, names};
use cluster_policy::{BelievedPolicy, ClusterPolicy, Release};
use cluster_types::{ClusterId, NodeName, OperatorPublicKey};
use digest::oci;
use error_report::explain_denied;
use infrastructure::{Infrastructure, Machine, MachineStatus, Provider};
use key_derivation::{MasterSecret, cluster_id};
use kubernetes_components::ComponentList;
use measurements::ReferenceValues;
use node_secrets::KeyServiceKey;
use operator_key::OperatorKey;

use crate::advice::{Advise, advise};
use crate::providers::Providers;
use crate::unknown::state_or_new;
use crate::{machines, mirror};

/// Everything the phases work on.
pub(crate) struct Run<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) config: ClusterConfig,
    pub(crate) state: ClusterState,
    pub(crate) provider: Box<dyn Provider>,
    pub(crate) variants: &'a dyn Variants,
    pub(crate) reference_values: ReferenceValues,
    pub(crate) components: ComponentList,
    /// What the cluster is to be made from; if it exists, what it was made from, with the nodes that are wanted now.
    pub(crate) made_of: MadeOf,
}

impl<'a> Run<'a> {
    /// Reads the workspace and changes nothing. The workspace is locked meanwhile, so the components were fetched before.
    pub(crate) fn prepare(
        workspace: &'a Workspace,
        config: ClusterConfig,
        components: ComponentList,
        providers: &dyn Providers,
        variants: &'a dyn Variants,
    ) -> Result<Self> {
        // A foreign kubeconfig is found now, and not after the node has handed out its own.
        let mut state = state_or_new(workspace, providers)?;
        // Only here in memory: what is refused below is not stored.
        finish_interrupted(workspace, &mut state)?;
        let document = reference_document(&config)?;
        // A damaged master secret is found here too, before there are machines.
        let made_of = made_of(workspace, &state, &config, &document, oci::format(&components.digest()))?;
        if let Some(cluster) = made(workspace, &state, providers)? {
            refuse_changes(&cluster, &made_of)?;
        }
        let provider = providers.configured(workspace, &config.provider)?;
        Ok(Self {
            reference_values: parse_reference_values(&document, &config, variants)?,
            workspace,
            config,
            state,
            provider,
            variants,
            components,
            made_of,
        })
    }

    /// The machines, which the first phase created.
    pub(crate) fn infrastructure(&self) -> Result<&Infrastructure> {
        self.state
            .infrastructure
            .as_ref()
            .context("the machines have not been created")
    }

    /// Signs what nodes may run and install, unless the newest policy says the same. It is stored before it is used: two policies of
    /// one serial would exclude each other.
    pub(crate) fn sign_policy(&mut self) -> Result<()> {
        let secret = self.workspace.master_secret()?;
        let Some(policy) = self.next_policy(&secret)? else {
            return Ok(());
        };
        let signed =
            BelievedPolicy::sign(&policy, &OperatorKey::of(&secret)).context("cannot sign the cluster policy")?;
        self.state.policy = Some(signed.into_signed());
        Ok(self.workspace.save_state(&self.state)?)
    }

    /// An error if a cluster would need another policy. Nothing that it says can be changed yet, whatever the state claims that the cluster was
    /// made from: only the operator can have signed the policy.
    pub(crate) fn refuse_another_policy(&self) -> Result<()> {
        if self.next_policy(&self.workspace.master_secret()?)?.is_none() {
            return Ok(());
        }
        let error = anyhow!(
            "the cluster's policy does not list the image and the Kubernetes release that the workspace has now"
        );
        Err(error).advise(
            "restore constellation-state.yaml, constellation-conf.yaml and the image of this cluster from a backup",
        )
    }

    /// What is to be signed, if the newest policy does not say it.
    fn next_policy(&self, secret: &MasterSecret) -> Result<Option<ClusterPolicy>> {
        let operator = OperatorKey::of(secret).public();
        let wanted = ClusterPolicy {
            cluster: id_of_cluster(&self.state, secret)?,
            serial: 1,
            images: vec![self.reference_values.clone()],
            releases: vec![Release::of(&self.components)],
            min_grant_serial: 0,
            key_service: KeyServiceKey::of(secret).public(),
        };
        let newest = self.state.policy.clone();
        let newest = newest.and_then(|newest| newest.believe(|signer| *signer == operator).ok());
        Ok(wanted.succeeding(newest.as_deref()))
    }

    /// The newest policy.
    pub(crate) fn policy(&self) -> Result<BelievedPolicy> {
        let operator = self.made_of.operator_key.context("the cluster has no operator")?;
        newest_policy(&self.state, &operator)
    }
}

/// The state of a cluster that a command only looks at.
pub(crate) fn existing_state(workspace: &Workspace) -> Result<ClusterState> {
    workspace
        .state()?
        .context("there is no constellation-state.yaml in this workspace")
        .advise(
            "if there is a cluster, restore the file from a backup; otherwise create one with `constellation mini up` or \
             `constellation apply`",
        )
}

/// The newest policy that this operator signed.
pub(crate) fn newest_policy(state: &ClusterState, operator: &OperatorPublicKey) -> Result<BelievedPolicy> {
    let policy = state.policy.clone();
    let policy = policy
        .context("constellation-state.yaml has no cluster policy")
        .advise(match state.init {
            InitProgress::Done => "restore constellation-state.yaml from a backup",
            _ => "finish creating the cluster with `constellation apply`",
        })?;
    let believed = policy.believe(|signer| signer == operator);
    believed
        .context("constellation-state.yaml has another operator's cluster policy")
        .advise("restore constellation-state.yaml or the master secret from a backup, so that they belong together")
}

/// Whom the nodes must obey: whose master secret is in the workspace. An operator's colleague who has none believes the state.
pub(crate) fn operator(workspace: &Workspace, state: &ClusterState) -> Result<OperatorPublicKey> {
    if workspace.has(names::MASTER_SECRET)? {
        return Ok(operator_of(&workspace.master_secret()?));
    }
    let recorded = state.made_of.as_ref().and_then(|made_of| made_of.operator_key);
    recorded
        .context("neither a master secret nor constellation-state.yaml says which operator the nodes obey")
        .advise("finish creating the cluster with `constellation apply`")
}

/// The configuration, which the user edits and no command changes.
pub(crate) fn load_config(workspace: &Workspace) -> Result<ClusterConfig> {
    workspace
        .config()
        .advise("correct the configuration, then run the same command again")
}

/// What nodes must prove, from the file beside the image. The variant that will use it checks it.
fn parse_reference_values(document: &str, config: &ClusterConfig, variants: &dyn Variants) -> Result<ReferenceValues> {
    let values = ReferenceValues::parse_for(config.variant, document.as_bytes()).map_err(anyhow::Error::from);
    let usable = values.and_then(|values| {
        // Any operator will do: only the values are checked.
        let statements = ExpectedStatements {
            operator: OperatorPublicKey::new([0; 32]),
            membership: ExpectedMembership::New,
        };
        let expectations = Expectations {
            image: values.clone(),
            statements,
        };
        variants.verifier(values.variant(), &expectations)?;
        Ok(values)
    });
    usable
        .with_context(|| format!("cannot use {}", reference_path(config).display()))
        .advise("set `image` and `attestationVariant` in constellation-conf.yaml so that image and variant match")
}

/// The operator's public key, by which a master secret is known again and which every node measures.
pub(crate) fn operator_of(secret: &MasterSecret) -> OperatorPublicKey {
    OperatorKey::of(secret).public()
}

/// Does what a run that was interrupted after the node's success had left to do. The kubeconfig tells of the success.
fn finish_interrupted(workspace: &Workspace, state: &mut ClusterState) -> Result<()> {
    let is_left = state.init == InitProgress::Started && workspace.check_own(state, names::ADMIN_CONF)?;
    match &state.infrastructure {
        Some(infrastructure) if is_left => {
            let node = machines::first_node(infrastructure)?;
            let expected = expected_id(state, &workspace.master_secret()?);
            is_a_cluster(state, &node, expected);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The first node has made the cluster.
pub(crate) fn is_a_cluster(state: &mut ClusterState, first: &Machine, id: ClusterId) {
    state.cluster_id = Some(id);
    state.init = InitProgress::Done;
    // Its machine is replaced if it stops and is no member.
    state.members.insert(first.name.clone());
}

/// The cluster id that the master secret gives.
pub(crate) fn expected_id(state: &ClusterState, secret: &MasterSecret) -> ClusterId {
    cluster_id(&secret.kek().measurement_secret(), &state.measurement_salt)
}

/// The same, which must be that of the cluster that exists, if one does.
pub(crate) fn id_of_cluster(state: &ClusterState, secret: &MasterSecret) -> Result<ClusterId> {
    let derived = expected_id(state, secret);
    match state.cluster_id.filter(|actual| *actual != derived) {
        None => Ok(derived),
        Some(actual) => {
            let error = anyhow!(
                "the master secret and the measurement salt yield cluster id {derived}, but this is cluster {actual}"
            );
            Err(error).advise("restore constellation-state.yaml from a backup")
        }
    }
}

/// An error if a cluster cannot become what is wanted. Nothing of it is applied then, not even what could be.
fn refuse_changes(cluster: &MadeOf, wanted: &MadeOf) -> Result<()> {
    let differences = cluster.differences(wanted);
    if differences.is_empty() {
        return Ok(());
    }
    Err(advise(
        anyhow!(
            "the configuration no longer matches what the cluster was made from; these settings cannot be changed yet, and nothing was \
             done"
        ),
        differences.iter().map(ToString::to_string).collect(),
        "restore the values named above, then run the same command again. For a new cluster instead, first run `constellation \
         terminate`: it destroys all data of this one",
    ))
}

/// An error if the configuration alone wants what the cluster cannot become: before a mirror is asked, which may not have it.
pub(crate) fn refuse_configured_changes(
    workspace: &Workspace,
    config: &ClusterConfig,
    providers: &dyn Providers,
) -> Result<()> {
    let Some(state) = workspace.state()? else {
        return Ok(());
    };
    let Some(cluster) = made(workspace, &state, providers)? else {
        return Ok(());
    };
    let document = reference_document(config)?;
    let wanted = made_of(workspace, &state, config, &document, cluster.components.clone())?;
    refuse_changes(&cluster, &wanted)
}

/// What the cluster was made from, if there is one. A node whose machine was never created can still become anything.
fn made(workspace: &Workspace, state: &ClusterState, providers: &dyn Providers) -> Result<Option<MadeOf>> {
    let Some(mut cluster) = state.made_of.clone().filter(|_| state.init == InitProgress::Done) else {
        return Ok(None);
    };
    let machines = providers.existing(workspace)?.machines()?;
    let exist = |name: &NodeName| {
        let mut machines = machines.iter();
        machines.any(|machine| machine.name == *name && machine.status != MachineStatus::NotMade)
    };
    cluster.nodes.retain(|name, _| exist(name));
    Ok(Some(cluster))
}

fn made_of(
    workspace: &Workspace,
    state: &ClusterState,
    config: &ClusterConfig,
    reference_document: &str,
    components: String,
) -> Result<MadeOf> {
    // Once there is a cluster, no other secret can take the place of one that is missing.
    let secret = if state.init == InitProgress::Done || workspace.has(names::MASTER_SECRET)? {
        Some(workspace.master_secret()?)
    } else {
        None
    };
    let nodes = config.nodes().into_iter();
    Ok(MadeOf {
        provider: config.provider.key().to_owned(),
        attestation_variant: config.variant,
        name: config.name.clone(),
        kubernetes_version: config.kubernetes_version.clone(),
        components,
        service_cidr: config.service_cidr.to_string(),
        reference_values: reference_document.to_owned(),
        operator_key: secret.as_ref().map(operator_of),
        nodes: nodes.map(|node| (node.name.clone(), node)).collect(),
    })
}

/// What nodes must prove, as the file beside the image says.
fn reference_document(config: &ClusterConfig) -> Result<String> {
    let path = reference_path(config);
    std::fs::read_to_string(&path)
        .map_err(|error| explain_denied(&path, error))
        .with_context(|| format!("cannot read {}", path.display()))
        .advise("set `image` in constellation-conf.yaml to the folder that `cargo xtask image build` wrote")
}

fn reference_path(config: &ClusterConfig) -> PathBuf {
    config.image.join("reference-values.json")
}

/// The components of the configured version.
pub(crate) async fn load_components(config: &ClusterConfig) -> Result<ComponentList> {
    let list = mirror::load_list(&config.mirror, config.components_digest, HOW_TO_PIN)
        .await
        .context("cannot read the mirror of Kubernetes")
        .advise(
            "fill a mirror with `constellation mirror create` or `cargo xtask upstream`, and set `mirror` in \
         constellation-conf.yaml to it",
        )?
        .list;
    if *list.kubernetes_version() != config.kubernetes_version {
        let (found, wanted) = (list.kubernetes_version(), &config.kubernetes_version);
        let mismatch: Result<()> = (|| bail!("the mirror has Kubernetes {found}, but kubernetesVersion is {wanted}"))();
        mismatch.advise("set kubernetesVersion to the mirror's version, or use another mirror")?;
    }
    Ok(list)
}

const HOW_TO_PIN: &str = "set kubernetesComponentsDigest in constellation-conf.yaml to the digest that `sha256sum \
                        components.json` prints where the mirror was filled";
