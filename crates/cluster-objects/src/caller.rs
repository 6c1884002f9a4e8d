use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Api;
use kube::api::PostParams;

use crate::Cluster;

/// The extra field in which the API server names the pod that a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// Who presented a service-account token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user name, such as `system:serviceaccount:kube-system:join-service`.
    pub username: String,
    /// The pod that the token is bound to, if it is bound to one.
    pub pod: Option<String>,
}

/// A token that does not identify a caller of this service.
#[derive(Debug, thiserror::Error)]
pub enum ReviewTokenError {
    /// The API server did not answer.
    #[error("the API server could not review the token")]
    Api(#[source] Box<kube::Error>),
    /// It is forged, expired, of a deleted pod, or of another cluster.
    #[error("the token is not authentic: {0}")]
    NotAuthentic(String),
    /// It is authentic, but for another service.
    #[error("the token is not for audience {0:?}")]
    Audience(&'static str),
}

impl Cluster {
    /// Asks the API server who a token belongs to.
    ///
    /// # Errors
    /// When the token is not authentic or was issued for another audience.
    ///
    /// # Security
    /// An authentic token without the audience is refused: every pod has a token for the API server, and anyone to whom a
    /// pod sends it could present it here.
    pub async fn review_token(&self, token: &str, audience: &'static str) -> Result<Caller, ReviewTokenError> {
        let spec = TokenReviewSpec {
            audiences: Some(vec![audience.into()]),
            token: Some(token.into()),
        };
        let review = TokenReview {
            spec,
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client());
        let reviewed = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| ReviewTokenError::Api(Box::new(error)))?;
        let status = reviewed.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(ReviewTokenError::NotAuthentic(
                status.error.unwrap_or_else(|| "no reason given".into()),
            ));
        }
        if !status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|granted| granted == audience)
        {
            return Err(ReviewTokenError::Audience(audience));
        }
        let user = status.user.unwrap_or_default();
        let username = user.username.filter(|name| !name.is_empty());
        let username = username.ok_or_else(|| ReviewTokenError::NotAuthentic("the review names no user".into()))?;
        let pod = user.extra.and_then(|extra| extra.get(POD_NAME)?.first().cloned());
        Ok(Caller { username, pod })
    }
}
