//! A ticket from a join service, checked against what the service attested.

use attestation::{Measured, Membership, ReportBinding};
use cluster_policy::{BelievedPolicy, RefusePolicyError, SignedPolicy};
use cluster_types::{
    ClusterId, DiskUuid, MeasurementSalt, NodeRole, OperatorPublicKey, ParseHostPortError, WrongLength,
};
use component_installer::{ComponentMirror, ParseMirrorAddressError};
use digest::Digest;
use grpc_api::join::IssueJoinTicketResponse;
use key_derivation::cluster_id;
use kubeadm::{JoinSettings, ParseTokenError};
use kubernetes_components::ComponentList;
use node_secrets::{ControlPlaneSecrets, NodeSecrets, OpenError, SealingKey};
use secret::StateDiskKey;
use zeroize::Zeroizing;

use crate::request::{InvalidRequest, parse_component_list};

/// Everything a node needs to join. It names the cluster, and the join service that issued it is a control plane of that cluster.
pub(super) struct Ticket {
    pub(super) cluster: ClusterId,
    pub(super) measurement_salt: MeasurementSalt,
    pub(super) settings: JoinSettings,
    /// Signed by the operator whom this node obeys.
    pub(super) policy: BelievedPolicy,
    /// The policy lists them.
    pub(super) components: ComponentList,
    /// `None` stands for the platform's own mirror.
    pub(super) mirror: Option<ComponentMirror>,
    pub(super) control_plane: Option<ControlPlaneSecrets>,
    /// The UUID that the state disk gets with its key.
    pub(super) disk: DiskUuid,
    state_disk_key: Option<StateDiskKey>,
}

