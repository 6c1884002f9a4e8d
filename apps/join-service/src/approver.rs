//! Which kubelets get which certificates.
//!
//! With the first one a kubelet logs in at the API server: it is for whom the token or the certificate names. Kubernetes would approve every request
//! of whoever has a bootstrap token, for any node name; a token of ours says in a group for which node it is, and a kubelet renews only its own
//! certificate. With the second one it serves: at the address that its node's machine has claimed, and nowhere else.

use std::net::Ipv4Addr;
use std::time::Duration;

use cluster_objects::{Approval, Approver, CertificateRequestsError, Cluster, TokenUse, joining_node_group};
use cluster_types::NodeName;
use error_report::Chain;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use pem::{EncodeConfig, LineEnding, Pem};
use polling::poll_endlessly;
use tracing::{info, warn};

use crate::certificate::{CertificateRequestError, KubeletRequest, NAME_PREFIX, ORGANIZATION};

/// No kubelet makes a longer one, in bytes; an approval would not fit beside the longest that the API server stores.
const MAX_REQUEST_LEN: usize = 16 * 1024;
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// What each certificate is for, and what may go with it (`certificates.k8s.io/v1`, `KeyUsage`).
const CLIENT: &str = "client auth";
const SERVER: &str = "server auth";
const SIGNATURES: [&str; 2] = ["digital signature", "key encipherment"];
const BOOTSTRAP_USER: &str = "system:bootstrap:";
/// How long a kubelet without a certificate waits for one.
const KUBELET_WAITS: SignedDuration = SignedDuration::from_mins(5);
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Why a kubelet gets no certificate.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request is not exactly one CERTIFICATE REQUEST in PEM with lines of 64 characters")]
    Pem,
    #[error("the request is refused")]
    Request(#[from] CertificateRequestError),
    #[error("the certificate would be for {actual:?}, expected {expected} alone")]
    Usages {
        actual: Vec<String>,
        expected: &'static str,
    },
    #[error("the bootstrap token is not for node {0}")]
    TokenOfAnother(NodeName),
    #[error("the bootstrap token has been used")]
    TokenUsed,
    #[error("the request is {0} s old, and its kubelet has given it up")]
    TooOld(i64),
    #[error("a bootstrap token is not enough for the certificate with which node {0} serves")]
    NotAMember(NodeName),
    #[error("{user} asks for the certificate of node {node}")]
    NodeOfAnother { user: String, node: NodeName },
    #[error("no machine has the node name {0}")]
    NoNode(NodeName),
    #[error("no machine has the node name {0} and an address")]
    NoAddress(NodeName),
}

/// Decides on requests until the task is ended. Whatever fails is tried again.
pub(crate) async fn approve_kubelets(cluster: Cluster) {
    let (clients, servers) = (Clients(cluster.clone()), Servers(cluster.clone()));
    tokio::join!(approve(&cluster, &clients), approve(&cluster, &servers));
}

async fn approve(cluster: &Cluster, approver: &impl Approver) {
    loop {
        let attempt = || cluster.decide_on_certificate_requests(approver);
        let log = |error: &CertificateRequestsError| warn!(error = %Chain(error), "certificate requests wait");
        // The API server ends every watch after some minutes.
        poll_endlessly(FIRST_DELAY, LONGEST_DELAY, attempt, log).await;
    }
}

/// Kubelets that log in, each by the record that its node name is given to a machine. Where there is none any more, its certificate is
/// not renewed.
struct Clients(Cluster);

/// Kubelets that serve, each by the record of the address of the machine that has its node name.
struct Servers(Cluster);

impl Approver for Clients {
    fn signer(&self) -> &'static str {
        CLIENT_SIGNER
    }

    async fn decide(&self, request: &CertificateSigningRequest) -> Result<Option<Approval>, CertificateRequestsError> {
        let Some(requester) = Requester::of(&request.spec, CLIENT_SIGNER) else {
            return Ok(None);
        };
        let checked = match check_client(&request.spec, &requester) {
            Ok(node) => self.check_node(request, &requester, node).await?,
            Err(refusal) => Err(refusal),
        };
        Ok(Some(told(request, checked)))
    }
}

impl Clients {
    /// The node, if a machine has its name, and if its bootstrap token has given no other certificate. A token is used up before that: another
    /// join service may look at another request with it.
    async fn check_node(
        &self,
        request: &CertificateSigningRequest,
        requester: &Requester<'_>,
        node: NodeName,
    ) -> Result<Result<NodeName, Refusal>, CertificateRequestsError> {
        let Requester::Joining { token, .. } = requester else {
            let has_node = self.0.has_node(&node).await?;
            return Ok(if has_node { Ok(node) } else { Err(Refusal::NoNode(node)) });
        };
        if let Err(refusal) = check_age(request, Timestamp::now()) {
            return Ok(Err(refusal));
        }
        let uid = request.metadata.uid.as_deref().unwrap_or_default();
        Ok(match self.0.use_token(&node, token, uid).await? {
            TokenUse::First => Ok(node),
            TokenUse::Another => Err(Refusal::TokenUsed),
            TokenUse::NoNode => Err(Refusal::NoNode(node)),
        })
    }
}

