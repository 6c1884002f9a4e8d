use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef};
use kube::api::ObjectMeta;

use crate::Object;
use crate::admission::DESCRIPTION;

const REASON: &str = "kubeadm lets Kubernetes approve a certificate for any node name to whoever has a bootstrap token. The join service \
                      approves instead, and only the name that a token or a certificate is for. So this binding has no subjects.";

/// kubeadm's bindings for automatic approval of kubelets' client certificates, without subjects: nobody is approved automatically.
#[must_use]
pub(crate) fn disabled_auto_approval() -> Vec<Object> {
    let role = |name: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{name}");
    let binding = |name: &str, role| {
        Object::new(ClusterRoleBinding {
            metadata: ObjectMeta {
                name: Some(format!("kubeadm:{name}")),
                annotations: Some(BTreeMap::from([(DESCRIPTION.to_owned(), REASON.to_owned())])),
                ..ObjectMeta::default()
            },
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".into(),
                kind: "ClusterRole".into(),
                name: role,
            },
            subjects: Some(Vec::new()),
        })
    };
    vec![
        binding("node-autoapprove-bootstrap", role("nodeclient")),
        binding("node-autoapprove-certificate-rotation", role("selfnodeclient")),
    ]
}
