use futures_util::TryStreamExt;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::json;

use crate::Cluster;

/// Whether a certificate may be signed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Whether the certificate is signed; if not, it never will be.
    pub approved: bool,
    /// Why, for whoever looks at the request.
    pub message: String,
}

/// Certificate requests cannot be read, or a decision cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum CertificateRequestsError {
    /// The API server does not list them, or tells of no more.
    #[error("cannot watch certificate requests")]
    Watch(#[source] Box<kube::Error>),
    /// The API server does not take a decision.
    #[error("cannot decide on certificate request {name}")]
    Decide {
        /// The request's name.
        name: String,
        /// What the API server answered, or why it could not be reached.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Cluster {
    /// Decides on each certificate request that nobody has decided on, those that are there and those that come, until the API server
    /// ends the watch. `decide` gives nothing for a request that is not its own.
    ///
    /// # Errors
    /// When the API server refuses something or cannot be reached.
    ///
    /// # Cancel safety
    /// A request without a decision is found by the next call.
    pub async fn decide_on_certificate_requests(
        &self,
        decide: impl Fn(&CertificateSigningRequest) -> Option<Approval>,
    ) -> Result<(), CertificateRequestsError> {
        let watch_error = |error| CertificateRequestsError::Watch(Box::new(error));
        let requests: Api<CertificateSigningRequest> = Api::all(self.client());
        let listed = requests.list(&ListParams::default()).await.map_err(watch_error)?;
        for request in &listed.items {
            self.decide_on(&requests, request, &decide).await?;
        }
        let from = listed.metadata.resource_version.unwrap_or_default();
        let events = requests
            .watch(&WatchParams::default(), &from)
            .await
            .map_err(watch_error)?;
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.try_next().await.map_err(watch_error)? {
            match event {
                WatchEvent::Added(request) | WatchEvent::Modified(request) => {
                    self.decide_on(&requests, &request, &decide).await?;
                }
                WatchEvent::Error(status) => return Err(watch_error(kube::Error::Api(status))),
                WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            }
        }
        Ok(())
    }

    async fn decide_on(
        &self,
        requests: &Api<CertificateSigningRequest>,
        request: &CertificateSigningRequest,
        decide: impl Fn(&CertificateSigningRequest) -> Option<Approval>,
    ) -> Result<(), CertificateRequestsError> {
        if is_decided(request) {
            return Ok(());
        }
        let Some(Approval { approved, message }) = decide(request) else {
            return Ok(());
        };
        let name = request.metadata.name.clone().unwrap_or_default();
        let condition = json!({
            "type": if approved { "Approved" } else { "Denied" },
            "status": "True",
            "reason": "ConstellationJoinService",
            "message": message,
        });
        // With the version that was looked at: another join service may have been faster.
        let patch = json!({
            "metadata": {"resourceVersion": request.metadata.resource_version},
            "status": {"conditions": [condition]},
        });
        let patched = requests
            .patch_approval(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            Ok(_) => Ok(()),
            // Decided on, changed or gone meanwhile. A change comes as an event.
            Err(kube::Error::Api(status)) if status.reason == "Conflict" || status.reason == "NotFound" => Ok(()),
            Err(error) => Err(CertificateRequestsError::Decide {
                name,
                source: Box::new(error),
            }),
        }
    }
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    let status = request.status.as_ref();
    status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| !conditions.is_empty())
}
