use attestation::Purpose;
use attested_tls::attested_node;
use error_report::Chain;
use grpc_api::join::api_server::Api;
use grpc_api::join::{
    IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest, IssueRejoinTicketResponse,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};

use crate::ticket::{IssueTicketError, TicketIssuer};

/// The implementation of `constellation.join.v1.API`.
pub(crate) struct JoinService {
    issuer: TicketIssuer,
    issued: Counter,
    refused: Counter,
    failed: Counter,
}

impl JoinService {
    pub(crate) fn new(issuer: TicketIssuer, metrics: &mut Registry) -> Self {
        let service = Self {
            issuer,
            issued: Counter::default(),
            refused: Counter::default(),
            failed: Counter::default(),
        };
        metrics.register("join_service_tickets_issued", "Tickets issued", service.issued.clone());
        metrics.register(
            "join_service_tickets_refused",
            "Tickets refused to nodes",
            service.refused.clone(),
        );
        metrics.register(
            "join_service_tickets_failed",
            "Tickets that could not be issued",
            service.failed.clone(),
        );
        service
    }

    /// Logs everything. The node learns what is wrong with its request, or a category.
    fn report<T>(
        &self,
        node: &impl std::fmt::Display,
        result: Result<T, IssueTicketError>,
    ) -> Result<Response<T>, Status> {
        match result {
            Ok(ticket) => {
                self.issued.inc();
                info!(%node, "ticket issued");
                Ok(Response::new(ticket))
            }
            Err(error) => Err(match error.refusal() {
                Some(refusal) => {
                    self.refused.inc();
                    warn!(%node, error = %Chain(&error), "ticket refused");
                    refusal
                }
                None => {
                    self.failed.inc();
                    error!(%node, error = %Chain(&error), "cannot issue the ticket");
                    Status::unavailable("the ticket cannot be issued now; try again")
                }
            }),
        }
    }
}

#[tonic::async_trait]
impl Api for JoinService {
    async fn issue_join_ticket(
        &self,
        request: Request<IssueJoinTicketRequest>,
    ) -> Result<Response<IssueJoinTicketResponse>, Status> {
        let node = attested_node(&request, Purpose::Join)?.clone();
        let result = self.issuer.issue_join_ticket(&node, request.into_inner()).await;
        self.report(&node.identity(), result)
    }

    async fn issue_rejoin_ticket(
        &self,
        request: Request<IssueRejoinTicketRequest>,
    ) -> Result<Response<IssueRejoinTicketResponse>, Status> {
        let node = attested_node(&request, Purpose::Rejoin)?.clone();
        let result = self.issuer.issue_rejoin_ticket(&node, request.into_inner()).await;
        self.report(&node.identity(), result)
    }
}
