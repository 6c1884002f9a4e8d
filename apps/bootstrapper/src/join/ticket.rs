//! A ticket from a join service, checked against what the service attested.

use attestation::{Measured, Membership};
use cluster_policy::{BelievedPolicy, RefusePolicyError};
use cluster_types::{
    ClusterId, DiskUuid, MeasurementSalt, NodeRole, OperatorPublicKey, ParseDiskUuidError, ParseHostPortError,
    WrongLength,
};
use component_installer::{ComponentMirror, ParseMirrorAddressError};
use digest::{Digest, oci};
use grpc_api::join::{ControlPlaneCertOrKey, IssueJoinTicketResponse, MasterSecret as MasterSecretMessage};
use key_derivation::{MasterSecret, ParseMasterSecretError, cluster_id};
use kubeadm::{JoinSettings, ParseTokenError};
use kubernetes_components::ComponentList;
use secret::{MeasurementSecret, StateDiskKey};
use zeroize::Zeroizing;

use crate::request::{InvalidRequest, parse_component_list};

/// The files that control planes of a cluster share, below `/etc/kubernetes/pki` (kubeadm's "shared certificates").
const SHARED_FILES: [&str; 8] = [
    "ca.crt",
    "ca.key",
    "etcd/ca.crt",
    "etcd/ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "sa.key",
    "sa.pub",
];

/// Everything a node needs to join. It names the cluster, and the join service that issued it is a control plane of that cluster.
pub(super) struct Ticket {
    pub(super) cluster: ClusterId,
    pub(super) measurement_salt: MeasurementSalt,
    pub(super) kubelet_certificate: Vec<u8>,
    pub(super) settings: JoinSettings,
    /// Signed by the operator whom this node obeys.
    pub(super) policy: BelievedPolicy,
    /// The policy lists them.
    pub(super) components: ComponentList,
    /// `None` stands for the platform's own mirror.
    pub(super) mirror: Option<ComponentMirror>,
    pub(super) control_plane: Option<ControlPlaneParts>,
    /// The UUID that the state disk gets with its key.
    pub(super) disk: DiskUuid,
    state_disk_key: Option<StateDiskKey>,
}

/// What only control planes get.
pub(super) struct ControlPlaneParts {
    pub(super) master_secret: MasterSecret,
    pub(super) files: Vec<SharedFile>,
}