/// A kubelet that has no certificate ends after five minutes, and the next one makes a new key and a new request: nobody waits for the
/// one before, which would use its token up.
fn check_age(request: &CertificateSigningRequest, now: Timestamp) -> Result<(), Refusal> {
    let created = request.metadata.creation_timestamp.as_ref();
    let age = created.map_or(0, |created| now.as_second() - created.0.as_second());
    if age > KUBELET_WAITS.as_secs() {
        return Err(Refusal::TooOld(age));
    }
    Ok(())
}

impl Approver for Servers {
    fn signer(&self) -> &'static str {
        SERVING_SIGNER
    }

    async fn decide(&self, request: &CertificateSigningRequest) -> Result<Option<Approval>, CertificateRequestsError> {
        let Some(requester) = Requester::of(&request.spec, SERVING_SIGNER) else {
            return Ok(None);
        };
        let der = only_request(&request.spec.request.0);
        let checked = match der
            .as_deref()
            .map_err(|_| Refusal::Pem)
            .and_then(|der| server_of(&request.spec, &requester, der))
        {
            Ok(server) => {
                let address = self.0.address_of(&server.node).await?;
                check_server(server, address)
            }
            Err(refusal) => Err(refusal),
        };
        Ok(Some(told(request, checked)))
    }
}

fn told(request: &CertificateSigningRequest, checked: Result<NodeName, Refusal>) -> Approval {
    let (name, user) = (request.metadata.name.as_deref(), request.spec.username.as_deref());
    let signer = &request.spec.signer_name;
    match checked {
        Ok(node) => {
            info!(request = name, signer, user, %node, "kubelet certificate approved");
            Approval {
                approved: true,
                message: format!("for node {node}"),
            }
        }
        Err(refusal) => {
            warn!(request = name, signer, user, refusal = %Chain(&refusal), "kubelet certificate denied");
            Approval {
                approved: false,
                message: Chain(&refusal).to_string(),
            }
        }
    }
}

/// Who asks for a kubelet's certificate. The API server says so. Administrators decide on the requests of others.
enum Requester<'a> {
    /// With the bootstrap token that has this id, which puts it into these groups.
    Joining { token: &'a str, groups: &'a [String] },
    /// A member of the cluster.
    Node(&'a str),
}

impl<'a> Requester<'a> {
    fn of(spec: &'a CertificateSigningRequestSpec, signer: &str) -> Option<Self> {
        if spec.signer_name != signer || spec.request.0.len() > MAX_REQUEST_LEN {
            return None;
        }
        let groups = spec.groups.as_deref().unwrap_or_default();
        let user = spec.username.as_deref()?;
        if let Some(token) = user.strip_prefix(BOOTSTRAP_USER) {
            return Some(Self::Joining { token, groups });
        }
        groups
            .iter()
            .any(|group| group == ORGANIZATION)
            .then_some(Self::Node(user))
    }
}

/// Checks that a member asks for its own node.
fn check_own_node(user: &str, node: &NodeName) -> Result<(), Refusal> {
    if user.strip_prefix(NAME_PREFIX) == Some(node.as_str()) {
        return Ok(());
    }
    Err(Refusal::NodeOfAnother {
        user: user.to_owned(),
        node: node.clone(),
    })
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

fn check_usages(spec: &CertificateSigningRequestSpec, expected: &'static str) -> Result<(), Refusal> {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let allowed = |usage: &str| usage == expected || SIGNATURES.contains(&usage);
    if usages.iter().any(|usage| usage == expected) && usages.iter().all(|usage| allowed(usage)) {
        return Ok(());
    }
    Err(Refusal::Usages {
        actual: usages.to_vec(),
        expected,
    })
}

/// The name of the node that gets the certificate with which it logs in.
fn check_client(spec: &CertificateSigningRequestSpec, requester: &Requester<'_>) -> Result<NodeName, Refusal> {
    check_usages(spec, CLIENT)?;
    let node = KubeletRequest::parse(&only_request(&spec.request.0)?)?.for_client()?;
    match requester {
        Requester::Joining { groups, .. } if groups.contains(&joining_node_group(&node)) => Ok(node),
        Requester::Joining { .. } => Err(Refusal::TokenOfAnother(node)),
        Requester::Node(user) => check_own_node(user, &node).map(|()| node),
    }
}

/// The request of a node that would serve. Where it would do that is not looked at yet.
fn server_of<'a>(
    spec: &CertificateSigningRequestSpec,
    requester: &Requester<'_>,
    der: &'a [u8],
) -> Result<KubeletRequest<'a>, Refusal> {
    check_usages(spec, SERVER)?;
    let request = KubeletRequest::parse(der)?;
    match requester {
        Requester::Joining { .. } => Err(Refusal::NotAMember(request.node)),
        Requester::Node(user) => check_own_node(user, &request.node).map(|()| request),
    }
}

