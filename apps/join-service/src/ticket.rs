//! What a node must present to get a ticket, and what the ticket contains.

use std::error::Error;
use std::net::Ipv4Addr;

use attestation::UnixTime;
use attested_tls::AttestedNode;
use cluster_objects::{Cluster, CreateBootstrapTokenError, NodeRecordError, ReadComponentsError};
use cluster_policy::{AnotherCluster, BelievedPolicy, UnlistedRelease};
use cluster_types::{DiskUuid, NodeRole, ParseDiskUuidError};
use grpc_api::join::{
    ControlPlaneCertOrKey, IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest,
    IssueRejoinTicketResponse, MasterSecret,
};
use jiff::Timestamp;
use key_derivation::cluster_id;
use key_service_client::{KeyServiceClient, KeyServiceError};
use role_grant::{RequestedRole, RoleGrant, RoleGrantError};
use secret::MeasurementSecret;
use tonic::Status;
use uuid::Uuid;

use crate::certificate::{CertificateRequestError, KubeletRequest, SignError};
use crate::config::{CheckedConfig, Config};
use crate::pki::{Pki, ReadPkiError};

/// Answers the requests of attested nodes with tickets.
pub(crate) struct TicketIssuer {
    cluster: Cluster,
    keys: KeyServiceClient,
    pki: Pki,
    config: Config,
}

