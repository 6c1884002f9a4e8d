//! What a node must present to get a ticket, and what the ticket contains.

use std::error::Error;
use std::net::Ipv4Addr;

use attested_tls::AttestedNode;
use cluster_objects::{Cluster, CreateBootstrapTokenError, NodeRecordError, ReadComponentsError};
use cluster_policy::UnlistedRelease;
use cluster_types::{Cidr, DiskUuid, NodeName, NodeRole, ParseDiskUuidError, ParseNodeNameError};
use grpc_api::join::{
    IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest, IssueRejoinTicketResponse,
};
use jiff::Timestamp;
use key_service_client::{KeyServiceClient, KeyServiceError, PresentedPolicy, WantedRole};
use tonic::Status;

use crate::api_server::{ApiServerCertificate, ReadCertificateError};
use crate::config::{CheckedConfig, Config};

/// Answers the requests of attested nodes with tickets.
pub(crate) struct TicketIssuer {
    cluster: Cluster,
    keys: KeyServiceClient,
    api_server: ApiServerCertificate,
    config: Config,
}

/// A ticket could not be issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueTicketError {
    #[error("disk_uuid is invalid")]
    Disk(#[from] ParseDiskUuidError),
    #[error("node_name is invalid")]
    Name(#[from] ParseNodeNameError),
    #[error("node_address is refused: {0:?} is not an IPv4 address that a node can have")]
    Address(String),
    #[error("role_grant is refused: is_control_plane is not set, and only control planes need a grant")]
    NoRoleToGrant,
    #[error("this machine is not a node of this cluster")]
    NotAMember(#[source] NodeRecordError),
    #[error("node_address is refused: {0} is the API server's")]
    ApiServersAddress(Ipv4Addr),
    #[error("node_name or node_address is not this machine's")]
    NameRecord(#[source] NodeRecordError),
    #[error(transparent)]
    Key(#[from] KeyServiceError),
    #[error(transparent)]
    Token(#[from] CreateBootstrapTokenError),
    #[error(transparent)]
    Components(#[from] ReadComponentsError),
    #[error("the join configuration names components that nodes may not install")]
    Unlisted(#[from] UnlistedRelease),
    #[error(transparent)]
    ApiServer(#[from] ReadCertificateError),
}

impl IssueTicketError {
    /// What the node is told if its request is at fault: which field, and why. `None` if the fault is ours.
    ///
    /// # Security
    /// The node has attested, and it learns only about its own request. It does not learn who owns a name.
    pub(crate) fn refusal(&self) -> Option<Status> {
        match self {
            Self::Disk(_) | Self::Name(_) | Self::Address(_) | Self::ApiServersAddress(_) => {
                Some(Status::invalid_argument(self.with_reason()))
            }
            Self::NoRoleToGrant | Self::Key(KeyServiceError::GrantRefused(_)) => {
                Some(Status::permission_denied(self.with_reason()))
            }
            Self::Key(KeyServiceError::SecondDecision) => Some(Status::failed_precondition(self.to_string())),
            Self::Key(KeyServiceError::NoSealingKey) => Some(Status::invalid_argument(self.to_string())),
            Self::NotAMember(NodeRecordError::Api { .. })
            | Self::NameRecord(NodeRecordError::Api { .. } | NodeRecordError::AtTheSameTime(_)) => None,
            Self::NotAMember(_) | Self::NameRecord(_) => Some(Status::permission_denied(self.to_string())),
            Self::Key(KeyServiceError::Refused(_) | KeyServiceError::Nonce(_))
            | Self::Token(_)
            | Self::Components(_)
            | Self::Unlisted(_)
            | Self::ApiServer(_) => None,
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
    pub(crate) fn new(
        cluster: Cluster,
        keys: KeyServiceClient,
        api_server: ApiServerCertificate,
        config: Config,
    ) -> Self {
        Self {
            cluster,
            keys,
            api_server,
            config,
        }
    }

    /// Issues a ticket to a node that is new to the cluster.
    ///
    /// 1. Parse the request.
    /// 2. Read the components, which the policy must list.
    /// 3. Bind name and address to this machine, unless they belong to another one.
    /// 4. Let the key service admit the node: it appraises the node's Evidence itself, checks a control plane's grant, draws a disk, and
    ///    gives secrets, with a control plane's keys, that only the node can open.
    /// 5. Create a bootstrap token, with which the kubelet requests its certificate.
    ///
    /// # Cancel safety
    /// Claims remain, which is harmless because they are the caller's. A bootstrap token expires by itself.
    pub(crate) async fn issue_join_ticket(
        &self,
        node: &AttestedNode,
        request: IssueJoinTicketRequest,
    ) -> Result<IssueJoinTicketResponse, IssueTicketError> {
        let IssueJoinTicketRequest {
            is_control_plane,
            role_grant,
            node_name,
            node_address,
        } = request;
        let in_force = self.config.in_force();
        let CheckedConfig { config, policy, .. } = &*in_force;
        let (name, address) = (node_name.parse::<NodeName>()?, self.parse_address(&node_address)?);
        let role = match (is_control_plane, role_grant.is_empty()) {
            (true, _) => WantedRole::ControlPlane(&role_grant),
            (false, true) => WantedRole::Worker,
            (false, false) => return Err(IssueTicketError::NoRoleToGrant),
        };
        let components = self.cluster.components(&config.components).await?;
        policy.must_list(&components)?;
        let claimed = self.cluster.claim(&name, address, node.identity()).await;
        claimed.map_err(IssueTicketError::NameRecord)?;
        let admitted = self.keys.admit(node.presented(), presented(&in_force), role);
        let sealed_secrets = admitted.await?;
        let token = self.cluster.create_bootstrap_token(&name, Timestamp::now());
        let token = token.await?;
        Ok(IssueJoinTicketResponse {
            measurement_salt: config.measurement_salt.as_bytes().to_vec(),
            api_server_endpoint: config.api_server_endpoint.to_string(),
            token: token.expose().to_owned(),
            kubernetes_version: components.kubernetes_version().to_string(),
            kubernetes_components: components.components().iter().map(Into::into).collect(),
            component_mirror: config.component_mirror.clone(),
            cluster_policy: policy.as_bytes().to_vec(),
            sealed_secrets,
        })
    }

    /// Issues what a member needs to open its disk again.
    pub(crate) async fn issue_rejoin_ticket(
        &self,
        node: &AttestedNode,
        request: IssueRejoinTicketRequest,
    ) -> Result<IssueRejoinTicketResponse, IssueTicketError> {
        let IssueRejoinTicketRequest {
            disk_uuid,
            is_control_plane,
        } = request;
        let disk: DiskUuid = disk_uuid.parse()?;
        let in_force = self.config.in_force();
        let member = self.cluster.must_have_a_name(node.identity()).await;
        member.map_err(IssueTicketError::NotAMember)?;
        let role = NodeRole::requested(is_control_plane);
        let readmitted = self.keys.readmit(node.presented(), presented(&in_force), disk, role);
        Ok(IssueRejoinTicketResponse {
            sealed_secrets: readmitted.await?,
            cluster_policy: in_force.policy.as_bytes().to_vec(),
        })
    }

    /// The address at which the node's kubelet will serve: one that nodes can have, and not the API server's.
    fn parse_address(&self, text: &str) -> Result<Ipv4Addr, IssueTicketError> {
        let address = text.parse().ok().filter(|address| is_of_nodes(*address));
        let address = address.ok_or_else(|| IssueTicketError::Address(text.chars().take(64).collect()))?;
        if self.api_server.addresses()?.contains(&address) {
            return Err(IssueTicketError::ApiServersAddress(address));
        }
        Ok(address)
    }
}

/// In a private network, and neither a pod's nor a Service's.
fn is_of_nodes(address: Ipv4Addr) -> bool {
    address.is_private() && !Cidr::PODS.contains(address) && !Cidr::SERVICES.contains(address)
}

fn presented(in_force: &CheckedConfig) -> PresentedPolicy<'_> {
    PresentedPolicy {
        policy: &in_force.policy,
        measurement_salt: &in_force.config.measurement_salt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_private_addresses_that_belong_to_nobody_else() {
        for (address, expected) in [
            ([10, 42, 2, 100], true),
            ([192, 168, 1, 1], true),
            // The API server's Service, a pod, the machine itself, and somebody outside.
            ([10, 96, 0, 1], false),
            ([10, 244, 1, 2], false),
            ([127, 0, 0, 1], false),
            ([192, 0, 2, 1], false),
        ] {
            assert_eq!(is_of_nodes(address.into()), expected, "{address:?}");
        }
    }
}
