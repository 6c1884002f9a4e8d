//! What every account of a fresh cluster can reach that matters, compared with the table in `docs/hardening.md`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Image};
use futures_util::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::attacks::blocking;
use crate::workload::WORKER;

const DOCUMENT: &str = include_str!("../../../../docs/hardening.md");
const HEADING: &str = "| Account | Reaches |";

/// A right that leads to keys, roles, names or admission, and how the document calls it.
struct Matter {
    name: &'static str,
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    namespace: &'static str,
    object: &'static str,
}

const fn matter(name: &'static str, verb: &'static str, group: &'static str, resource: &'static str) -> Matter {
    Matter {
        name,
        verb,
        group,
        resource,
        namespace: "kube-system",
        object: "",
    }
}

const MATTERS: [Matter; 15] = [
    Matter {
        object: "join-config",
        ..matter("join configuration", "update", "", "configmaps")
    },
    Matter {
        namespace: "constellation-nodes",
        ..matter("records", "update", "", "configmaps")
    },
    matter("Secrets", "get", "", "secrets"),
    matter("bootstrap tokens", "create", "", "secrets"),
    matter("pods in kube-system", "create", "", "pods"),
    matter("exec in kube-system", "create", "", "pods/exec"),
    matter("DaemonSets in kube-system", "patch", "apps", "daemonsets"),
    Matter {
        object: "join-service",
        ..matter("tokens of the join service", "create", "", "serviceaccounts/token")
    },
    Matter {
        object: "kubernetes.io/kube-apiserver-client-kubelet",
        ..matter(
            "kubelets' client certificates",
            "approve",
            "certificates.k8s.io",
            "signers",
        )
    },
    Matter {
        object: "kubernetes.io/kubelet-serving",
        ..matter(
            "kubelets' serving certificates",
            "approve",
            "certificates.k8s.io",
            "signers",
        )
    },
    matter("Nodes", "patch", "", "nodes"),
    matter(
        "admission rules",
        "delete",
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
    ),
    matter("rights of others", "bind", "rbac.authorization.k8s.io", "clusterroles"),
    matter("other users", "impersonate", "", "users"),
    matter("namespaces", "update", "", "namespaces"),
];

/// Who asks, as the API server names it.
struct Subject {
    /// As the document calls it.
    title: String,
    user: String,
    groups: Vec<String>,
}

/// Nobody reaches anything that matters but who is in the document's table, and it says no more than is so.
pub(crate) fn every_account_reaches_what_is_written_and_no_more(cluster: &Cluster, _: &Image) -> Result<()> {
    let found = blocking(async {
        let config = Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let mut found = BTreeMap::new();
        for subject in subjects(&client).await? {
            let allowed = MATTERS.iter().map(|matter| is_allowed(&client, &subject, matter));
            let allowed = try_join_all(allowed).await?;
            let reached = MATTERS.iter().zip(allowed).filter(|(_, allowed)| *allowed);
            let reached: BTreeSet<_> = reached.map(|(matter, _)| matter.name.to_owned()).collect();
            if !reached.is_empty() {
                found.insert(subject.title, reached);
            }
        }
        Ok(found)
    })?;
    let written = written()?;
    let shown = |table: &BTreeMap<String, BTreeSet<String>>| {
        let row = |(account, reached): (&String, &BTreeSet<String>)| {
            let reached: Vec<_> = reached.iter().map(String::as_str).collect();
            format!("| `{account}` | {} |\n", reached.join(", "))
        };
        table.iter().map(row).collect::<String>()
    };
    ensure!(
        found == written,
        "docs/hardening.md has\n{}but in the cluster it is\n{}",
        shown(&written),
        shown(&found)
    );
    Ok(())
}

/// The table of the document.
fn written() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let (_, table) = DOCUMENT.split_once(HEADING).context("the table is not there")?;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [account, reached] = cells[..] else { return None };
        let reached = reached.split(", ").map(str::to_owned).collect();
        Some((account.trim_matches('`').to_owned(), reached))
    };
    rows.map(|line| row(line).with_context(|| format!("not a row: {line}")))
        .collect()
}

/// Every service account there is, and the other credentials that a cluster gives out.
async fn subjects(client: &Client) -> Result<Vec<Subject>> {
    let accounts: Api<ServiceAccount> = Api::all(client.clone());
    let accounts = accounts.list(&ListParams::default()).await?;
    let mut subjects: Vec<_> = accounts.items.into_iter().map(of_service_account).collect();
    let subject = |title: &str, user: &str, groups: &[&str]| Subject {
        title: title.to_owned(),
        user: user.to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
    };
    let authenticated = "system:authenticated";
    let of_kubeadm = "system:bootstrappers:kubeadm:default-node-token";
    subjects.extend([
        subject("nobody", "system:anonymous", &["system:unauthenticated"]),
        subject("any user", "alice", &[authenticated]),
        subject(
            "a bootstrap token",
            "system:bootstrap:abcdef",
            &["system:bootstrappers", of_kubeadm, authenticated],
        ),
        subject(
            "a kubelet",
            &format!("system:node:{WORKER}"),
            &["system:nodes", authenticated],
        ),
        subject(
            "kube-controller-manager",
            "system:kube-controller-manager",
            &[authenticated],
        ),
        subject("kube-scheduler", "system:kube-scheduler", &[authenticated]),
        subject("kube-proxy", "system:kube-proxy", &[authenticated]),
    ]);
    Ok(subjects)
}

fn of_service_account(account: ServiceAccount) -> Subject {
    let namespace = account.metadata.namespace.unwrap_or_default();
    let name = account.metadata.name.unwrap_or_default();
    Subject {
        user: format!("system:serviceaccount:{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".into(),
        ],
        title: format!("{namespace}/{name}"),
    }
}

async fn is_allowed(client: &Client, subject: &Subject, matter: &Matter) -> Result<bool> {
    let (resource, subresource) = matter.resource.split_once('/').unwrap_or((matter.resource, ""));
    let attributes = ResourceAttributes {
        verb: Some(matter.verb.into()),
        group: Some(matter.group.into()),
        resource: Some(resource.into()),
        subresource: Some(subresource.into()),
        namespace: Some(matter.namespace.into()),
        name: Some(matter.object.into()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(subject.user.clone()),
            groups: Some(subject.groups.clone()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &review).await?;
    Ok(review.status.context("a review without a result")?.allowed)
}
