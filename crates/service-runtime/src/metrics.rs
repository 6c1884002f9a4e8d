use std::sync::Arc;

use accept_loop::FairListener;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use error_report::Chain;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Open connections of each port of probes and metrics.
pub(crate) const PLACES: usize = 32;
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(crate) fn serve(listener: TcpListener, registry: Registry, stop: CancellationToken) {
    let registry = Arc::new(registry);
    let app = Router::new().route("/metrics", get(move || async move { render(&registry) }));
    tokio::spawn(async move {
        if let Err(failure) = axum::serve(FairListener::new(listener, PLACES), app)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
        {
            error!(error = %Chain(&failure), "metrics server ended");
        }
    });
}

fn render(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
