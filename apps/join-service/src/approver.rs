//! Which kubelets get a client certificate: those whose token or certificate names them.
//!
//! Kubernetes would approve every request of whoever has a bootstrap token, for any node name. A token of ours says in a group for
//! which node it is, and a kubelet renews only its own certificate.

use std::time::Duration;

use cluster_objects::{Approval, Approver, CertificateRequestsError, Cluster, joining_node_group};
use cluster_types::NodeName;
use error_report::Chain;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use pem::{EncodeConfig, LineEnding, Pem};
use polling::poll_endlessly;
use tracing::{info, warn};

use crate::certificate::{CertificateRequestError, KubeletRequest, NAME_PREFIX, ORGANIZATION};

/// No kubelet makes a longer one, in bytes; an approval would not fit beside the longest that the API server stores.
const MAX_REQUEST_LEN: usize = 16 * 1024;
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// What a kubelet's client certificate is for (`certificates.k8s.io/v1`, `KeyUsage`).
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
const BOOTSTRAP_USER: &str = "system:bootstrap:";
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Why a kubelet gets no certificate.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request is not exactly one CERTIFICATE REQUEST in PEM with lines of 64 characters")]
    Pem,
    #[error("the request is refused")]
    Request(#[from] CertificateRequestError),
    #[error("the certificate would be for {0:?}, expected client authentication alone")]
    Usages(Vec<String>),
    #[error("the bootstrap token is not for node {0}")]
    TokenOfAnother(NodeName),
    #[error("{user} asks for the certificate of node {node}")]
    NodeOfAnother { user: String, node: NodeName },
    #[error("no machine has the node name {0}")]
    NoNode(NodeName),
}

/// Decides on requests until the task is ended. Whatever fails is tried again.
pub(crate) async fn approve_kubelets(cluster: Cluster) {
    let kubelets = Kubelets(cluster.clone());
    loop {
        let attempt = || cluster.decide_on_certificate_requests(&kubelets);
        let log = |error: &CertificateRequestsError| warn!(error = %Chain(error), "certificate requests wait");
        // The API server ends every watch after some minutes.
        poll_endlessly(FIRST_DELAY, LONGEST_DELAY, attempt, log).await;
    }
}

/// Kubelets, each by the record that its node name is given to a machine. Where there is none any more, its certificate is not renewed.
struct Kubelets(Cluster);

impl Approver for Kubelets {
    fn signer(&self) -> &'static str {
        SIGNER
    }

    async fn decide(&self, request: &CertificateSigningRequest) -> Result<Option<Approval>, CertificateRequestsError> {
        let Some(requester) = Requester::of(&request.spec) else {
            return Ok(None);
        };
        let checked = match check(&request.spec, &requester) {
            Ok(node) if self.0.has_node(&node).await? => Ok(node),
            Ok(node) => Err(Refusal::NoNode(node)),
            Err(refusal) => Err(refusal),
        };
        Ok(Some(told(request, checked)))
    }
}

fn told(request: &CertificateSigningRequest, checked: Result<NodeName, Refusal>) -> Approval {
    let (name, user) = (request.metadata.name.as_deref(), request.spec.username.as_deref());
    match checked {
        Ok(node) => {
            info!(request = name, user, %node, "kubelet certificate approved");
            Approval {
                approved: true,
                message: format!("for node {node}"),
            }
        }
        Err(refusal) => {
            warn!(request = name, user, refusal = %Chain(&refusal), "kubelet certificate denied");
            Approval {
                approved: false,
                message: Chain(&refusal).to_string(),
            }
        }
    }
}

