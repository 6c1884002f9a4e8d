//! Which kubelets get a client certificate: those whose token or certificate names them.
//!
//! Kubernetes would approve every request of whoever has a bootstrap token, for any node name. A token of ours says in a group for
//! which node it is, and a kubelet renews only its own certificate.

use std::time::Duration;

use cluster_objects::{Approval, CertificateRequestsError, Cluster, joining_node_group};
use error_report::Chain;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use polling::poll_endlessly;
use tracing::{info, warn};
use x509_parser::pem::parse_x509_pem;

use crate::certificate::{CertificateRequestError, KubeletRequest};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// What a kubelet's client certificate is for (`certificates.k8s.io/v1`, `KeyUsage`).
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
const BOOTSTRAP_USER: &str = "system:bootstrap:";
const NODES_GROUP: &str = "system:nodes";
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Why a kubelet gets no certificate.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request is not PEM")]
    Pem,
    #[error("the request is refused: {0}")]
    Request(#[from] CertificateRequestError),
    #[error("a client certificate has no addresses")]
    Addresses,
    #[error("the certificate would be for {0:?}, expected client authentication alone")]
    Usages(Vec<String>),
    #[error("the bootstrap token is not for node {0}")]
    TokenOfAnother(String),
    #[error("{user} asks for the certificate of node {node}")]
    NodeOfAnother { user: String, node: String },
}

/// Decides on requests until the task is ended. Whatever fails is tried again.
pub(crate) async fn approve_kubelets(cluster: Cluster) {
    loop {
        let attempt = || cluster.decide_on_certificate_requests(decide);
        let log = |error: &CertificateRequestsError| warn!(error = %Chain(error), "certificate requests wait");
        // The API server ends every watch after some minutes.
        poll_endlessly(FIRST_DELAY, LONGEST_DELAY, attempt, log).await;
    }
}

/// Nothing for a request that is not a kubelet's: administrators decide on it.
fn decide(request: &CertificateSigningRequest) -> Option<Approval> {
    let spec = &request.spec;
    let requester = Requester::of(spec)?;
    let (name, user) = (request.metadata.name.as_deref(), spec.username.as_deref());
    Some(match check(spec, &requester) {
        Ok(node) => {
            info!(request = name, user, node, "kubelet certificate approved");
            Approval {
                approved: true,
                message: format!("for node {node}"),
            }
        }
        Err(refusal) => {
            warn!(request = name, user, %refusal, "kubelet certificate denied");
            Approval {
                approved: false,
                message: refusal.to_string(),
            }
        }
    })
}

