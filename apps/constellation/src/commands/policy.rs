//! `policy show`: what the cluster serves as its policy, and whether anyone believes it.

use std::cmp::Ordering;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use cluster_config::{ClusterState, Workspace};
use cluster_objects::{CLUSTER_POLICY, JOIN_CONFIG};
use cluster_policy::{BelievedPolicy, ClusterPolicy, Release, SignedPolicy};
use cluster_types::{ClusterId, KeyServicePublicKey, OperatorPublicKey, Service};
use deployment::is_final;
use digest::{Digest, oci};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use measurements::ReferenceValues;
use serde::Serialize;

use crate::advice::{Advise, given_up};
use crate::arguments::Format;
use crate::output::{print, shown};
use crate::run::{Run, existing_state, newest_policy, operator};
use crate::{kubeconfig, machines};

/// The served policy, in the form for programs. Nothing of a policy that the operator did not sign is shown, except its signer.
#[derive(Serialize)]
struct Report {
    /// Whether this workspace's operator signed it, for this cluster, and nothing newer.
    in_force: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    signer: OperatorPublicKey,
    #[serde(flatten)]
    policy: Option<Shown>,
}

#[derive(Serialize)]
struct Shown {
    serial: u64,
    cluster_id: ClusterId,
    images: Vec<ShownImage>,
    kubernetes: Vec<ShownRelease>,
    min_grant_serial: u64,
    key_service: KeyServicePublicKey,
}

#[derive(Serialize)]
struct ShownImage {
    name: String,
    variant: String,
    /// SHA-256 of the document `reference-values.json`.
    reference_values: Digest,
}

#[derive(Serialize)]
struct ShownRelease {
    version: String,
    /// Digest of the list of components.
    components: String,
}

