//! Rules of admission that Kubernetes does not have by itself: who may change what of a Node, who approves its certificates, and which
//! pods count as Kubernetes' own.
//!
//! RBAC allows a field of an object to everyone who may write the object. flannel may write the status of every Node, and a status
//! update takes labels and annotations with it: flannel's token, which every node has, could make any Node a control plane and lead
//! any pod's traffic elsewhere.

use std::collections::BTreeMap;

use cluster_types::Service;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec, Validation,
    Variable,
};
use kube::api::ObjectMeta;

use crate::{Object, pod_network};

/// The annotation by which Kubernetes' own objects say what they are for.
pub(crate) const DESCRIPTION: &str = "kubernetes.io/description";

struct Rule {
    name: &'static str,
    /// Why it exists.
    reason: &'static str,
    /// The API group of the resources; the core group has no name.
    group: &'static str,
    resources: &'static [&'static str],
    operations: &'static [&'static str],
    /// Which requests it is for, as a CEL expression.
    applies_to: (&'static str, String),
    /// Names for CEL expressions, which the checks use.
    variables: Vec<(&'static str, &'static str)>,
    /// What must hold, as CEL expressions, each with the message if it does not.
    checks: Vec<(String, &'static str)>,
}

/// Every rule. They are applied before the account of the pod network exists; the API server enforces them a moment later.
#[must_use]
pub(crate) fn admission() -> Vec<Object> {
    [
        roles_of_nodes(),
        network_of_nodes(),
        addresses_of_nodes(),
        system_pods(),
        certificates_of_kubelets(),
    ]
    .into_iter()
    .flat_map(Rule::into_objects)
    .collect()
}

const NODES: &[&str] = &["nodes", "nodes/status"];

/// The fields of the new and the old Node that the checks compare. There is no old one while a Node is created.
const LABELS: [(&str, &str); 2] = [
    ("labels", "object.metadata.?labels.orValue({})"),
    (
        "oldLabels",
        "oldObject == null ? {} : oldObject.metadata.?labels.orValue({})",
    ),
];
const ANNOTATIONS: [(&str, &str); 2] = [
    ("annotations", "object.metadata.?annotations.orValue({})"),
    ("oldAnnotations", "oldObject.metadata.?annotations.orValue({})"),
];

fn roles_of_nodes() -> Rule {
    let unchanged = "variables.labels.all(name, !name.startsWith('node-role.kubernetes.io/') || \
         variables.oldLabels[?name] == variables.labels[?name])";
    let kept =
        "variables.oldLabels.all(name, !name.startsWith('node-role.kubernetes.io/') || name in variables.labels)";
    Rule {
        name: "constellation-node-roles",
        reason: "A pod that holds keys runs where a Node has the role of a control plane. Only the operator's administrators and kubeadm, \
                 which has their rights, say which Node that is.",
        group: "",
        resources: NODES,
        operations: &["CREATE", "UPDATE"],
        applies_to: (
            "not-an-administrator",
            "!request.userInfo.groups.exists(group, group in ['system:masters', 'kubeadm:cluster-admins'])".to_owned(),
        ),
        variables: LABELS.to_vec(),
        checks: vec![(
            format!("{unchanged} && {kept}"),
            "only the operator's administrators change the role of a Node",
        )],
    }
}

fn network_of_nodes() -> Rule {
    let owner =
        "request.userInfo.extra[?'authentication.kubernetes.io/node-name'] == optional.of([object.metadata.name])";
    let unchanged = "variables.annotations.all(name, name.startsWith('flannel.alpha.coreos.com/') || \
         variables.oldAnnotations[?name] == variables.annotations[?name])";
    let kept = "variables.oldAnnotations.all(name, name.startsWith('flannel.alpha.coreos.com/') || \
         name in variables.annotations)";
    let rest = ["finalizers", "ownerReferences"]
        .map(|field| format!("object.metadata.?{field} == oldObject.metadata.?{field}"))
        .join(" && ");
    let variables = [LABELS, ANNOTATIONS].concat();
    Rule {
        name: "constellation-pod-network",
        reason: "The pod network's token is on every node. It writes which key and address belong to the Node that it is bound to, and \
                 nothing else: a node's packets must not be led to another machine.",
        group: "",
        resources: NODES,
        operations: &["UPDATE"],
        applies_to: (
            "the-pod-network",
            format!(
                "request.userInfo.username == 'system:serviceaccount:{}:{}'",
                Service::NAMESPACE,
                pod_network::NAME
            ),
        ),
        variables,
        checks: vec![
            (
                owner.to_owned(),
                "the pod network changes only the Node that its token is bound to",
            ),
            (
                "variables.labels == variables.oldLabels".to_owned(),
                "the pod network changes no labels",
            ),
            (
                format!("{unchanged} && {kept} && {rest}"),
                "the pod network changes no annotations, finalizers or owners but its own annotations",
            ),
        ],
    }
}

/// Of the addresses of a Node's pods, `NodeRestriction` says nothing.
fn addresses_of_nodes() -> Rule {
    let kept = ["podCIDR", "podCIDRs"]
        .map(|field| format!("object.spec.?{field} == oldObject.spec.?{field}"))
        .join(" && ");
    Rule {
        name: "constellation-node-addresses",
        reason: "A kubelet that says which addresses its pods have, or whose key belongs to them, leads the packets for another node's pods \
                 to itself. The controller manager and the pod network say that.",
        group: "",
        resources: NODES,
        operations: &["CREATE", "UPDATE"],
        applies_to: ("a-kubelet", "'system:nodes' in request.userInfo.groups".to_owned()),
        variables: vec![ANNOTATIONS[0]],
        checks: vec![
            (
                format!("oldObject == null ? !has(object.spec.podCIDR) && !has(object.spec.podCIDRs) : {kept}"),
                "a kubelet does not choose the addresses of its pods",
            ),
            (
                "oldObject != null || variables.annotations.all(name, !name.startsWith('flannel.alpha.coreos.com/'))"
                    .to_owned(),
                "a kubelet does not speak for the pod network",
            ),
        ],
    }
}

/// Kubernetes itself lets every pod take these classes.
fn system_pods() -> Rule {
    let privileged =
        "namespaceObject.metadata.?labels['pod-security.kubernetes.io/enforce'].orValue('') == 'privileged'";
    Rule {
        name: "constellation-system-pods",
        reason: "A kubelet whose disk or memory is full does not evict pods of these classes, and evicts others for them: such a pod can fill \
                 a control plane's disk for good. They are for Kubernetes' own pods, and for those that may become root anyway.",
        group: "",
        resources: &["pods"],
        operations: &["CREATE"],
        applies_to: (
            "a-system-class",
            "object.spec.?priorityClassName.orValue('').startsWith('system-')".to_owned(),
        ),
        variables: Vec::new(),
        checks: vec![(
            format!("request.namespace == '{}' || {privileged}", Service::NAMESPACE),
            "the system-* priority classes are for pods of kube-system and of namespaces that enforce Pod Security `privileged`",
        )],
    }
}

/// Without this rule, whoever may approve for these signers makes any machine a Node.
fn certificates_of_kubelets() -> Rule {
    Rule {
        name: "constellation-kubelet-certificates",
        reason: "With a kubelet's certificate a machine becomes a Node, gets pods, and serves as that Node. Only the join service approves them, \
                 for machines that attested; others may deny them.",
        group: "certificates.k8s.io",
        resources: &["certificatesigningrequests/approval"],
        operations: &["UPDATE"],
        applies_to: (
            "of-a-kubelet",
            "object.spec.signerName in ['kubernetes.io/kube-apiserver-client-kubelet', 'kubernetes.io/kubelet-serving']"
                .to_owned(),
        ),
        variables: Vec::new(),
        checks: vec![(
            format!(
                "request.userInfo.username == 'system:serviceaccount:{}:{}' || \
                 !object.?status.?conditions.orValue([]).exists(condition, condition.type == 'Approved')",
                Service::NAMESPACE,
                Service::Join.name()
            ),
            "only the join service approves kubelets' certificates",
        )],
    }
}

impl Rule {
    fn into_objects(self) -> [Object; 2] {
        let metadata = ObjectMeta {
            name: Some(self.name.into()),
            annotations: Some(BTreeMap::from([(DESCRIPTION.into(), self.reason.into())])),
            ..ObjectMeta::default()
        };
        let binding = ValidatingAdmissionPolicyBinding {
            metadata: metadata.clone(),
            spec: Some(ValidatingAdmissionPolicyBindingSpec {
                policy_name: Some(self.name.into()),
                validation_actions: Some(vec!["Deny".into()]),
                ..ValidatingAdmissionPolicyBindingSpec::default()
            }),
        };
        let policy = ValidatingAdmissionPolicy {
            metadata,
            spec: Some(self.into_spec()),
            ..ValidatingAdmissionPolicy::default()
        };
        [Object::new(policy), Object::new(binding)]
    }

    fn into_spec(self) -> ValidatingAdmissionPolicySpec {
        let strings = |values: &[&str]| values.iter().map(|&value| value.into()).collect();
        let requests = NamedRuleWithOperations {
            api_groups: Some(vec![self.group.into()]),
            api_versions: Some(vec!["v1".into()]),
            operations: Some(strings(self.operations)),
            resources: Some(strings(self.resources)),
            ..NamedRuleWithOperations::default()
        };
        let (name, expression) = self.applies_to;
        let variables = self.variables.into_iter().map(|(name, expression)| Variable {
            name: name.into(),
            expression: expression.into(),
        });
        let checks = self.checks.into_iter().map(|(expression, message)| Validation {
            expression,
            message: Some(message.into()),
            reason: Some("Forbidden".into()),
            ..Validation::default()
        });
        ValidatingAdmissionPolicySpec {
            // What cannot be checked is refused.
            failure_policy: Some("Fail".into()),
            match_constraints: Some(MatchResources {
                resource_rules: Some(vec![requests]),
                ..MatchResources::default()
            }),
            match_conditions: Some(vec![MatchCondition {
                name: name.into(),
                expression,
            }]),
            variables: Some(variables.collect()),
            validations: Some(checks.collect()),
            ..ValidatingAdmissionPolicySpec::default()
        }
    }
}