/// A ticket could not be issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueTicketError {
    #[error("disk_uuid is invalid")]
    Disk(#[from] ParseDiskUuidError),
    #[error("certificate_request is refused")]
    Certificate(#[from] CertificateRequestError),
    #[error("role_grant is refused")]
    RoleGrant(#[from] RoleGrantError),
    #[error("role_grant is refused: is_control_plane is not set, and only control planes need a grant")]
    NoRoleToGrant,
    #[error("disk_uuid is not a disk of this machine")]
    DiskRecord(#[source] NodeRecordError),
    #[error("certificate_request is refused: {0} is the API server's address")]
    ApiServersAddress(Ipv4Addr),
    #[error("certificate_request names a node or an address that is not this machine's")]
    NameRecord(#[source] NodeRecordError),
    #[error(transparent)]
    Key(#[from] KeyServiceError),
    #[error(transparent)]
    Token(#[from] CreateBootstrapTokenError),
    #[error(transparent)]
    Components(#[from] ReadComponentsError),
    #[error("the join configuration names components that nodes may not install")]
    Unlisted(#[from] UnlistedRelease),
    #[error("measurementSalt of the join configuration is refused")]
    Salt(#[from] AnotherCluster),
    #[error(transparent)]
    Pki(#[from] ReadPkiError),
    #[error(transparent)]
    Sign(#[from] SignError),
}

impl IssueTicketError {
    /// What the node is told if its request is at fault: which field, and why. `None` if the fault is ours.
    ///
    /// # Security
    /// The node has attested, and it learns only about its own request. It does not learn who owns a disk or a name.
    pub(crate) fn refusal(&self) -> Option<Status> {
        match self {
            Self::Disk(_) | Self::Certificate(_) | Self::ApiServersAddress(_) => {
                Some(Status::invalid_argument(self.with_reason()))
            }
            Self::RoleGrant(_) | Self::NoRoleToGrant => Some(Status::permission_denied(self.with_reason())),
            Self::DiskRecord(NodeRecordError::Api { .. }) | Self::NameRecord(NodeRecordError::Api { .. }) => None,
            Self::DiskRecord(_) | Self::NameRecord(_) => Some(Status::permission_denied(self.to_string())),
            Self::Key(_)
            | Self::Token(_)
            | Self::Components(_)
            | Self::Unlisted(_)
            | Self::Salt(_)
            | Self::Pki(_)
            | Self::Sign(_) => None,
        }
    }

    /// The field and what is wrong with it, without the rest of the chain.
    fn with_reason(&self) -> String {
        match self.source() {
            Some(reason) => format!("{self}: {reason}"),
            None => self.to_string(),
        }
    }
}

impl TicketIssuer {
    pub(crate) fn new(cluster: Cluster, keys: KeyServiceClient, pki: Pki, config: Config) -> Self {
        Self {
            cluster,
            keys,
            pki,
            config,
        }
    }

    /// Issues a ticket to a node that is new to the cluster.
    ///
    /// 1. Parse the request.
    /// 2. Derive the cluster id, which must be the policy's.
    /// 3. Read the components, which the policy must list.
    /// 4. Check a control plane's grant, which the operator signed for this machine.
    /// 5. Bind name and address to this machine, unless they belong to another one.
    /// 6. Draw a disk, and fetch its key.
    /// 7. Sign the certificate with which the kubelet serves, and create a bootstrap token.
    /// 8. For a control plane, add the PKI and the master secret.
    /// 9. Record the disk for this machine.
    ///
    /// # Cancel safety
    /// Claims remain, which is harmless because they are the caller's. A bootstrap token expires by itself.
    pub(crate) async fn issue_join_ticket(
        &self,
        node: &AttestedNode,
        request: IssueJoinTicketRequest,
    ) -> Result<IssueJoinTicketResponse, IssueTicketError> {
        let IssueJoinTicketRequest {
            certificate_request,
            is_control_plane,
            role_grant,
        } = request;
        let in_force = self.config.in_force();
        let CheckedConfig { config, policy, .. } = &*in_force;
        let (kubelet, address) = self.parse_kubelet(&certificate_request)?;
        if !is_control_plane && !role_grant.is_empty() {
            return Err(IssueTicketError::NoRoleToGrant);
        }
        let measurement_secret = self.measurement_secret().await?;
        policy.must_be_for(cluster_id(&measurement_secret, &config.measurement_salt))?;
        let components = self.cluster.components(&config.components).await?;
        policy.must_list(&components)?;
        if is_control_plane {
            check_grant(policy, node, &role_grant)?;
        }
        let claimed = self.cluster.claim(&kubelet.node, address, node.identity()).await;
        claimed.map_err(IssueTicketError::NameRecord)?;
        // No disk with data has it, so whoever gets its key can read nothing with it.
        let disk = DiskUuid::from(Uuid::new_v4());
        let state_disk_key = self.keys.data_key(&disk.to_string()).await?;
        let token = self.cluster.create_bootstrap_token(&kubelet.node, Timestamp::now());
        let token = token.await?;
        let kubelet_cert = kubelet.sign(address, &self.pki.ca_certificate()?, &self.pki.ca_key()?)?;
        let (control_plane_files, master_secret) = if is_control_plane {
            (self.control_plane_files()?, Some(self.master_secret(node).await?))
        } else {
            (Vec::new(), None)
        };
        // Only now: a request that fails must not push the disk of a member out of its record.
        let added = self.cluster.add_disk(disk, node.identity()).await;
        added.map_err(IssueTicketError::DiskRecord)?;
        Ok(IssueJoinTicketResponse {
            state_disk_key: state_disk_key.to_vec(),
            measurement_salt: config.measurement_salt.as_bytes().to_vec(),
            measurement_secret: measurement_secret.expose().to_vec(),
            kubelet_cert: kubelet_cert.into_bytes(),
            api_server_endpoint: config.api_server_endpoint.to_string(),
            token: token.expose().to_owned(),
            discovery_token_ca_cert_hash: self.pki.ca_pin()?,
            control_plane_files,
            kubernetes_version: components.kubernetes_version().to_string(),
            kubernetes_components: components.components().iter().map(Into::into).collect(),
            master_secret,
            component_mirror: config.component_mirror.clone(),
            cluster_policy: policy.as_bytes().to_vec(),
            disk_uuid: disk.to_string(),
        })
    }

    /// Issues what a member needs to open its disk again.
    pub(crate) async fn issue_rejoin_ticket(
        &self,
        node: &AttestedNode,
        request: IssueRejoinTicketRequest,
    ) -> Result<IssueRejoinTicketResponse, IssueTicketError> {
        let IssueRejoinTicketRequest { disk_uuid } = request;
        let disk: DiskUuid = disk_uuid.parse()?;
        let checked = self.cluster.check_disk(disk, node.identity()).await;
        checked.map_err(IssueTicketError::DiskRecord)?;
        Ok(IssueRejoinTicketResponse {
            state_disk_key: self.keys.data_key(&disk.to_string()).await?.to_vec(),
            measurement_secret: self.measurement_secret().await?.expose().to_vec(),
        })
    }

    /// A kubelet's request, and the address at which it will serve: one that nodes can have, and not the API server's. Both certificates
    /// come from one CA, so the kubelet's would pass for the API server's.
    fn parse_kubelet(&self, request: &[u8]) -> Result<(KubeletRequest, Ipv4Addr), IssueTicketError> {
        let kubelet = KubeletRequest::parse(request)?;
        let address = kubelet.address()?;
        if self.pki.api_server_addresses()?.contains(&address) {
            return Err(IssueTicketError::ApiServersAddress(address));
        }
        Ok((kubelet, address))
    }

    async fn measurement_secret(&self) -> Result<MeasurementSecret, KeyServiceError> {
        Ok(MeasurementSecret::from_bytes(
            self.keys.data_key("measurementSecret").await?,
        ))
    }

    async fn master_secret(&self, node: &AttestedNode) -> Result<MasterSecret, KeyServiceError> {
        let (key, salt) = self.keys.master_secret(node.identity().to_string()).await?;
        Ok(MasterSecret {
            key: key.expose().to_vec(),
            salt,
        })
    }

    fn control_plane_files(&self) -> Result<Vec<ControlPlaneCertOrKey>, ReadPkiError> {
        let files = self.pki.control_plane_files()?.into_iter();
        Ok(files
            .map(|(name, data)| ControlPlaneCertOrKey {
                name: name.to_owned(),
                data: data.expose().to_vec(),
            })
            .collect())
    }
}

/// The host sets the clock. It can keep a grant alive for too long, but the grant is still for this machine alone.
fn check_grant(policy: &BelievedPolicy, node: &AttestedNode, grant: &[u8]) -> Result<(), RoleGrantError> {
    let now = UnixTime::from_seconds(u64::try_from(Timestamp::now().as_second()).unwrap_or(u64::MAX));
    let requested = RequestedRole {
        cluster: policy.cluster,
        machine: node.identity(),
        role: NodeRole::ControlPlane,
    };
    RoleGrant::check(grant, policy.operator(), &requested, policy.min_grant_serial, now)
}
