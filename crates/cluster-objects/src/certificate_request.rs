use futures_util::TryStreamExt;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::json;

use crate::Cluster;

/// How many requests are in memory at once. Each may have the 1.5 MiB that etcd stores.
const PAGE: u32 = 8;

/// Whether a certificate may be signed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Whether the certificate is signed; if not, it never will be.
    pub approved: bool,
    /// Why, for whoever looks at the request.
    pub message: String,
}

/// Decides on certificate requests of one signer.
pub trait Approver: Send + Sync {
    /// Whose requests it decides on, such as `kubernetes.io/kube-apiserver-client-kubelet`.
    fn signer(&self) -> &'static str;

    /// Nothing for a request that is left to somebody else.
    ///
    /// # Errors
    /// When it cannot be known now; the request is looked at again later.
    fn decide(
        &self,
        request: &CertificateSigningRequest,
    ) -> impl Future<Output = Result<Option<Approval>, CertificateRequestsError>> + Send;
}

/// Certificate requests cannot be read, or a decision cannot be made or stored.
#[derive(Debug, thiserror::Error)]
pub enum CertificateRequestsError {
    /// The API server does not list them, or tells of no more.
    #[error("cannot watch certificate requests")]
    Watch(#[source] Box<kube::Error>),
    /// What the decision depends on cannot be read.
    #[error("cannot decide on a certificate request")]
    Decide(#[from] crate::NodeRecordError),
    /// The API server does not take a decision.
    #[error("cannot store the decision on certificate request {name}")]
    Store {
        /// The request's name.
        name: String,
        /// What the API server answered, or why it could not be reached.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Cluster {
    /// Decides on each of the signer's requests on which nobody has decided: those that are there, then those that come, until the API
    /// server ends the watch. A request that fails does not keep the others waiting.
    ///
    /// # Errors
    /// When the API server refuses something or cannot be reached.
    ///
    /// # Cancel safety
    /// A request without a decision is found by the next call.
    pub async fn decide_on_certificate_requests(
        &self,
        approver: &impl Approver,
    ) -> Result<(), CertificateRequestsError> {
        let requests: Api<CertificateSigningRequest> = Api::all(self.client());
        let of_signer = format!("spec.signerName={}", approver.signer());
        let mut page = ListParams::default().fields(&of_signer).limit(PAGE);
        let mut failed = None;
        let from = loop {
            let listed = requests.list(&page).await.map_err(watch_error)?;
            for request in &listed.items {
                if let Err(error) = decide_on(&requests, request, approver).await {
                    failed = Some(error);
                }
            }
            match listed.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => break listed.metadata.resource_version.unwrap_or_default(),
            }
        };
        // The next call tries them again.
        failed.map_or(Ok(()), Err)?;
        let watch = WatchParams::default().fields(&of_signer);
        let events = requests.watch(&watch, &from).await.map_err(watch_error)?;
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.try_next().await.map_err(watch_error)? {
            match event {
                WatchEvent::Added(request) | WatchEvent::Modified(request) => {
                    decide_on(&requests, &request, approver).await?;
                }
                WatchEvent::Error(status) => return Err(watch_error(kube::Error::Api(status))),
                WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            }
        }
        Ok(())
    }
}

fn watch_error(error: kube::Error) -> CertificateRequestsError {
    CertificateRequestsError::Watch(Box::new(error))
}

async fn decide_on(
    requests: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
    approver: &impl Approver,
) -> Result<(), CertificateRequestsError> {
    if is_decided(request) {
        return Ok(());
    }
    let Some(Approval { approved, message }) = approver.decide(request).await? else {
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
        Err(error) => Err(CertificateRequestsError::Store {
            name,
            source: Box::new(error),
        }),
    }
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    let status = request.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| !conditions.is_empty())
}