pub(super) struct SharedFile {
    /// One of the known names.
    pub(super) name: &'static str,
    pub(super) content: Zeroizing<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidTicket {
    #[error("the state disk key has {0} bytes, expected 32")]
    StateDiskKey(usize),
    #[error("the measurement secret has {0} bytes, expected 32")]
    MeasurementSecret(usize),
    #[error(transparent)]
    MeasurementSalt(#[from] WrongLength),
    #[error(
        "the ticket is for cluster {cluster}, whose control planes measure {expected}; the join service measured {actual}"
    )]
    NotOurControlPlane {
        cluster: ClusterId,
        expected: Digest,
        actual: Digest,
    },
    #[error("the ticket's disk_uuid is malformed")]
    Disk(#[from] ParseDiskUuidError),
    #[error("the ticket has no kubelet certificate")]
    NoKubeletCertificate,
    #[error("the bootstrap token is malformed")]
    Token(#[from] ParseTokenError),
    #[error("the address of the API server is malformed")]
    Endpoint(#[from] ParseHostPortError),
    #[error("the hash of the cluster CA is malformed")]
    CaHash(#[from] oci::ParseOciDigestError),
    #[error("the list of components is malformed")]
    Components(#[from] InvalidRequest),
    #[error("the ticket's cluster policy is refused")]
    Policy(#[from] RefusePolicyError),
    #[error("the address of the mirror is malformed")]
    Mirror(#[from] ParseMirrorAddressError),
    #[error("the ticket has no master secret, which a control plane needs")]
    NoMasterSecret,
    #[error("the master secret is malformed")]
    MasterSecret(#[from] ParseMasterSecretError),
    #[error("the master secret belongs to another cluster")]
    ForeignMasterSecret,
    #[error("the ticket's control plane files are {0:?}, expected each of the eight shared files once")]
    SharedFiles(Vec<String>),
}

impl Ticket {
    /// Parses a ticket and checks that it is for the cluster of the join service that issued it, and that the operator lets nodes of
    /// this cluster install what it lists.
    ///
    /// # Security
    /// Success proves that the service is a control plane of the cluster this node is about to measure: a service cannot be
    /// made to hand out another cluster's secrets, and neither a cluster that did not attest nor a worker can lure a node. Whoever
    /// writes the service's configuration does not choose what this node installs.
    pub(super) fn parse(
        message: IssueJoinTicketResponse,
        service: &Measured<Membership>,
        operator: &OperatorPublicKey,
        role: NodeRole,
    ) -> Result<Self, InvalidTicket> {
        let IssueJoinTicketResponse {
            state_disk_key,
            measurement_salt,
            measurement_secret,
            kubelet_cert,
            api_server_endpoint,
            token,
            discovery_token_ca_cert_hash,
            control_plane_files,
            kubernetes_version,
            kubernetes_components,
            master_secret,
            component_mirror,
            cluster_policy,
            disk_uuid,
        } = message;
        // Secrets are wiped wherever parsing ends.
        let state_disk_key = Zeroizing::new(state_disk_key);
        let measurement_secret = Zeroizing::new(measurement_secret);
        let token = Zeroizing::new(token);
        let control_plane = ControlPlaneMessage::new(master_secret, control_plane_files);

        let measurement_secret = MeasurementSecret::from_slice(&measurement_secret)
            .ok_or(InvalidTicket::MeasurementSecret(measurement_secret.len()))?;
        let measurement_salt = MeasurementSalt::try_from(measurement_salt.as_slice())?;
        let cluster = cluster_id(&measurement_secret, &measurement_salt);
        check_service(cluster, service)?;
        let state_disk_key =
            StateDiskKey::from_slice(&state_disk_key).ok_or(InvalidTicket::StateDiskKey(state_disk_key.len()))?;
        let control_plane = match role {
            NodeRole::Worker => None,
            NodeRole::ControlPlane => Some(ControlPlaneParts::parse(control_plane, cluster, &measurement_salt)?),
        };
        if kubelet_cert.is_empty() {
            return Err(InvalidTicket::NoKubeletCertificate);
        }
        let components = parse_component_list(&kubernetes_version, kubernetes_components)?;
        Ok(Self {
            cluster,
            policy: BelievedPolicy::for_new_member(&cluster_policy, operator, cluster, &components)?,
            measurement_salt,
            kubelet_certificate: kubelet_cert,
            settings: JoinSettings {
                role,
                endpoint: api_server_endpoint.parse()?,
                token: token.parse()?,
                ca_cert_hash: oci::format(&oci::parse(&discovery_token_ca_cert_hash)?),
            },
            mirror: parse_mirror(&component_mirror)?,
            components,
            control_plane,
            disk: disk_uuid.parse()?,
            state_disk_key: Some(state_disk_key),
        })
    }

    /// Takes the key. It can be taken once, because it goes nowhere but to the disk.
    ///
    /// # Panics
    /// When called twice.
    pub(super) fn take_state_disk_key(&mut self) -> StateDiskKey {
        self.state_disk_key.take().expect("a ticket's key is taken once")
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// The parts of a message that are for control planes only, wiped when dropped.
struct ControlPlaneMessage {
    master_secret: Option<(Zeroizing<Vec<u8>>, Vec<u8>)>,
    /// Name and content.
    files: Vec<(String, Zeroizing<Vec<u8>>)>,
}

impl ControlPlaneMessage {
    fn new(master_secret: Option<MasterSecretMessage>, files: Vec<ControlPlaneCertOrKey>) -> Self {
        Self {
            master_secret: master_secret.map(|MasterSecretMessage { key, salt }| (Zeroizing::new(key), salt)),
            files: files
                .into_iter()
                .map(|ControlPlaneCertOrKey { name, data }| (name, Zeroizing::new(data)))
                .collect(),
        }
    }
}

/// A worker knows its cluster's secrets too; it must not answer for a control plane.
fn check_service(cluster: ClusterId, service: &Measured<Membership>) -> Result<(), InvalidTicket> {
    let membership = Membership::new(cluster, NodeRole::ControlPlane);
    if service.is(&membership) {
        Ok(())
    } else {
        Err(InvalidTicket::NotOurControlPlane {
            cluster,
            expected: service.shown_by(&membership),
            actual: service.shown(),
        })
    }
}

fn parse_mirror(address: &str) -> Result<Option<ComponentMirror>, ParseMirrorAddressError> {
    (!address.is_empty()).then(|| address.parse()).transpose()
}

impl ControlPlaneParts {
    fn parse(message: ControlPlaneMessage, cluster: ClusterId, salt: &MeasurementSalt) -> Result<Self, InvalidTicket> {
        let (key, master_salt) = message.master_secret.ok_or(InvalidTicket::NoMasterSecret)?;
        let master_secret = MasterSecret::new(key, master_salt)?;
        if cluster_id(&master_secret.kek().measurement_secret(), salt) != cluster {
            return Err(InvalidTicket::ForeignMasterSecret);
        }
        Ok(Self {
            master_secret,
            files: parse_shared_files(message.files)?,
        })
    }
}

/// Names are looked up in a list and never used as they are: a name made up by the service could lead anywhere.
fn parse_shared_files(files: Vec<(String, Zeroizing<Vec<u8>>)>) -> Result<Vec<SharedFile>, InvalidTicket> {
    let mut names: Vec<String> = files.iter().map(|(name, _)| name.chars().take(64).collect()).collect();
    names.sort();
    if names != SHARED_FILES {
        return Err(InvalidTicket::SharedFiles(names));
    }
    let known = |(name, content): (String, _)| {
        let name = SHARED_FILES.into_iter().find(|known| *known == name)?;
        Some(SharedFile { name, content })
    };
    Ok(files.into_iter().filter_map(known).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use grpc_api::components::Component;

    use super::*;
    use crate::request::tests::{operator_key, policy};
    use crate::tests::fixture::DISK;

    fn master_secret() -> MasterSecret {
        MasterSecret::new(Zeroizing::new(vec![b'C'; 32]), vec![b'S'; 32]).unwrap()
    }

    const SALT: [u8; 32] = [9; 32];

    fn message() -> IssueJoinTicketResponse {
        let file = |name: &&str| ControlPlaneCertOrKey {
            name: (*name).into(),
            data: b"content".to_vec(),
        };
        let components = vec![Component {
            url: "bin/kubelet".into(),
            hash: format!("sha256:{}", "00".repeat(32)),
            install_path: "/run/state/bin/kubelet".into(),
            extract: false,
        }];
        IssueJoinTicketResponse {
            disk_uuid: DISK.into(),
            state_disk_key: vec![1; 32],
            measurement_salt: SALT.to_vec(),
            measurement_secret: master_secret().kek().measurement_secret().expose().to_vec(),
            kubelet_cert: b"certificate".to_vec(),
            api_server_endpoint: "10.42.1.100:6443".into(),
            token: "abcdef.0123456789abcdef".into(),
            discovery_token_ca_cert_hash: format!("sha256:{}", "ab".repeat(32)),
            control_plane_files: SHARED_FILES.iter().map(file).collect(),
            kubernetes_version: "v1.35.4".into(),
            cluster_policy: policy(&operator_key(), cluster(), &components),
            kubernetes_components: components,
            master_secret: Some(MasterSecretMessage {
                key: master_secret().expose_key().to_vec(),
                salt: master_secret().salt().to_vec(),
            }),
            ..IssueJoinTicketResponse::default()
        }
    }

    fn cluster() -> ClusterId {
        cluster_id(&master_secret().kek().measurement_secret(), &MeasurementSalt::new(SALT))
    }

    fn operator() -> OperatorPublicKey {
        operator_key().public()
    }

    const NEW: Digest = Digest::new([0; 32]);

    fn shown(membership: &Membership) -> Digest {
        let Membership { cluster, role } = membership;
        Digest::of(&[cluster.as_bytes(), role.event()].concat())
    }

    /// What a join service of our cluster shows.
    fn member() -> Measured<Membership> {
        with_role(NodeRole::ControlPlane)
    }

    fn with_role(role: NodeRole) -> Measured<Membership> {
        Measured::new("register", shown(&Membership::new(cluster(), role)), NEW, shown)
    }

    fn check(change: impl FnOnce(&mut IssueJoinTicketResponse)) -> Result<Ticket, InvalidTicket> {
        check_from(&member(), change)
    }

    fn check_from(
        service: &Measured<Membership>,
        change: impl FnOnce(&mut IssueJoinTicketResponse),
    ) -> Result<Ticket, InvalidTicket> {
        let mut message = message();
        change(&mut message);
        Ticket::parse(message, service, &operator(), NodeRole::ControlPlane)
    }

    #[test]
    fn a_ticket_of_the_services_own_cluster_is_good() {
        let ticket = check(|_| {}).unwrap();
        assert_eq!(ticket.cluster, cluster());
        assert_eq!(ticket.control_plane.unwrap().files.len(), 8);
    }

    #[test]
    fn a_worker_takes_nothing_of_a_control_plane() {
        let ticket = Ticket::parse(message(), &member(), &operator(), NodeRole::Worker).unwrap();
        assert!(ticket.control_plane.is_none());
    }

    #[test]
    fn another_clusters_ticket_is_refused() {
        let other = check(|ticket| ticket.measurement_secret = vec![7; 32]);
        assert!(matches!(other, Err(InvalidTicket::NotOurControlPlane { .. })));
        let other = check(|ticket| ticket.measurement_salt = vec![7; 32]);
        assert!(matches!(other, Err(InvalidTicket::NotOurControlPlane { .. })));
        let silent = check_from(&Measured::new("register", NEW, NEW, shown), |_| {});
        assert!(matches!(silent, Err(InvalidTicket::NotOurControlPlane { .. })));
    }

    #[test]
    fn a_worker_of_the_same_cluster_issues_no_tickets() {
        let refused = check_from(&with_role(NodeRole::Worker), |_| {});
        assert!(matches!(refused, Err(InvalidTicket::NotOurControlPlane { .. })));
    }

    #[test]
    fn bad_input_to_each_field_gives_one_error_that_names_it() {
        type Change = fn(&mut IssueJoinTicketResponse);
        let cases: [(Change, &str); 28] = [
            (
                |t| t.disk_uuid.clear(),
                "the ticket's disk_uuid is malformed: \"\" is not a UUID",
            ),
            (
                |t| t.disk_uuid = "measurementSecret".into(),
                "the ticket's disk_uuid is malformed",
            ),
            (
                |t| t.state_disk_key.clear(),
                "the state disk key has 0 bytes, expected 32",
            ),
            (
                |t| t.state_disk_key.push(1),
                "the state disk key has 33 bytes, expected 32",
            ),
            (
                |t| t.measurement_secret.clear(),
                "the measurement secret has 0 bytes, expected 32",
            ),
            (
                |t| t.measurement_salt.clear(),
                "MeasurementSalt has 0 bytes, expected 32",
            ),
            (|t| t.kubelet_cert.clear(), "the ticket has no kubelet certificate"),
            (|t| t.token.clear(), "the bootstrap token is malformed"),
            (|t| t.token.push('\n'), "the bootstrap token is malformed"),
            (|t| t.api_server_endpoint.clear(), "the address of the API server"),
            (
                |t| t.api_server_endpoint = "host".into(),
                "the address of the API server",
            ),
            (
                |t| t.api_server_endpoint = "host:0".into(),
                "the address of the API server",
            ),
            (
                |t| t.api_server_endpoint = "*.host:1".into(),
                "the address of the API server",
            ),
            (
                |t| t.api_server_endpoint = "a b:1".into(),
                "the address of the API server",
            ),
            (
                |t| t.api_server_endpoint = "host:1\nx: y".into(),
                "the address of the API server",
            ),
            (
                |t| t.discovery_token_ca_cert_hash.clear(),
                "the hash of the cluster CA is malformed",
            ),
            (
                |t| t.kubernetes_version = "1.35".into(),
                "the list of components is malformed: kubernetes_version: \"1.35\"",
            ),
            (
                |t| t.kubernetes_components.clear(),
                "the list of components is malformed: kubernetes_components: the list is empty",
            ),
            (
                |t| t.kubernetes_components[0].url = "../x".into(),
                "the list of components is malformed: kubernetes_components[0].url: \"../x\"",
            ),
            (
                |t| t.kubernetes_components[0].hash.clear(),
                "the list of components is malformed: kubernetes_components[0].hash: \"\"",
            ),
            (
                |t| t.kubernetes_components[0].install_path.clear(),
                "the list of components is malformed: kubernetes_components[0].install_path: \"\"",
            ),
            (
                |t| t.component_mirror = "file:///".into(),
                "the address of the mirror is malformed: \"file:///\"",
            ),
            (|t| t.master_secret = None, "the ticket has no master secret"),
            (
                |t| t.master_secret.as_mut().unwrap().key.clear(),
                "the master secret is malformed: key of the master secret has 0 bytes",
            ),
            (
                |t| t.master_secret.as_mut().unwrap().salt.clear(),
                "the master secret is malformed: salt of the master secret has 0 bytes",
            ),
            (
                |t| t.master_secret.as_mut().unwrap().salt = vec![7; 32],
                "the master secret belongs to another cluster",
            ),
            (
                |t| t.control_plane_files[0].name = "../../shadow".into(),
                "the ticket's control plane files are [\"../../shadow\",",
            ),
            (
                |t| t.control_plane_files.clear(),
                "the ticket's control plane files are []",
            ),
        ];
        for (change, expected) in cases {
            let error = error_report::Chain(&check(change).unwrap_err()).to_string();
            assert!(error.starts_with(expected), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    /// Whoever edits what the join service reads: neither other components nor another policy get past the operator.
    #[test]
    fn what_the_operator_did_not_sign_is_not_installed() {
        let refused = |change: fn(&mut IssueJoinTicketResponse)| match check(change) {
            Err(InvalidTicket::Policy(refused)) => refused,
            other => panic!("{other:?}"),
        };
        let components = refused(|ticket| ticket.kubernetes_components[0].hash = format!("sha256:{}", "11".repeat(32)));
        assert!(matches!(components, RefusePolicyError::Release(_)));
        let version = refused(|ticket| ticket.kubernetes_version = "v1.35.3".into());
        assert!(matches!(version, RefusePolicyError::Release(_)));
        let none = refused(|ticket| ticket.cluster_policy.clear());
        assert!(matches!(none, RefusePolicyError::Parse(_)));
        let foreign = refused(|ticket| {
            let components = &ticket.kubernetes_components;
            ticket.cluster_policy = policy(&operator_key(), ClusterId::new([7; 32]), components);
        });
        assert!(matches!(foreign, RefusePolicyError::Cluster(_)));
        let (message, another) = (message(), OperatorPublicKey::new([7; 32]));
        let other = Ticket::parse(message, &member(), &another, NodeRole::ControlPlane);
        assert!(matches!(
            other,
            Err(InvalidTicket::Policy(RefusePolicyError::Operator(_)))
        ));
    }

    #[test]
    fn a_master_secret_of_another_cluster_is_refused() {
        let foreign = check(|ticket| ticket.master_secret.as_mut().unwrap().key = vec![7; 32]);
        assert!(matches!(foreign, Err(InvalidTicket::ForeignMasterSecret)));
    }

    #[test]
    fn shared_files_are_the_known_ones() {
        type Change = fn(&mut Vec<ControlPlaneCertOrKey>);
        let changes: [Change; 4] = [
            |files| files[0].name = "../../shadow".into(),
            |files| files[0].name = "ca.key".into(),
            |files| drop(files.pop()),
            |files| files.clear(),
        ];
        for change in changes {
            let result = check(|ticket| change(&mut ticket.control_plane_files));
            assert!(matches!(result, Err(InvalidTicket::SharedFiles(_))));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", check(|_| {}).unwrap());
        assert!(!shown.contains("abcdef") && !shown.contains("67, 67"), "{shown}");
    }
}
