//! `GET /?nonce=<base64url of 32 random bytes>` gives `{"data": "<base64 of encoded Evidence>"}`.

use accept_loop::FairListener;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::service::{QuoteError, Quoting};

/// Open connections. One source does not take the places of others.
const PLACES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    nonce: String,
}

#[derive(Serialize)]
struct Document {
    data: String,
}

/// Serves until the service drains.
pub(crate) async fn serve(
    listener: TcpListener,
    quoting: Quoting,
    draining: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = Router::new().route("/", get(attestation)).with_state(quoting);
    axum::serve(FairListener::new(listener, PLACES), app)
        .with_graceful_shutdown(draining)
        .await
}

async fn attestation(State(quoting): State<Quoting>, Query(parameters): Query<Parameters>) -> Response {
    let Ok(nonce) = BASE64_URL_SAFE.decode(&parameters.nonce) else {
        return refuse(StatusCode::BAD_REQUEST, "nonce: expected base64url with padding");
    };
    match quoting.evidence(&nonce).await {
        Ok(evidence) => Json(Document {
            data: BASE64_STANDARD.encode(evidence),
        })
        .into_response(),
        Err(error @ QuoteError::Nonce(_)) => refuse(StatusCode::BAD_REQUEST, &format!("nonce: {error}")),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, format!("{reason}\n")).into_response()
}
