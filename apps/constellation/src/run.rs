//! The data that the phases of `apply` work on.

use anyhow::{Context, Result, bail};
use attestation::{Expectations, ExpectedMembership, Variants, Verifiers};
use cluster_config::{ClusterConfig, ClusterState, InitProgress, Workspace, names};
use error_report::explain_denied;
use infrastructure::{Infrastructure, Provider};
use kubernetes_components::ComponentList;
use measurements::ReferenceValues;

use crate::advice::Advise;
use crate::mirror;
use crate::providers::Providers;

/// Everything the phases work on.
pub(crate) struct Run<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) config: ClusterConfig,
    pub(crate) state: ClusterState,
    pub(crate) provider: Box<dyn Provider>,
    pub(crate) variants: &'a dyn Variants,
    pub(crate) reference_values: ReferenceValues,
    pub(crate) components: ComponentList,
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
        let reference_values = load_reference_values(&config, variants)?;
        let state = workspace.state()?.unwrap_or_else(ClusterState::new);
        if state.init != InitProgress::Done {
            // Found now, and not after the node has handed out its kubeconfig.
            workspace
                .check_own(&state, names::ADMIN_CONF)
                .next("move it to another folder, then run the same command again")?;
        }
        if workspace.has(names::MASTER_SECRET)? {
            // A damaged one is found before there are machines.
            workspace.master_secret()?;
        }
        let provider = providers.configured(workspace, &config.provider)?;
        Ok(Self {
            workspace,
            config,
            state,
            provider,
            variants,
            reference_values,
            components,
        })
    }

    /// The machines, which the first phase created.
    pub(crate) fn infrastructure(&self) -> Result<&Infrastructure> {
        self.state
            .infrastructure
            .as_ref()
            .context("the machines have not been created")
    }
}

/// The configuration, which the user edits and no command changes.
pub(crate) fn load_config(workspace: &Workspace) -> Result<ClusterConfig> {
    workspace
        .config()
        .next("correct the configuration, then run the same command again")
}

/// What nodes must prove, from the file beside the image. The variant that will use it checks it.
pub(crate) fn load_reference_values(config: &ClusterConfig, variants: &dyn Variants) -> Result<ReferenceValues> {
    let path = config.image.join("reference-values.json");
    let bytes = std::fs::read(&path)
        .map_err(|error| explain_denied(&path, error))
        .with_context(|| format!("cannot read {}", path.display()))
        .next("set `image` in constellation-conf.yaml to the folder that `cargo xtask image build` wrote")?;
    let values = ReferenceValues::parse_for(config.variant, &bytes).map_err(anyhow::Error::from);
    let usable = values.and_then(|values| {
        accepted(variants, &values, ExpectedMembership::New)?;
        Ok(values)
    });
    usable
        .with_context(|| format!("cannot use {}", path.display()))
        .next("set `image` and `attestationVariant` in constellation-conf.yaml to what belongs together")
}

/// Accepts nodes of this image that have said this about themselves.
pub(crate) fn accepted(
    variants: &dyn Variants,
    image: &ReferenceValues,
    membership: ExpectedMembership,
) -> Result<Verifiers> {
    let expectations = Expectations {
        image: image.clone(),
        membership,
    };
    Ok(Verifiers::one(variants.verifier(image.variant(), &expectations)?))
}

/// The components of the configured version.
pub(crate) async fn load_components(config: &ClusterConfig) -> Result<ComponentList> {
    let list = mirror::load_list(&config.mirror, config.components_digest, UNPINNED)
        .await
        .context("cannot read the mirror of Kubernetes")
        .next(
            "fill a mirror with `constellation mirror create` or `cargo xtask upstream`, and set `mirror` in \
         constellation-conf.yaml to it",
        )?
        .list;
    if *list.kubernetes_version() != config.kubernetes_version {
        let (found, wanted) = (list.kubernetes_version(), &config.kubernetes_version);
        let mismatch: Result<()> = (|| bail!("the mirror has Kubernetes {found}, but kubernetesVersion is {wanted}"))();
        mismatch.next("set kubernetesVersion to the mirror's version, or use another mirror")?;
    }
    Ok(list)
}

const UNPINNED: &str = "set kubernetesComponentsDigest in constellation-conf.yaml to the digest that `sha256sum \
                        components.json` prints where the mirror was filled";