/// What ties secrets to this node and this session.
pub(crate) struct OwnSession<'a> {
    pub(crate) sealing_key: &'a SealingKey,
    /// Of this node's Evidence.
    pub(crate) binding: &'a ReportBinding,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidTicket {
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
    #[error("the bootstrap token is malformed")]
    Token(#[from] ParseTokenError),
    #[error("the address of the API server is malformed")]
    Endpoint(#[from] ParseHostPortError),
    #[error("the list of components is malformed")]
    Components(#[from] InvalidRequest),
    #[error("the ticket's cluster policy is refused")]
    Policy(#[from] RefusePolicyError),
    #[error("the ticket's sealed_secrets are refused")]
    Secrets(#[from] OpenError),
    #[error("the address of the mirror is malformed")]
    Mirror(#[from] ParseMirrorAddressError),
    #[error("the ticket has no master secret, which a control plane needs")]
    NoMasterSecret,
    #[error("the master secret belongs to another cluster")]
    ForeignMasterSecret,
    #[error("the ticket has a master secret, which this node did not request")]
    UnwantedMasterSecret,
    #[error("the secrets were released by another policy than the ticket's")]
    AnotherPolicy,
    #[error("the key is for disk {actual}, not for this node's, {expected}")]
    AnotherDisk { actual: DiskUuid, expected: DiskUuid },
}

impl Ticket {
    /// Parses a ticket.
    ///
    /// 1. The operator whom this node obeys has signed the policy.
    /// 2. The join service is a control plane of the policy's cluster.
    /// 3. The secrets come from the key service that the policy names, and are for this node and this session.
    /// 4. They were released by that policy, and are secrets of its cluster.
    /// 5. The policy lists what the node is to install.
    ///
    /// # Security
    /// Success proves that the service is a control plane of the cluster this node is about to measure: a service cannot be
    /// made to hand out another cluster's secrets, and neither a cluster that did not attest nor a worker can lure a node. Whoever
    /// writes the service's configuration does not choose what this node installs, and whoever is between this node and the key
    /// service does not choose its keys.
    pub(super) fn parse(
        message: IssueJoinTicketResponse,
        session: &OwnSession<'_>,
        service: &Measured<Membership>,
        operator: &OperatorPublicKey,
        role: NodeRole,
    ) -> Result<Self, InvalidTicket> {
        let IssueJoinTicketResponse {
            measurement_salt,
            api_server_endpoint,
            token,
            kubernetes_version,
            kubernetes_components,
            component_mirror,
            cluster_policy,
            sealed_secrets,
        } = message;
        // Secrets are wiped wherever parsing ends.
        let token = Zeroizing::new(token);

        let policy = believe(&cluster_policy, operator)?;
        check_service(policy.cluster, service)?;
        let NodeSecrets {
            disk,
            state_disk_key,
            measurement_secret,
            // It was compared.
            policy: _,
            cluster_ca,
            control_plane,
        } = open_secrets(&sealed_secrets, session, &policy)?;
        let measurement_salt = MeasurementSalt::try_from(measurement_salt.as_slice())?;
        let cluster = cluster_id(&measurement_secret, &measurement_salt);
        policy.must_be_for(cluster).map_err(RefusePolicyError::from)?;
        let control_plane = check_role(role, control_plane, cluster, &measurement_salt)?;
        let components = parse_component_list(&kubernetes_version, kubernetes_components)?;
        policy.must_list(&components).map_err(RefusePolicyError::from)?;
        Ok(Self {
            cluster,
            policy,
            measurement_salt,
            settings: JoinSettings {
                role,
                endpoint: api_server_endpoint.parse()?,
                token: token.parse()?,
                cluster_ca,
            },
            mirror: parse_mirror(&component_mirror)?,
            components,
            control_plane,
            disk,
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

pub(crate) fn believe(policy: &[u8], operator: &OperatorPublicKey) -> Result<BelievedPolicy, RefusePolicyError> {
    Ok(SignedPolicy::parse(policy)?.believe(|signer| signer == operator)?)
}

/// The secrets that the key service of this policy released for this session, by this policy.
pub(crate) fn open_secrets(
    sealed: &[u8],
    session: &OwnSession<'_>,
    policy: &BelievedPolicy,
) -> Result<NodeSecrets, InvalidTicket> {
    let OwnSession { sealing_key, binding } = session;
    let secrets = node_secrets::open(sealed, sealing_key, binding, &policy.key_service)?;
    if secrets.policy == Digest::of(policy.as_bytes()) {
        Ok(secrets)
    } else {
        Err(InvalidTicket::AnotherPolicy)
    }
}

/// A worker knows its cluster's secrets too; it must not answer for a control plane.
pub(crate) fn check_service(cluster: ClusterId, service: &Measured<Membership>) -> Result<(), InvalidTicket> {
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

/// A control plane gets what makes it one, of this cluster, and a worker does not.
fn check_role(
    role: NodeRole,
    secrets: Option<ControlPlaneSecrets>,
    cluster: ClusterId,
    salt: &MeasurementSalt,
) -> Result<Option<ControlPlaneSecrets>, InvalidTicket> {
    match (role, secrets) {
        (NodeRole::Worker, None) => Ok(None),
        (NodeRole::Worker, Some(_)) => Err(InvalidTicket::UnwantedMasterSecret),
        (NodeRole::ControlPlane, None) => Err(InvalidTicket::NoMasterSecret),
        (NodeRole::ControlPlane, Some(secrets)) => {
            if cluster_id(&secrets.master_secret.kek().measurement_secret(), salt) != cluster {
                return Err(InvalidTicket::ForeignMasterSecret);
            }
            Ok(Some(secrets))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use attestation::Nonce;
    use grpc_api::components::Component;
    use key_derivation::MasterSecret;
    use node_secrets::{SHARED_FILES, SharedFile, seal};
    use secret::MeasurementSecret;

    use super::*;
    use crate::request::tests::{key_service, operator_key, policy};
    use crate::tests::fixture::DISK;

    fn master_secret() -> MasterSecret {
        MasterSecret::new(Zeroizing::new(vec![b'C'; 32]), vec![b'S'; 32]).unwrap()
    }

    const SALT: [u8; 32] = [9; 32];

    fn message() -> IssueJoinTicketResponse {
        let components = vec![Component {
            url: "bin/kubelet".into(),
            hash: format!("sha256:{}", "00".repeat(32)),
            install_path: "/run/state/bin/kubelet".into(),
            extract: false,
        }];
        IssueJoinTicketResponse {
            measurement_salt: SALT.to_vec(),
            api_server_endpoint: "10.42.1.100:6443".into(),
            token: "abcdef.0123456789abcdef".into(),
            kubernetes_version: "v1.35.4".into(),
            cluster_policy: policy(&operator_key(), cluster(), &components),
            kubernetes_components: components,
            ..IssueJoinTicketResponse::default()
        }
    }

    fn secrets() -> NodeSecrets {
        NodeSecrets {
            disk: DISK.parse().unwrap(),
            state_disk_key: StateDiskKey::from_bytes([1; 32]),
            measurement_secret: master_secret().kek().measurement_secret(),
            policy: Digest::of(&message().cluster_policy),
            cluster_ca: b"certificate".to_vec().into(),
            control_plane: Some(ControlPlaneSecrets {
                master_secret: master_secret(),
                files: SHARED_FILES.map(file).into(),
            }),
        }
    }

    fn file(name: &'static str) -> SharedFile {
        SharedFile {
            name,
            content: Zeroizing::new(b"content".to_vec()),
        }
    }

    fn of_worker() -> NodeSecrets {
        NodeSecrets {
            control_plane: None,
            ..secrets()
        }
    }

    fn session_binding() -> ReportBinding {
        ReportBinding::standalone(&Nonce::new([5; 32]))
    }

    /// Adds secrets to a ticket as the key service does, and parses it as the node of that session does.
    pub(crate) fn sealed_to_this_node<T>(
        mut message: IssueJoinTicketResponse,
        secrets: &NodeSecrets,
        parse: impl FnOnce(IssueJoinTicketResponse, &OwnSession<'_>) -> T,
    ) -> T {
        let (sealing_key, binding) = (SealingKey::generate(), session_binding());
        message.sealed_secrets = seal(secrets, &sealing_key.public(), &binding, &key_service()).unwrap();
        let session = OwnSession {
            sealing_key: &sealing_key,
            binding: &binding,
        };
        parse(message, &session)
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

    fn parse(
        message: IssueJoinTicketResponse,
        secrets: &NodeSecrets,
        service: &Measured<Membership>,
        operator: &OperatorPublicKey,
        role: NodeRole,
    ) -> Result<Ticket, InvalidTicket> {
        sealed_to_this_node(message, secrets, |message, session| {
            Ticket::parse(message, session, service, operator, role)
        })
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
        parse(message, &secrets(), service, &operator(), NodeRole::ControlPlane)
    }

    fn check_secrets(change: impl FnOnce(&mut NodeSecrets)) -> Result<Ticket, InvalidTicket> {
        let mut secrets = secrets();
        change(&mut secrets);
        parse(message(), &secrets, &member(), &operator(), NodeRole::ControlPlane)
    }

    #[test]
    fn a_ticket_of_the_services_own_cluster_is_good() {
        let ticket = check(|_| {}).unwrap();
        assert_eq!(ticket.cluster, cluster());
        // The join service does not choose whom this node takes for the API server.
        assert_eq!(&*ticket.settings.cluster_ca, b"certificate");
        assert_eq!(ticket.control_plane.unwrap().files.len(), 10);
    }

    #[test]
    fn a_worker_takes_nothing_of_a_control_plane() {
        let ticket = parse(message(), &of_worker(), &member(), &operator(), NodeRole::Worker).unwrap();
        assert!(ticket.control_plane.is_none());
        let refused = parse(message(), &secrets(), &member(), &operator(), NodeRole::Worker);
        assert!(matches!(refused, Err(InvalidTicket::UnwantedMasterSecret)));
    }

    /// The join service presented one to the key service and another one here, which lists an older Kubernetes.
    #[test]
    fn the_policy_is_the_one_by_which_the_secrets_were_released() {
        let refused = check_secrets(|secrets| secrets.policy = Digest::of(b"another"));
        assert!(matches!(refused, Err(InvalidTicket::AnotherPolicy)));
    }

    #[test]
    fn another_clusters_ticket_is_refused() {
        let is_of_another = |result| matches!(result, Err(InvalidTicket::Policy(RefusePolicyError::Cluster(_))));
        let other = MeasurementSecret::from_bytes([7; 32]);
        assert!(is_of_another(check_secrets(
            |secrets| secrets.measurement_secret = other
        )));
        assert!(is_of_another(check(|ticket| ticket.measurement_salt = vec![7; 32])));
        let other = check(|ticket| {
            let components = &ticket.kubernetes_components;
            ticket.cluster_policy = policy(&operator_key(), ClusterId::new([7; 32]), components);
        });
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
        let cases: [(Change, &str); 15] = [
            (
                |t| t.measurement_salt.clear(),
                "MeasurementSalt has 0 bytes, expected 32",
            ),
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
        let another = OperatorPublicKey::new([7; 32]);
        let other = parse(message(), &secrets(), &member(), &another, NodeRole::ControlPlane);
        assert!(matches!(
            other,
            Err(InvalidTicket::Policy(RefusePolicyError::Operator(_)))
        ));
    }

    #[test]
    fn a_master_secret_of_another_cluster_is_refused() {
        for (key, salt) in [(vec![7; 32], vec![b'S'; 32]), (vec![b'C'; 32], vec![7; 32])] {
            let foreign = MasterSecret::new(Zeroizing::new(key), salt).unwrap();
            let refused = check_secrets(|secrets| secrets.control_plane.as_mut().unwrap().master_secret = foreign);
            assert!(matches!(refused, Err(InvalidTicket::ForeignMasterSecret)));
        }
    }

    #[test]
    fn a_control_plane_needs_the_master_secret() {
        let without = check_secrets(|secrets| secrets.control_plane = None);
        assert!(matches!(without, Err(InvalidTicket::NoMasterSecret)));
    }

    /// What was sealed for another session of this node, or is missing. Who may seal and sign is tested in `node-secrets`.
    #[test]
    fn secrets_of_another_session_are_refused() {
        let other = ReportBinding::standalone(&Nonce::new([6; 32]));
        let refused = sealed_to_this_node(message(), &secrets(), |message, session| {
            let session = OwnSession {
                binding: &other,
                ..*session
            };
            Ticket::parse(message, &session, &member(), &operator(), NodeRole::Worker)
        });
        assert!(matches!(
            refused,
            Err(InvalidTicket::Secrets(OpenError::NotFromKeyService(_)))
        ));
        let refused = sealed_to_this_node(message(), &secrets(), |mut message, session| {
            message.sealed_secrets.clear();
            Ticket::parse(message, session, &member(), &operator(), NodeRole::Worker)
        });
        assert!(matches!(refused, Err(InvalidTicket::Secrets(_))));
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", check(|_| {}).unwrap());
        assert!(!shown.contains("abcdef") && !shown.contains("67, 67"), "{shown}");
    }
}