/// Who asks for a kubelet's client certificate. The API server says so.
enum Requester<'a> {
    /// With a bootstrap token, which puts it into these groups.
    Joining(&'a [String]),
    /// A member of the cluster.
    Node(&'a str),
}

impl<'a> Requester<'a> {
    fn of(spec: &'a CertificateSigningRequestSpec) -> Option<Self> {
        if spec.signer_name != SIGNER {
            return None;
        }
        let groups = spec.groups.as_deref().unwrap_or_default();
        let user = spec.username.as_deref()?;
        if user.starts_with(BOOTSTRAP_USER) {
            return Some(Self::Joining(groups));
        }
        groups
            .iter()
            .any(|group| group == NODES_GROUP)
            .then_some(Self::Node(user))
    }
}

/// The name of the node that gets the certificate.
fn check(spec: &CertificateSigningRequestSpec, requester: &Requester<'_>) -> Result<String, Refusal> {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let is_client = usages.iter().any(|usage| usage == "client auth");
    if !is_client || usages.iter().any(|usage| !USAGES.contains(&usage.as_str())) {
        return Err(Refusal::Usages(usages.to_vec()));
    }
    let (_, pem) = parse_x509_pem(&spec.request.0).map_err(|_| Refusal::Pem)?;
    let request = KubeletRequest::parse(&pem.contents)?;
    if request.has_addresses() {
        return Err(Refusal::Addresses);
    }
    let node = request.node;
    match requester {
        Requester::Joining(groups) if groups.contains(&joining_node_group(&node)) => Ok(node.to_string()),
        Requester::Joining(_) => Err(Refusal::TokenOfAnother(node.to_string())),
        Requester::Node(user) if *user == format!("system:node:{node}") => Ok(node.to_string()),
        Requester::Node(user) => Err(Refusal::NodeOfAnother {
            user: (*user).to_owned(),
            node: node.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn pem(node: &str, addresses: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("system:node:{node}"));
        params.subject_alt_names = addresses;
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        request.pem().unwrap().into_bytes()
    }

    /// A request of worker-0 with its token.
    fn joining() -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            request: ByteString(pem("worker-0", Vec::new())),
            signer_name: SIGNER.into(),
            username: Some("system:bootstrap:abcdef".into()),
            groups: Some(vec![
                "system:bootstrappers".into(),
                joining_node_group(&"worker-0".parse().unwrap()),
            ]),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    /// worker-0 renews its certificate.
    fn renewing() -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            username: Some("system:node:worker-0".into()),
            groups: Some(vec!["system:nodes".into(), "system:authenticated".into()]),
            ..joining()
        }
    }

    fn decision(spec: CertificateSigningRequestSpec) -> Option<Approval> {
        decide(&CertificateSigningRequest {
            spec,
            ..CertificateSigningRequest::default()
        })
    }

    /// Changes one thing, and expects a denial that says this.
    fn denied(mut spec: CertificateSigningRequestSpec, change: fn(&mut CertificateSigningRequestSpec), why: &str) {
        change(&mut spec);
        let Approval { approved, message } = decision(spec).unwrap();
        assert!(!approved && message.contains(why), "{message}");
    }

    #[test]
    fn a_joining_node_and_a_renewing_one_get_their_own_certificate() {
        for spec in [joining(), renewing()] {
            let approval = decision(spec).unwrap();
            assert_eq!(
                (approval.approved, approval.message.as_str()),
                (true, "for node worker-0")
            );
        }
    }

    #[test]
    fn a_token_is_good_for_one_node_name() {
        let other = |spec: &mut CertificateSigningRequestSpec| spec.request.0 = pem("worker-1", Vec::new());
        denied(joining(), other, "the bootstrap token is not for node worker-1");
        // A token that kubeadm or an administrator made names no node.
        let of_kubeadm = |spec: &mut CertificateSigningRequestSpec| {
            let groups = [
                "system:bootstrappers",
                "system:bootstrappers:kubeadm:default-node-token",
            ];
            spec.groups = Some(groups.map(str::to_owned).to_vec());
        };
        denied(joining(), of_kubeadm, "the bootstrap token is not for node worker-0");
    }

    #[test]
    fn a_member_renews_no_other_nodes_certificate() {
        let other = |spec: &mut CertificateSigningRequestSpec| spec.request.0 = pem("control-plane-0", Vec::new());
        denied(
            renewing(),
            other,
            "system:node:worker-0 asks for the certificate of node control-plane-0",
        );
    }

    #[test]
    fn what_is_not_a_kubelets_client_certificate_is_denied() {
        denied(
            joining(),
            |spec| spec.usages = Some(vec!["server auth".into()]),
            "expected client authentication alone",
        );
        denied(
            joining(),
            |spec| spec.usages.as_mut().unwrap().push("cert sign".into()),
            "expected client authentication alone",
        );
        denied(
            joining(),
            |spec| spec.usages = None,
            "expected client authentication alone",
        );
        denied(joining(), |spec| spec.request.0.clear(), "is not PEM");
        denied(
            joining(),
            |spec| spec.request.0 = pem("worker-0", vec![SanType::IpAddress([10, 42, 2, 100].into())]),
            "has no addresses",
        );
        denied(
            joining(),
            |spec| spec.request.0 = pem("worker_0", Vec::new()),
            "does not name a valid node",
        );
    }

    #[test]
    fn other_requests_are_left_to_administrators() {
        let other_signer = CertificateSigningRequestSpec {
            signer_name: "kubernetes.io/kube-apiserver-client".into(),
            ..joining()
        };
        let somebody = CertificateSigningRequestSpec {
            username: Some("alice".into()),
            groups: Some(vec!["system:authenticated".into()]),
            ..joining()
        };
        for spec in [other_signer, somebody] {
            assert_eq!(decision(spec), None);
        }
    }
}
