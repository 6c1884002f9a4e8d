use cluster_objects::RECORDS_NAMESPACE;
use cluster_types::Service;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::api::ObjectMeta;

use crate::Object;

const CERTIFICATES: &str = "certificates.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

/// The fewest rights that work. What is not listed here is forbidden.
pub(super) fn rights(service: Service) -> Vec<Object> {
    let mut objects = vec![Object::new(ServiceAccount {
        metadata: named(service, Some(Service::NAMESPACE)),
        automount_service_account_token: Some(service == Service::Join),
        ..ServiceAccount::default()
    })];
    match service {
        Service::Join => {
            // Bootstrap tokens are created but never read back. The list of components is in a ConfigMap named by its hash.
            let rules = vec![rule("", "secrets", &["create"]), rule("", "configmaps", &["get"])];
            objects.extend(within(service, Service::NAMESPACE, rules));
            // It decides which kubelets get a certificate.
            let requests = "certificatesigningrequests";
            let mut approve = rule(CERTIFICATES, "signers", &["approve"]);
            let signers = [
                "kubernetes.io/kube-apiserver-client-kubelet",
                "kubernetes.io/kubelet-serving",
            ];
            approve.resource_names = Some(signers.map(str::to_owned).to_vec());
            objects.extend(everywhere(
                service,
                vec![
                    rule(CERTIFICATES, requests, &["list", "watch"]),
                    rule(CERTIFICATES, &format!("{requests}/approval"), &["patch"]),
                    approve,
                ],
            ));
            objects.extend(within(
                service,
                RECORDS_NAMESPACE,
                vec![rule("", "configmaps", &["get", "create", "update"])],
            ));
        }
        Service::Key | Service::Verification => {}
    }
    objects
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.into()]),
        resources: Some(vec![resource.into()]),
        verbs: verbs.iter().map(|&verb| verb.into()).collect(),
        ..PolicyRule::default()
    }
}

fn everywhere(service: Service, rules: Vec<PolicyRule>) -> Vec<Object> {
    vec![
        Object::new(ClusterRole {
            metadata: named(service, None),
            rules: Some(rules),
            ..ClusterRole::default()
        }),
        Object::new(ClusterRoleBinding {
            metadata: named(service, None),
            role_ref: role_ref("ClusterRole", service),
            subjects: Some(vec![subject(service)]),
        }),
    ]
}

fn within(service: Service, namespace: &str, rules: Vec<PolicyRule>) -> Vec<Object> {
    vec![
        Object::new(Role {
            metadata: named(service, Some(namespace)),
            rules: Some(rules),
        }),
        Object::new(RoleBinding {
            metadata: named(service, Some(namespace)),
            role_ref: role_ref("Role", service),
            subjects: Some(vec![subject(service)]),
        }),
    ]
}

fn named(service: Service, namespace: Option<&str>) -> ObjectMeta {
    let name = match namespace {
        // Cluster-wide names are shared with all other users of the cluster.
        None => format!("constellation:{}", service.name()),
        Some(_) => service.name().to_owned(),
    };
    ObjectMeta {
        name: Some(name),
        namespace: namespace.map(str::to_owned),
        ..ObjectMeta::default()
    }
}

fn role_ref(kind: &str, service: Service) -> RoleRef {
    let name = if kind == "ClusterRole" {
        named(service, None)
    } else {
        named(service, Some(Service::NAMESPACE))
    }
    .name;
    RoleRef {
        api_group: RBAC.into(),
        kind: kind.into(),
        name: name.unwrap_or_default(),
    }
}

fn subject(service: Service) -> Subject {
    Subject {
        kind: "ServiceAccount".into(),
        name: service.name().into(),
        namespace: Some(Service::NAMESPACE.into()),
        ..Subject::default()
    }
}
