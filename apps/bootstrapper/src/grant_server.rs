//! `constellation.grant.v1.API`: the operator lets this node become a control plane.
//!
//! # Security
//! A grant is signed and names this machine, so it does not matter who brings it. The key service decides whether it is good.

use std::sync::Arc;

use attestation::Purpose;
use attested_tls::peer;
use cluster_types::NodeRole;
use error_report::Chain;
use grpc_api::grant::api_server::Api;
use grpc_api::grant::{PresentGrantRequest, PresentGrantResponse};
use role_grant::{RoleGrant, RoleGrantError};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::node::ThisNode;

pub(crate) struct GrantServer(Arc<ThisNode>);

#[derive(Debug, thiserror::Error)]
enum InvalidGrant {
    #[error("role_grant is refused")]
    Grant(#[from] RoleGrantError),
    #[error("role_grant is refused: it is not for this machine to be a control plane")]
    NotOurs,
    #[error("this node is to be a worker, which needs no grant")]
    Worker,
}

impl GrantServer {
    pub(crate) fn new(node: Arc<ThisNode>) -> Self {
        Self(node)
    }

    fn check(&self, role_grant: &[u8]) -> Result<(), InvalidGrant> {
        let node = &self.0;
        if node.hints.this_node.role != NodeRole::ControlPlane {
            return Err(InvalidGrant::Worker);
        }
        let grant = RoleGrant::verify(role_grant, &node.hints.operator)?;
        if grant.machine == node.attester.identity() && grant.role == NodeRole::ControlPlane {
            Ok(())
        } else {
            Err(InvalidGrant::NotOurs)
        }
    }
}

#[tonic::async_trait]
impl Api for GrantServer {
    async fn present_grant(
        &self,
        request: Request<PresentGrantRequest>,
    ) -> Result<Response<PresentGrantResponse>, Status> {
        peer(&request, Purpose::Grant)?;
        let PresentGrantRequest { role_grant } = request.into_inner();
        match self.check(&role_grant) {
            Ok(()) => {
                info!("role grant received");
                self.0.role_grant.send_replace(Some(role_grant));
                Ok(Response::new(PresentGrantResponse {}))
            }
            Err(error) => {
                let reason = Chain(&error).to_string();
                warn!(reason, "role grant refused");
                Err(Status::permission_denied(reason))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::OnceLock;
    use std::time::Duration;

    use attestation::{AttestedIdentity, ExpectedMembership};
    use attested_tls::{Endpoint, channel};
    use cluster_types::ClusterId;
    use digest::Digest;
    use grpc_api::grant::api_client::ApiClient;
    use grpc_api::init::InitRequest;
    use grpc_api::init::api_client::ApiClient as InitApiClient;
    use operator_key::OperatorKey;
    use test_machines::{Technology, for_each_technology};
    use tokio::time::{sleep, timeout};
    use tonic::Code;
    use tonic::transport::Channel;

    use super::*;
    use crate::join::tests::{FakeJoinService, cluster, member, serve};
    use crate::request::tests::operator_key;
    use crate::tests::fixture::TestNode;

    for_each_technology!(async:
        a_control_plane_asks_for_a_ticket_once_it_has_a_grant,
        a_grant_that_is_not_the_operators_for_this_machine_is_refused,
        a_worker_takes_no_grant,
        a_session_for_one_purpose_does_not_serve_the_other,
    );

    fn grant(node: &TestNode) -> RoleGrant {
        RoleGrant {
            cluster: cluster(),
            machine: node.node.attester.identity(),
            role: NodeRole::ControlPlane,
            not_after: u64::MAX,
            serial: 1,
        }
    }

    async fn session(node: &TestNode, address: SocketAddr, purpose: Purpose) -> Channel {
        let operator = Endpoint::new(None, node.accepts(ExpectedMembership::New));
        let session = channel(&operator, purpose, &address.to_string()).await;
        session.unwrap().channel
    }

    async fn present(node: &TestNode, address: SocketAddr, role_grant: Vec<u8>) -> Result<(), Status> {
        let session = session(node, address, Purpose::Grant).await;
        let mut client = ApiClient::new(session);
        client.present_grant(PresentGrantRequest { role_grant }).await.map(drop)
    }

    async fn a_control_plane_asks_for_a_ticket_once_it_has_a_grant(technology: &'static dyn Technology) {
        let join_service = Arc::new(OnceLock::new());
        let node = TestNode::reaching(technology, NodeRole::ControlPlane, None, join_service.clone());
        let service = FakeJoinService::honest();
        let grants = service.grants.clone();
        let service = serve(service, &node, member(&node)).await;
        join_service.set(service.address).unwrap();
        let (address, running) = node.start().await;
        let granted = grant(&node).sign(&operator_key());
        // Several rounds.
        sleep(Duration::from_secs(2)).await;
        assert!(grants.lock().unwrap().is_empty());
        present(&node, address, granted.clone()).await.unwrap();
        let asked = async {
            while grants.lock().unwrap().is_empty() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(30), asked).await.unwrap();
        assert_eq!(grants.lock().unwrap()[0], granted);
        running.abort();
    }

    async fn a_grant_that_is_not_the_operators_for_this_machine_is_refused(technology: &'static dyn Technology) {
        let node = TestNode::new(technology, NodeRole::ControlPlane);
        let (address, running) = node.start().await;
        let (good, other) = (grant(&node), OperatorKey::from_seed(&[1; 32]));
        let of_another_machine = RoleGrant {
            machine: AttestedIdentity::new(Digest::new([7; 32])),
            ..good
        };
        let of_a_worker = RoleGrant {
            role: NodeRole::Worker,
            ..good
        };
        for refused in [
            good.sign(&other),
            of_another_machine.sign(&operator_key()),
            of_a_worker.sign(&operator_key()),
            Vec::new(),
        ] {
            let error = present(&node, address, refused).await.unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied, "{error}");
            assert!(error.message().starts_with("role_grant is refused"), "{error}");
        }
        assert!(node.node.role_grant.borrow().is_none());
        // The key service decides about everything else.
        let elsewhere = RoleGrant {
            cluster: ClusterId::new([7; 32]),
            ..good
        };
        present(&node, address, elsewhere.sign(&operator_key())).await.unwrap();
        running.abort();
    }

    async fn a_worker_takes_no_grant(technology: &'static dyn Technology) {
        let node = TestNode::new(technology, NodeRole::Worker);
        let (address, running) = node.start().await;
        let error = present(&node, address, grant(&node).sign(&operator_key())).await;
        assert_eq!(error.unwrap_err().message(), InvalidGrant::Worker.to_string());
        running.abort();
    }

    async fn a_session_for_one_purpose_does_not_serve_the_other(technology: &'static dyn Technology) {
        let node = TestNode::new(technology, NodeRole::ControlPlane);
        let (address, running) = node.start().await;
        let for_grants = session(&node, address, Purpose::Grant).await;
        let refused = InitApiClient::new(for_grants).init(InitRequest::default()).await;
        assert_eq!(refused.unwrap_err().message(), "the session is for another purpose");
        let for_init = session(&node, address, Purpose::Init).await;
        let role_grant = grant(&node).sign(&operator_key());
        let mut client = ApiClient::new(for_init);
        let refused = client.present_grant(PresentGrantRequest { role_grant }).await;
        assert_eq!(refused.unwrap_err().message(), "the session is for another purpose");
        running.abort();
    }
}