/// The command. Its exit code is 0 only if the served policy is the newest one that the operator signed.
pub(crate) async fn show(workspace: &Workspace, output: Format) -> Result<ExitCode> {
    let state = existing_state(workspace)?;
    let operator = operator(workspace, &state)?;
    let report = report(served(workspace).await?, &state, &operator)?;
    match output {
        Format::Text => print(&text(&report))?,
        Format::Json => print(&serde_json::to_string_pretty(&report)?)?,
    }
    Ok(if report.in_force {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// An error if the cluster has a policy of the operator that the workspace does not know: join services would refuse the workspace's.
pub(crate) async fn must_not_be_older(run: &Run<'_>, client: &Client) -> Result<()> {
    let newest = run.policy()?;
    let objects: Api<ConfigMap> = Api::namespaced(client.clone(), Service::NAMESPACE);
    let attempt = || async {
        match objects.get_opt(JOIN_CONFIG).await {
            // It will not take our policy either, and says why then.
            Err(kube::Error::Api(status)) if is_final(status.code) => Ok(None),
            found => found.map_err(|error| machines::retry(&*run.provider, anyhow!(kubeconfig::in_words(&error)))),
        }
    };
    let found = kubeconfig::api_schedule().poll(attempt, |_, _| {}).await;
    let found = found
        .map_err(|error| given_up(error, &format!("ConfigMap {JOIN_CONFIG} could not be read")))
        .advise("check the control plane with `constellation status`, then run the same command again")?;
    // What cannot be believed is replaced in a moment.
    let Some(object) = found else {
        return Ok(());
    };
    let bytes = object.binary_data.as_ref().and_then(|data| data.get(CLUSTER_POLICY));
    let served = bytes.and_then(|bytes| SignedPolicy::parse(&bytes.0).ok());
    let served = served.and_then(|served| served.believe(|signer| signer == newest.operator()).ok());
    let is_unknown = |served: &BelievedPolicy| {
        served.cluster == newest.cluster && served.serial >= newest.serial && served.as_bytes() != newest.as_bytes()
    };
    let Some(served) = served.filter(is_unknown) else {
        return Ok(());
    };
    let error = anyhow!(
        "the cluster has a policy with serial {}, which is not the one with serial {} in constellation-state.yaml",
        served.serial,
        newest.serial
    );
    Err(error).advise(OLD_STATE)
}

/// Whoever may write the ConfigMap chooses the bytes.
async fn served(workspace: &Workspace) -> Result<SignedPolicy> {
    let client = kubeconfig::client(workspace).await?;
    let objects: Api<ConfigMap> = Api::namespaced(client, Service::NAMESPACE);
    let object = objects.get(JOIN_CONFIG).await;
    let object = object
        .map_err(|error| anyhow!(kubeconfig::in_words(&error)))
        .with_context(|| format!("cannot read ConfigMap {JOIN_CONFIG}"))
        .advise("check the control plane with `constellation status`, then run the same command again")?;
    let bytes = object.binary_data.as_ref().and_then(|data| data.get(CLUSTER_POLICY));
    let policy = bytes
        .with_context(|| format!("ConfigMap {JOIN_CONFIG} has no key {CLUSTER_POLICY}"))
        .and_then(|bytes| Ok(SignedPolicy::parse(&bytes.0)?));
    policy
        .map_err(|error| anyhow!(shown(&format!("{error:#}"))))
        .context("the cluster serves no valid policy")
        .advise(RESTORE)
}

const RESTORE: &str = "an earlier build made the cluster, or someone with write access to it changed the policy: join services keep the last \
                       one that they accepted while they run. Run `constellation apply`, which restores it";
const OLD_STATE: &str = "restore the latest constellation-state.yaml from a backup";

fn report(served: SignedPolicy, state: &ClusterState, operator: &OperatorPublicKey) -> Result<Report> {
    let signer = *served.signer();
    let policy = match served.believe(|signer| signer == operator) {
        Ok(policy) => policy,
        Err(error) => {
            let reason = format!("{error}: this workspace's operator is {operator}");
            return Ok(Report {
                in_force: false,
                reason: Some(reason),
                signer,
                policy: None,
            });
        }
    };
    let newest = newest_policy(state, operator)?;
    let (serial, signed) = (policy.serial, newest.serial);
    let reason = match state.cluster_id.map(|cluster| policy.must_be_for(cluster)) {
        Some(Err(another)) => Some(another.to_string()),
        _ if policy.as_bytes() == newest.as_bytes() => None,
        _ => Some(match serial.cmp(&signed) {
            Ordering::Less => {
                format!("it has serial {serial}, but you have signed serial {signed}; run `constellation apply`")
            }
            Ordering::Equal => format!("you have signed another policy with serial {serial}; {OLD_STATE}"),
            Ordering::Greater => {
                format!(
                    "it has serial {serial}, and this workspace knows serial {signed} as the newest one; {OLD_STATE}"
                )
            }
        }),
    };
    Ok(Report {
        in_force: reason.is_none(),
        reason,
        signer,
        policy: Some(Shown::of(&policy)),
    })
}

impl Shown {
    fn of(policy: &ClusterPolicy) -> Self {
        let ClusterPolicy {
            cluster,
            serial,
            images,
            releases,
            min_grant_serial,
            key_service,
        } = policy;
        let image = |image: &ReferenceValues| ShownImage {
            name: image.image().to_owned(),
            variant: image.variant().to_string(),
            reference_values: Digest::of(image.to_json().as_bytes()),
        };
        let release = |Release { version, components }: &Release| ShownRelease {
            version: version.to_string(),
            components: oci::format(components),
        };
        Self {
            serial: *serial,
            cluster_id: *cluster,
            images: images.iter().map(image).collect(),
            kubernetes: releases.iter().map(release).collect(),
            min_grant_serial: *min_grant_serial,
            key_service: *key_service,
        }
    }
}

fn text(report: &Report) -> String {
    let Report {
        in_force,
        reason,
        signer,
        policy,
    } = report;
    let mut lines = vec![match reason {
        _ if *in_force => "Policy:\tthe newest one you signed is served".to_owned(),
        reason => format!(
            "Policy:\tnot the newest one you signed: {}",
            reason.as_deref().unwrap_or_default()
        ),
    }];
    lines.push(format!("Signer:\t{signer}"));
    if let Some(policy) = policy {
        lines.push(format!("Serial:\t{}", policy.serial));
        lines.push(format!("Cluster:\t{}", policy.cluster_id));
        lines.extend(policy.images.iter().map(|image| {
            let (name, digest) = (shown(&image.name), oci::format(&image.reference_values));
            format!("Image:\t{name}, {}, reference values {digest}", image.variant)
        }));
        lines.extend(
            policy
                .kubernetes
                .iter()
                .map(|release| format!("Kubernetes:\t{}, components {}", release.version, release.components)),
        );
        lines.push(format!("Role grants:\tfrom serial {}", policy.min_grant_serial));
        lines.push(format!("Key service:\t{}", policy.key_service));
    }
    lines.join("\n")
}