/// The name of the node, if it would serve at this address and nowhere else.
fn check_server(request: KubeletRequest<'_>, address: Option<Ipv4Addr>) -> Result<NodeName, Refusal> {
    match address {
        Some(address) => Ok(request.for_serving_at(address)?),
        None => Err(Refusal::NoAddress(request.node)),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use test_services::{client_certificate_request, serving_certificate_request};

    use super::*;

    fn pem(node: &str) -> Vec<u8> {
        client_certificate_request(node).unwrap().into_bytes()
    }

    const ADDRESS: [u8; 4] = [10, 42, 2, 100];

    fn usages(usage: &str) -> Option<Vec<String>> {
        Some(
            [&SIGNATURES[..], &[usage]]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect(),
        )
    }

    /// A request of worker-0 with its token.
    fn joining() -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            request: ByteString(pem("worker-0")),
            signer_name: CLIENT_SIGNER.into(),
            username: Some("system:bootstrap:abcdef".into()),
            groups: Some(vec![
                "system:bootstrappers".into(),
                joining_node_group(&"worker-0".parse().unwrap()),
            ]),
            usages: usages(CLIENT),
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

    /// worker-0 asks for the certificate with which it serves at this address.
    fn serving(node: &str, address: [u8; 4]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            request: ByteString(serving_certificate_request(node, address).unwrap().into_bytes()),
            signer_name: SERVING_SIGNER.into(),
            usages: usages(SERVER),
            ..renewing()
        }
    }

    /// As if each name were given to a machine, which has the one address.
    fn decision(spec: CertificateSigningRequestSpec) -> Option<Approval> {
        let signer = spec.signer_name.clone();
        let checked = if signer == SERVING_SIGNER {
            let requester = Requester::of(&spec, &signer)?;
            let der = only_request(&spec.request.0).ok()?;
            server_of(&spec, &requester, &der).and_then(|server| check_server(server, Some(ADDRESS.into())))
        } else {
            check_client(&spec, &Requester::of(&spec, CLIENT_SIGNER)?)
        };
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
    fn a_request_that_nobody_waits_for_uses_no_token_up() {
        let created = |second| CertificateSigningRequest {
            metadata: ObjectMeta {
                creation_timestamp: Some(Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())),
                ..ObjectMeta::default()
            },
            ..CertificateSigningRequest::default()
        };
        let now = Timestamp::from_second(1000).unwrap();
        for second in [1005, 1000, 700] {
            check_age(&created(second), now).unwrap();
        }
        assert!(matches!(check_age(&created(699), now), Err(Refusal::TooOld(301))));
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
    fn a_member_serves_at_its_own_address() {
        let approval = decision(serving("worker-0", ADDRESS)).unwrap();
        assert_eq!(
            (approval.approved, approval.message.as_str()),
            (true, "for node worker-0")
        );
    }

    /// Root on a worker wants to be taken for somebody else.
    #[test]
    fn a_member_serves_nowhere_else() {
        let at = |address| serving("worker-0", address);
        let nothing = |_: &mut CertificateSigningRequestSpec| {};
        let elsewhere = "serves at 10.42.2.100 and by its node's name, and nowhere else";
        // Another node, the API server, and its Service.
        for address in [[10, 42, 2, 101], [10, 42, 1, 100], [10, 96, 0, 1]] {
            denied(at(address), nothing, elsewhere);
        }
        denied(at(ADDRESS), |spec| spec.request.0 = pem("worker-0"), elsewhere);
        denied(
            serving("control-plane-0", ADDRESS),
            nothing,
            "system:node:worker-0 asks for the certificate of node control-plane-0",
        );
        denied(
            at(ADDRESS),
            |spec| spec.usages = usages(CLIENT),
            "expected server auth alone",
        );
        denied(
            at(ADDRESS),
            |spec| (spec.username, spec.groups) = (joining().username, joining().groups),
            "a bootstrap token is not enough",
        );
        let unclaimed = at(ADDRESS);
        let der = only_request(&unclaimed.request.0).unwrap();
        let refused = check_server(KubeletRequest::parse(&der).unwrap(), None);
        assert!(matches!(refused, Err(Refusal::NoAddress(_))));
    }

    #[test]
    fn what_is_not_a_kubelets_client_certificate_is_denied() {
        denied(
            joining(),
            |spec| spec.usages = Some(vec!["server auth".into()]),
            "expected client auth alone",
        );
        denied(
            joining(),
            |spec| spec.usages.as_mut().unwrap().push("cert sign".into()),
            "expected client auth alone",
        );
        denied(joining(), |spec| spec.usages = None, "expected client auth alone");
        denied(
            joining(),
            |spec| spec.request.0.clear(),
            "is not exactly one CERTIFICATE REQUEST",
        );
        denied(
            joining(),
            |spec| spec.request = serving("worker-0", ADDRESS).request,
            "with a name alone",
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