/// Who asks for a kubelet's client certificate. The API server says so. Administrators decide on the requests of others.
enum Requester<'a> {
    /// With a bootstrap token, which puts it into these groups.
    Joining(&'a [String]),
    /// A member of the cluster.
    Node(&'a str),
}

impl<'a> Requester<'a> {
    fn of(spec: &'a CertificateSigningRequestSpec) -> Option<Self> {
        if spec.signer_name != SIGNER || spec.request.0.len() > MAX_REQUEST_LEN {
            return None;
        }
        let groups = spec.groups.as_deref().unwrap_or_default();
        let user = spec.username.as_deref()?;
        if user.starts_with(BOOTSTRAP_USER) {
            return Some(Self::Joining(groups));
        }
        groups
            .iter()
            .any(|group| group == ORGANIZATION)
            .then_some(Self::Node(user))
    }
}

/// The DER of the one request in a PEM text (RFC 7468).
///
/// # Security
/// Whoever signs parses the text again, with another parser, which may skip what this one takes. So only the one way to write one
/// request is taken.
fn only_request(text: &[u8]) -> Result<Vec<u8>, Refusal> {
    let parsed = pem::parse(text).map_err(|_| Refusal::Pem)?;
    let request = Pem::new("CERTIFICATE REQUEST", parsed.into_contents());
    let canonical = pem::encode_config(&request, EncodeConfig::new().set_line_ending(LineEnding::LF));
    if canonical.as_bytes() == text {
        Ok(request.into_contents())
    } else {
        Err(Refusal::Pem)
    }
}

/// The name of the node that gets the certificate.
fn check(spec: &CertificateSigningRequestSpec, requester: &Requester<'_>) -> Result<NodeName, Refusal> {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let is_client = usages.iter().any(|usage| usage == "client auth");
    if !is_client || usages.iter().any(|usage| !USAGES.contains(&usage.as_str())) {
        return Err(Refusal::Usages(usages.to_vec()));
    }
    let node = KubeletRequest::parse_client(&only_request(&spec.request.0)?)?;
    match requester {
        Requester::Joining(groups) if groups.contains(&joining_node_group(&node)) => Ok(node),
        Requester::Joining(_) => Err(Refusal::TokenOfAnother(node)),
        Requester::Node(user) if user.strip_prefix(NAME_PREFIX) == Some(node.as_str()) => Ok(node),
        Requester::Node(user) => Err(Refusal::NodeOfAnother {
            user: (*user).to_owned(),
            node,
        }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use test_services::{client_certificate_request, join_request};

    use super::*;

    fn pem(node: &str) -> Vec<u8> {
        client_certificate_request(node).unwrap().into_bytes()
    }

    /// What a joining node sends to the join service, at which it will serve.
    fn serving(node: &str) -> Vec<u8> {
        let request = join_request(node, [10, 42, 2, 100]).unwrap().certificate_request;
        let block = Pem::new("CERTIFICATE REQUEST", request);
        pem::encode_config(&block, EncodeConfig::new().set_line_ending(LineEnding::LF)).into_bytes()
    }

    /// A request of worker-0 with its token.
    fn joining() -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            request: ByteString(pem("worker-0")),
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

    /// As if each name were given to a machine.
    fn decision(spec: CertificateSigningRequestSpec) -> Option<Approval> {
        let checked = check(&spec, &Requester::of(&spec)?);
        let request = CertificateSigningRequest {
            spec,
            ..CertificateSigningRequest::default()
        };
        Some(told(&request, checked))
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
        let other = |spec: &mut CertificateSigningRequestSpec| spec.request.0 = pem("worker-1");
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
        let other = |spec: &mut CertificateSigningRequestSpec| spec.request.0 = pem("control-plane-0");
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
        denied(
            joining(),
            |spec| spec.request.0.clear(),
            "is not exactly one CERTIFICATE REQUEST",
        );
        denied(
            joining(),
            |spec| spec.request.0 = serving("worker-0"),
            "has no addresses",
        );
        denied(
            joining(),
            |spec| spec.request.0 = pem("worker_0"),
            "does not name a valid node",
        );
    }

    /// Go's parser, with which the certificate is signed, skips a block that ends as another one; others take it.
    #[test]
    fn no_other_request_hides_behind_the_one_that_is_looked_at() {
        let (own, others) = (pem("worker-0"), pem("control-plane-0"));
        let text = |pem: &[u8]| String::from_utf8(pem.to_vec()).unwrap();
        let (own, others) = (text(&own), text(&others));
        for hidden in [
            own.replace("-----END CERTIFICATE REQUEST-----", "-----END X-----") + &others,
            own.clone() + &others,
            others.replace("CERTIFICATE REQUEST", "X") + &own,
            own.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
            format!("preamble\n{own}"),
            format!("{own}\n"),
            own.replace('\n', "\r\n"),
        ] {
            let mut spec = joining();
            spec.request.0 = hidden.into_bytes();
            assert!(!decision(spec).unwrap().approved);
        }
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
        let long = CertificateSigningRequestSpec {
            request: ByteString(vec![b'-'; MAX_REQUEST_LEN + 1]),
            ..joining()
        };
        for spec in [other_signer, somebody, long] {
            assert_eq!(decision(spec), None);
        }
    }
}
